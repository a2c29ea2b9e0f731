"""The three shapes of a probe, each proven by a tiny one that stands in YAML, with ordered, ragged, cropped and unlabelled samples."""

from __future__ import annotations

import json

import e2e_probes
import numpy as np
import pytest
import torch
from e2e_support import Bench, assert_same_results, curves

import virb
from virb.data.datasets import load_dataset
from virb.data.images import Dataset
from virb.results.samples import read_samples
from virb.results.schema import validate

VIT = "vit: {arch: vit_tiny, weights: random, args: {patch_size: 8, img_size: 32}}\n"  # the task fixes the geometry: masks are not cropped
GRID = "pixels: {arch: pixels, args: {side: 8}, input: {size: 32}}\n"


def value(bench: Bench, label: str, encoder: str = "pixels") -> float:
    return bench.job(encoder, label)["metrics"][0]["value"]


def test_nearest_class_mean_from_features(bench: Bench) -> None:
    bench.write(tasks="means: {task: folder, data: {root: images}, probe: 'e2e_probes:NearestMean'}\n")
    bench.run_well()
    job = bench.job(label="means")
    assert job["selection"] == "none"
    assert job["chosen"] == "default"
    # By hand, from the Python API: the folder's val is a hold-out, which this probe leaves alone.
    lists = load_dataset("folder", bench.images).lists
    encoder = virb.load_encoder({"arch": "pixels", "args": {"side": 4}, "input": {"size": 16}})
    train, test = (virb.encode(encoder, lists[split])["embedding"].half().float() for split in ("train", "test"))
    kept = np.setdiff1d(np.arange(30), job["index_lists"]["select"]["indices"])
    means = torch.stack([train[[i for i in kept if i // 10 == c]].mean(0) for c in range(3)])
    expected = torch.cdist(test, means).argmin(1)
    samples = read_samples(bench.out / "pixels/means/samples.npz")
    np.testing.assert_array_equal(samples.prediction, expected[None].numpy())
    assert value(bench, "means") == (expected == torch.arange(3).repeat_interleave(4)).float().mean().item()
    head = torch.load(bench.out / "pixels/means-default/model_head.pt", weights_only=True)
    torch.testing.assert_close(head["means"], means)


def test_ragged_videos_from_features(bench: Bench) -> None:
    bench.write(GRID, "kinds: {task: 'e2e_probes:VIDEO_KIND', data: {n_train: 40, n_test: 20, size: 32}}\n")
    bench.run_well()
    job = bench.job(label="kinds")
    dataset = load_dataset("shapes-video", n_train=40, n_test=20, size=32)
    lengths = {len(dataset.samples["test"].rows(i)) for i in range(20)}
    assert len(lengths) > 1
    encoder = virb.load_encoder({"arch": "pixels", "args": {"side": 8}, "input": {"size": 32}})
    means = {}
    for split in ("train", "test"):
        rows = virb.encode(encoder, dataset.lists[split])["embedding"].half().float()
        samples = dataset.samples[split]
        means[split] = torch.stack([rows[samples.rows(i)].mean(0) for i in range(len(samples))])
    classes = torch.as_tensor(dataset.samples["train"].targets["class"])
    centres = torch.stack([means["train"][classes == c].mean(0) for c in range(len(dataset.classes["class"]))])
    expected = torch.cdist(means["test"], centres).argmin(1).numpy()
    np.testing.assert_array_equal(read_samples(bench.out / "pixels/kinds/samples.npz").prediction, expected[None])
    assert job["index_lists"] == {}
    assert set(job["task"]["roles"]) == {"fit", "report"}


def test_a_dense_head_from_batches(bench: Bench) -> None:
    masks = "{task: 'e2e_probes:MASKS', data: {n_train: 60, n_test: 30, size: 32}, num_epochs: 8, batch_size: 15"
    bench.write(VIT, f"masks: {masks}, training_configs: {{head: {{lr: 0.01}}}}}}\nfloor: {masks}, probe: 'e2e_probes:Background'}}\n")
    bench.run_well()
    dense, floor = value(bench, "masks", "vit"), value(bench, "floor", "vit")
    dataset = load_dataset("shapes", n_train=60, n_test=30, size=32)
    background = [dataset.samples["test"].targets["mask"][i] == 0 for i in range(30)]
    assert floor == pytest.approx(np.mean(background))
    assert dense == pytest.approx(dense_by_hand(dataset), abs=0.002)
    assert abs(dense - floor) > 0.004
    samples = read_samples(bench.out / "vit/masks/samples.npz")
    assert samples.prediction is None  # maps are not kept
    assert samples.target is None
    (statistics,) = samples.statistics["share_of_pixels"]
    assert statistics.values.shape == (30, 2)
    assert statistics.values[:, 0].sum() / statistics.values[:, 1].sum() == dense
    job = bench.job("vit", "masks")
    assert job["streamed"] is True
    assert job["metrics"][0]["ci_low"] < dense < job["metrics"][0]["ci_high"]
    losses = [loss for _, loss in curves(bench.out / "vit/masks-head")["loss/train"]]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    kept = [json.loads(path.read_text()) for path in (bench.folder / "cache").rglob("record.json")]
    assert {record["output"] for record in kept} == {"pixels"}  # decoded images, and no features


def dense_by_hand(dataset: Dataset) -> float:
    """The same head on maps and masks in memory, without loaders, batches of images or a runner."""
    encoder = virb.load_encoder({"arch": "vit_tiny", "weights": "random", "args": {"patch_size": 8, "img_size": 32}})
    maps, masks = {}, {}
    for split in ("train", "test"):
        images = np.stack([np.asarray(dataset.lists[split].read(i)) for i in range(len(dataset.lists[split]))])
        maps[split] = encoder(encoder.prepare(torch.from_numpy(images).permute(0, 3, 1, 2)), ["tokens[-1]"])["tokens[-1]"]
        masks[split] = torch.from_numpy(np.stack(list(dataset.samples[split].targets["mask"])))
    torch.manual_seed(0)
    head = torch.nn.Conv2d(maps["train"].shape[1], 6, 1)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for epoch in range(8):
        for part in np.array_split(np.random.default_rng(epoch).permutation(60), 4):
            scores = torch.nn.functional.interpolate(head(maps["train"][part]), (32, 32), mode="bilinear")
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, masks["train"][part]).backward()
            optimizer.step()
    scores = torch.nn.functional.interpolate(head(maps["test"]), (32, 32), mode="bilinear")
    return (scores.argmax(1) == masks["test"]).float().mean().item()


def test_tracking_online(bench: Bench) -> None:
    tracks = "{task: 'e2e_probes:TRACKS', data: {n_test: 12, size: 48}"
    bench.write(
        "pixels: {arch: pixels, args: {side: 8}, input: {size: 16}}\n",
        f"tracks: {tracks}}}\nstill: {tracks}, probe: 'e2e_probes:StandStill'}}\n",
    )
    bench.run_well()
    assert value(bench, "still") < value(bench, "tracks") < 1
    dataset = load_dataset("shapes-video", n_train=1, n_test=12, size=48)
    overlaps = []
    for i in range(12):
        tracks_of = dataset.samples["test"].targets["tracks"][i]
        first = tracks_of[0][0]
        overlaps += [e2e_probes.overlap(first[:4], row[:4]) for frame in tracks_of[1:] for row in frame if row[5] == first[5]]
    assert value(bench, "still") == pytest.approx(np.mean(overlaps))
    job = bench.job(label="tracks")
    assert job["task"]["roles"]["report"]["n_samples"] == 12
    assert set(job["task"]["roles"]) == {"report"}


def test_retrieval_with_an_unlabelled_database_and_cropped_queries(bench: Bench) -> None:
    bench.write(GRID, "find: {task: 'e2e_probes:RETRIEVAL', data: {n_queries: 20, n_distractors: 30, size: 32}}\n")
    bench.run_well()
    dataset = load_dataset("shapes-retrieval", n_queries=20, n_distractors=30, size=32)
    relevant = dataset.samples["queries"].targets["relevant"]
    chance = np.mean([len(rows) for rows in relevant]) / len(dataset.lists["database"])
    assert value(bench, "find") > 3 * chance
    job = bench.job(label="find")
    assert job["task"]["roles"]["aux"]["split"] == "database"
    assert set(job["task"]["image_list_ids"]) == {"queries", "database"}
    samples = read_samples(bench.out / "pixels/find/samples.npz")
    assert samples.prediction is not None
    assert samples.prediction.shape == (1, 20, len(dataset.lists["database"]))  # the rankings, not the arg max of them
    first = [ranking[0] in rows for ranking, rows in zip(samples.prediction[0], relevant, strict=True)]
    assert np.mean(first) == value(bench, "find")


def test_transductive_probes_never_see_labels(bench: Bench) -> None:
    bench.write(tasks="groups: {task: 'e2e_probes:CLUSTERS'}\n")
    bench.run_well()
    job = bench.job(label="groups")
    assert value(bench, "groups") > 0.8
    assert job["metrics"][0]["role"] == "report-unlabelled"
    assert set(job["task"]["roles"]) == {"report-unlabelled"}
    table = virb.load_results(bench.out)
    assert table["value"].tolist() == [value(bench, "groups")]


def test_all_shapes_give_the_same_on_two_workers(bench: Bench) -> None:
    """Everything that is a user's own (task, probe, metric, dataset) reaches worker processes too."""
    tasks = (
        "means: {task: folder, data: {root: images}, probe: 'e2e_probes:NearestMean'}\n"
        "masks: {task: 'e2e_probes:MASKS', data: {n_train: 20, n_test: 10, size: 32}, num_epochs: 2, batch_size: 15}\n"
        "tracks: {task: 'e2e_probes:TRACKS', data: {n_test: 3, size: 32}}\n"
        "find: {task: 'e2e_probes:RETRIEVAL', data: {n_queries: 9, n_distractors: 9, size: 32}}\n"
        "groups: {task: 'e2e_probes:CLUSTERS'}\n"
    )
    bench.write(tasks=tasks)
    bench.run_well()
    bench.run_well("--cache_dir", "cache2", out=bench.folder / "two", devices="cpu:2")
    assert_same_results(bench.out, bench.folder / "two")
    for path in bench.out.rglob("*.json"):
        validate(path)


def test_a_metric_of_the_users_own_chooses_too(bench: Bench) -> None:
    """It is lower-is-better, so a choice by its name alone, by loss, or the wrong way round would all be seen."""
    configs = "training_configs: {bad: {optimizer: sgd, lr: 1.0e-6}, good: {optimizer: adamw, lr: 0.1}}"
    bench.write(tasks=f"picky: {{task: 'e2e_probes:PICKY', num_epochs: 5, batch_size: 16, {configs}}}\n")
    bench.run_well()
    job = bench.job(label="picky")
    assert job["chosen"] == "good"
    names = [metric["name"] for metric in job["metrics"]]
    assert names == ["wrong_share", "top1"]
    assert job["metrics"][0]["value"] == pytest.approx(1 - job["metrics"][1]["value"])
    for row in job["surface"]:
        assert row["select_metrics"]["wrong_share"] == pytest.approx(1 - row["select_metrics"]["top1"])
    record = json.loads((bench.out / "pixels/picky-good/results.json").read_text())
    assert record["metric"] == {"name": "wrong_share", "unit": "%", "higher_is_better": False}
    assert record["select_accuracy"] == job["surface"][1]["select_metrics"]["wrong_share"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"roles": {"fit": "train", "reprot": "test"}}, "has a role 'reprot'"),
        ({"roles": {"fit": "train"}}, "needs one role to report on"),
        ({"metrics": ("top9",)}, 'no metric "top9"; did you mean top'),
        ({"metrics": ("e2e_probes:NONE",)}, "has no 'NONE' (asked for by the metric e2e_probes:NONE)"),
        ({"roles": {"fit": "training", "report": "test"}}, "has no split 'training' (it has: train, test)"),
        ({"target": "colour"}, "has no target 'colour' (it has: class)"),
    ],
)
def test_a_task_that_asks_for_what_is_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch, change: dict, message: str) -> None:
    from dataclasses import replace

    import e2e_data

    monkeypatch.setattr(e2e_data, "BLOBS", replace(e2e_data.BLOBS, **change))
    bench.write(tasks="blobs: {task: 'e2e_data:BLOBS'}\n")
    answer = bench.run()
    assert answer.code == 2
    assert message in answer.errors
    assert "tasks.yaml:1" in answer.errors
    assert not list(bench.out.glob("pixels/*"))


def test_a_probe_that_forgets_samples(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from virb.probes.base import Predictions

    monkeypatch.setattr(
        e2e_probes.Background,
        "from_batches",
        lambda self, encoder, loaders, settings, context: e2e_probes.single(settings, Predictions([np.zeros((32, 32))] * 3)),
    )
    bench.write(VIT, "masks: {task: 'e2e_probes:MASKS', data: {n_train: 4, n_test: 5, size: 32}, probe: 'e2e_probes:Background'}\n")
    answer = bench.run()
    assert answer.code == 1
    assert "the probe e2e_probes:Background gave 3 predictions for 5 samples" in answer.text
