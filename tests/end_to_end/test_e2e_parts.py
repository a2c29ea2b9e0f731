"""One job on several devices: equal to the job on one in every file, safe against kills, and whole where that is as fast."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from e2e_support import Bench, assert_same_results

import virb
from virb.plan import units
from virb.results.schema import Job, validate

ROOT = Path(virb.__file__).parent.parent
PIXELS = "pixels: {arch: pixels, args: {side: 32}, input: {size: 32}}\n"
STRENGTHS = ", ".join(f"{10 ** (i / 10 - 3):.3g}" for i in range(24))
# Large enough for several pieces each, in sizes that nothing in a worker process can be told to lower.
BIG = "{n_train: 4600, n_test: 4200, n_classes: 8}"
TASKS = f"""
defaults: {{data: {BIG}, test_batch_size: 1000, batch_size: 128}}
knn: {{task: 'e2e_data:BLOBS', probe: knn, grid: {{k: [1, 20], temperature: [0.07, 1]}}, refit: true}}
logistic: {{task: 'e2e_data:BLOBS', probe: logistic, grid: {{C: [{STRENGTHS}], max_iter: [2]}}}}
linear: {{task: 'e2e_data:BLOBS', num_epochs: 2, grid: {{optimizer: [sgd, adamw, adam], lr: [0.001, 0.01, 0.1, 1e30]}}}}
"""
SMALL = """
own: {task: folder, data: {root: images}, probe: 'e2e_probes:InPieces'}
grid: {task: folder, data: {root: images}, num_epochs: 3, seeds: 4, grid: {optimizer: [adamw], lr: [0.1, 0.01]}, refit: true}
"""
# What a run does that finds sharing worth its while however small the jobs are.
ALL = "import virb.plan.units as u; u.choose_shared = lambda loads, n: {x.job.id for x in loads if x.stages} if n > 1 else set()"


@pytest.fixture
def share_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "choose_shared", lambda loads, n: {one.job.id for one in loads if one.stages} if n > 1 else set())


def found_pieces(bench: Bench) -> list[tuple[int, int]]:
    """(piece, process) as they were found."""
    log = bench.folder / "found.log"
    return [(int(number), int(process)) for number, process in map(str.split, log.read_text().splitlines())] if log.exists() else []


def last_run(out: Path) -> dict[str, Any]:
    return json.loads(max((out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def parts_of(job: Mapping[str, Any]) -> list[tuple[str, int, int, str]]:
    return sorted((part["stage"], part["number"], part["of"], part["device"]) for part in job["parts"])


@pytest.mark.slow
@pytest.mark.usefixtures("share_all")
def test_jobs_on_two_devices_are_those_on_one(bench: Bench) -> None:
    bench.write(PIXELS, TASKS)
    one, two = bench.folder / "one", bench.folder / "two"
    bench.run_well(out=one)  # makes the features
    answer = bench.run_well(out=two, devices="cpu:2")
    assert_same_results(one, two)
    assert "(3/3" in answer.text  # parts are no jobs
    halves = lambda stage: [(stage, 1, 2, "cpu"), (stage, 2, 2, "cpu")]  # noqa: E731
    assert parts_of(bench.job(label="knn", out=two)) == [("choose", 1, 1, "cpu"), *halves("report")]
    assert parts_of(bench.job(label="logistic", out=two)) == halves("fit")
    assert parts_of(bench.job(label="linear", out=two)) == halves("train")
    assert all(part["seconds"] > 0 for part in bench.job(label="linear", out=two)["parts"])
    assert not bench.job(label="knn", out=one)["parts"]
    assert not (two / ".jobs").exists()
    profile = last_run(two)["profile"]
    assert [worker["name"] for worker in profile["workers"]] == ["cpu:0", "cpu:1"]
    parts = [part["seconds"] for name in ("knn", "logistic", "linear") for part in bench.job(label=name, out=two)["parts"]]
    assert profile["worker_seconds"]["head"] + profile["worker_seconds"]["read"] > 0.9 * sum(parts)
    assert sum(worker["busy_seconds"] for worker in profile["workers"]) > sum(parts)


@pytest.mark.usefixtures("share_all")
def test_pieces_are_found_once_by_two_workers(bench: Bench) -> None:
    bench.write(tasks=SMALL)
    one, two = bench.folder / "one", bench.folder / "two"
    bench.run_well(out=one)
    assert [number for number, _ in found_pieces(bench)] == [0, 1, 2, 3, 4]
    (bench.folder / "found.log").unlink()
    bench.run_well(out=two, devices="cpu:2")
    pieces = found_pieces(bench)
    assert sorted(number for number, _ in pieces) == [0, 1, 2, 3, 4]
    assert os.getpid() not in {process for _, process in pieces}  # by workers; a quick one may have done with them before the other is up
    assert_same_results(one, two)
    assert parts_of(bench.job(label="own", out=two)) == [("means", 1, 2, "cpu"), ("means", 2, 2, "cpu")]
    assert "pieces [[0.0], [1.0], [2.0], [3.0], [4.0]]" in bench.job(label="own", out=two)["notes"]


@pytest.mark.slow
@pytest.mark.usefixtures("share_all")
@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2", "cpu:3"])
def test_a_part_that_fails_fails_the_job_and_the_others_are_kept(bench: Bench, devices: str) -> None:
    """For a run on as many devices as before, or others."""
    bench.write(tasks=SMALL)
    (bench.folder / "fail").touch()
    answer = bench.run(devices="cpu:2")
    assert answer.code == 1
    assert "the fourth piece does not like the weather" in answer.text
    failed = json.loads((bench.out / "pixels/own/failed.json").read_text())
    assert failed["error"]["message"] == "the fourth piece does not like the weather"
    assert bench.job(label="grid")["status"] == "done"
    assert last_run(bench.out)["failed"] == {"pixels/own": "the fourth piece does not like the weather"}
    pieces = sorted(number for number, _ in found_pieces(bench))
    assert pieces == [0, 1, 2, 4]
    (bench.folder / "fail").unlink()
    bench.run_well(devices=devices)
    assert [number for number, _ in found_pieces(bench)[4:]] == [3]
    assert len(bench.job(label="own")["parts"]) == {"cpu:1": 1, "cpu:2": 2, "cpu:3": 4}[devices]
    bench.run_well(out=bench.folder / "calm")
    assert_same_results(bench.out, bench.folder / "calm")


@pytest.mark.slow
@pytest.mark.usefixtures("share_all")
def test_an_eval_only_job_waits_for_heads_that_two_devices_trained(bench: Bench) -> None:
    bench.write(tasks=SMALL.split("\n")[2] + "\nscored: {task: folder, data: {root: images}, heads_from: grid}\n")
    one, two = bench.folder / "one", bench.folder / "two"
    bench.run_well(out=one)
    bench.run_well(out=two, devices="cpu:2")
    alone, shared = (bench.job(label="scored", out=out) for out in (one, two))
    assert (alone["metrics"], alone["chosen"]) == (shared["metrics"], shared["chosen"])
    assert bench.job(label="grid", out=two)["parts"]
    assert not shared["parts"]


def start(bench: Bench, out: Path) -> subprocess.Popen[bytes]:
    """A run that shares all it can, at the head of a process group of its own."""
    arguments = bench.arguments(out=out, devices="cpu:2")
    log = open(f"{out}.log", "ab")  # noqa: SIM115 - the process keeps it
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent)])}
    command = [sys.executable, "-c", f"{ALL}; from virb.cli import main; raise SystemExit(main({arguments!r}))"]
    return subprocess.Popen(command, stdout=log, stderr=log, cwd=bench.folder, env=environment, start_new_session=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills process groups")
def test_a_run_that_was_killed_in_the_middle_of_parts_goes_on(bench: Bench) -> None:
    bench.write(tasks=SMALL)
    calm = bench.folder / "calm"
    bench.run_well(out=calm)
    (bench.folder / "found.log").unlink()
    (bench.folder / "wait").touch()
    process = start(bench, bench.out)
    try:
        deadline = time.monotonic() + 120
        while len(list(bench.out.glob(".jobs/pixels/own/*/pieces/*.pt"))) < 4:  # all but the one that waits
            assert time.monotonic() < deadline
            assert process.poll() is None, Path(f"{bench.out}.log").read_text()
            time.sleep(0.05)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert not (bench.out / "pixels/own/job.json").exists()
    assert sorted(number for number, _ in found_pieces(bench)) == [0, 1, 2, 4]
    (bench.folder / "wait").unlink()
    process = start(bench, bench.out)
    assert process.wait(timeout=120) == 0, Path(f"{bench.out}.log").read_text()
    assert [number for number, _ in found_pieces(bench)[4:]] == [3]
    record = validate(bench.out / "pixels/own/job.json")
    assert isinstance(record, Job)
    assert sorted((part.number, part.of) for part in record.parts) == [(1, 2), (2, 2)]
    assert_same_results(calm, bench.out)
    assert not (bench.out / ".jobs").exists()
