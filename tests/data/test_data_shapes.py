from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from virb.data import scenes
from virb.data.datasets import load_dataset
from virb.errors import UserError


def pixels(images, i):
    return np.asarray(images.read(i))


def read_in_reverse(images):
    return [pixels(images, i) for i in reversed(range(len(images)))][::-1]


def test_shapes_has_every_target_of_an_image():
    dataset = load_dataset("shapes", n_train=25, n_test=12)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 25, "test": 12}
    samples = dataset.samples["train"]
    assert samples.fixed_rows().shape == (25, 1)
    assert dataset.classes["count"] == ("1", "2", "3", "4", "5", "6")
    for i in range(25):
        image, target = dataset.lists["train"].read(i), {name: values[i] for name, values in samples.targets.items()}
        assert image.size == (64, 64)
        assert image.mode == "RGB"
        assert target["mask"].shape == target["depth"].shape == (64, 64)
        assert target["flow"].shape == (2, 64, 64)
        assert target["mask"].dtype == np.int64
        assert target["depth"].dtype == target["flow"].dtype == target["boxes"].dtype == np.float32
        assert np.isfinite(target["depth"]).all()
        assert target["boxes"].shape == (target["count"] + 1, 5)
        nearest = np.unravel_index(target["depth"].argmin(), (64, 64))
        assert dataset.classes["mask"][target["mask"][nearest]] == dataset.classes["class"][target["class"]]
        for x0, y0, x1, y1, kind in target["boxes"]:
            inside = target["mask"][int(y0) : int(y1), int(x0) : int(x1)]
            assert (inside == kind + 1).any()
        outside = target["mask"].copy()
        for x0, y0, x1, y1, _ in target["boxes"]:
            outside[int(y0) : int(y1), int(x0) : int(x1)] = 0
        assert not outside.any()  # boxes hold all of the mask


def test_the_image_shows_the_mask():
    """Objects are told from the wall by colour: the image and its targets are drawn apart, and fit."""
    dataset = load_dataset("shapes", n_train=1, n_test=60, seed=3)
    gains = []
    for i in range(60):
        image, mask = pixels(dataset.lists["test"], i).astype(float), dataset.samples["test"].targets["mask"][i] > 0
        shifted = np.roll(mask, (11, 17), axis=(0, 1))

        def separation(m, image=image):
            return np.linalg.norm(image[m].mean(axis=0) - image[~m].mean(axis=0))

        gains.append(separation(mask) - separation(shifted))
    assert np.mean(np.array(gains) > 0) > 0.95


def test_an_image_does_not_depend_on_how_many_there_are_or_on_order():
    few, many = load_dataset("shapes", n_train=4, n_test=2), load_dataset("shapes", n_train=9, n_test=5)
    for split in ("train", "test"):
        n = len(few.samples[split])
        for i in reversed(range(n)):
            np.testing.assert_array_equal(pixels(few.lists[split], i), pixels(many.lists[split], i))
            np.testing.assert_array_equal(few.samples[split].targets["flow"][i], many.samples[split].targets["flow"][i])
        assert (few.samples[split].targets["class"] == many.samples[split].targets["class"][:n]).all()
        assert list(few.samples[split].ids) == list(many.samples[split].ids[:n])
    assert not np.array_equal(pixels(few.lists["train"], 0), pixels(few.lists["test"], 0))


