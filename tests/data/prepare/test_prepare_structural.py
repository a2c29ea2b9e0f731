"""THOR depth, KITTI, Taskonomy and COCO from miniatures of the official archives to targets with the planted answers."""

from __future__ import annotations

import io
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from prepare_support import tar, tree, zipped
from structural_support import coco_list, coco_scene, kitti_files, kitti_pair, noise, picture, taskonomy_view

from virb.data.datasets import load_dataset
from virb.data.prepare import STATE, prepare, state_of
from virb.data.prepare.coco import category_map
from virb.errors import UserError, ViRBError


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def made(name, downloads, root):
    before = tree(downloads)
    done = prepare(name, [downloads], root)
    assert tree(downloads) == before
    assert state_of(name, root) == ("found", done.folder)
    return done


@pytest.mark.parametrize("inside", ["", "thor_depth/", "ViRB/thor_depth_prediction/"])
def test_thor_depth(downloads, root, inside):
    files = {
        f"{inside}{split}/Room{i}/{view}_{kind}.jpg": picture(np.full((8, 8), 50 * i + 7, np.uint8), "JPEG")
        for split, i in (("train", 1), ("train", 2), ("test", 3))
        for view in "ab"
        for kind in ("rgb", "depth")
    }
    zipped(downloads / "thor_depth.zip", files)
    done = made("thor-depth", downloads, root)
    assert [len(done.dataset.samples[split]) for split in ("train", "test")] == [4, 2]
    np.testing.assert_allclose(done.dataset.samples["test"].targets["depth"][0], 157 / 255, atol=1e-6)


def test_kitti(downloads, root):
    rest = {f"training/{kind}/000001_10.png": b"x" for kind in ("image_3", "disp_occ_0", "obj_map")}
    zipped(downloads / "data_scene_flow.zip", {**kitti_files(10), **rest, "testing/image_2/000000_10.png": b"x"})
    done = made("kitti-flow", downloads, root)
    assert [len(done.dataset.samples[split]) for split in ("train", "test")] == [9, 1]
    planted = kitti_pair(9)
    flow = done.dataset.samples["test"].targets["flow"][0]
    np.testing.assert_array_equal(flow[:2, planted["valid"]], planted["flow"][:, planted["valid"]])
    assert sorted(path.name for path in (root / "KITTI/training").iterdir()) == ["flow_noc", "flow_occ", "image_2", "viz_flow_occ"]
    assert not (root / "KITTI/testing").exists()
    assert load_dataset("kitti-flow", root, variant="virb2021").samples["test"].targets["flow"][0].shape == (1, 6, 10)


@pytest.mark.parametrize("named", ["{domain}__taskonomy__{building}.tar", "{building}_{domain}.tar"])
def test_taskonomy(downloads, root, named):
    for number, building in enumerate(("hanson", "merom", "ihlen")):
        for domain, values in taskonomy_view(number).items():
            name = f"./{domain}/point_3_view_1_domain_{domain}.png"
            tar(downloads / named.format(domain=domain, building=building), {name: picture(values)})
    csv = "id,train,val,test\nhanson,1,0,0\nmerom,1,0,0\nihlen,0,0,1\n"
    zipped(downloads / "splits_taskonomy.zip", {"splits_taskonomy/train_val_test_tiny.csv": csv, "__MACOSX/._x": b"mac"})
    done = made("taskonomy", downloads, root)
    assert done.dataset.samples["train"].units.tolist() == ["hanson", "merom"]
    assert done.dataset.samples["test"].units.tolist() == ["ihlen"]
    np.testing.assert_allclose(done.dataset.samples["test"].targets["edges"][0][0], taskonomy_view(2)["edge_texture"] / 65535, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(done.dataset.lists["train"].read(1)), taskonomy_view(1)["rgb"])


def test_taskonomy_without_splits_stores_the_rule(downloads, root):
    for number, building in enumerate(("hanson", "merom", "ihlen")):
        for domain in ("rgb", "depth_zbuffer"):
            content = picture(taskonomy_view(number)[domain])
            tar(downloads / f"{domain}__taskonomy__{building}.tar", {f"{domain}/point_3_view_1_domain_{domain}.png": content})
    done = made("taskonomy", downloads, root)
    assert list(done.dataset.samples["train"].targets) == ["depth"]
    assert done.lines[-1].endswith("virb_split.json: the split, for the record")


# COCO


def coco_downloads(folder, damage=None):
    """train2017.zip, val2017.zip, and an archive with two archives and their lists within."""
    annotations = {}
    for part, numbers in (("train2017", (1, 2, 3)), ("val2017", (4,))):
        scenes = {f"{number:012d}.png": coco_scene(number) for number in numbers}
        zipped(folder / f"{part}.zip", {f"{part}/{name[:-4]}.jpg": picture(noise(1, 9, 11, 3), "JPEG") for name in scenes})
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as file:
            file.writestr(f"panoptic_{part}/", "")
            for name, (colours, _, _) in scenes.items():
                file.writestr(f"panoptic_{part}/{name}", picture(colours))
                file.writestr(f"__MACOSX/panoptic_{part}/._{name}", b"mac")
        listed = {name: segments for name, (_, segments, _) in scenes.items()}
        annotations[f"annotations/panoptic_{part}.json"] = (damage or (lambda content: content))(coco_list(listed))
        annotations[f"annotations/panoptic_{part}.zip"] = inner.getvalue()
    zipped(folder / "panoptic_annotations_trainval2017.zip", annotations)


