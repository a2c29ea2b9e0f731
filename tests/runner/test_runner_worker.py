"""A worker loads each encoder once, reads each entry once a job, and what memory taught it stands in the results."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from virb.config import Where, encoder_config_from_mapping, task_config_from_mapping
from virb.errors import ViRBError
from virb.features.cache import DamagedSlices, FeatureCache, slice_bounds
from virb.io import read_json
from virb.plan.build import build_plan
from virb.plan.graph import Graph
from virb.plan.jobs import InMemory, Plan, RunSettings
from virb.results.schema import VOLATILE
from virb.runner import worker
from virb.runner.local import run_units
from virb.runner.worker import make_doer
from virb.tasks.vocabulary import TaskVocabulary

DIGITS = {"task": "digits", "num_epochs": 1, "grid": {"optimizer": ["sgd"], "lr": [0.1]}}  # 3 slices of train, 1 of test
WORDS = TaskVocabulary(["pixels"])


def plan_of(encoders: Sequence[Any], folder: Path, task: dict[str, Any] | None = None, **settings: Any) -> Plan:
    tasks = [task_config_from_mapping("t", task or DIGITS, WORDS, protocol=None)]
    return build_plan(RunSettings(out=folder / "out", data_root=folder, **settings), encoders, tasks)


def pixels(n: int) -> list[Any]:
    """Encoders that share no entry."""
    return [encoder_config_from_mapping(f"e{i:02d}", {"arch": "pixels", "args": {"side": i + 1}}, WORDS) for i in range(n)]


def do(plan: Plan, kinds: tuple[str, ...] = ("pass", "probe", "stream")) -> Any:
    doer = make_doer(plan.context, "cpu")
    graph = Graph(plan.units)
    notes = []
    while (unit := graph.next_ready()) is not None:
        graph.start(unit)
        if unit.kind not in kinds:
            graph.fail(unit, "left out")
            continue
        report = doer(unit, lambda *_: None)
        notes += report.notes
        assert graph.finish(unit, report) == []
    return doer, notes


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loaded(monkeypatch) -> Counter[str]:
    """How often each encoder was loaded."""
    counts: Counter[str] = Counter()
    load = worker.load_encoder

    def counting(what, *, name, **rest):
        counts[name] += 1
        return load(what, name=name, **rest)

    monkeypatch.setattr(worker, "load_encoder", counting)
    return counts


def test_many_encoders_are_loaded_once(tmp_path, loaded):
    plan = plan_of(pixels(12), tmp_path)
    passes = [unit for unit in plan.units if unit.kind == "pass"]
    assert [len(unit.payload.slices) for unit in passes] == [3, 1]
    assert all(len({item.encoder for item in unit.payload.wanted}) == 12 for unit in passes)
    do(plan, kinds=("pass",))
    assert loaded == {f"e{i:02d}": 1 for i in range(12)}


def test_encoders_are_kept_as_far_as_the_limit_goes_and_those_of_a_pass_always(tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(worker, "weight_bytes", lambda spec: 10.0)
    monkeypatch.setattr(worker, "encoder_limit", lambda devices: 30.0)
    doer = make_doer(plan_of(pixels(5), tmp_path).context, "cpu")
    for name in ("e00", "e01", "e02", "e00", "e03"):  # e01 is the one used longest ago
        doer.encoder(name)
    assert list(doer._encoders) == ["e02", "e00", "e03"]
    together = {"e00", "e02", "e03", "e04"}
    for name in sorted(together):
        doer.encoder(name, together)
    assert set(doer._encoders) == together  # more than the limit, but this pass needs them
    assert loaded == {f"e{i:02d}": 1 for i in range(5)}
    doer.encoder("e01")
    assert len(doer._encoders) == 3


@pytest.mark.parametrize("limit", [25.0, 35.0])
def test_a_plan_in_groups_loads_each_encoder_once_per_list(tmp_path, loaded, monkeypatch, limit):
    for module in ("virb.runner.worker", "virb.plan.units"):
        monkeypatch.setattr(f"{module}.weight_bytes", lambda spec: 10.0)
        monkeypatch.setattr(f"{module}.encoder_limit", lambda devices: limit)
    plan = plan_of(pixels(6), tmp_path)
    groups = 6 // int(limit // 10)
    assert plan.n_passes == 2 * groups  # what is decoded once per group is a pass per group
    do(plan, kinds=("pass",))
    assert set(loaded.values()) <= {1, 2}  # not once a slice: train has three


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each entry was read from the cache."""
    counts: Counter[str] = Counter()
    slices = FeatureCache.slices

    def counting(self, key, n_rows):
        counts[key] += 1
        return slices(self, key, n_rows)

    monkeypatch.setattr(FeatureCache, "slices", counting)
    return counts


