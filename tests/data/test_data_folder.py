from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from virb.data.datasets import load_dataset
from virb.errors import BadImage, UserError


def put(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (len(path), 0, 0)).save(root / path, format="PNG")


@pytest.fixture
def root(tmp_path):
    put(tmp_path, "train/dog/b.JPG", "train/dog/deep/er/a.png", "train/ant/x.gif")
    put(tmp_path, "train/cat/1.webp", "train/cat/10.ppm", "train/cat/2.TIFF")
    put(tmp_path, "test/dog/z.bmp", "test/cat/y.jpeg")
    return tmp_path


def test_classes_paths_and_ids(root):
    put(root, "train/dog/.hidden.png", "train/dog/.thumbs/t.png", "train/.git/a.png")
    (root / "train/dog/notes.txt").write_text("not an image")
    dataset = load_dataset("folder", root)
    assert dataset.classes == {"class": ("ant", "cat", "dog")}
    train, test = dataset.samples["train"], dataset.samples["test"]
    assert list(train.ids) == [
        "train/ant/x.gif",
        "train/cat/1.webp",
        "train/cat/10.ppm",
        "train/cat/2.TIFF",
        "train/dog/b.JPG",
        "train/dog/deep/er/a.png",
    ]
    assert train.targets["class"].tolist() == [0, 1, 1, 1, 2, 2]
    assert list(test.ids) == ["test/cat/y.jpeg", "test/dog/z.bmp"]
    assert test.targets["class"].tolist() == [1, 2]  # ids do not shift where a class is missing
    assert dataset.lists["train"].read(5).getpixel((0, 0))[0] == len("train/dog/deep/er/a.png")
    assert set(dataset.samples) == {"train", "test"}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_validation_split_by_any_of_its_names(root, name):
    put(root, f"{name}/cat/v.png")
    dataset = load_dataset("folder", str(root))
    assert list(dataset.samples["val"].ids) == [f"{name}/cat/v.png"]
    assert dataset.samples["val"].targets["class"].tolist() == [1]


def test_moving_the_folder_changes_no_identity(root, tmp_path_factory):
    before = load_dataset("folder", root).lists["train"].identity()
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(root, copy)
    os.utime(copy / "train/dog/b.JPG", (0, 0))
    assert load_dataset("folder", copy).lists["train"].identity() == before


def test_links_are_followed_but_not_in_circles(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    put(elsewhere, "far.png")
    (root / "train/ant/link").symlink_to(elsewhere)
    (root / "train/ant/circle").symlink_to(root / "train/ant")
    ids = [name for name in load_dataset("folder", root).samples["train"].ids if "ant" in name]
    assert ids == ["train/ant/link/far.png", "train/ant/x.gif"]


def test_a_broken_image_is_named_when_it_is_read(root):
    (root / "test/cat/y.jpeg").write_bytes(b"broken")
    with pytest.raises(BadImage, match=r"y\.jpeg"):
        load_dataset("folder", root).lists["test"].read(0)


def remove(*paths):
    return lambda root: [shutil.rmtree(root / path) for path in paths]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove("train"), "no folder train; expected .*<class>"),
        (remove("test"), "no folder test"),
        (remove("train/dog", "train/ant", "test/dog"), "one class, 'cat'"),
        (remove("train/dog"), "test has 'dog', but .*train has no such class"),
        (lambda root: (root / "train/empty").mkdir(), "class 'empty' of train is empty: no jpg.*train.empty"),
        (lambda root: (root / "test/ant").mkdir(), "class 'ant' of test is empty"),
        (lambda root: put(root, "val/cat/a.png", "valid/cat/a.png"), "has both val and valid"),
        (lambda root: put(root, "val/owl/a.png"), "val has 'owl'"),
        (lambda root: [remove("test")(root), put(root, "test/a.png")], "has no class folders"),
    ],
)
def test_what_is_wrong_is_said(root, spoil, message):
    spoil(root)
    with pytest.raises(UserError, match=message):
        load_dataset("folder", root)


def test_no_root(tmp_path):
    with pytest.raises(UserError, match=r"data: \{root: "):
        load_dataset("folder")
    with pytest.raises(UserError, match=r"nowhere does not exist; set data: \{root"):
        load_dataset("folder", tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        load_dataset("folder", tmp_path / "file")


def test_labels_follow_names_not_disk_order(root):
    dataset = load_dataset("folder", root)
    for split in dataset.samples.values():
        names = np.array(dataset.classes["class"])[split.targets["class"]]
        assert all(f"/{name}/" in path for name, path in zip(names, split.ids, strict=True))
