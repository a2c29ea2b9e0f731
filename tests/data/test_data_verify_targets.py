"""Targets with a value per pixel are read by ``virb data verify``: what is planted is found, and named."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "datasets"))
from pixel_support import every_value, put_image, put_labels

from virb.data import verify as module
from virb.data.verify import verify


@pytest.fixture
def camvid(tmp_path, monkeypatch):
    monkeypatch.delitem(module.FACTS, "camvid")  # without the published numbers
    for part in ("train", "val", "test"):
        for i in range(3):
            put_image(tmp_path / f"camvid/{part}/{part}_{i}.png")
            put_labels(tmp_path / f"camvid/{part}annot/{part}_{i}.png", every_value([0, 5, 11]))
    return tmp_path


@pytest.fixture(autouse=True)
def facts_stay(monkeypatch):
    monkeypatch.setattr(module, "FACTS", dict(module.FACTS))


def test_all_is_well(camvid):
    seen = []
    report = verify("camvid", camvid, workers=2, tell=lambda *what: seen.append(what))
    assert (report.ok, report.findings) == (True, [])
    assert seen[-1] == ("reading targets", 9, 9)


def test_what_is_planted_is_found(camvid):
    folder = camvid / "camvid"
    put_labels(folder / "trainannot/train_1.png", every_value([0, 12]))
    (folder / "trainannot/train_2.png").write_bytes(b"no image")
    put_labels(folder / "valannot/val_0.png", every_value([1], (13, 16)))
    put_labels(folder / "testannot/test_2.png", every_value([11]))
    findings = {finding.text: finding for finding in verify("camvid", camvid, workers=2).findings}
    bad = findings["2 of 3 targets (mask) of train cannot be read"]
    assert bad.wrong
    assert "train_1.png" in bad.names[0]
    assert "12" in bad.names[0]
    assert "train_2.png" in bad.names[1]
    sizes = findings["1 of 3 targets (mask) of val differ in size from their image"]
    assert (sizes.wrong, sizes.names) == (True, ("val/val_0.png: 13 x 17 pixels, but its target 13 x 16",))
    empty = findings["1 of 3 targets (mask) of test have no valid pixel"]
    assert (empty.wrong, empty.names) == (False, ("test/test_2.png",))
    assert len(findings) == 3
    assert verify("camvid", camvid, decode=False).ok


def test_depth_without_a_measurement_is_to_know(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.delitem(module.FACTS, "nyu-depth")
    for part in ("train", "test"):
        for i in range(2):
            put_image(tmp_path / f"nyu/{part}/images/{part}{i}.png")
            path = tmp_path / f"nyu/{part}/depths/{part}{i}.tiff"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((13, 17), float(i), dtype=np.float32)).save(path)
    report = verify("nyu-depth", tmp_path)
    assert [(finding.text, finding.names) for finding in report.findings] == [
        (f"1 of 2 targets (depth) of {part} have no valid pixel", (f"{part}/images/{part}0.png",)) for part in ("train", "test")
    ]
    assert report.ok