def check_coco(dataset):
    for samples in dataset.samples.values():
        for i, name in enumerate(samples.ids.tolist()):
            np.testing.assert_array_equal(samples.targets["labels"][i], coco_scene(int(name[-16:-4]))[2])


def test_coco_makes_maps_of_the_official_archives(downloads, root):
    coco_downloads(downloads)
    done = made("coco-panoptic", downloads, root)
    assert [len(done.dataset.samples[split]) for split in ("train", "test")] == [3, 1]
    check_coco(load_dataset("coco-panoptic", root, variant="virb2021"))
    assert f"{root / 'coco/panoptic_labels_train2017'}: 3 label maps made" in done.lines
    with Image.open(root / "coco/panoptic_labels_val2017/000000000004.png") as image:
        assert image.mode == "L"
    again = prepare("coco-panoptic", [downloads], root)
    assert f"{root / 'coco/panoptic_labels_train2017'}: 0 label maps made, 3 were there" in again.lines


def test_coco_goes_on_where_it_was_stopped(downloads, root):
    coco_downloads(downloads)
    folder = prepare("coco-panoptic", [downloads], root).folder
    kept = folder / "panoptic_labels_train2017/000000000002.png"
    before = kept.stat().st_mtime_ns
    (folder / "panoptic_labels_train2017/000000000001.png").unlink()
    (folder / STATE / "annotations-panoptic_annotations_trainval2017.zip.json").unlink()
    done = prepare("coco-panoptic", [downloads], root)
    assert f"{folder / 'panoptic_labels_train2017'}: 1 label maps made, 2 were there" in done.lines
    assert kept.stat().st_mtime_ns == before
    check_coco(load_dataset("coco-panoptic", root, variant="virb2021"))


@pytest.mark.parametrize("in_place", [False, True])
def test_coco_that_is_unpacked_already(downloads, root, tmp_path, in_place):
    """Images and annotations are linked, or left where they are; maps are made beside them and never in somebody's annotations."""
    coco_downloads(downloads)
    there = tmp_path / "data/coco" if in_place else tmp_path / "mine"
    for part in ("train2017", "val2017"):
        shutil.unpack_archive(downloads / f"{part}.zip", there)
    shutil.unpack_archive(downloads / "panoptic_annotations_trainval2017.zip", there)
    for part in ("train2017", "val2017"):
        inner = there / f"annotations/panoptic_{part}.zip"
        shutil.unpack_archive(inner, there / "annotations")
        inner.unlink()
    before = tree(there)
    done = prepare("coco-panoptic", [there], root)
    check_coco(load_dataset("coco-panoptic", root, variant="virb2021"))
    assert done.folder == root / "coco"
    assert {name: content for name, content in tree(there).items() if not name.startswith("panoptic_labels")} == before
    assert (root / "coco/annotations").is_symlink() == (not in_place)


def test_coco_annotations_that_do_not_fit(downloads, root):
    def without_a_segment(content):
        content["annotations"][-1]["segments_info"].pop(0)
        return content

    coco_downloads(downloads, without_a_segment)
    with pytest.raises(
        UserError, match=r"panoptic_train2017/000000000003.png shows the segment 3226956, which its annotation does not list"
    ):
        prepare("coco-panoptic", [downloads], root)
    assert state_of("coco-panoptic", root)[0] == "unfinished"
    for damage, message in (
        (lambda content: {"annotations": [{"file_name": "a.png"}]}, "another version .* but one lacks 'segments_info'"),
        (lambda content: [], "another version .* the panoptic annotations"),
        (
            lambda content: {"annotations": [{"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 12}]}]},
            "another version .* but there is the category 12",
        ),
        (lambda content: {"annotations": [{"file_name": "../a.png", "segments_info": []}]}, "names of .png files without folders"),
        (lambda content: {"annotations": [{"file_name": "0.png", "segments_info": []}]}, r"panoptic_train2017.zip has no 0.png"),
    ):
        coco_downloads(downloads, damage)
        with pytest.raises(ViRBError, match=message):
            prepare("coco-panoptic", [downloads], root)


def test_category_map_by_hand():
    colours = np.array([[[0, 0, 0], [1, 0, 0]], [[0, 1, 0], [0, 0, 1]]], dtype=np.uint8)
    found = category_map(colours, {1: 7, 256: 8, 65536: 200}, "x.png")
    assert found.tolist() == [[0, 7], [8, 200]]
    assert found.dtype == np.uint8
    with pytest.raises(UserError, match=r"x.png shows the segment 65536"):
        category_map(colours, {1: 7, 256: 8}, "x.png")
