"""Which images a training finds in a folder, what is said where there are none, and which of them each step and rank takes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from virb.errors import UserError
from virb.pretraining.data import epoch_order, largest_size, open_images, open_source, rows_of
from virb.pretraining.methods import CropRecipe, ViewSpec
from virb.pretraining.plan import BatchPlan


def write(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (colour, 0, 0)).save(path)


@pytest.mark.parametrize("names", [["a.png", "b.jpg"], ["x/1.png", "y/1.png"], ["p/q/r/1.png", "p/2.png", "3.bmp"]])
def test_folders_flat_in_classes_or_nested(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert list(open_images(tmp_path).ids) == sorted(names)
    assert open_images(str(tmp_path)).read(0).size == (12, 10)


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/a/2.png", "val/a/3.png"):
        write(tmp_path / name)
    assert list(open_images(tmp_path).ids) == ["a/1.png", "a/2.png"]
    assert len(open_images(tmp_path / "val" / "..")) == 2


@pytest.mark.parametrize("place", ["", "cifar-10-batches-py"])
def test_cifar_as_it_is_published(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (6, 4, 3072), dtype=np.uint8)
    for i, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps({"data": pixels[i], "labels": [0, 1, 0, 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    images = open_images(tmp_path)
    assert len(images) == 20  # the five training batches
    assert np.array_equal(np.array(images.read(5)), pixels[1, 1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_built_in_data() -> None:
    assert len(open_images("digits")) == 1438
    assert open_images("shapes").read(0).size == (64, 64)


def test_built_in_data_together() -> None:
    both = open_images("digits+shapes")
    digits, shapes = open_images("digits"), open_images("shapes")
    assert len(both) == len(set(both.ids)) == 1438 + 3000
    for row, images, i in ((0, digits, 0), (1437, digits, 1437), (1438, shapes, 0), (4437, shapes, 2999)):
        assert both.ids[row] == images.ids[i]
        assert np.array_equal(np.array(both.read(row)), np.array(images.read(i)))
    assert len({both.identity(), digits.identity(), shapes.identity(), open_images("shapes+digits").identity()}) == 4
    assert largest_size(both) == (64, 64)
    with pytest.raises(UserError, match="does not exist; did you mean digits"):
        open_images("digits+shape")


def test_folders_win_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("digits/1.png", "digits/2.png"):
        write(tmp_path / name)
    assert list(open_images("digits").ids) == ["1.png", "2.png"]


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match=r"there are no images in .*\(jpg"):
        open_images(tmp_path)


def test_one_image(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    with pytest.raises(UserError, match="has one image"):
        open_images(tmp_path)


def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    write(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"first image cannot be read: .*a\.png"):
        open_images(tmp_path)


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "1.png")
    really = os.scandir

    def scandir(place: str) -> object:
        if str(place).endswith("a"):
            raise PermissionError(13, "Permission denied", str(place))
        return really(place)

    monkeypatch.setattr(os, "scandir", scandir)  # tests may run as root, who may read everything
    with pytest.raises(UserError, match=r"a cannot be read \(Permission denied\)"):
        open_images(tmp_path)


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(UserError, match="is a file; expected a folder"):
        open_images(tmp_path / "images.zip")
    with pytest.raises(UserError, match="does not exist; did you mean digits"):
        open_images("digit")
    with pytest.raises(UserError, match="does not exist; expected a folder"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cifar10 lies in files"):
        open_images("cifar10")


def test_source_of_options() -> None:
    spec = ViewSpec((CropRecipe(8, (0.5, 1.0), 2),), 2)
    options = SimpleNamespace(data_path="digits", seed=0, num_workers=0, augmentation="auto", on_bad_image="error")
    assert len(open_source(options, spec, torch.device("cpu"))) == 1438  # type: ignore[arg-type]
    options.data_path = None
    with pytest.raises(UserError, match="data_path is not given"):
        open_source(options, spec, torch.device("cpu"))  # type: ignore[arg-type]


def plan(batch: int, micro: int, rank: int, world: int, n: int = 103, epochs: int = 3) -> BatchPlan:
    steps = n // (batch * micro * world)
    return BatchPlan(batch, micro, rank, world, steps, steps * epochs)


def test_an_epoch_takes_every_image_at_most_once_in_an_order_of_its_own() -> None:
    orders = [epoch_order(103, 0, epoch) for epoch in range(3)]
    assert all(sorted(order.tolist()) == list(range(103)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], epoch_order(103, 1, 0))
    assert np.array_equal(orders[0], epoch_order(103, 0, 0))
    p = plan(10, 1, 0, 1)
    epochs, rows = zip(*(rows_of(p, 103, 0, number) for number in range(p.total_steps)), strict=True)
    assert epochs == (0,) * 10 + (1,) * 10 + (2,) * 10
    assert np.array_equal(np.concatenate(rows[10:20]), orders[1][:100])


@pytest.mark.parametrize(("batch", "micro", "world"), [(12, 1, 1), (6, 2, 1), (6, 1, 2), (3, 2, 2), (2, 3, 2), (1, 1, 12)])
def test_a_step_takes_the_same_images_on_any_number_of_ranks(batch: int, micro: int, world: int) -> None:
    whole = plan(12, 1, 0, 1)
    for step in (0, 7, 8, 20):
        parts = [rows_of(plan(batch, micro, rank, world), 103, 5, step * micro + m) for m in range(micro) for rank in range(world)]
        epoch, rows = rows_of(whole, 103, 5, step)
        assert {e for e, _ in parts} == {epoch}
        assert np.array_equal(np.concatenate([r for _, r in parts]), rows)
