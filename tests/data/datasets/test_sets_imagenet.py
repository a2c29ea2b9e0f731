"""ImageNet and its relatives, on miniatures of the true trees."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sets_support import Palette, answers, check_planted, shown, shown_by, write

from virb.data.datasets import load_dataset
from virb.data.datasets.facts import FACTS
from virb.data.datasets.imagenet import CORRUPTIONS, wnids
from virb.errors import BadImage, UserError

THREE = ("n01440764", "n02102040", "n03888257")  # tench, springer, parachute: numbers 0, 217 and 701
palette = Palette(THREE)


def tree(root, splits, ending="JPEG"):
    for split, classes in splits.items():
        for wnid, n in classes.items():
            for i in range(n):
                palette.put(root / split / wnid / f"{wnid}_{i}.{ending}", wnid)


@pytest.fixture
def imagenet(tmp_path):
    # the middle class has no validation images: that must not shift the last one's number
    tree(tmp_path / "imagenet", {"train": dict.fromkeys(THREE, 2), "val": {THREE[0]: 1, THREE[2]: 2}})
    return tmp_path


def test_class_numbers_are_imagenets_own(imagenet):
    dataset = load_dataset("imagenet", imagenet)
    assert len(dataset.classes["class"]) == 1000
    assert dataset.samples["train"].targets["class"].tolist() == [0, 0, 217, 217, 701, 701]
    assert dataset.samples["test"].targets["class"].tolist() == [0, 701, 701]
    assert dataset.samples["test"].ids[0] == "val/n01440764/n01440764_0.JPEG"
    check_planted(dataset, palette)
    assert load_dataset("imagenet", imagenet / "imagenet").lists["train"].identity() == dataset.lists["train"].identity()


@pytest.mark.parametrize("kind", ["kaggle", "torchvision"])
def test_flat_validation_images(tmp_path, kind):
    place = "ILSVRC/Data/CLS-LOC" if kind == "kaggle" else "imagenet"
    tree(tmp_path / place, {"train": dict.fromkeys(THREE, 1)})
    order = [THREE[1], THREE[2], THREE[0]]
    for i, wnid in enumerate(order):
        palette.put(tmp_path / place / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG", wnid)
    if kind == "kaggle":
        rows = [f"ILSVRC2012_val_{i + 1:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for i, wnid in enumerate(order)]
        write(tmp_path / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *rows]))
    else:
        torch.save((dict.fromkeys(THREE, ("name",)), order), tmp_path / place / "meta.bin")
    dataset = load_dataset("imagenet", tmp_path)
    check_planted(dataset, palette)
    assert dataset.samples["test"].targets["class"].tolist() == [217, 701, 0]


def test_flat_validation_images_without_answers(tmp_path):
    tree(tmp_path / "imagenet", {"train": dict.fromkeys(THREE, 1)})
    palette.put(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG", THREE[0])
    with pytest.raises(UserError, match=r"1 images and no class folders; put LOC_val_solution.csv .* or meta.bin"):
        load_dataset("imagenet", tmp_path)


def test_a_class_that_is_no_class_of_imagenet(imagenet):
    palette.put(imagenet / "imagenet/train/n99999999/a.JPEG", THREE[0])
    with pytest.raises(UserError, match="'n99999999', which imagenet does not know among its 1000 classes"):
        load_dataset("imagenet", imagenet)


def test_a_class_that_is_only_in_the_test_split(imagenet):
    palette.put(imagenet / "imagenet/val/n01443537/a.JPEG", THREE[0])
    with pytest.raises(UserError, match="test has samples of 'n01443537', but train has none"):
        load_dataset("imagenet", imagenet)


def test_nothing_is_there(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset("imagenet", tmp_path)
    message = str(caught.value)
    assert "looked for train + val in" in message
    assert str(tmp_path / "imagenet") in message
    assert "image-net.org" in message
    assert "155 GB" in message
    assert "non-commercial" in message
    with pytest.raises(UserError, match="no folder is given; use --data_root"):
        load_dataset("imagenet")
    (tmp_path / "imagenet").mkdir()
    with pytest.raises(UserError, match="is there, but lacks what is looked for"):
        load_dataset("imagenet", tmp_path)


def test_odd_images_are_read_and_broken_ones_are_named(imagenet):
    folder = imagenet / "imagenet/train" / THREE[0]
    red = (200, 30, 30)
    Image.new("L", (9, 7), 90).save(folder / "grey.JPEG", "JPEG")
    Image.new("CMYK", (9, 7), (0, 255, 255, 0)).save(folder / "cmyk.JPEG", "JPEG")
    Image.fromarray(np.full((7, 9), 0x5AFF, dtype=np.uint16)).save(folder / "deep.png")
    Image.new("RGB", (1, 1), red).save(folder / "one.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (9, 7), red).save(folder / "turned.JPEG", "JPEG", exif=turned)
    Image.effect_noise((64, 64), 60).convert("RGB").save(folder / "cut.JPEG", "JPEG")
    (folder / "cut.JPEG").write_bytes((folder / "cut.JPEG").read_bytes()[:600])
    images = load_dataset("imagenet", imagenet).lists["train"]
    at = {path.rpartition("/")[2]: i for i, path in enumerate(images.paths)}
    assert abs(images.read(at["grey.JPEG"]).getpixel((3, 3))[1] - 90) < 3
    assert images.read(at["cmyk.JPEG"]).getpixel((3, 3))[0] > 200
    assert images.read(at["deep.png"]).getpixel((3, 3)) == (0x5A, 0x5A, 0x5A)
    assert images.read(at["one.png"]).size == (1, 1)
    assert images.read(at["turned.JPEG"]).size == (7, 9)
    with pytest.raises(BadImage, match=r"cut.JPEG"):
        images.read(at["cut.JPEG"])


@pytest.mark.parametrize("place", ["imagenette2", "imagenette2-320", "imagenette2-160"])
def test_imagenette_as_torchvision_has_it(tmp_path, place):
    from torchvision.datasets import Imagenette

    tree(tmp_path / place, {"train": dict.fromkeys(THREE, 2), "val": dict.fromkeys(THREE, 1)})
    dataset = load_dataset("imagenette", tmp_path)
    check_planted(dataset, palette)
    size = {"imagenette2": "full", "imagenette2-320": "320px", "imagenette2-160": "160px"}[place]
    for ours, theirs in (("train", "train"), ("test", "val")):
        assert shown(dataset, ours, palette) == shown_by(Imagenette(tmp_path, theirs, size), palette)


def test_imagenet100_in_kaggles_parts(tmp_path):
    names = [f"n0{i}000000" for i in range(1, 5)]
    colours = Palette(names)
    folder = tmp_path / "imagenet100"
    for i, wnid in enumerate(reversed(names), 1):  # parts are not in the order of classes
        colours.put(folder / f"train.X{i}" / wnid / f"{wnid}_1.JPEG", wnid)
    for wnid in (names[0], names[3]):
        colours.put(folder / "val.X" / wnid / f"ILSVRC2012_val_{wnid}.JPEG", wnid)
    write(folder / "Labels.json", dict.fromkeys([*reversed(names), "n00000001"], "a name"))
    dataset = load_dataset("imagenet100", tmp_path)
    check_planted(dataset, colours)
    assert dataset.classes["class"] == ("n00000001", *names)
    assert dataset.samples["train"].targets["class"].tolist() == [1, 2, 3, 4]
    assert dataset.samples["test"].targets["class"].tolist() == [1, 4]
    for file in (folder / "train.X2").rglob("*.JPEG"):
        file.unlink()
    write(folder / "Labels.json", ["n01"])
    with pytest.raises(UserError, match="no images in"):
        load_dataset("imagenet100", tmp_path)
    colours.put(folder / "train.X2" / names[2] / "a.JPEG", names[2])
    with pytest.raises(UserError, match=r"Labels.json is of another version"):
        load_dataset("imagenet100", tmp_path)
    (folder / "train.X3").rename(folder / "train-X3")
    with pytest.raises(UserError, match=r"has no train.X3; the training images are in four parts"):
        load_dataset("imagenet100", tmp_path)


def test_imagenet100_in_folders(tmp_path):
    tree(tmp_path / "ImageNet100", {"train": dict.fromkeys(THREE, 1), "val": {THREE[2]: 1}})
    dataset = load_dataset("imagenet100", tmp_path)
    check_planted(dataset, palette)
    assert dataset.samples["test"].targets["class"].tolist() == [2]


@pytest.mark.parametrize("place", ["imagenetv2", "imagenetv2-matched-frequency-format-val"])
def test_imagenetv2_numbers_its_folders(tmp_path, place):
    for number, wnid in ((0, THREE[0]), (217, THREE[1]), (701, THREE[2])):
        palette.put(tmp_path / place / str(number) / "a.jpeg", wnid)
    dataset = load_dataset("imagenetv2", tmp_path)
    check_planted(dataset, palette)
    assert dataset.samples["test"].targets["class"].tolist() == [0, 217, 701]
    assert dataset.classes["class"] == wnids()
    palette.put(tmp_path / place / "1000" / "a.jpeg", THREE[0])
    with pytest.raises(UserError, match="outside 0 to 999: '1000'"):
        load_dataset("imagenetv2", tmp_path)


@pytest.mark.parametrize(("name", "subset"), [("imagenet-a", "imagenet_a"), ("imagenet-r", "imagenet_r"), ("imagenet-sketch", "imagenet")])
def test_sets_of_some_of_the_classes(tmp_path, name, subset):
    official = wnids(subset)
    assert official == tuple(sorted(official))
    assert set(official) <= set(wnids())
    assert len(official) == len(set(official)) == (1000 if subset == "imagenet" else 200)
    chosen = [official[3], official[150]]
    colours = Palette(chosen)
    for wnid in chosen:
        colours.put(tmp_path / name / wnid / "0.001_x.jpg", wnid)
    write(tmp_path / name / "README.txt", "as in the archive")
    dataset = load_dataset(name, tmp_path)
    check_planted(dataset, colours)
    assert dataset.samples["test"].targets["class"].tolist() == [3, 150]
    assert list(dataset.samples) == ["test"]


@pytest.mark.parametrize("grouped", [False, True])
def test_imagenet_c(tmp_path, grouped):
    chosen = (CORRUPTIONS[1], CORRUPTIONS[0])
    for corruption in chosen:
        for severity in range(1, 6):
            place = tmp_path / "imagenet-c" / ("noise" if grouped else "") / corruption / str(severity)
            for wnid in THREE[:2]:
                palette.put(place / wnid / f"{wnid}.JPEG", wnid)
    dataset = load_dataset("imagenet-c", tmp_path, corruptions=chosen)
    check_planted(dataset, palette)
    samples = dataset.samples["test"]
    assert len(samples) == 2 * 5 * 2
    assert samples.targets["corrupted"][0].tolist() == [0, 1, 1]  # numbered as AlexNet's errors are, in whatever order they are asked for
    assert samples.targets["corrupted"][-1].tolist() == [217, 0, 5]
    assert sorted(set(samples.units)) == ["n01440764.JPEG", "n02102040.JPEG"]  # a photograph is a unit
    assert dataset.classes["corruption"] == CORRUPTIONS
    with pytest.raises(UserError, match=r"has no impulse_noise .*corruptions: \[...\]"):
        load_dataset("imagenet-c", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corruptions": []}, "is a list of some of gaussian_noise, shot_noise"),
        ({"corruptions": "fog"}, "is a list of some of gaussian_noise, shot_noise"),
        ({"corruptions": ["fog", "spatter"]}, "corruptions: ...} has 'spatter'; there are gaussian_noise"),
        ({"corruptions": ["fog", "fog"]}, "corruptions: ...} names something twice: fog, fog"),
        ({"severities": []}, "is a list of some of 1, 2, 3, 4, 5; got []"),
        ({"severities": 3}, "is a list of some of 1, 2, 3, 4, 5; got 3"),
        ({"severities": [0]}, "severities: ...} has 0; there are 1, 2, 3, 4, 5"),
        ({"severities": [True]}, "severities: ...} has True"),
        ({"severities": [1, 1]}, "severities: ...} names something twice: 1, 1"),
    ],
)
def test_imagenet_c_of_what_there_is_not(tmp_path, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_dataset("imagenet-c", tmp_path, **options)


def test_real_labels(tmp_path):
    for number, wnid in ((3, THREE[0]), (1, THREE[1]), (2, THREE[2])):
        palette.put(tmp_path / "imagenet/val" / wnid / f"ILSVRC2012_val_{number:08d}.JPEG", wnid)
    labels = [[] for _ in range(50_000)]
    labels[0], labels[2] = [217, 5], [0]  # the second photograph got no label
    write(tmp_path / "imagenet/real.json", labels)
    dataset = load_dataset("imagenet-real", tmp_path)
    samples = dataset.samples["test"]
    assert [row.nonzero()[0].tolist() for row in samples.targets["labels"]] == [[5, 217], [0]]
    assert [palette.name_of(dataset.lists["test"].read(i)) for i in range(2)] == [THREE[1], THREE[0]]
    write(tmp_path / "imagenet/real.json", labels[:10])
    with pytest.raises(UserError, match=r"real.json is of another version .* 50,000 lists"):
        load_dataset("imagenet-real", tmp_path)
    (tmp_path / "imagenet/real.json").unlink()
    # timm's copy: the first photograph has no label, the second 795 and 970, the third 230 and 231
    samples = load_dataset("imagenet-real", tmp_path).samples["test"]
    assert [row.nonzero()[0].tolist() for row in samples.targets["labels"]] == [[795, 970], [230, 231]]


def test_timms_copy_of_the_real_labels_has_the_published_number():
    from virb.data.datasets.imagenet import _real_labels

    labels, _ = _real_labels("imagenet-real", Path("nowhere"), None)
    assert len(labels) == 50_000
    assert sum(bool(item) for item in labels) == FACTS["imagenet-real"].splits["test"]


def test_the_union_of_two_splits_is_listed_by_ids(imagenet):
    assert answers(load_dataset("imagenet", imagenet), "test")[-1] == (THREE[2], "val/n03888257/n03888257_1.JPEG")
