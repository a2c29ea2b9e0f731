"""What choices are made on, from the command line: validation, hold-out, test; seeds, refit, views and streams."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from e2e_data import blobs
from e2e_support import PIXELS, Bench, stable

import virb
from virb.data.transforms import Geometry, View
from virb.probes.selection import hold_out

CONFIGS = (
    "training_configs: {slow: {optimizer: sgd, lr: 0.001}, good: {optimizer: adamw, lr: 0.03}, "
    "wild: {optimizer: sgd, lr: 30.0, momentum: 0.9}}"
)


def task(data: str = "", more: str = "", label: str = "blobs") -> str:
    return f"{label}: {{task: 'e2e_data:BLOBS', data: {{{data}}}, num_epochs: 6, batch_size: 16, {CONFIGS}{', ' if more else ''}{more}}}\n"


def run(bench: Bench, text: str, name: str, *flags: str) -> Path:
    bench.write(PIXELS, text)
    out = bench.folder / name
    bench.run_well(*flags, out=out)
    return out


def head(out: Path, job: dict[str, Any]) -> bytes:
    return (out / f"pixels/blobs-{job['chosen']}/model_head.pt").read_bytes()


def rows(job: dict[str, Any], *keys: str) -> list[Any]:
    return [[row[key] for key in ("config", "seed", *keys)] for row in job["surface"]]


def test_permuted_test_labels_change_the_reported_number_alone(bench: Bench) -> None:
    """The leak test: whatever is written about choosing must not know the reported labels."""
    true_out = run(bench, task(), "true")
    true = bench.job(label="blobs", out=true_out)
    for seed in (1, 2):
        out = run(bench, task(f"permute_test: {seed}"), f"permuted{seed}")
        permuted = bench.job(label="blobs", out=out)
        assert permuted["chosen"] == true["chosen"]
        assert head(out, permuted) == head(true_out, true)
        same = ("epoch", "diverged", "train_loss", "train_metrics", "select_loss", "select_metrics")
        assert rows(permuted, *same) == rows(true, *same)
        assert permuted["index_lists"] == true["index_lists"]
        assert permuted["metrics"][0]["value"] != true["metrics"][0]["value"]
        with np.load(true_out / "pixels/blobs/samples.npz") as a, np.load(out / "pixels/blobs/samples.npz") as b:
            np.testing.assert_array_equal(a["prediction"], b["prediction"])
            assert (a["target"] != b["target"]).any()


def test_the_leak_test_sees_a_leak(bench: Bench) -> None:
    """Under test-best the reported labels do choose, and the same comparison tells."""
    first = bench.job(label="blobs", out=run(bench, task(more="selection: test-best"), "one"))
    second = bench.job(label="blobs", out=run(bench, task("permute_test: 1", "selection: test-best"), "two"))
    assert rows(first, "epoch") != rows(second, "epoch") or first["chosen"] != second["chosen"]


def test_the_hold_out_is_stored_and_has_the_promised_size(bench: Bench) -> None:
    out = run(bench, task(), "out")
    job = bench.job(label="blobs", out=out)
    stored = job["index_lists"]["select"]
    assert stored["count"] == 9  # a tenth of 30 in each of three classes
    labels = blobs().samples["train"].targets["class"]
    assert np.bincount(labels[stored["indices"]]).tolist() == [3, 3, 3]
    assert stored["sha256"] == hashlib.sha256(np.asarray(stored["indices"], dtype="<i8").tobytes()).hexdigest()
    roles = job["task"]["roles"]
    assert {role: roles[role]["n_samples"] for role in roles} == {"fit": 81, "select": 9, "report": 30}
    assert roles["select"]["split"] == "train"
    expected = hold_out(labels, blobs().samples["train"].units)[1]
    np.testing.assert_array_equal(stored["indices"], expected)


def test_the_hold_out_keeps_units_together(bench: Bench) -> None:
    job = bench.job(label="blobs", out=run(bench, task("unit_size: 3"), "out"))
    held = set(job["index_lists"]["select"]["indices"])
    assert held
    assert all((first in held) == (first + 1 in held) == (first + 2 in held) for first in range(0, 90, 3))
    assert job["task"]["roles"]["report"]["n_units"] == 10
    assert job["metrics"][0]["n_units"] == 10


def test_long_index_lists_go_to_the_arrays(bench: Bench) -> None:
    out = run(bench, task("n_train: 2400, n_classes: 6"), "out")
    job = bench.job(label="blobs", out=out)
    stored = job["index_lists"]["select"]
    assert (stored["count"], stored["indices"]) == (240, None)
    with np.load(out / "pixels/blobs/samples.npz") as arrays:
        indices = arrays["index_select"]
    assert stored["sha256"] == hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()


def test_an_official_validation_split_is_used(bench: Bench) -> None:
    job = bench.job(label="blobs", out=run(bench, task("with_val: true"), "out"))
    assert job["index_lists"] == {}
    roles = job["task"]["roles"]
    assert {role: (roles[role]["split"], roles[role]["n_samples"]) for role in roles} == {
        "fit": ("train", 90),
        "select": ("val", 24),
        "report": ("test", 30),
    }
    assert all(row["select_metrics"]["top1"] * 24 == pytest.approx(round(row["select_metrics"]["top1"] * 24)) for row in job["surface"])


def test_test_last_and_test_best_score_every_config_on_the_test_split(bench: Bench) -> None:
    last = bench.job(label="blobs", out=run(bench, task(more="selection: test-last"), "last"))
    best = bench.job(label="blobs", out=run(bench, task(more="selection: test-best"), "best"))
    for job, name in ((last, "test-last"), (best, "test-best")):
        assert job["selection"] == name
        assert set(job["task"]["roles"]) == {"fit", "report"}
        assert job["task"]["roles"]["fit"]["n_samples"] == 90
        scores = {row["config"]: row["report_metrics"]["top1"] for row in job["surface"]}
        assert job["chosen"] == max(scores, key=lambda config: scores[config])
        assert all(row["select_metrics"] == {} for row in job["surface"])
        for config, score in scores.items():
            record = json.loads((bench.folder / name.removeprefix("test-") / f"pixels/blobs-{config}/results.json").read_text())
            assert record["test_accuracy"] == score
    assert {row["epoch"] for row in last["surface"]} == {6}
    for a, b in zip(last["surface"], best["surface"], strict=True):
        assert b["report_metrics"]["top1"] >= a["report_metrics"]["top1"]


def test_refit_trains_on_everything(bench: Bench) -> None:
    plain_out, refit_out = run(bench, task(), "plain"), run(bench, task(more="refit: true"), "refit")
    plain, refit = bench.job(label="blobs", out=plain_out), bench.job(label="blobs", out=refit_out)
    assert (refit["chosen"], rows(refit, "select_metrics", "epoch")) == (plain["chosen"], rows(plain, "select_metrics", "epoch"))
    assert head(refit_out, refit) != head(plain_out, plain)
    assert [row["refit"] for row in refit["surface"]] == [row["config"] == refit["chosen"] for row in refit["surface"]]
    assert not any(row["refit"] for row in plain["surface"])
    assert any("trained again on fit + select (90 samples)" in note for note in refit["notes"])


def test_several_seeds_are_runs_of_one_choice(bench: Bench) -> None:
    out = run(bench, task(more="seeds: [0, 7]"), "out")
    job = bench.job(label="blobs", out=out)
    assert [info["seed"] for info in job["runs"]] == [0, 7]
    assert len(job["surface"]) == 6
    values = [info["metrics"]["top1"] for info in job["runs"]]
    assert job["metrics"][0]["value"] == pytest.approx(np.mean(values))
    with np.load(out / "pixels/blobs/samples.npz") as arrays:
        assert arrays["prediction"].shape == (2, 30)
        hits = (arrays["prediction"] == arrays["target"]).mean(axis=1)
    np.testing.assert_allclose(hits, values)
    means: dict[str, list[float]] = {}
    for row in job["surface"]:
        means.setdefault(row["config"], []).append(row["select_metrics"].get("top1", 0.0))
    record = json.loads((out / f"pixels/blobs-{job['chosen']}/results.json").read_text())
    assert record["seeds"] == [0, 7]
    assert record["select_accuracy"] == pytest.approx(np.mean(means[job["chosen"]]))
    alone = bench.job(label="blobs", out=run(bench, task(more="seeds: [7]"), "alone"))
    seven = [row for row in job["surface"] if row["seed"] == 7]
    assert [row["select_metrics"] for row in alone["surface"]] == [row["select_metrics"] for row in seven]


def views_task(bench: Bench, more: str) -> str:
    return bench.task(more).replace("num_epochs: 5", "num_epochs: 4")


def test_views_train_on_other_crops_in_turn_and_select_on_none(bench: Bench) -> None:
    """The loss of each epoch of one full batch and a frozen head tells which crops were seen; recomputed here by hand."""
    frozen = "training_configs: {still: {optimizer: sgd, lr: 1.0e-12}}"
    text = (
        f"colours: {{task: folder, data: {{root: '{bench.images}'}}, num_epochs: 4, batch_size: 1000, num_dataset_repeats: 2, "
        f"augment: crop-flip, {frozen}}}\n"
    )
    out = run(bench, text, "out")
    job = bench.job(out=out)
    losses = losses_by_epoch(out, "still")
    assert losses["loss/train"][0] == pytest.approx(losses["loss/train"][2], abs=1e-6)
    assert losses["loss/train"][1] == pytest.approx(losses["loss/train"][3], abs=1e-6)
    assert abs(losses["loss/train"][0] - losses["loss/train"][1]) > 1e-4
    assert np.ptp(losses["loss/select"]) < 1e-6
    held = job["index_lists"]["select"]["indices"]
    fit = [i for i in range(30) if i not in held]
    weights = torch.load(out / "pixels/colours-still/model_head.pt", weights_only=True)
    for view in (0, 1):
        expected = loss_by_hand(bench, weights, fit, View(view, "crop-flip", 0))
        assert losses["loss/train"][view] == pytest.approx(expected, abs=1e-5)
    assert losses["loss/select"][0] == pytest.approx(loss_by_hand(bench, weights, held, None), abs=1e-5)


def losses_by_epoch(out: Path, config: str) -> dict[str, list[float]]:
    from e2e_support import curves

    return {tag: [value for _, value in values] for tag, values in curves(out / f"pixels/colours-{config}").items()}


def loss_by_hand(bench: Bench, weights: dict[str, torch.Tensor], rows: list[int], view: View | None) -> float:
    from PIL import Image

    names = [f"train/{name}/{i:03}.png" for name in ("blue", "green", "red") for i in range(10)]
    geometry = Geometry((16, 16), "shorter", "center", 0.875, "bilinear", view)
    encoder = virb.load_encoder({"arch": "pixels", "args": {"side": 4}, "input": {"size": 16}})
    pixels = torch.stack([geometry.apply(Image.open(bench.images / names[row]), row) for row in rows])
    features = encoder(encoder.prepare(pixels))["embedding"].half().float()
    scores = features @ weights["head.weight"].T + weights["head.bias"]
    return torch.nn.functional.cross_entropy(scores, torch.tensor([row // 10 for row in rows])).item()


@pytest.mark.parametrize("more", ["views: fresh", "pre_encode: false, augment: crop-flip"])
def test_fresh_views_stream_and_keep_nothing_of_the_training_images(bench: Bench, more: str) -> None:
    out = run(bench, views_task(bench, more), "out")
    job = bench.job(out=out)
    assert job["streamed"] is True
    assert job["protocol"]["values"]["views"]["value"] == "fresh"
    assert job["protocol"]["values"]["augment"]["value"] == "crop-flip"
    train = losses_by_epoch(out, "slow")["loss/train"]
    assert len(set(train)) == 4
    # At most the test images are kept as they were decoded: they are read twice, and no crop is of them.
    records = [json.loads(path.read_text()) for path in (bench.folder / "cache").rglob("record.json")]
    assert all((record["output"], record["n_rows"], record["geometry"]["view"]) == ("pixels", 12, None) for record in records)


def test_as_many_cached_views_as_epochs_equal_fresh_ones(bench: Bench) -> None:
    fresh = bench.job(out=run(bench, views_task(bench, "views: fresh"), "fresh"))
    cached = bench.job(out=run(bench, views_task(bench, "views: 4"), "cached"))
    assert cached["streamed"] is False
    keys = ("train_loss", "train_metrics", "select_loss", "select_metrics", "epoch")
    assert rows(fresh, *keys) == rows(cached, *keys)
    assert fresh["metrics"] == cached["metrics"]


def test_pre_encode_false_gives_the_cached_numbers(bench: Bench) -> None:
    cached = bench.job(out=run(bench, bench.task(), "cached"))
    stream = bench.job(out=run(bench, bench.task("pre_encode: false"), "stream"))
    assert (cached["streamed"], stream["streamed"]) == (False, True)
    assert stream["tier"] == "streamed"
    assert (stream["surface"], stream["metrics"], stream["runs"]) == (cached["surface"], cached["metrics"], cached["runs"])


@pytest.mark.parametrize(
    ("flags", "streamed"), [(("--cache_budget", "0"), True), (("--no_cache",), False), (("--no_cache", "--cache_budget", "0"), True)]
)
def test_without_a_cache_numbers_are_the_cached_ones_and_nothing_is_left(bench: Bench, flags: tuple[str, ...], streamed: bool) -> None:
    cached_out = run(bench, task(), "cached")
    cached = stable(bench.job(label="blobs", out=cached_out))
    for path in (bench.folder / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    out = run(bench, task(), "other", *flags)
    other = stable(bench.job(label="blobs", out=out))
    assert other.pop("streamed") is streamed
    assert cached.pop("streamed") is False
    assert other == cached
    assert head(out, other) == head(cached_out, cached)
    assert not list((bench.folder / "cache").rglob("*.bin"))
    assert not (out / ".scratch").exists()
    assert not (out / ".virb_cache").exists()


def test_no_cache_after_a_killed_run(bench: Bench) -> None:
    """The scratch folder that a killed run left is used up or thrown away, but never planned with and then removed."""
    from virb.features.cache import FeatureCache

    bench.write(PIXELS, task())
    keep = FeatureCache.remove
    try:
        FeatureCache.remove = lambda self: None  # type: ignore[method-assign]  # as if the run had died before its end
        bench.run_well("--no_cache")
    finally:
        FeatureCache.remove = keep  # type: ignore[method-assign]
    assert (bench.out / ".scratch").exists()
    (bench.out / "pixels/blobs/job.json").unlink()
    bench.run_well("--no_cache")
    assert not (bench.out / ".scratch").exists()