def test_another_process_renders_the_same_images():
    images = load_dataset("shapes-video", n_train=2, n_test=1).lists["train"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(read_in_reverse, (images,))
    for i, image in enumerate(there):
        np.testing.assert_array_equal(image, pixels(images, i))


def test_identities():
    base = {"n_train": 5, "n_test": 5}
    identity = load_dataset("shapes", **base).lists["train"].identity()
    assert identity == load_dataset("shapes", **base, root="/ignored").lists["train"].identity()
    others = [
        load_dataset("shapes", **base).lists["test"],
        load_dataset("shapes", **base, seed=1).lists["train"],
        load_dataset("shapes", **base, size=48).lists["train"],
        load_dataset("shapes", n_train=6, n_test=5).lists["train"],
        load_dataset("shapes-pairs", **base).lists["train"],
        load_dataset("shapes-video", **base).lists["train"],
    ]
    assert len({identity, *(images.identity() for images in others)}) == 7


def test_a_new_version_of_the_renderer_is_another_identity(monkeypatch):
    before = load_dataset("shapes", n_train=2, n_test=2).lists["train"].identity()
    monkeypatch.setattr(scenes, "VERSION", scenes.VERSION + 1)
    assert load_dataset("shapes", n_train=2, n_test=2).lists["train"].identity() != before


def test_pairs_are_two_frames_with_the_flow_between_them():
    dataset = load_dataset("shapes-pairs", n_train=6, n_test=2)
    samples, images = dataset.samples["train"], dataset.lists["train"]
    assert len(images) == 12
    assert samples.fixed_rows().tolist()[2] == [4, 5]
    assert images.ids[5] == "shapes-pairs/train/000002/01"
    for i in range(6):
        scene = scenes.draw_scene(0, "shapes-pairs/train", i, 2)
        for row, frame in zip(samples.rows(i), (0, 1), strict=True):
            np.testing.assert_array_equal(pixels(images, row), scenes.render_image(scene, 64, frame))
        np.testing.assert_array_equal(samples.targets["flow"][i], scenes.render_flow(scene, 64, 0))


def test_videos_are_ragged_ordered_and_tracked():
    dataset = pickle.loads(pickle.dumps(load_dataset("shapes-video", n_train=14, n_test=3)))
    samples, images = dataset.samples["train"], dataset.lists["train"]
    lengths = [len(samples.rows(i)) for i in range(14)]
    assert samples.fixed_rows() is None
    assert set(lengths) <= set(range(4, 9))
    assert len(set(lengths)) > 2
    assert np.concatenate([samples.rows(i) for i in range(14)]).tolist() == list(range(len(images))) == list(range(sum(lengths)))
    for i in (0, 3, 13):
        masks, tracks = samples.targets["mask"][i], samples.targets["tracks"][i]
        assert len(masks) == len(tracks) == lengths[i]
        assert [images.ids[row] for row in samples.rows(i)] == [f"{samples.ids[i]}/{t:02d}" for t in range(lengths[i])]
        np.testing.assert_array_equal(samples.targets["given_mask"][i], masks[0])
        np.testing.assert_array_equal(samples.targets["given_tracks"][i], tracks[0])
        for mask, boxes, following in zip(masks, tracks, [*tracks[1:], tracks[-1]], strict=True):
            assert boxes[:, 5].tolist() == list(range(samples.targets["count"][i] + 1))
            assert boxes[0, 4] == samples.targets["class"][i]
            assert np.abs(boxes[:, :4] - following[:, :4]).max() < 64 * 0.35
            for x0, y0, x1, y1, kind, _ in boxes:
                assert (mask[int(y0) : int(y1), int(x0) : int(x1)] == kind + 1).any()


def test_queries_have_their_scene_in_the_database():
    dataset = load_dataset("shapes-retrieval", n_queries=12, n_distractors=10)
    queries, database = dataset.samples["queries"], dataset.samples["database"]
    relevant = queries.targets["relevant"]
    assert queries.images == "queries"
    assert database.images == "database"
    assert database.targets == {}
    assert len({len(rows) for rows in relevant}) > 1
    assert min(len(rows) for rows in relevant) >= 1
    used = np.concatenate(relevant)
    assert len(used) == len(set(used)) == len(database) - 10
    for i, rows in enumerate(relevant):
        query = pixels(dataset.lists["queries"], i)
        assert query.shape[0] <= 64
        assert query.shape[1] <= 64
        assert min(query.shape[:2]) >= 8
        for row in rows:
            number, frame = dataset.lists["database"].ids[row].rsplit("/", 1)[1].split("-")
            assert int(number) == i
            assert int(frame) >= 1
    assert any(pixels(dataset.lists["queries"], i).shape != (64, 64, 3) for i in range(12))


def test_colour_histograms_retrieve_the_scene():
    """The toy can be solved: the crop has the colours of its scene."""

    def histogram(image):
        counts = np.bincount((image // 64 @ np.array([16, 4, 1])).ravel(), minlength=64).astype(float)
        return np.sqrt(counts / counts.sum())

    dataset = load_dataset("shapes-retrieval", n_queries=15, n_distractors=20)
    database = np.stack([histogram(pixels(dataset.lists["database"], i)) for i in range(len(dataset.lists["database"]))])
    first = [np.argmax(database @ histogram(pixels(dataset.lists["queries"], i))) for i in range(15)]
    hits = [row in relevant for row, relevant in zip(first, dataset.samples["queries"].targets["relevant"], strict=True)]
    assert np.mean(hits) > 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 16}, "at least 32"), ({"n_train": 0}, "train is 0"), ({"n_test": 2.5}, "whole number"), ({"seed": True}, "whole number")],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        load_dataset("shapes", **options)


@pytest.mark.parametrize("name", ["shapes", "shapes-pairs", "shapes-video"])
def test_rendered_targets_have_an_identity(name: str) -> None:
    def identities(**options: int) -> dict[tuple[str, str], str]:
        dataset = load_dataset(name, n_train=3, n_test=3, **{"size": 32, **options})
        return {
            (split, target): values.identity()
            for split, samples in dataset.samples.items()
            for target, values in samples.targets.items()
            if hasattr(values, "identity")
        }

    first = identities()
    assert len(first) >= 2
    assert len(set(first.values())) == len(first)
    assert identities() == first
    for change in ({"seed": 1}, {"size": 40}):
        assert not set(identities(**change).values()) & set(first.values())
