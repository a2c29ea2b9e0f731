"""``limit``: which samples, how many of each class, and that only their images are encoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from plan_support import DIGITS, MakePlan

from virb.data.datasets import load_dataset
from virb.data.images import ArrayImages, Dataset, FileImages, RenderedImages, Samples
from virb.data.subsets import SubsetImages, subset
from virb.errors import ConfigError
from virb.plan.limit import draw, limit_split


def test_classes_are_kept_in_proportion() -> None:
    targets = np.repeat([0, 1, 2], [700, 200, 100])
    chosen = draw(targets, 1000, 50, "train")
    assert np.bincount(targets[chosen]).tolist() == [35, 10, 5]
    assert (np.diff(chosen) > 0).all()
    assert chosen.tolist() == draw(targets, 1000, 50, "train").tolist()
    assert chosen.tolist() != draw(targets, 1000, 50, "test").tolist()


@pytest.mark.parametrize("count", [3, 4, 5, 7, 10, 50, 102])
def test_the_count_is_exact_and_every_class_has_a_sample_when_it_can(count: int) -> None:
    targets = np.repeat([0, 1, 2], [100, 2, 1])
    chosen = draw(targets, 103, count, "train")
    assert len(chosen) == len(set(chosen.tolist())) == count
    assert set(targets[chosen]) == {0, 1, 2}
    assert len(draw(np.arange(9), 9, 4, "train")) == 4


@pytest.mark.parametrize("targets", [None, np.zeros((20, 3), dtype=np.uint8), np.linspace(0, 1, 20), ["mask"] * 20])
def test_other_targets_are_not_looked_at(targets: object) -> None:
    assert len(set(draw(targets, 20, 7, "test").tolist())) == 7


def test_a_limited_split_has_its_own_images_and_the_samples_keep_theirs() -> None:
    pixels = np.arange(12, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), dtype=np.uint8)
    images = ArrayImages("train", pixels, [f"i{i}" for i in range(12)])
    rows = np.array([[0, 5], [5, 1], [7, 7], [11, 0], [3, 2]])
    samples = Samples.from_rows(list("abcde"), "train", rows, {"class": np.array([0, 1, 0, 1, 0]), "mask": list("vwxyz")}, list("uuwww"))
    found = limit_split(Dataset("d", {"train": images}, {"train": samples}), "train", 3, "class")
    assert found is not None
    assert len(found.indices) == 3
    for place, i in enumerate(found.indices):
        assert found.samples.ids[place] == samples.ids[i]
        assert found.samples.units[place] == samples.units[i]
        assert (found.samples.targets["class"][place], found.samples.targets["mask"][place]) == (samples.targets["class"][i], "vwxyz"[i])
        ours = [np.asarray(found.images.read(int(row)))[0, 0, 0] for row in found.samples.rows(place)]
        assert ours == rows[i].tolist()
    assert len(found.images) == len(np.unique(rows[list(found.indices)]))


def test_a_limit_that_leaves_nothing_out_changes_nothing(make_plan: MakePlan) -> None:
    def job(**keys: object):
        (found,) = make_plan(None, {"t": {**DIGITS, **keys}}).jobs
        return found

    whole, limited, more = job(), job(limit={"train": 100, "test": 50}), job(limit={"train": 5000})
    assert more.key == whole.key
    assert limited.key not in (whole.key, job(limit={"train": 101, "test": 50}).key)
    assert limited.n_samples == {"fit": 100, "select": 100, "report": 50}
    assert limited.task.changed == {"limit": {"train": 100, "test": 50}}
    plan = make_plan(None, {"t": {**DIGITS, "limit": {"train": 100, "test": 50}}})
    assert plan.rows_to_decode == 150


def test_every_encoder_and_task_sees_the_same_samples(make_plan: MakePlan) -> None:
    tasks = {"a": {**DIGITS, "limit": {"train": 100}}, "b": {**DIGITS, "probe": "mlp", "limit": {"train": 100}}}
    plan = make_plan({"x": {"arch": "pixels"}, "y": {"arch": "pixels", "args": {"side": 4}}}, tasks)
    assert len({job.roles["fit"].limited for job in plan.jobs}) == 1
    assert plan.n_passes == 2


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"trian": 3}, "limit: the dataset digits has no split 'trian'"),
        ({"val": 3}, "limit: the dataset digits has no split 'val'"),
        ({"train": 0}, "limit.train  expected at least 1, got 0"),
        ({}, "limit  is empty"),
        (5, "limit  expected a mapping, got 5"),
    ],
)
def test_mistakes(make_plan: MakePlan, limit: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(None, {"t": {**DIGITS, "limit": limit}})


def test_the_index_lists_are_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import virb

    monkeypatch.chdir(tmp_path)
    config = {"a": {"optimizer": "adamw", "lr": 0.01}}
    task = {"task": "digits", "limit": {"train": 60, "test": 40}, "num_epochs": 2, "training_configs": config}
    virb.run({"p": {"arch": "pixels"}}, {"t": task}, "out", devices="cpu:1", progress=False)
    job = json.loads((tmp_path / "out/p/t/job.json").read_text())
    lists, labels = job["index_lists"], load_dataset("digits").samples["train"].targets["class"]
    fit = lists["limit-train"]["indices"]
    assert (len(fit), len(lists["limit-test"]["indices"])) == (60, 40)
    assert set(lists["select"]["indices"]) < set(fit)  # the hold-out is named by its place in the whole split as well
    assert np.bincount(labels[fit]).min() >= 5
    assert job["protocol"]["changed"]["limit"] == {"train": 60, "test": 40}
    assert job["protocol"]["values"]["limit"]["value"] == {"train": 60, "test": 40}


# Subsets of image lists


def test_a_subset_of_files_is_the_list_of_these_files(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    boxes = np.arange(16.0).reshape(4, 4)
    whole = FileImages("train", tmp_path, [f"{name}.png" for name in "abcd"], boxes)
    part = subset(whole, np.array([1, 3]))
    assert list(part.ids) == ["b.png", "d.png"]
    assert part.identity() == FileImages("x", tmp_path, ["b.png", "d.png"], boxes[[1, 3]]).identity() != whole.identity()


def test_a_subset_of_any_other_list_reads_through() -> None:
    def render(i: int) -> np.ndarray:
        return np.full((2, 2, 3), i, dtype=np.uint8)

    whole = RenderedImages("train", [f"r{i}" for i in range(5)], render, {"seed": 0})
    part = subset(whole, np.array([2, 4]))
    assert isinstance(part, SubsetImages)
    assert (list(part.ids), part.name) == (["r2", "r4"], "train")
    assert [np.asarray(part.read(i))[0, 0, 0] for i in range(2)] == [2, 4]
    assert len({part.identity(), subset(whole, np.array([2, 3])).identity(), whole.identity()}) == 3
    assert part.identity() == subset(whole, np.array([2, 4])).identity()
