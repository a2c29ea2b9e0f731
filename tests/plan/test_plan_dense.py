"""Plans of pixelwise tasks: their geometry, the entries of several maps, windows, and everything that is refused before it is run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from plan_support import DIGITS, PIXELS, TINY_VIT, MakePlan

from virb.data.placement import DenseTarget
from virb.data.transforms import Geometry
from virb.errors import ConfigError
from virb.plan.jobs import InMemory, Job, Plan, RunSettings
from virb.tasks import base

DATA = {"data": {"n_train": 12, "n_test": 6}}
MASKS, DEPTH, FLOW = ({"task": f"shapes-{name}", **DATA} for name in ("segmentation", "depth", "flow"))
WIDE = Geometry((48, 96), "squash", "none", 1.0, "bilinear", None)


def only_job(plan: Plan) -> Job:
    (job,) = plan.jobs
    return job


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Segmentation at twice as wide as high."""
    monkeypatch.setitem(base._TASKS, "wide", replace(base.all_tasks()["shapes-segmentation"], id="wide", geometry=WIDE))
    return {"task": "wide", **DATA}


def refused(make_plan: MakePlan, message: str, task: Any, encoder: Any = PIXELS, **settings: Any) -> None:
    with pytest.raises(ConfigError) as failure:
        make_plan({"e": encoder}, {"t": task}, **settings)
    (problem,) = failure.value.problems
    assert message in problem.message
    assert "\n" not in problem.message


# --- geometry -------------------------------------------------------------------------------------------------------------------------


def test_an_encoders_input_changes_what_it_names_and_nothing_else(make_plan: MakePlan, wide: dict[str, Any]) -> None:
    def geometry(**given: Any) -> Geometry:
        return only_job(make_plan({"e": {**TINY_VIT, "input": given} if given else TINY_VIT}, {"t": wide})).geometry

    assert geometry() == WIDE  # whatever the network's own size and crop are
    assert geometry(size=40) == replace(WIDE, size=(40, 40))
    assert geometry(size=[40, 72]) == replace(WIDE, size=(40, 72))
    assert geometry(interpolation="bicubic") == replace(WIDE, interpolation="bicubic")
    assert geometry(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5], channels="bgr") == WIDE
    assert geometry(resize="squash", crop="none") == WIDE


def test_where_a_geometry_is_from(make_plan: MakePlan, wide: dict[str, Any]) -> None:
    assert only_job(make_plan(None, {"t": wide})).geometry_from == "task wide"
    job = only_job(make_plan({"e": {**PIXELS, "input": {"size": 40}}}, {"t": wide}))
    assert job.geometry_from == "task wide, with the experiment list's input:"
    assert only_job(make_plan(None, {"t": wide}, input_size=24)).geometry_from == "--input_size"
    assert only_job(make_plan(None, {"t": {**wide, "protocol": "timet-linear"}})).geometry_from == "protocol timet-linear"
    assert only_job(make_plan(None, {"t": {**wide, "protocol": "timet-linear"}})).geometry.size == (448, 448)


def test_input_size_keeps_the_aspect(make_plan: MakePlan, wide: dict[str, Any]) -> None:
    assert only_job(make_plan(None, {"t": wide}, input_size=24)).geometry == replace(WIDE, size=(24, 48))
    assert only_job(make_plan(None, {"t": wide}, input_size=33)).geometry == replace(WIDE, size=(33, 66))
    tall = {"e": {**PIXELS, "input": {"size": [90, 40]}}}
    assert only_job(make_plan(tall, {"t": wide}, input_size=20)).geometry.size == (45, 20)


def test_a_protocol_of_2021_leaves_pixelwise_tasks_their_geometry(make_plan: MakePlan, wide: dict[str, Any]) -> None:
    job = only_job(make_plan(None, {"t": {**wide, "protocol": "virb2021"}}))
    assert job.geometry == WIDE
    assert "geometry" not in job.task.changed


def test_what_is_not_seen_whole_is_refused(make_plan: MakePlan) -> None:
    for given in ({"resize": "shorter", "crop": "center", "size": 64}, {"resize": "shorter", "crop": "center", "crop_pct": 0.9}):
        message = "shapes-segmentation is scored on whole images, but they are cut from their centre (input:); write resize: squash"
        refused(make_plan, message, MASKS, {**PIXELS, "input": given})
    windows = {**MASKS, "windows": {"size": 48, "stride": 32}}
    refused(make_plan, "is scored on whole windows", windows, {**PIXELS, "input": {"resize": "shorter", "crop": "center", "size": 48}})
    refused(make_plan, "cut from their centre", {**MASKS, "protocol": "dino-linear", "probe": "dense-linear", "features": "tokens[-1]"})


