"""Verification: what is planted is found, and named; what is right passes."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from virb.data import verify as module
from virb.data.datasets.facts import FACTS
from virb.data.prepare import split_record
from virb.data.verify import finding_lines, verify

BREEDS = ("Abyssinian", "Bengal")


def image(path, seed):
    """Noise: no two are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Six pets, four to train; the published numbers are made to fit."""
    monkeypatch.setitem(module.FACTS, "pets", SimpleNamespace(**{**vars_of("pets"), "splits": {"train": 4, "test": 2}, "n_classes": 2}))
    folder = tmp_path / "oxford-iiit-pet"
    lines = {"trainval": "", "test": ""}
    for k, name in enumerate(BREEDS):
        for i in range(3):
            image(folder / f"images/{name}_{i}.jpg", 10 * k + i)
            image(folder / f"annotations/trimaps/{name}_{i}.png", 100 + 10 * k + i)
            lines["test" if i == 2 else "trainval"] += f"{name}_{i} {k + 1} 1 1\n"
    for split, text in lines.items():
        (folder / f"annotations/{split}.txt").write_text(text)
    return folder


def vars_of(name):
    facts = FACTS[name]
    return {key: getattr(facts, key) for key in facts.__dataclass_fields__}


def wrong(report):
    return [finding.text for finding in report.findings if finding.wrong]


def test_all_is_well(pets, tmp_path):
    seen = []
    report = verify("pets", tmp_path, workers=2, tell=lambda *what: seen.append(what))
    assert report.ok
    assert report.findings == []
    assert report.decoded == 6
    assert seen[0] == ("decoding", 0, 6)
    assert seen[-1] == ("decoding", 6, 6)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    verify("pets", tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_numbers_differ_from_the_published_ones(pets, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert wrong(verify("pets", tmp_path)) == [
        "train has 4 samples; published are 3,680",
        "test has 2 samples; published are 3,669",
        "there are 2 classes; published are 37",
    ]


def test_unreadable_images_are_named_all_of_them(pets, tmp_path):
    whole = (pets / "images/Bengal_1.jpg").read_bytes()
    (pets / "images/Bengal_1.jpg").write_bytes(whole[: len(whole) // 2])  # the head is fine: only a full decode finds it
    (pets / "images/Abyssinian_2.jpg").write_text("<html>")
    report = verify("pets", tmp_path, workers=3)
    assert wrong(report) == ["2 of 6 images cannot be read"]
    (finding,) = report.findings
    assert [f"{name}.jpg" in line for name, line in zip(("Bengal_1", "Abyssinian_2"), finding.names, strict=True)] == [True, True]
    assert verify("pets", tmp_path, decode=False).ok
    lines = list(finding_lines(report.findings))
    assert lines[0] == "wrong  2 of 6 images cannot be read"
    assert "Bengal_1.jpg" in lines[1]


def test_pairs_by_stem_both_ways(pets, tmp_path):
    (pets / "annotations/trimaps/Bengal_0.png").unlink()
    image(pets / "annotations/trimaps/Bengal_9.png", 77)
    report = verify("pets", tmp_path)
    assert [(finding.text.partition(" files")[0], finding.names) for finding in report.findings] == [
        ("1", ("Bengal_0.png",)),
        ("1", ("Bengal_9.jpg",)),
    ]
    assert not report.ok


def test_an_image_that_lists_name_but_is_not_there(pets, tmp_path):
    (pets / "images/Bengal_0.jpg").unlink()
    report = verify("pets", tmp_path)
    assert not report.ok
    assert report.dataset is None
    assert "'images/Bengal_0.jpg'" in report.findings[0].text


def test_images_beside_the_others_are_to_know(pets, tmp_path):
    image(pets / "images/Bengal_50.jpg", 50)
    shutil.rmtree(pets / "annotations/trimaps")
    report = verify("pets", tmp_path)
    assert report.ok
    assert [(finding.text, finding.names) for finding in report.findings] == [
        ("1 images lie beside the others and are in no split", ("images/Bengal_50.jpg",))
    ]


def test_duplicates_between_published_splits_are_reported(pets, tmp_path):
    shutil.copyfile(pets / "images/Bengal_2.jpg", pets / "images/Bengal_0.jpg")
    shutil.copyfile(pets / "images/Abyssinian_0.jpg", pets / "images/Abyssinian_1.jpg")
    report = verify("pets", tmp_path)
    assert report.ok  # nobody is meant to mend published data
    assert [(finding.text, finding.names) for finding in report.findings] == [
        ("1 images of train are there more than once in train", ()),
        ("1 images of test are in train, too (in the published data)", ("images/Bengal_0.jpg = images/Bengal_2.jpg",)),
    ]


def test_duplicates_in_a_split_that_somebody_made_are_wrong(tmp_path, monkeypatch):
    monkeypatch.setitem(module.FACTS, "dtd", SimpleNamespace(**{**vars_of("dtd"), "splits": {}, "by_note": {}, "n_classes": None}))
    for split, seeds in (("train", (1, 2)), ("test", (3, 4))):
        for seed in seeds:
            image(tmp_path / f"dtd/{split}/banded/{seed}.png", seed)
            image(tmp_path / f"dtd/{split}/dotted/{seed}.png", 10 + seed)
    assert verify("dtd", tmp_path).ok
    # the same pixels in another kind of file, under another name and class
    Image.open(tmp_path / "dtd/train/banded/1.png").save(tmp_path / "dtd/test/dotted/other.bmp")
    report = verify("dtd", tmp_path)
    assert wrong(report) == ["1 images of test are in train, too"]
    assert report.findings[0].names == ("train/banded/1.png = test/dotted/other.bmp",)


def test_a_stored_split_that_has_changed(tmp_path, monkeypatch):
    monkeypatch.setitem(module.FACTS, "eurosat", SimpleNamespace(**{**vars_of("eurosat"), "total": None, "n_classes": None}))
    for name in ("Forest", "River"):
        for i in range(10):
            image(tmp_path / f"eurosat/2750/{name}/{name}_{i}.jpg", 100 * len(name) + i)
    stored = verify("eurosat", tmp_path).dataset
    (tmp_path / "eurosat/virb_split.json").write_text(json.dumps(split_record(stored)))
    assert verify("eurosat", tmp_path).ok
    lost = stored.lists["test"].paths[0]
    (tmp_path / "eurosat" / lost).unlink()
    report = verify("eurosat", tmp_path)
    assert [text.partition(" by ")[0] for text in wrong(report)] == [
        f"{split} differs from the split that was stored in {tmp_path / 'eurosat'}" for split in ("train", "test")
    ]
    assert lost in report.findings[1].names


def test_round_numbers_are_to_know(tmp_path):
    for part in ("train", "val"):
        rows = ""
        for n in range(3):
            image(tmp_path / f"thor_num_steps/{part}/F1/{n}_rgb.jpg", len(part) * 100 + n)
            rows += f"{part}/F1/{n} {n}\n"
        (tmp_path / f"thor_num_steps/{part}_labels.txt").write_text(rows)
    report = verify("thor-num-steps", tmp_path)
    assert report.ok
    assert report.findings[0].text.startswith("train has 3 samples; published are")


def test_absent_data_and_many_images_in_order(tmp_path):
    report = verify("pets", tmp_path)
    assert not report.ok
    assert "Get it from" in report.findings[0].text
    assert "no dataset 'pest'; did you mean pets?" in verify("pest", tmp_path).findings[0].text
    for i in range(300):  # several chunks
        image(tmp_path / f"own/train/{'ab'[i % 2]}/{i:03}.png", i)
    for i in range(4):
        image(tmp_path / f"own/test/{'ab'[i % 2]}/{i}.png", 1000 + i)
    shutil.copyfile(tmp_path / "own/train/a/298.png", tmp_path / "own/test/a/x.png")
    report = verify("folder", tmp_path / "own", workers=2)
    assert report.decoded == 305
    assert report.findings[-1].names == ("train/a/298.png = test/a/x.png",)


def test_the_numbers_are_those_of_the_split_that_was_found(tmp_path, monkeypatch):
    facts = {**vars_of("sun397"), "n_classes": 2, "total": 6, "by_note": {"official partition": {"train": 2, "test": 2}}}
    monkeypatch.setitem(module.FACTS, "sun397", SimpleNamespace(**facts))
    assert FACTS["sun397"].total == 6
    folder = tmp_path / "SUN397"
    for k, name in enumerate(("abbey", "zoo")):
        for i in range(3):
            image(folder / f"{name[0]}/{name}/sun_{i}.jpg", 10 * k + i)
    (folder / "ClassName.txt").write_text("/a/abbey\n/z/zoo\n")
    assert verify("sun397", tmp_path).ok  # 80 % of each class: all six
    for part, i in (("Training", 0), ("Testing", 1)):
        (folder / f"{part}_01.txt").write_text(f"/a/abbey/sun_{i}.jpg\n/z/zoo/sun_{i}.jpg\n")
    report = verify("sun397", tmp_path)
    assert report.ok
    (finding,) = report.findings
    assert finding.text == "2 images lie beside the others and are in no split"
    (folder / "Testing_01.txt").write_text("/a/abbey/sun_1.jpg\n")
    assert wrong(verify("sun397", tmp_path)) == ["test has 1 samples; published are 2"]


def test_published_numbers_of_other_splits():
    assert FACTS["sun397"].by_note["official partition"] == {"train": 397 * 50, "test": 397 * 50}
    assert sum(FACTS["eurosat"].by_note["split: the lists"].values()) == FACTS["eurosat"].total
    assert FACTS["dtd"].by_note["folders"]["train"] == (1_880, 3_760)


def test_drives_and_images_that_train_and_test_share_are_to_know(tmp_path):
    folder = tmp_path / "nuScenes"
    for drive in ("n015-a", "n015-b"):
        for i in range(4):
            image(folder / f"samples/{drive}__CAM_FRONT__{i}.jpg", 10 * ord(drive[-1]) + i)

    def pairs(*numbers):
        paths = [[f"samples/{drive}__CAM_FRONT__{i}.jpg" for i in (first, second)] for drive, first, second in numbers]
        return json.dumps([{"img_a": a, "img_b": b, "label": "ahead"} for a, b in paths])

    (folder / "nuScenes_train.json").write_text(pairs(("n015-a", 0, 1), ("n015-a", 1, 2)))
    (folder / "nuScenes_test.json").write_text(pairs(("n015-a", 2, 3), ("n015-b", 0, 1), ("n015-b", 2, 3)))
    report = verify("nuscenes-actions", tmp_path, decode=False)
    found = {finding.text: finding.names for finding in report.findings}
    assert found["1 images of test are those of train, too"] == ("samples/n015-a__CAM_FRONT__2.jpg",)
    assert found["1 of the 2 places or drives of test (1 samples) are in train, too"] == ("n015-a",)
    assert report.ok


def test_low_shot_lists_of_imagenet(tmp_path):
    for k, wnid in enumerate(("n01440764", "n01443537")):
        for split in ("train", "val"):
            image(tmp_path / f"imagenet/{split}/{wnid}/{wnid}_{split}.JPEG", 10 * k + len(split))
    assert not [text for text in wrong(verify("imagenet", tmp_path, decode=False)) if "percent" in text]
    (tmp_path / "imagenet/1percent.txt").write_text("n01440764_train.JPEG\nn01440764_other.JPEG\n")
    report = verify("imagenet", tmp_path, decode=False)
    assert "1percent.txt has 2 names; published are 12,811" in wrong(report)
    (finding,) = (finding for finding in report.findings if "stand for no image" in finding.text)
    assert finding.names == ("n01440764_other.JPEG",)
