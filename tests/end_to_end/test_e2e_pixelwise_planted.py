"""Pixelwise tasks with planted answers, from the command line: a perfect encoder is perfect, choices know no reported label, and what is
wrong is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e_dense import Colours, Patches
from e2e_support import Answer, Bench, stable

import virb

PLANTED = "planted: {module: 'e2e_dense:Colours', weights: random, input: {size: [24, 36], mean: [0, 0, 0], std: [1, 1, 1]}}\n"
FAST = "training_configs: {fast: {optimizer: adamw, lr: 0.3, norm: none}}"
TWO = "training_configs: {fast: {optimizer: adamw, lr: 0.3, norm: none}, slow: {optimizer: sgd, lr: 0.001}}"
SHORT = "num_epochs: 30, batch_size: 4"


def task(label: str, name: str = "MASKS", *more: str, configs: str = FAST, common: str = SHORT) -> str:
    return f"{label}: {{task: 'e2e_dense:{name}', {', '.join((common, configs, *more))}}}\n"


def run(bench: Bench, text: str, name: str = "out", *flags: str, encoders: str = PLANTED) -> Path:
    bench.write(encoders, text)
    out = bench.folder / name
    bench.run_well(*flags, out=out)
    return out


def values(bench: Bench, label: str, out: Path, encoder: str = "planted") -> dict[str, float]:
    return {metric["name"]: metric["value"] for metric in bench.job(encoder, label, out)["metrics"]}


# --- perfect --------------------------------------------------------------------------------------------------------------------------

PERFECT = {"miou": 1.0, "pixel_accuracy": 1.0, "foreground_iou": 1.0}
WINDOWS = "windows: {size: [24, 36], stride: [8, 12]}"
WAYS = {
    "plain": (),
    "multi": ("probe: dense-multi",),
    "crops": ("augment: scale-crop-flip", "views: fresh"),
    "boxes": ("augment: crop-flip", "views: 5"),
    "windows": (WINDOWS,),
    "larger": ("windows: {size: [24, 24], stride: [13, 7]}", "data: {side: 10}"),  # images of 40 x 60
    "one_input": ("data: {side: 10}",),
    "score_size": ("score_size: 12",),
    "test_best": ("selection: test-best",),
    "two_seeds": ("seeds: 2",),
}


def test_a_perfect_encoder_is_perfect_in_every_way(bench: Bench) -> None:
    """At native sizes of all aspects, through resizing, crops, flips and windows, with void pixels; losses go to 0 where targets are
    aligned with what the network saw."""
    out = run(bench, "".join(task(label, "MASKS", *more) for label, more in WAYS.items()))
    for label in WAYS:
        job = bench.job("planted", label, out)
        if label == "one_input":  # blocks of 10 pixels, squashed to 6: the image itself is not what the target is
            assert values(bench, label, out)["pixel_accuracy"] > 0.9
        elif label in ("multi", "crops"):  # where four blocks meet, a pixel may be of another class
            assert values(bench, label, out)["pixel_accuracy"] > 0.999
        else:
            assert values(bench, label, out) == PERFECT, label
        losses = [row["train_loss"] for row in job["surface"]]
        assert max(losses) < (0.05 if label in ("crops", "boxes", "one_input") else 0.01), (label, losses)
        assert job["metrics"][0]["per_class"] == pytest.approx({"none": 1, "red": 1, "green": 1, "blue": 1}, abs=0.2)
        assert (out / "planted" / label / "pictures.png").is_file()


def test_a_perfect_encoder_is_perfect_on_inputs_padded_to_its_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"fast": {"optimizer": "adamw", "lr": 0.3, "norm": "none"}}
    tasks = {"padded": {"task": "e2e_dense:PADDED", "num_epochs": 30, "batch_size": 4, "training_configs": config, "data": {"void": False}}}
    results = virb.run({"patches": Patches()}, tasks, out=tmp_path / "out", devices="cpu:1", cache_dir=tmp_path / "cache")
    assert not results.failed
    (row,) = results.table().to_dict("records")
    assert row["value"] == 1.0


def test_depth_is_exact(bench: Bench) -> None:
    direct = "training_configs: {direct: {optimizer: adamw, lr: 0.1, norm: none, output: direct, scheduler: cosine}}"
    out = run(bench, task("depth", "DEPTHS", "data: {side: 3}", configs=direct, common="num_epochs: 80, batch_size: 4"))
    found = values(bench, "depth", out)
    assert found["delta1"] == 1.0
    assert found["abs_rel"] < 0.01


# --- the same numbers -----------------------------------------------------------------------------------------------------------------


def test_streams_give_the_cached_numbers_and_one_forward_serves_all_maps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    forwards: list[int] = []
    forward = Colours.forward

    def counted(self: Colours, images: torch.Tensor) -> Any:
        forwards.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Colours, "forward", counted)
    text = {
        label: task(label, "MASKS", *more, configs=TWO, common="num_epochs: 4, batch_size: 5")
        for label, more in {"a": ("probe: dense-multi",), "b": (), "c": (WINDOWS,)}.items()
    }
    cached = run(bench, "".join(text.values()), "cached")
    counts = {}
    for label in text:
        forwards.clear()
        run(bench, text[label], f"streamed_{label}", "--cache_budget", "0")
        counts[label] = len(forwards)
        one, other = (bench.job("planted", label, out) for out in (cached, bench.folder / f"streamed_{label}"))
        assert one["key"] == other["key"]
        assert stable(one)["metrics"] == stable(other)["metrics"]
        assert one["surface"] == other["surface"]
        for part in ("samples.npz", "pictures.png"):
            assert (cached / "planted" / label / part).is_file()
        with (
            np.load(cached / f"planted/{label}/samples.npz") as a,
            np.load(bench.folder / f"streamed_{label}/planted/{label}/samples.npz") as b,
        ):
            assert a.files == b.files
            for key in a.files:
                np.testing.assert_array_equal(a[key], b[key])
        name = f"planted/{label}-{one['chosen']}/model_head.pt"
        heads = [torch.load(out / name, weights_only=True) for out in (cached, bench.folder / f"streamed_{label}")]
        assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])
    assert counts["a"] <= counts["b"] + 4  # one trial of the further map while planning, and no forward more


# --- what choices know ----------------------------------------------------------------------------------------------------------------


def rows(job: dict[str, Any], *keys: str) -> list[Any]:
    return [[row[key] for key in ("config", "seed", *keys)] for row in job["surface"]]


def head(out: Path, job: dict[str, Any]) -> bytes:
    return (out / f"planted/masks-{job['chosen']}/model_head.pt").read_bytes()


@pytest.mark.parametrize("with_val", ["false", "true"])
def test_permuted_report_labels_change_the_reported_number_alone(bench: Bench, with_val: str) -> None:
    def text(seed: int) -> str:
        return task(
            "masks", "MASKS", f"data: {{permute_test: {seed}, with_val: {with_val}}}", configs=TWO, common="num_epochs: 5, batch_size: 4"
        )

    true_out = run(bench, text(0), "true")
    true = bench.job("planted", "masks", true_out)
    for seed in (2, 3):
        out = run(bench, text(seed), f"permuted{seed}")
        permuted = bench.job("planted", "masks", out)
        assert permuted["chosen"] == true["chosen"]
        assert head(out, permuted) == head(true_out, true)
        same = ("epoch", "diverged", "train_loss", "train_metrics", "select_loss", "select_metrics")
        assert rows(permuted, *same) == rows(true, *same)
        assert permuted["index_lists"] == true["index_lists"]
        assert permuted["metrics"][0]["value"] != true["metrics"][0]["value"]


def test_the_hold_out_is_stored_and_an_official_val_is_used(bench: Bench) -> None:
    common = "num_epochs: 1, batch_size: 4"
    out = run(bench, task("masks", common=common) + task("val", "MASKS", "data: {with_val: true}", common=common))
    job = bench.job("planted", "masks", out)
    roles = job["task"]["roles"]
    held = job["index_lists"]["select"]
    assert (roles["fit"]["n_samples"], roles["select"]["n_samples"], roles["report"]["n_samples"]) == (14 - held["count"], held["count"], 7)
    assert 1 <= held["count"] <= 3
    roles = bench.job("planted", "val", out)["task"]["roles"]
    assert {role: (roles[role]["split"], roles[role]["n_samples"]) for role in roles} == {
        "fit": ("train", 14),
        "select": ("val", 7),
        "report": ("test", 7),
    }


def test_test_last_and_test_best_score_every_config_on_the_test_split(bench: Bench) -> None:
    common = "num_epochs: 6, batch_size: 4"
    text = "".join(task(name, "MASKS", f"selection: test-{name}", configs=TWO, common=common) for name in ("last", "best"))
    out = run(bench, text)
    for name in ("last", "best"):
        job = bench.job("planted", name, out)
        assert job["selection"] == f"test-{name}"
        assert "select" not in job["task"]["roles"]
        assert all(row["report_metrics"]["miou"] is not None for row in job["surface"])
        best = max(job["surface"], key=lambda row: row["report_metrics"]["miou"])
        assert job["chosen"] == best["config"]
        assert job["metrics"][0]["value"] == pytest.approx(best["report_metrics"]["miou"])
    assert {row["epoch"] for row in bench.job("planted", "last", out)["surface"]} == {6}


# --- bad input ------------------------------------------------------------------------------------------------------------------------


def failed(answer: Answer, *parts: str) -> None:
    assert answer.code == 1, answer.text + answer.errors
    table = answer.text[answer.text.rindex("failed") - 200 :]
    assert "Traceback" not in answer.text + answer.errors
    for part in parts:
        assert part in table, answer.text


@pytest.mark.parametrize(
    ("damage", "name", "parts"),
    [
        ("size", "MASKS", ("test/001: the image is 12 x 36 pixels, but its target 11 x 36",)),
        ("class", "MASKS", ("test/001: label 9 is none of the 4 classes (0 to 3, 255 ignored)",)),
        ("empty", "DEPTHS", ("test/001: the depth has no valid pixel from 0.25 to 10; leave the sample out",)),
    ],
)
def test_targets_that_are_wrong_fail_the_job_and_name_the_sample(bench: Bench, damage: str, name: str, parts: tuple[str, ...]) -> None:
    bench.write(PLANTED, task("bad", name, f"data: {{damage: {damage}}}", common="num_epochs: 1, batch_size: 4") + task("good"))
    answer = bench.run()
    failed(answer, *parts)
    assert bench.job("planted", "good")["status"] == "done"  # the other goes on
    assert not (bench.out / "planted/bad/job.json").exists()


def test_an_encoder_without_a_map_is_refused_and_the_others_named(bench: Bench) -> None:
    bench.write("flat: {module: 'e2e_dense:Vector', weights: random, input: {size: 24}}\n", task("masks"))
    answer = bench.run()
    assert answer.code == 2
    assert 'encoder "flat"' in answer.errors
    assert "no output 'tokens'" in answer.errors
    assert not bench.out.exists()


def test_all_that_a_plan_can_know_is_said_at_once(bench: Bench) -> None:
    encoders = PLANTED.replace("input: {", "input: {resize: shorter, crop: center, ")
    text = task("cut") + "vector: {task: shapes-segmentation, features: embedding}\n"
    bench.write(encoders, text + "windows: {task: digits, windows: {size: 32, stride: 32}}\nagain: {task: shapes-depth, refit: true}\n")
    answer = bench.run()
    assert answer.code == 2
    for part in (
        "cut from their centre",
        "is for pixelwise tasks; digits is image-level",
        "is not available for the probe dense-linear yet",
    ):
        assert part in answer.errors, answer.errors
    assert not bench.out.exists()
