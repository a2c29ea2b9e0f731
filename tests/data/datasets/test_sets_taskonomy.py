"""Taskonomy in both layouts: metres, edges and hidden colours against what was planted and against the published arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from structural_support import picture, put, taskonomy_view

from virb.data.blanked import FILL, hole_of
from virb.data.datasets import load_dataset
from virb.errors import UserError

BUILDINGS = ("allensville", "hanson", "wiconisco", "ihlen", "muleshoe")
TINY = "id,train,val,test\nhanson,1,0,0\nallensville,1,0,0\nmerom,1,0,0\nwiconisco,0,1,0\nihlen,0,0,1\n"


def seed_of(building, view):
    return 10 * BUILDINGS.index(building) + view


def published(root, prefix="", views=2, size=12):
    """rgb/<building>/point_<p>_view_<v>_domain_rgb.png and the others."""
    folder = root / "taskonomy"
    for building in BUILDINGS:
        for view in range(views):
            for domain, values in taskonomy_view(seed_of(building, view), size).items():
                put(folder / domain / prefix / building / f"point_{view}_view_7_domain_{domain}.png", picture(values))
    return folder


def virb2021(root, size=12):
    folder = root / "taskonomy"
    for split, buildings in (("train", BUILDINGS[:3]), ("test", BUILDINGS[3:])):
        for building in buildings:
            for domain, values in taskonomy_view(seed_of(building, 0), size).items():
                place = folder / split / {"edge_texture": "edges"}.get(domain, domain)
                put(place / building / f"point_0_view_7_domain_{domain}.png", picture(values))
    return folder


def planted(samples, i):
    building, name = samples.ids[i].split("/")[-2:]
    return taskonomy_view(seed_of(building, int(name.split("_")[1])))


def check(dataset):
    for split, samples in dataset.samples.items():
        for i in range(len(samples)):
            view = planted(samples, i)
            np.testing.assert_array_equal(np.asarray(dataset.lists[split].read(i)), view["rgb"])
            depth = samples.targets["depth"][i]
            metres = view["depth_zbuffer"] / 512
            near = metres <= 20
            assert np.isnan(depth[~near]).all()
            np.testing.assert_allclose(depth[near], metres[near], rtol=1e-6)
            assert depth[0, 0] == 2.0
            assert depth[0, 2] == 20.0
            assert np.isnan(depth[0, [1, 3]]).all()  # unscanned, too far
            edges = samples.targets["edges"][i]
            np.testing.assert_allclose(edges, view["edge_texture"][None] / 65535, rtol=1e-6)
            assert edges[0, 0, 0] == pytest.approx(0.2)
            assert samples.units[i] == samples.ids[i].split("/")[-2]


def test_folders_of_virb_2021(tmp_path):
    virb2021(tmp_path)
    dataset = load_dataset("taskonomy", tmp_path)
    check(dataset)
    assert {split: len(samples) for split, samples in dataset.samples.items()} == {"train": 3, "test": 2}
    assert dataset.note == "folders of ViRB 2021"
    depth, edges = (load_dataset("taskonomy", tmp_path, target=target) for target in ("depth", "edges"))
    assert [*depth.samples["train"].targets, *edges.samples["train"].targets] == ["depth", "edges"]
    assert depth.lists["test"].identity() == edges.lists["test"].identity()  # encoded once for both


@pytest.mark.parametrize("prefix", ["", "taskonomy"])
@pytest.mark.parametrize("place", ["splits_taskonomy", ""])
def test_published_folders_and_split(tmp_path, prefix, place):
    folder = published(tmp_path, prefix)
    put(folder / place / "train_val_test_tiny.csv", TINY.encode())
    dataset = load_dataset("taskonomy", tmp_path)
    check(dataset)
    assert {split: sorted(set(samples.units.tolist())) for split, samples in dataset.samples.items()} == {
        "train": ["allensville", "hanson"],
        "val": ["wiconisco"],
        "test": ["ihlen"],
    }
    assert dataset.note == "official split tiny, 4 of 5 buildings are there"


def test_without_a_list_buildings_are_split_by_the_rule(tmp_path):
    published(tmp_path)
    dataset = load_dataset("taskonomy", tmp_path, partition="full")
    check(dataset)
    parts = {split: set(samples.units.tolist()) for split, samples in dataset.samples.items()}
    assert parts["train"] | parts["test"] == set(BUILDINGS)
    # by `printf virb/taskonomy/0/<building> | b2sum -l 128 | sort`, so that the rule never changes unseen
    assert parts["test"] == {"hanson"}
    assert "by the fixed rule" in dataset.note


def test_a_view_that_lacks_a_target_is_left_out_and_said(tmp_path):
    folder = published(tmp_path)
    (folder / "depth_zbuffer/hanson/point_1_view_7_domain_depth_zbuffer.png").unlink()
    dataset = load_dataset("taskonomy", tmp_path, target="depth")
    assert sum(map(len, dataset.samples.values())) == 9
    assert dataset.note.endswith("; 1 images lack a target and are left out")
    assert sum(map(len, load_dataset("taskonomy", tmp_path, target="edges").samples.values())) == 10
    (folder / "rgb/ihlen/point_0_view_7_domain_rgb.png").unlink()
    with pytest.raises(UserError, match=r"1 depth maps in .* have no image: 'depth_zbuffer/ihlen/point_0_view_7_domain_depth_zbuffer.png'"):
        load_dataset("taskonomy", tmp_path, target="depth")


def test_as_in_2021_maps_are_as_stored_until_they_are_resized(tmp_path):
    virb2021(tmp_path)
    dataset = load_dataset("taskonomy", tmp_path, variant="virb2021")
    for samples in dataset.samples.values():
        for i in range(len(samples)):
            view = planted(samples, i)
            np.testing.assert_array_equal(samples.targets["depth"][i], view["depth_zbuffer"][None])
            np.testing.assert_array_equal(samples.targets["edges"][i], view["edge_texture"][None])
    plain = load_dataset("taskonomy", tmp_path)
    for target in ("depth", "edges"):
        assert plain.samples["test"].targets[target].identity() != dataset.samples["test"].targets[target].identity()


def test_a_blank_edge_map(tmp_path):
    folder = virb2021(tmp_path)
    put(folder / "train/edges/hanson/point_0_view_7_domain_edge_texture.png", picture(np.full((12, 12), 77, np.uint16)))
    name = "train/rgb/hanson/point_0_view_7_domain_rgb.png"
    for variant, expected in ((None, 77 / 65535), ("virb2021", 77)):
        samples = load_dataset("taskonomy", tmp_path, target="edges", variant=variant).samples["train"]
        np.testing.assert_allclose(samples.targets["edges"][samples.ids.tolist().index(name)], np.full((1, 12, 12), expected), rtol=1e-6)


def test_inpainting_hides_what_it_asks_for(tmp_path):
    virb2021(tmp_path, size=30)
    dataset = load_dataset("taskonomy", tmp_path, target="inpainting")
    samples, images = dataset.samples["train"], dataset.lists["train"]
    assert len(samples) == 3
    top, left, bottom, right = hole_of(30, 30)
    for i in range(3):
        building = samples.units[i]
        stored = taskonomy_view(seed_of(building, 0), 30)["rgb"]
        shown = np.asarray(images.read(i))
        hole = np.zeros((30, 30), dtype=bool)
        hole[top:bottom, left:right] = True
        assert (shown[hole] == FILL).all()
        np.testing.assert_array_equal(shown[~hole], stored[~hole])
        target = samples.targets["inpainting"][i]
        np.testing.assert_array_equal(np.isfinite(target), np.broadcast_to(hole, (3, 30, 30)))
        np.testing.assert_allclose(target[:, hole].T, stored[hole] / 255, rtol=1e-6)


def test_inpainting_as_in_2021_is_the_published_arithmetic(tmp_path):
    import torch
    from torchvision import transforms

    folder = virb2021(tmp_path, size=60)
    dataset = load_dataset("taskonomy", tmp_path, target="inpainting", variant="virb2021")
    resize = transforms.Resize((224, 224))
    numbers = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])])
    images, samples = dataset.lists["test"], dataset.samples["test"]
    for i, name in enumerate(samples.ids.tolist()):
        with Image.open(folder / name) as image:
            published = numbers(resize(image.convert("RGB")))
        np.testing.assert_allclose(samples.targets["inpainting"][i], published.numpy(), atol=1e-5)
        published[:, 64:160, 64:160] = 0
        shown = numbers(images.read(i))
        assert images.image_size(i) == (224, 224)
        # the colour of the hole is the mean rounded to 8 bits
        torch.testing.assert_close(shown, published, atol=0.5 / 255 / 0.224 + 1e-5, rtol=0)
        outside = torch.ones(224, 224, dtype=torch.bool)
        outside[64:160, 64:160] = False
        torch.testing.assert_close(shown[:, outside], published[:, outside])


def test_wrong_options_and_folders(tmp_path):
    folder = published(tmp_path)
    with pytest.raises(UserError, match="taskonomy has no target 'depht'; did you mean depth"):
        load_dataset("taskonomy", tmp_path, target="depht")
    with pytest.raises(UserError, match="taskonomy has no partition 'huge'; there are tiny, medium, full, fullplus"):
        load_dataset("taskonomy", tmp_path, partition="huge")
    (folder / "depth_zbuffer").rename(folder / "depth")
    with pytest.raises(UserError, match="depth_zbuffer is not there, where the depth maps should be"):
        load_dataset("taskonomy", tmp_path, target="depth")
    put(folder / "train_val_test_tiny.csv", b"building,split\nhanson,train\n")
    with pytest.raises(UserError, match=r"another version .* expected the columns id, train, val and test"):
        load_dataset("taskonomy", tmp_path, target="edges")
    put(folder / "train_val_test_tiny.csv", b"id,train,val,test\nhanson,1,0,0\nmerom,0,0,1\n")
    with pytest.raises(UserError, match=r"has no building of test by .*train_val_test_tiny.csv; give another partition"):
        load_dataset("taskonomy", tmp_path, target="edges")