def test_an_entry_is_read_and_checked_once_a_job(tmp_path, reads):
    plan = plan_of(pixels(2), tmp_path, devices=("cpu", "cpu"))  # select is held out of fit: two roles of one entry
    do(plan)
    assert reads == dict.fromkeys(plan.context.entries, 1)


def results_of(plan: Plan) -> dict[str, Any]:
    """All that jobs say but what may differ between runs that found the same."""
    return {job.id: stable(read_json(plan.settings.out / job.encoder / job.label / "job.json")) for job in plan.jobs}


def stable(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in VOLATILE}


def test_what_comes_straight_from_the_pass_is_not_read_and_gives_the_same(tmp_path, reads):
    plan = plan_of(pixels(2), tmp_path)
    do(plan)
    assert reads == {}
    first = results_of(plan)
    tiers = [read_json(plan.settings.out / name / "t" / "job.json")["tier"] for name in ("e00", "e01")]
    assert tiers == ["host, straight from the pass"] * 2
    # Another run finds all of it in the cache, and says the same: heads, curves and samples are functions of these numbers.
    again = plan_of(pixels(2), tmp_path, force=True)
    heads = {path: path.read_bytes() for path in plan.settings.out.rglob("*.pt")}
    do(again)
    assert reads == dict.fromkeys(plan.context.entries, 1)
    assert results_of(again) == first
    assert heads
    assert all(path.read_bytes() == content for path, content in heads.items())
    assert read_json(plan.settings.out / "e00" / "t" / "job.json")["tier"] == "host"


def test_a_part_of_an_entry_is_not_enough(tmp_path, reads):
    plan = plan_of(pixels(1), tmp_path)
    do(plan, kinds=("pass",))
    (train,) = (key for key, entry in plan.context.entries.items() if entry.n_rows > 512)
    cache = FeatureCache(plan.context.cache_folder)
    cache.slice_path(train, 512, "json").unlink()
    rest = plan_of(pixels(1), tmp_path)
    assert len([unit for unit in rest.units if unit.kind == "pass"]) == 1
    do(rest)
    assert reads == dict.fromkeys(plan.context.entries, 1)
    assert read_json(plan.settings.out / "e00" / "t" / "job.json")["tier"] == "host"


def test_a_unit_makes_the_slices_that_are_not_there(tmp_path):
    """Another run may have made some since this one was planned."""
    whole = plan_of(pixels(2), tmp_path / "whole")
    do(whole, kinds=("pass",))
    source, plan = FeatureCache(whole.context.cache_folder), plan_of(pixels(2), tmp_path)
    cache = FeatureCache(plan.context.cache_folder)
    train = sorted(key for key, entry in plan.context.entries.items() if entry.n_rows > 512)
    for key, start in ((train[0], 512), (train[1], 512), (train[1], 1024)):
        for extension in ("bin", "json"):
            path = cache.slice_path(key, start, extension)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.slice_path(key, start, extension).read_bytes())
    there = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*.bin")}
    (unit,) = (unit for unit in plan.units if unit.kind == "pass" and train[0] in unit.outputs)
    told, doer = [], make_doer(plan.context, "cpu")
    report = doer(unit, lambda *said: told.append(said))
    assert (report.failed, report.counts["rows"]) == ({}, 512 + 414)
    assert told[-1] == ("encoding", 512 + 414, 512 + 414)
    assert all(path.stat().st_mtime_ns == time for path, time in there.items())
    for key in train:
        for path in source.entry_folder(key).glob("0*.bin"):
            assert (cache.entry_folder(key) / path.name).read_bytes() == path.read_bytes()
    counts = doer(unit, lambda *_: None).counts
    assert (counts["rows"], counts["decoded"]) == (0, 0)