def test_a_task_without_a_geometry_takes_the_encoders_squashed_one(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base._TASKS, "free", replace(base.all_tasks()["shapes-segmentation"], id="free", geometry=None))
    squashed = {**PIXELS, "input": {"resize": "squash", "crop": "none", "size": [40, 56]}}
    assert only_job(make_plan({"e": squashed}, {"t": {"task": "free", **DATA}})).geometry.size == (40, 56)
    refused(make_plan, "cut from their centre", {"task": "free", **DATA})


# --- entries --------------------------------------------------------------------------------------------------------------------------


def test_every_map_of_a_request_has_an_entry_per_view(make_plan: MakePlan) -> None:
    task = {**MASKS, "probe": "dense-multi", "augment": "scale-crop-flip", "views": 3}
    job = only_job(make_plan({"e": TINY_VIT}, {"t": task}))
    assert job.request == "pyramid[-4:]"  # the probe's own, where the task's is for another one
    plan = make_plan({"e": TINY_VIT}, {"t": task})
    fit, report = job.roles["fit"], job.roles["report"]
    assert (fit.n_maps, len(fit.entries)) == (4, 12)
    assert (report.n_maps, len(report.entries)) == (4, 4)
    entries = plan.context.entries
    for number, (block, views) in enumerate(zip((2, 5, 8, 11), fit.maps(), strict=True)):
        assert {entries[key].wanted.request for key in views} == {f"tokens[{block}]"}
        assert [entries[key].wanted.geometry.view.number for key in views] == [0, 1, 2]
        (plain,) = report.maps()[number]
        assert (entries[plain].wanted.request, entries[plain].wanted.geometry.view) == (f"tokens[{block}]", None)
    assert {entry.row_shape for entry in entries.values()} == {(192, 8, 8)}
    assert plan.n_passes == 2  # one for each split, whatever the number of maps


def test_maps_are_shared_between_tasks(make_plan: MakePlan) -> None:
    multi = {**MASKS, "probe": "dense-multi", "features": "tokens[5,11]"}
    linear = {**MASKS, "features": "tokens[5]"}
    deep = {**DEPTH, "features": "tokens[11]"}
    plan = make_plan({"e": TINY_VIT}, {"a": multi, "b": linear, "c": deep})
    assert len(plan.context.entries) == 4  # two blocks, two splits


def test_windows_are_for_what_is_scored_alone(make_plan: MakePlan) -> None:
    for flags in ({"augment": "none"}, {"augment": "scale-crop-flip", "views": "fresh"}):
        plan = make_plan(None, {"t": {**MASKS, **flags, "windows": {"size": 48, "stride": [16, 32], "shorter": 64}}})
        roles = only_job(plan).roles
        assert len(plan.context.lists[roles["fit"].list_id]) == 12
        assert len(plan.context.lists[roles["report"].list_id]) == 6 * 2 * 2
        assert len(plan.context.lists[roles["select"].list_id]) == 12 * 2 * 2
        assert roles["report"].samples.rows(1).tolist() == [4, 5, 6, 7]
        assert only_job(plan).n_samples == {"fit": 12, "select": 12, "report": 6}


def test_the_quick_protocols_plan_on_built_in_scenes(make_plan: MakePlan) -> None:
    coarse = {**TINY_VIT, "args": {"patch_size": 64, "img_size": 512}}
    job = only_job(make_plan({"e": coarse}, {"t": {**MASKS, "protocol": "ibot-linear"}}))
    assert (job.task.probe, job.task.windows.shorter, job.geometry.size) == ("dense-multi", 512, (512, 512))
    assert len(job.roles["fit"].entries) == 4 * 127
    job = only_job(make_plan({"e": coarse}, {"t": {**MASKS, "protocol": "timet-linear"}}))
    assert (job.task.score_size, job.task.selection, list(job.task.configs)) == (100, "test-best", ["sgd-lr0.01"])


# --- refused --------------------------------------------------------------------------------------------------------------------------


