"""What a plan holds: keys, geometries, shared passes, what is cached and done, and every mistake at once."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plan_support import DIGITS, PIXELS, TINY_VIT, MakePlan

from virb.data.images import ArrayImages, Dataset, Samples
from virb.data.sequences import LazySequence
from virb.data.transforms import Geometry
from virb.errors import ConfigError, UserError
from virb.features.cache import FeatureCache
from virb.metrics import base as metrics
from virb.plan import units as plan_units
from virb.plan.build import build_plan
from virb.plan.describe import check_report
from virb.plan.jobs import InMemory, Job, Plan, RunSettings
from virb.plan.samples import samples_id
from virb.plan.units import parse_budget
from virb.tasks import base

SMALL = {"task": "shapes-count", "data": {"n_train": 12, "n_test": 6}}


def only_job(plan: Plan) -> Job:
    (job,) = plan.jobs
    return job


def key(make_plan: MakePlan, encoder: Any = PIXELS, task: Any = DIGITS, **settings: Any) -> str:
    return only_job(make_plan({"e": encoder}, {"t": task}, **settings)).key


def problems(error: ConfigError) -> list[str]:
    return [str(problem) for problem in error.problems]


# The job key


def test_what_does_not_decide_the_numbers_is_not_in_the_key(make_plan: MakePlan, tmp_path: Path) -> None:
    first = key(make_plan)
    (tmp_path / "d").mkdir()
    assert only_job(make_plan({"other": PIXELS}, {"named": DIGITS})).key == first
    assert only_job(make_plan({"e": {**PIXELS, "meta": {"note": "x"}}})).key == first
    for same in (
        {"out": Path("elsewhere")},
        {"devices": ("cpu", "cpu", "cpu")},
        {"cache_dir": Path("cache")},
        {"local_cache": Path("here")},
        {"cache_budget": "0"},
        {"no_cache": True},
        {"num_workers": 3},
        {"data_root": Path("d")},
        {"force": True},
        {"keep_heads": "all"},
        {"command": ("x",)},
    ):
        assert key(make_plan, **same) == first, same
    assert key(make_plan, task={**DIGITS, "pre_encode": False}) == first  # streamed numbers are the cached ones
    assert key(make_plan, task={**DIGITS, "num_epochs": 50}) == first  # the default, said aloud
    assert key(make_plan, encoder={**PIXELS, "input": {"size": 32, "resize": "squash"}}) == first  # as the task has it
    assert key(make_plan, task={**DIGITS, "features": "embedding"}) == first


def test_each_thing_that_decides_the_numbers_is_in_the_key(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = {"optimizer": "adam", "lr": [0.1, 0.2]}
    tasks = [
        DIGITS,
        SMALL,
        {**SMALL, "data": {"n_train": 13, "n_test": 6}},
        {**SMALL, "task": "shapes-class"},
        *({**DIGITS, **change} for change in ({"probe": "mlp"}, {"num_epochs": 3}, {"batch_size": 3}, {"selection": "test-last"})),
        *({**DIGITS, **change} for change in ({"seeds": [3]}, {"seeds": 2}, {"refit": True}, {"views": 2}, {"augment": "crop-flip"})),
        *({**DIGITS, **change} for change in ({"on_bad_image": "skip"}, {"grid": grid}, {"grid": {**grid, "lr": [0.1, 0.3]}})),
        {**DIGITS, "protocol": "virb2021"},
    ]
    found = [key(make_plan, task=task) for task in tasks]
    settings: list[dict[str, Any]] = [{"seed": 1}, {"input_size": 16}, {"precision": "bfloat16"}, {"compile": True}, {"decoder": "fast"}]
    found += [key(make_plan, **change) for change in settings]
    inputs: list[dict[str, Any]] = [{"size": 16}, {"interpolation": "nearest"}, {"mean": [0, 0, 0]}, {"std": [1, 1, 1]}]
    found += [key(make_plan, encoder={**PIXELS, "input": change}) for change in inputs]
    found.append(key(make_plan, encoder={**PIXELS, "args": {"side": 4}}))
    assert len(set(found)) == len(found)


def test_a_list_of_requests_does_not_tie_its_jobs_together(make_plan: MakePlan) -> None:
    few = make_plan({"e": TINY_VIT}, {"t": {**DIGITS, "features": ["cls[0]", "cls[1]"]}})
    more = make_plan({"e": TINY_VIT}, {"t": {**DIGITS, "features": ["cls[0]", "cls[1]", "tokens[-1].mean"]}})
    alone = make_plan({"e": TINY_VIT}, {"t": {**DIGITS, "features": "cls[1]"}})
    assert [job.id for job in more.jobs] == ["e/t@cls0", "e/t@cls1", "e/t@tokens-1.mean"]
    assert [job.key for job in more.jobs][:2] == [job.key for job in few.jobs]
    assert only_job(alone).key == few.jobs[1].key


def test_targets_and_units_are_in_the_id_of_samples() -> None:
    images = ArrayImages("train", np.zeros((3, 4, 4), np.uint8), ["a", "b", "c"])

    def made(**changes: Any) -> str:
        targets = changes.pop("targets", {"class": np.array([0, 1, 0])})
        return samples_id(replace(Samples.one_per_image(images, targets), **changes), "class")

    variants = [
        made(),
        made(targets={"class": np.array([0, 1, 1])}),
        made(units=np.array(["x", "x", "y"])),
        made(ids=np.array(["a", "b", "d"])),
        made(row_values=np.array([0, 2, 1])),
        made(targets={"class": [np.zeros(2), np.zeros(3), np.ones(1)]}),
        made(targets={"class": [np.zeros(2), np.zeros(3), np.zeros(1)]}),
        made(targets={"class": [{"x": 1}, {"x": 2}, {"x": 3}]}),
        made(targets={"class": [{"x": 1}, {"x": 2}, {"x": 4}]}),
        made(targets={"class": [{"x": np.arange(5000)}] * 3}),
        made(targets={"class": [{"x": np.arange(5000) - 9 * (np.arange(5000) == 2000)}] * 3}),  # NumPy's own text leaves out the middle
        made(targets={"class": torch.tensor([0, 1, 1, 1])[:3].to(torch.int16)}),
        made(targets={"class": ["a,b", "c", "d"]}),
        made(targets={"class": ["a", "b,c", "d"]}),
        made(targets={"class": LazySequence(str, 3, {"seed": 0})}),
        made(targets={"class": LazySequence(str, 3, {"seed": 1})}),
        made(ids=np.array(["a", "b", "\udcff"])),  # a file name that is not valid UTF-8
    ]
    assert len(set(variants)) == len(variants)
    assert made(targets={"class": [{"x": 1}, {"x": 2}, {"x": 3}]}) == variants[7]


@pytest.mark.parametrize("targets", [LazySequence(str, 3), [object()] * 3, [{"x": object()}] * 3])
def test_targets_that_do_not_say_what_they_are_are_refused(targets: Any) -> None:
    images = ArrayImages("train", np.zeros((3, 4, 4), np.uint8), ["a", "b", "c"])
    with pytest.raises(UserError, match=r"the targets 'class' of 'train' do not say what they are \(a (LazySequence|object)\)"):
        samples_id(Samples.one_per_image(images, {"class": targets}), "class")


OWN = {
    "lab_task.py": "from virb.tasks.base import Task\nT = Task(id='own', level='video', kind='semantic', dataset='lab_data:data', "
    "metrics=('lab_metric:M',))\n",
    "lab_data.py": "from lab_targets import edit\nfrom virb.data.datasets.digits import digits\n"
    "def data(root=None):\n    return digits()\n",
    "lab_targets.py": "edit = 0\n",
    "lab_probe.py": "from virb.probes.linear import LinearProbe\nclass P(LinearProbe):\n    name = 'own-linear'\n",
    "lab_metric.py": "from lab_score import score\nfrom virb.metrics.base import Metric\n"
    "M = Metric('own', 'own', True, '%', score, score)\n",
    "lab_score.py": "def score(*what):\n    return 0\n",
}


@pytest.mark.parametrize("name", OWN)
def test_every_file_of_the_users_own_is_in_the_key(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def forget() -> None:
        for module in [module for module in sys.modules if module.startswith("lab_")]:
            del sys.modules[module]
        metrics._METRICS.pop("own", None)
        importlib.invalidate_caches()

    def found() -> str:
        forget()
        own = {"task": "lab_task:T", "probe": "lab_probe:P", "training_configs": {"c": {"optimizer": "sgd", "lr": 0.1}}}
        return key(make_plan, task=own)

    monkeypatch.setattr(sys, "path", list(sys.path))
    for file, text in OWN.items():
        (tmp_path / file).write_text(text)
    before = found()
    assert found() == before
    (tmp_path / name).write_text(OWN[name] + "# edited\n")
    assert found() != before
    forget()


# Geometry


def test_who_decides_the_geometry(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._TASKS, "free", replace(base.all_tasks()["digits"], id="free", geometry=None))
    free, fixed = {"task": "free"}, DIGITS
    own = {**PIXELS, "input": {"size": [48, 40], "resize": "squash"}}
    published = Geometry((224, 224), "squash", "none", 1.0, "bilinear")

    def found(encoder: Any, task: Any, **settings: Any) -> tuple[Geometry, str]:
        job = only_job(make_plan({"e": encoder}, {"t": task}, **settings))
        return job.geometry, job.geometry_from

    assert found(PIXELS, free) == (Geometry((224, 224), "shorter", "center", 0.875, "bilinear"), "the encoder's default")
    assert found(PIXELS, fixed) == (Geometry((32, 32), "squash", "none", 1.0, "bilinear"), "task digits")
    assert found(PIXELS, fixed, protocol="virb2021") == (published, "protocol virb2021")
    assert found(own, fixed, protocol="virb2021") == (Geometry((48, 40), "squash", "none", 1.0, "bilinear"), "the experiment list's input:")
    assert found(own, fixed, input_size=20, protocol="virb2021") == (Geometry((20, 20), "squash", "none", 1.0, "bilinear"), "--input_size")
    assert found(PIXELS, free, input_size=20) == (Geometry((20, 20), "shorter", "center", 0.875, "bilinear"), "--input_size")
    normalised = {**PIXELS, "input": {"mean": [0, 0, 0]}}
    assert found(normalised, fixed)[1] == "task digits"  # says nothing of geometry


def test_a_geometry_that_is_not_the_protocols_stands_on_the_card(make_plan: MakePlan) -> None:
    assert only_job(make_plan(protocol="virb2021")).task.changed == {}
    changed = only_job(make_plan(protocol="virb2021", input_size=64)).task.changed
    assert changed == {"geometry": "64px bilinear squashed (--input_size)"}
    assert only_job(make_plan(input_size=64)).task.changed == {}  # the default protocol fixes none


def test_native_size_takes_an_input_size(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    native = Geometry(None, "none", "none", 1.0, "bilinear")
    monkeypatch.setitem(base._TASKS, "native", replace(base.all_tasks()["digits"], id="native", geometry=native))
    plan = make_plan(None, {"t": {"task": "native"}})
    assert only_job(plan).geometry == native
    assert {entry.row_shape for entry in plan.context.entries.values()} == {(768,)}  # a vector has one shape whatever the image's
    assert only_job(make_plan(None, {"t": {"task": "native"}}, input_size=24)).geometry == Geometry(
        (24, 24), "squash", "none", 1.0, "bilinear"
    )


# Sharing and caching


def test_tasks_on_the_same_images_share_entries_and_passes(make_plan: MakePlan) -> None:
    tasks = {"linear": DIGITS, "mlp": {**DIGITS, "probe": "mlp"}, "long": {**DIGITS, "num_epochs": 99}}
    alone, together = make_plan(), make_plan(None, tasks)
    assert len(together.jobs) == 3
    assert set(together.context.entries) == set(alone.context.entries)
    assert [unit for unit in together.units if unit.kind == "pass"] == [
        replace(unit, cost=pytest.approx(unit.cost, rel=1e6)) for unit in alone.units if unit.kind == "pass"
    ]
    assert (together.n_passes, together.rows_to_decode) == (2, 1797)


def test_encoders_of_one_signature_share_entries_and_others_share_the_pass(make_plan: MakePlan) -> None:
    plan = make_plan({"a": PIXELS, "b": PIXELS, "c": {**PIXELS, "args": {"side": 4}}})
    entries = {job.encoder: [role.entries for role in job.roles.values()] for job in plan.jobs}
    assert entries["a"] == entries["b"] != entries["c"]
    assert plan.rows_to_decode == 1797
    passes = [unit.payload for unit in plan.units if unit.kind == "pass"]
    assert {tuple(item.encoder for item in work.wanted) for work in passes} == {("a", "c")}


def test_geometries_share_a_pass_too(make_plan: MakePlan) -> None:
    plan = make_plan({"a": PIXELS, "b": {**PIXELS, "input": {"size": 16, "resize": "squash"}}})
    assert plan.rows_to_decode == 1797
    (sizes,) = {tuple(sorted({item.geometry.size for item in u.payload.wanted})) for u in plan.units if u.kind == "pass"}
    assert sizes == ((16, 16), (32, 32))


def test_passes_are_cut_alike_whatever_the_devices(make_plan: MakePlan) -> None:
    def cuts(plan: Plan) -> list[tuple[int, int]]:
        return [bounds for unit in plan.units if unit.kind == "pass" for bounds in unit.payload.slices]

    assert cuts(make_plan()) == cuts(make_plan(devices=("cpu",) * 7)) == [(0, 512), (512, 1024), (1024, 1438), (0, 359)]


def test_views_are_entries_of_the_training_data_alone(make_plan: MakePlan) -> None:
    job = only_job(make_plan(None, {"t": {**DIGITS, "views": 3}}))
    assert [len(job.roles[role].entries) for role in ("fit", "select", "report")] == [3, 1, 1]
    assert len(set(job.roles["fit"].entries)) == 3
    assert not set(job.roles["fit"].entries) & set(job.roles["select"].entries)
    fresh = make_plan(None, {"t": {**DIGITS, "views": "fresh", "num_epochs": 4}})
    assert len(only_job(fresh).roles["fit"].entries) == 4
    assert [unit.kind for unit in fresh.units if unit.kind != "pass" or unit.payload.wanted] == ["stream"]


def test_no_budget_streams_everything(make_plan: MakePlan) -> None:
    plan = make_plan(None, {"t": DIGITS, "u": SMALL}, cache_budget="0")
    assert all(entry.streamed for entry in plan.context.entries.values())
    assert [(unit.kind, unit.inputs) for unit in plan.units] == [("stream", ()), ("stream", ())]
    assert (plan.n_passes, plan.bytes_new) == (0, 0)
    assert plan.notes == ("4 of 4 feature sets do not fit the cache budget (0): they are encoded while heads train",)


def test_a_small_budget_keeps_the_small_entries(make_plan: MakePlan) -> None:
    whole = make_plan(None, {"t": DIGITS, "u": SMALL})
    sizes = sorted(entry.nbytes for entry in whole.context.entries.values())
    assert sizes == [2 * 768 * n for n in (6, 12, 359, 1438)]
    plan = make_plan(None, {"t": DIGITS, "u": SMALL}, cache_budget=str(sum(sizes[:3])))
    assert sorted(entry.nbytes for entry in plan.context.entries.values() if entry.streamed) == sizes[3:]
    assert {unit.title: unit.kind for unit in plan.units if unit.kind != "pass"} == {"e x t": "stream", "e x u": "probe"}
    assert plan.bytes_new == sum(sizes[:3])


def test_a_cache_that_fills_the_budget_is_named(make_plan: MakePlan, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    cache.write_slice("ab" * 32, 0, np.zeros((500, 1000), np.float32), {})
    notes = make_plan(None, None, cache_dir=tmp_path / "cache", cache_budget="1MB").notes
    assert len(notes) == 2
    assert notes[1].startswith(f"1 MB of the budget are taken by what {tmp_path / 'cache'} holds already: virb cache prune makes room")
    assert make_plan(None, None, cache_dir=tmp_path / "cache", cache_budget="1GB").notes == ()
    assert len(make_plan(None, None, cache_dir=tmp_path / "empty", cache_budget="1kB").notes) == 2  # nor do decoded images


def test_passes_without_sharing_are_counted_by_image_list(make_plan: MakePlan) -> None:
    """Samples held out of fit come from the images of fit: no pass of their own."""
    plan = make_plan({"a": PIXELS, "b": TINY_VIT})
    assert all(job.roles["select"].held_out for job in plan.jobs)
    assert any(line.startswith("passes      2 over images instead of 4,") for line in check_report(plan, []))


def test_workers_share_the_memory_for_encoders(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virb.features.limits.free_memory", lambda: 10**12)
    monkeypatch.setattr("virb.plan.units.weight_bytes", lambda spec: 1e9)
    encoders = {f"e{i}": {"arch": "pixels", "args": {"side": i + 1}} for i in range(4)}
    assert make_plan(encoders).n_passes == 2  # train and test, all four together
    assert make_plan(encoders, devices=("cpu",) * 2).n_passes == 4
    apart = make_plan(encoders, devices=("cpu",) * 3)
    assert (apart.n_passes, apart.rows_in_passes) == (8, 4 * 1797)
    assert apart.rows_to_decode == 1797  # the first pass keeps what it decodes for the others
    features = sum(entry.nbytes for entry in apart.context.entries.values())
    assert make_plan(encoders, devices=("cpu",) * 3, cache_budget=str(features)).rows_to_decode == 4 * 1797


def test_one_task_that_keeps_is_enough_to_keep(make_plan: MakePlan) -> None:
    for order in (("stream", "keep"), ("keep", "stream")):
        tasks = {label: {**DIGITS, "pre_encode": label == "keep", "num_epochs": 3 + (label == "keep")} for label in order}
        assert not any(entry.streamed for entry in make_plan(None, tasks).context.entries.values())
    assert all(entry.streamed for entry in make_plan(None, {"t": {**DIGITS, "pre_encode": False}}).context.entries.values())


def test_only_missing_slices_are_planned(make_plan: MakePlan, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "cache")
    settings: dict[str, Any] = {"cache_dir": tmp_path / "cache"}
    plan = make_plan(None, None, **settings)
    fit = only_job(plan).roles["fit"].entries[0]
    (report,) = only_job(plan).roles["report"].entries
    for key_, start, rows in ((fit, 512, 512), (report, 0, 359)):
        cache.prepare(plan.context.entries[key_].record, plan.context.entries[key_].n_rows)
        cache.write_slice(key_, start, np.zeros((rows, 768), np.float32), {})
    rest = make_plan(None, None, **settings)
    assert [(unit.payload.start, unit.payload.stop) for unit in rest.units if unit.kind == "pass"] == [(0, 512), (1024, 1438)]
    assert rest.rows_to_decode == 512 + 414
    assert rest.bytes_new == 2 * 768 * (512 + 414)
    assert rest.bytes_cached == 2 * 768 * (512 + 359)
    tight = make_plan(None, None, cache_budget=str(cache.size() + rest.bytes_new), **settings)
    assert not any(entry.streamed for entry in tight.context.entries.values())  # what is there is not counted twice


def test_a_scratch_folder_left_by_a_killed_run_does_not_count(make_plan: MakePlan) -> None:
    plan = make_plan(no_cache=True)
    cache = FeatureCache(plan.context.cache_folder)
    (report,) = only_job(plan).roles["report"].entries
    cache.write_slice(report, 0, np.zeros((359, 768), np.float32), {})
    assert make_plan(no_cache=True).rows_to_decode == 1797


def test_where_the_cache_lies(make_plan: MakePlan, tmp_path: Path) -> None:
    assert make_plan().context.cache_folder == Path("out/.virb_cache")
    (tmp_path / "data").mkdir()
    assert make_plan().context.cache_folder == Path("data/.virb_cache")
    assert make_plan(cache_dir=Path("c")).context.cache_folder == Path("c")
    assert make_plan(no_cache=True).context.cache_folder == Path("out/.scratch")


def test_what_is_done_is_not_planned_again(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"a": DIGITS, "b": SMALL}
    done = {("e", "a", make_plan(None, tasks).jobs[0].key)}
    monkeypatch.setattr(plan_units, "finished", lambda out, encoder, label, key: (encoder, label, key) in done)
    plan = make_plan(None, tasks)
    assert ([job.id for job in plan.done], [job.id for job in plan.to_do]) == (["e/a"], ["e/b"])
    assert plan.rows_to_decode == 18
    assert [job.id for job in make_plan(None, tasks, force=True).to_do] == ["e/a", "e/b"]
    assert not make_plan(None, {"a": {**DIGITS, "num_epochs": 3}}).done


def test_nothing_is_written(make_plan: MakePlan, tmp_path: Path) -> None:
    make_plan({"a": PIXELS, "b": TINY_VIT}, {"t": DIGITS, "u": SMALL})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("200GB", 200e9), ("1.5 m", 1.5e6), ("300", 300), ("2tb", 2e12), ("5B", 5)])
def test_budgets(text: str, expected: float, tmp_path: Path) -> None:
    assert parse_budget(text, tmp_path) == expected


@pytest.mark.parametrize("text", ["", "-1", "-5%", "101%", "much", "1e3", "nan", "inf", "5X", "%", "GB"])
def test_wrong_budgets(text: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="write a share of the free disk"):
        parse_budget(text, tmp_path)


def test_a_share_of_the_disk(tmp_path: Path) -> None:
    assert 0.4 < parse_budget("25%", tmp_path / "not" / "there") / parse_budget("50%", tmp_path) < 0.6


# Problems


def test_task_problems_are_said_once_and_encoder_problems_name_both(make_plan: MakePlan) -> None:
    encoders = {"a": PIXELS, "b": PIXELS, "c": TINY_VIT}
    tasks = {
        "gone": {"task": "EgoHands"},
        "typo": {**DIGITS, "features": "tokens[-1].main"},
        "option": {"task": "shapes-count", "data": {"n_trian": 3}},
        "named": {"task": "digits", "data": {"name": "x"}},
        "rooted": {"task": "folder", "data": {"root": "nowhere"}},
        "blocks": {**DIGITS, "features": "cls[99]"},
        "fine": DIGITS,
    }
    with pytest.raises(ConfigError) as failure:
        make_plan(encoders, tasks)
    found = {}
    for problem in failure.value.problems:
        found.setdefault(problem.key, []).append(problem.message)
    assert found.pop("blocks.features") == [
        "encoder \"a\" (pixels 16x16): no output 'cls' (it has embedding, tokens, pyramid)",
        "encoder \"b\" (pixels 16x16): no output 'cls' (it has embedding, tokens, pyramid)",
        'encoder "c" (vit_tiny/8): cls[99] names block 99 of 12 (0 to 11, or -12 to -1)',
    ]
    assert sorted(found) == ["gone", "named.data", "option.data", "rooted.data", "typo.features"]
    assert all(len(messages) == 1 for messages in found.values())
    assert found["option.data"] == ["dataset shapes has no option 'n_trian'; did you mean n_train?"]
    assert found["rooted.data"] == ["root: there is neither data/nowhere (below --data_root) nor nowhere"]


def test_impossible_inputs_are_located_at_the_encoder(make_plan: MakePlan) -> None:
    with pytest.raises(ConfigError) as failure:
        make_plan({"e": {**PIXELS, "input": {"resize": "shorter", "crop": "none"}}}, {"t": DIGITS, "u": SMALL})
    (problem,) = failure.value.problems
    assert problem.key == "e.input"
    assert "add crop center, or squash" in problem.message


def test_names_that_meet_over_requests_and_protocols(make_plan: MakePlan) -> None:
    requests = {**DIGITS, "features": ["cls[0]", "cls[1]"]}
    with pytest.raises(ConfigError) as failure:
        make_plan({"e": TINY_VIT}, {"t": requests, "t@cls1": DIGITS, "u": DIGITS, "u-lr0.001-wd0": DIGITS})
    assert problems(failure.value) == [
        "<python>  t@cls1  given twice; first in <python>",
        "<python>  u-lr0.001-wd0.task  the task u-lr0.001-wd0 and u's training config lr0.001-wd0 (<python>) would share the folder "
        "u-lr0.001-wd0",
    ]


def test_encoder_names_are_checked_whoever_gives_them(tmp_path: Path, make_plan: MakePlan) -> None:
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    names = ["runs", "a/b", "same", "Same"]
    with pytest.raises(ConfigError) as failure:
        build_plan(RunSettings(), [InMemory(name, network) for name in names], ())
    assert [problem.key for problem in failure.value.problems if problem.key] == ["Same", "a/b", "runs"]


def test_folders_of_another_label_are_left_alone(make_plan: MakePlan, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "e" / "a-b"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"kind": "training_config", "label": "a", "config": "b"}')
    with pytest.raises(ConfigError, match=r"a-b  .*holds training config b of label a; rename one of the labels or choose another --out"):
        make_plan(None, {"a-b": DIGITS})


def test_an_out_folder_that_cannot_be_one(make_plan: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--out  .*file is a file, not a folder"):
        make_plan(out=tmp_path / "file" / "out")


def test_nothing_to_run_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="there are no encoders to run"):
        build_plan(RunSettings(), (), ())


def test_a_network_that_fails_at_the_tasks_size_is_named(make_plan: MakePlan) -> None:
    class Fixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3 * 224 * 224, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1))

    tasks = make_plan(None, {"t": DIGITS})
    assert tasks.jobs
    from virb.config import task_config_from_mapping
    from virb.tasks.vocabulary import TaskVocabulary

    config = task_config_from_mapping("t", DIGITS, TaskVocabulary([]))
    with pytest.raises(ConfigError, match=r't  encoder "mine": embedding fails on images of 32 x 32: RuntimeError'):
        build_plan(RunSettings(), [InMemory("mine", Fixed())], [config])


def _odd_dataset(root: Path | None = None, **options: Any) -> Dataset:
    images = ArrayImages("train", np.zeros((4, 8, 8), np.uint8), list("abcd"))
    few = Samples.one_per_image(images, {"class": np.arange(4) % 2})
    none = Samples(np.array([], str), "train", np.array([], int), np.array([0]), {"class": np.array([], int)})
    if options.get("fail"):
        raise ValueError("bad day")
    return Dataset("odd", {"train": images}, {"train": few, "empty": none, "blind": replace(few, targets={})}, {"class": ("x", "y")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"roles": {"fit": "train", "report": "test"}}, r"the dataset odd has no split 'test' \(it has: train, empty, blind\)"),
        ({"roles": {"fit": "train", "report": "empty"}}, "split empty of odd .role report. has no samples"),
        ({"roles": {"fit": "train", "report": "blind"}}, r"split blind of odd has no target 'class' \(it has: none\)"),
        ({"target": "mask"}, r"no target 'mask' \(it has: class\)"),
        ({"options": {"fail": True}}, "failed: ValueError: bad day"),
        ({"dataset": "test_plan_build:nothing"}, "has no 'nothing' .asked for by the dataset"),
        ({"dataset": "dijits"}, "no dataset 'dijits'; did you mean digits"),
    ],
)
def test_data_that_is_not_there(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str) -> None:
    monkeypatch.setitem(sys.modules, "test_plan_build", sys.modules[__name__])
    plain = {"dataset": "test_plan_build:_odd_dataset", "roles": {"fit": "train", "report": "train"}, "geometry": None}
    monkeypatch.setitem(base._TASKS, "odd", replace(base.all_tasks()["digits"], id="odd", **{**plain, **changes}))
    with pytest.raises(ConfigError, match=message) as failure:
        make_plan({"a": PIXELS, "b": PIXELS}, {"t": {"task": "odd"}})
    assert len(failure.value.problems) == 1


def test_roots_lie_below_the_data_root(make_plan: MakePlan, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name, value in (("cat", 10), ("dog", 200)):
            folder = tmp_path / "mine" / "animals" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8), (value,) * 3).save(folder / f"{number}.png")
    task = {"task": "folder", "data": {"root": "animals"}}
    plan = make_plan(None, {"t": task}, data_root=Path("mine"))
    assert only_job(plan).classes == ("cat", "dog")
    here = make_plan(None, {"t": {"task": "folder", "data": {"root": "mine/animals"}}})
    assert only_job(here).key == only_job(plan).key  # where data lies decides nothing
    with pytest.raises(ConfigError, match="there is neither data/animals"):
        make_plan(None, {"t": task})