def test_what_an_interrupted_unit_has_cost(tmp_path):
    plan = plan_of(pixels(1), tmp_path)
    unit, doer = plan.units[0], make_doer(plan.context, "cpu")

    def tell(phase, done, total):
        if done > 1000:  # in the second of three slices
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        doer(unit, tell)
    spent = doer.spent()
    assert 1000 < spent.counts["rows"] <= 1024
    assert spent.seconds["encode"] > 0
    assert spent.seconds["compute"] == 0  # of units that did not come to their end there is no rate
    (train,) = unit.outputs
    assert FeatureCache(plan.context.cache_folder).has_slice(train, 0)
    assert not FeatureCache(plan.context.cache_folder).has_slice(train, 1024)


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_a_damaged_slice_is_made_again_by_the_job_that_finds_it(tmp_path, devices):
    plan = plan_of(pixels(2), tmp_path, devices=devices)
    do(plan)
    first = results_of(plan)
    cache = FeatureCache(plan.context.cache_folder)
    (hurt,) = (key for key, entry in plan.context.entries.items() if entry.n_rows > 512 and entry.wanted.encoder == "e01")
    path = cache.slice_path(hurt, 512)
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    again = plan_of(pixels(2), tmp_path, devices=devices, force=True)
    assert [unit.kind for unit in again.units if not unit.is_job] == []  # by the names of its files all is there
    doer, notes = do(again)
    assert notes == ["features of e01 were damaged on disk: 1 slice made again"]
    assert results_of(again) == first
    assert path.read_bytes() == whole
    assert doer.held is None or doer.held.find(hurt) is None


def test_a_damaged_slice_that_two_workers_find_is_made_once(tmp_path, monkeypatch):
    tasks = [task_config_from_mapping(name, {**DIGITS, "batch_size": 64 * n}, WORDS, protocol=None) for n, name in ((1, "t"), (2, "u"))]
    settings = RunSettings(out=tmp_path / "out", data_root=tmp_path, devices=("cpu", "cpu"))
    plan = build_plan(settings, pixels(1), tasks)
    do(plan)
    cache = FeatureCache(plan.context.cache_folder)
    (hurt,) = (key for key, entry in plan.context.entries.items() if entry.n_rows > 512)
    whole = cache.slice_path(hurt, 512).read_bytes()
    cache.slice_path(hurt, 512).write_bytes(b"")
    again = build_plan(replace(settings, force=True), pixels(1), tasks)
    jobs = [unit for unit in again.units if unit.is_job]
    both, written, slices, write = threading.Barrier(2), [], FeatureCache.slices, FeatureCache.write_slice

    def finding(self, key, n_rows):
        try:
            return slices(self, key, n_rows)
        except DamagedSlices:
            both.wait(20)  # each has found it before anybody makes it again
            raise

    def slow(self, key, start, *rest):
        written.append((key, start))
        time.sleep(0.2)
        return write(self, key, start, *rest)

    monkeypatch.setattr(FeatureCache, "slices", finding)
    monkeypatch.setattr(FeatureCache, "write_slice", slow)
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda job: make_doer(again.context, "cpu")(job, lambda *_: None), jobs))
    assert written == [(hurt, 512)]
    assert cache.slice_path(hurt, 512).read_bytes() == whole
    assert sorted(len(report.notes) for report in reports) == [0, 1]
    # What it took is told by who did it, and is no part of reading.
    idle, busy = sorted(reports, key=lambda report: report.counts["streamed"])
    assert (idle.counts["streamed"], busy.counts["streamed"]) == (0, 512)
    assert busy.seconds["encode"] > 0
    assert busy.seconds["write"] >= 0.2
    assert busy.seconds["read"] < 0.2
    assert "encode" not in idle.seconds