class OnlyAVector(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


def test_an_encoder_without_a_map(make_plan: MakePlan) -> None:
    from virb.config import task_config_from_mapping
    from virb.plan.build import build_plan
    from virb.tasks.vocabulary import TaskVocabulary

    make_plan()  # into its folder
    words = TaskVocabulary(["pixels"])
    for features in ({}, {"features": "pyramid", "probe": "dense-multi"}):
        task = task_config_from_mapping("t", {**MASKS, **features}, words)
        with pytest.raises(ConfigError) as failure:
            build_plan(RunSettings(), [InMemory("vector", OnlyAVector())], [task])
        (problem,) = failure.value.problems
        assert 'encoder "vector"' in problem.message
        assert f"no output '{features.get('features', 'tokens')}'" in problem.message


def test_features_that_are_no_maps(make_plan: MakePlan) -> None:
    refused(make_plan, "the features are 768 per image; a dense probe needs maps: features: tokens[-1]", {**MASKS, "features": "embedding"})
    refused(make_plan, "the features are 3 per image; a dense probe needs maps", {**MASKS, "features": "tokens[-1].mean"})
    refused(make_plan, "queries[-1] is no map; a dense probe needs maps", {**MASKS, "features": "queries[-1]"}, TINY_VIT)
    make_plan({"e": TINY_VIT}, {"t": {**MASKS, "features": "attention[-1]"}})  # a map per head


def test_probes_and_tasks_that_do_not_go_together(make_plan: MakePlan) -> None:
    refused(
        make_plan,
        "the probe dense-linear answers pixel by pixel; this task has no target for every pixel",
        {**DIGITS, "probe": "dense-linear"},
    )
    refused(make_plan, "the probe siamese takes samples of 2 images, these have 1", {**MASKS, "probe": "siamese"})
    refused(make_plan, "the probe dense-linear takes samples of 1 image, these have 2", {**FLOW, "probe": "dense-linear"})
    for probe in ("linear", "knn", "logistic", "mlp", "ncm"):
        message = f"the probe {probe} answers once per image, but shapes-segmentation has a target for every pixel; there is deeplab"
        refused(make_plan, message, {"task": MASKS["task"], **DATA, "probe": probe, "features": "embedding"})


def test_keys_that_mean_nothing_elsewhere(make_plan: MakePlan) -> None:
    for key, value in (("windows", {"size": 32, "stride": 32}), ("score_size", 32)):
        refused(make_plan, "is for pixelwise tasks; digits is image-level", {**DIGITS, key: value})
    make_plan(None, {"t": {**DIGITS, "protocol": "ibot-linear", "probe": "linear", "features": "embedding"}})  # a protocol's is dropped


def test_windows_that_cannot_be(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = {"windows": {"size": 32, "stride": 32}}
    refused(make_plan, "shapes-flow: windows are for samples of one image", {**FLOW, **windows})
    refused(make_plan, "so score_size says nothing", {**MASKS, **windows, "score_size": 32})
    at_view = replace(base.all_tasks()["shapes-segmentation"], id="old", dense=DenseTarget("labels", at="view"))
    monkeypatch.setitem(base._TASKS, "old", at_view)
    refused(make_plan, "leave out windows", {"task": "old", **DATA, **windows})
    refused(make_plan, "write augment: none", {"task": "old", **DATA, "augment": "crop-flip"})


def test_two_images_are_not_augmented(make_plan: MakePlan) -> None:
    for augment in ("crop-flip", "scale-crop-flip-colour"):
        refused(make_plan, "shapes-flow: samples of several images cannot be augmented", {**FLOW, "augment": augment})


def test_refit_and_heads_of_others_are_not_there_yet(make_plan: MakePlan) -> None:
    refused(make_plan, "is not available for the probe dense-linear yet", {**MASKS, "refit": True})
    with pytest.raises(ConfigError, match="heads of pixelwise tasks cannot be scored on another task yet"):
        make_plan(None, {"a": MASKS, "b": {**MASKS, "heads_from": "a"}})


def test_training_configs_that_do_not_fit_the_target(make_plan: MakePlan) -> None:
    def config(**more: Any) -> dict[str, Any]:
        return {"training_configs": {"a": {"optimizer": "adamw", "lr": 1, **more}}}

    refused(make_plan, "a: output: bins belongs to depth, but this task's target is of kind labels", {**MASKS, **config(output="bins")})
    refused(make_plan, "a: n_bins belongs to output: bins, of depth; leave it out", {**MASKS, **config(n_bins=64)})
    refused(make_plan, "a: n_bins belongs to output: bins, of depth", {**DEPTH, **config(n_bins=64, output="direct")})
    refused(make_plan, "a: radius belongs to fusion: correlation", {**FLOW, **config(radius=3)})
    make_plan(None, {"t": {**DEPTH, **config(n_bins=64)}})
    make_plan({"e": TINY_VIT}, {"t": {**FLOW, **config(radius=3, fusion="correlation")}})


def test_tasks_whose_loss_or_range_do_not_fit(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = base.all_tasks()["shapes-segmentation"]
    monkeypatch.setitem(base._TASKS, "a", replace(shapes, id="a", loss="sig_loss"))
    monkeypatch.setitem(base._TASKS, "b", replace(base.all_tasks()["shapes-depth"], id="b", dense=DenseTarget("depth")))
    refused(make_plan, "the loss sig_loss needs a target of kind depth, but this task's is labels", {"task": "a", **DATA})
    bins = {"training_configs": {"x": {"optimizer": "adamw", "lr": 1, "output": "bins"}}}
    refused(make_plan, "x: output: bins needs a range of depths", {"task": "b", **DATA, **bins})


def test_the_head_that_retrains_a_resnet_needs_one(make_plan: MakePlan) -> None:
    task = {**MASKS, "probe": "deeplab@virb2021"}
    refused(make_plan, "retrains a copy of a ResNet's layer4, and this encoder has none; probe: deeplab works", task, TINY_VIT)
    small = {"arch": "resnet18", "weights": "random"}
    refused(make_plan, "needs a ResNet whose layer4 has three bottleneck blocks (resnet50 and deeper)", task, small)