def test_what_cannot_be_made_again_says_why(tmp_path, monkeypatch):
    plan = plan_of(pixels(1), tmp_path)
    do(plan)
    cache = FeatureCache(plan.context.cache_folder)
    for key in plan.context.entries:
        cache.slice_path(key, 0).write_bytes(b"")
    again = plan_of(pixels(1), tmp_path, force=True)
    monkeypatch.setattr(worker, "load_encoder", lambda *_, **__: (_ for _ in ()).throw(ViRBError("the weights are gone")))
    with pytest.raises(ViRBError, match="the weights are gone"):
        do(again)


def test_a_job_that_runs_out_of_memory_has_another_try_without_what_is_held(tmp_path, monkeypatch):
    plan = plan_of(pixels(1), tmp_path)
    doer, _ = do(plan, kinds=("pass",))
    tries = []
    real = worker.write_outcome

    def greedy(facts, outcome):
        tries.append(facts.tier)
        if "straight" in facts.tier:
            raise torch.OutOfMemoryError("no room")
        return real(facts, outcome)

    monkeypatch.setattr(worker, "write_outcome", greedy)
    (unit,) = (unit for unit in plan.units if unit.is_job)
    doer(unit, lambda *_: None)
    assert tries == ["host, straight from the pass", "host"]
    monkeypatch.setattr(worker, "write_outcome", lambda facts, outcome: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(ViRBError, match=r"e00/t ran out of memory on cpu"):
        doer(unit, lambda *_: None)


class Greedy(torch.nn.Module):
    """Runs out of memory for more than ``most`` images."""

    most, seen = 10**6, list[int]()  # of the class: attributes of a network decide its id

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Greedy.seen.append(len(images))
        if len(images) > Greedy.most:
            raise torch.OutOfMemoryError("no room")
        return self.linear(images.mean((2, 3)))


@pytest.fixture
def greedy(monkeypatch) -> Greedy:
    monkeypatch.setattr(Greedy, "most", 10**6)
    torch.manual_seed(0)
    return Greedy()


def run_greedy(network: Greedy, folder: Path, **settings: Any) -> tuple[list[str], dict[str, Any], Plan]:
    plan = plan_of([InMemory("greedy", network, Where("<python>", 0, "greedy"))], folder, **settings)
    Greedy.most, Greedy.seen = 8, []
    _, notes = do(plan)
    return notes, read_json(plan.settings.out / "greedy" / "t" / "job.json"), plan


NOTE = "memory held 8 images of the 32 that greedy was given at once: it encoded smaller batches"


def test_what_memory_taught_is_kept_over_slices_and_stands_in_the_results(tmp_path, greedy):
    notes, job, plan = run_greedy(greedy, tmp_path)
    assert greedy.seen[:4] == [2, 32, 16, 8]  # the first two images when it is loaded
    assert set(greedy.seen[4:]) == {8}  # not tried again in any of the four slices
    assert len(notes) == 2
    headers = [read_json(path) for path in plan.context.cache_folder.glob("*/*/0*.json")]
    assert [header["batch"] for header in headers] == [[8, 32]] * 4
    assert job["notes"] == [NOTE]
    # Another run that finds the features made knows it too.
    Greedy.most = 10**6
    _, again, _ = run_greedy(greedy, tmp_path, force=True)
    assert again["notes"] == [NOTE]
    assert again["metrics"] == job["metrics"]


def test_a_stream_says_so_too(tmp_path, greedy):
    notes, job, _ = run_greedy(greedy, tmp_path, cache_budget="0")
    assert job["streamed"]
    assert len(notes) == 2
    assert job["notes"] == [NOTE]


def test_nothing_is_said_where_memory_was_enough(tmp_path):
    plan = plan_of(pixels(1), tmp_path)
    do(plan)
    assert all("batch" not in read_json(path) for path in plan.context.cache_folder.glob("*/*/0*.json"))
    assert read_json(plan.settings.out / "e00" / "t" / "job.json")["notes"] == []


def test_a_job_tells_what_its_passes_took(tmp_path):
    plan = plan_of(pixels(2), tmp_path)
    do(plan)
    for name in ("e00", "e01"):
        timings = {timing["stage"]: timing for timing in read_json(plan.settings.out / name / "t" / "job.json")["timings"]}
        (job,) = (job for job in plan.jobs if job.encoder == name)
        keys = {key for role in job.roles.values() for key in role.entries}
        headers = [read_json(path) for key in keys for path in FeatureCache(plan.context.cache_folder).entry_folder(key).glob("0*.json")]
        assert len(headers) == 4
        for stage in ("decode", "encode", "write"):
            assert timings[f"pass: {stage}"]["seconds"] == pytest.approx(sum(header["seconds"][stage] for header in headers), abs=1e-3)
            assert timings[f"pass: {stage}"]["items"] == 1797
        assert timings["pass: decode"]["seconds"] > 0


def test_a_job_alone_has_all_cores(tmp_path, monkeypatch):
    """Two workers, but one job: its probe may keep every core busy, and is told so."""
    given = []
    real = worker.Context

    def noted(*arguments, **options):
        given.append(options["cores"])
        return real(*arguments, **options)

    monkeypatch.setattr(worker, "Context", noted)
    monkeypatch.setattr("virb.runner.devices.available_cores", lambda: 6)
    do(plan_of(pixels(1), tmp_path, devices=("cpu", "cpu")))
    do(plan_of(pixels(2), tmp_path / "two", devices=("cpu", "cpu")))
    assert given == [6, 3, 3]


def test_where_the_disk_is_full_only_what_a_job_waits_for_is_made(tmp_path, monkeypatch):
    """The larger entries find no room; the smaller of the same slices do, and nothing is encoded in vain after that."""
    plan = plan_of([*pixels(1), *pixels(3)[2:]], tmp_path, devices=("cpu", "cpu"))  # two devices: all goes by the disk
    small, large = ({key for key, entry in plan.context.entries.items() if entry.wanted.encoder == name} for name in ("e00", "e02"))
    real, tried, write = os.replace, Counter(), FeatureCache.write_slice

    def full(source, target):
        if str(target).endswith(".bin") and Path(target).parent.name in large:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    def counting(self, key, *rest):
        tried[key] += 1
        return write(self, key, *rest)

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr(FeatureCache, "write_slice", counting)
    graph, notes, lost = Graph(plan.units), [], {}
    doer = make_doer(plan.context, "cpu")
    watcher = SimpleNamespace(**dict.fromkeys(("finished", "started", "tick", "advanced", "failed"), lambda *_: None), note=notes.append)
    run_units(graph, None, ("cpu",), lambda *_: doer, watcher, lambda unit, reason: lost.update({unit.key: reason}))
    assert graph.finished
    assert list(lost) == ["job e02/t"]
    assert "the disk is full" in lost["job e02/t"]
    assert "job e00/t" in graph.done
    slices = {key: len(slice_bounds(plan.context.entries[key].n_rows)) for key in small | large}
    assert {key: tried[key] for key in small} == {key: slices[key] for key in small}
    assert all(1 <= tried[key] < max(slices[key], 2) for key in large)
    assert notes == []  # every pass had something to make


def test_where_the_disk_is_full_passes_that_nobody_waits_for_are_not_run(tmp_path, monkeypatch):
    plan = plan_of(pixels(2), tmp_path, devices=("cpu", "cpu"))
    real = os.replace

    def full(source, target):
        if str(target).endswith(".bin"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    graph, notes, lost, begun = Graph(plan.units), [], {}, []
    doer = make_doer(plan.context, "cpu")
    watcher = SimpleNamespace(**dict.fromkeys(("finished", "tick", "advanced", "failed"), lambda *_: None), note=notes.append)
    watcher.started = lambda slot, unit: begun.append(unit.kind)
    run_units(graph, None, ("cpu",), lambda *_: doer, watcher, lambda unit, reason: lost.update({unit.key: reason}))
    assert set(lost) == {"job e00/t", "job e01/t"}
    n_passes = sum(unit.kind == "pass" for unit in plan.units)
    assert begun == ["pass"]
    assert len(graph.given_up) == n_passes - 1 > 0
    assert notes == ["the disk is full: features that no job waits for any more are not made"]
