"""From miniatures of the official archives to datasets that are read, with planted answers."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from prepare_support import gzipped, picture, put, tar, tar_bytes, tree, zipped
from sets_support import Palette, check_planted, shown, shown_by, video

from virb.data.datasets import load_dataset
from virb.data.datasets.facts import FACTS
from virb.data.datasets.imagenet import wnids
from virb.data.prepare import STATE, prepare, recipes_of, state_of
from virb.data.prepare.imagenet import validation_folders
from virb.errors import UserError, ViRBError
from virb.io import Held, Lease


@pytest.fixture
def downloads(tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "data"


def made(name, downloads, root, palette, target="class"):
    """Prepares, checks that no source has changed, and that every image shows its class."""
    before = tree(downloads)
    done = prepare(name, [downloads], root)
    assert tree(downloads) == before
    check_planted(done.dataset, palette, target)
    assert state_of(name, root) == ("found", done.folder)
    again = prepare(name, [downloads], root)
    assert all("finished before" in line or "is a link" in line for line in again.lines if "virb_split" not in line)
    return done


def test_every_dataset_has_a_recipe_below_a_known_place():
    for name, facts in FACTS.items():
        recipes = recipes_of(name)
        assert recipes, name
        for recipe in recipes:
            assert recipe.place in (facts.places or FACTS["imagenet"].places)
            assert all(part.rename or part.rename_with or part.rename_for or part.link for part in recipe.parts)
            assert len({part.key for part in recipe.parts}) == len(recipe.parts)
        assert len({recipe.title for recipe in recipes}) == len(recipes)


# Pets, DTD, flowers, dishes, cars, aircraft

BREEDS = ("Abyssinian", "american_bulldog", "Bengal")
breeds = Palette(BREEDS)


def pets_archives(folder):
    images = {f"images/{name}_{i}.jpg": picture(breeds, name) for name in BREEDS for i in (1, 2, 10)}
    tar(folder / "images.tar.gz", {**images, "images/Abyssinian_100.mat": b"mat", "images/._Bengal_1.jpg": b"mac"})
    number = {name: i for i, name in enumerate(BREEDS, 1)}

    def lines(rows):
        return "".join(f"{name}_{i} {number[name]} 1 1\n" for name, i in rows)

    annotations = {
        "annotations/README": "read me",
        "annotations/list.txt": "#Image CLASS-ID SPECIES BREED ID\n",
        "annotations/trainval.txt": lines((name, i) for name in BREEDS for i in (1, 2)),
        "annotations/test.txt": lines((name, 10) for name in BREEDS),
        **{f"annotations/trimaps/{name}_{i}.png": b"trimap" for name in BREEDS for i in (1, 2, 10)},
        "annotations/trimaps/._Bengal_1.png": b"mac",
    }
    tar(folder / "annotations.tar.gz", annotations)


def test_pets(downloads, root):
    from torchvision.datasets import OxfordIIITPet

    pets_archives(downloads)
    done = made("pets", downloads, root, breeds)
    assert [len(done.dataset.samples[split]) for split in ("train", "test")] == [6, 3]
    assert shown(done.dataset, "train", breeds) == shown_by(OxfordIIITPet(root, "trainval"), breeds)
    assert not list(root.rglob("._*"))
    assert done.lines[0] == "images.tar.gz: 10 files written"


def test_a_missing_archive_is_named_and_nothing_is_made(downloads, root):
    pets_archives(downloads)
    (downloads / "annotations.tar.gz").unlink()
    with pytest.raises(UserError, match=r"pets: annotations.tar.gz is not in .*downloads.\nGet it from https://www.robots"):
        prepare("pets", [downloads], root)
    with pytest.raises(UserError, match=r"--source .*nowhere does not exist"):
        prepare("pets", [downloads / "nowhere"], root)
    assert not root.exists()


def test_sources_are_files_or_folders_and_must_be_clear(downloads, root):
    pets_archives(downloads / "deep" / "er")
    files = sorted((downloads / "deep" / "er").iterdir())
    assert len(prepare("pets", files, root).lines) == 2
    shutil.copytree(downloads / "deep", downloads / "copy")
    assert prepare("pets", [downloads], root).lines[0] == "images.tar.gz: finished before"  # copies are as good as one
    tar(downloads / "other/images.tar.gz", {"images/x.jpg": b"another"})
    with pytest.raises(UserError, match=r"images.tar.gz is there several times: .*images.tar.gz, .*; give one"):
        prepare("pets", [downloads], root)


def test_the_data_root_below_a_source_is_no_source(downloads, root):
    """``--source .`` a second time: the lists that were copied are not another copy to choose from."""
    for path, data in nuscenes_lists(downloads).items():
        put(downloads / "deep" / path, data)
    for _ in range(2):
        done = prepare("nuscenes-actions", [root.parent], root)
    assert done.lines[0] == "nuScenes_train.json: finished before"
    put(downloads / "nuScenes_train.json", (downloads / "nuScenes_train.json").read_bytes() + b"\n")
    assert prepare("nuscenes-actions", [root.parent], root).lines[0] == "nuScenes_train.json: 1 file written"


def test_what_is_begun_says_so_and_goes_on(downloads, root):
    pets_archives(downloads)
    whole = (downloads / "annotations.tar.gz").read_bytes()
    put(downloads / "annotations.tar.gz", whole[: len(whole) // 2])
    with pytest.raises(ViRBError, match=r"annotations.tar.gz.* is damaged or incomplete"):
        prepare("pets", [downloads], root)
    assert state_of("pets", root) == ("unfinished", root / "oxford-iiit-pet")
    put(downloads / "annotations.tar.gz", whole)
    done = prepare("pets", [downloads], root)
    assert done.lines[0] == "images.tar.gz: finished before"
    assert state_of("pets", root)[0] == "found"


def test_lost_files_come_back_with_force(downloads, root):
    pets_archives(downloads)
    folder = prepare("pets", [downloads], root).folder
    (folder / "images/Bengal_1.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot be read as it is: .*'images/Bengal_1.jpg'(.|\n)*--force"):
        prepare("pets", [downloads], root)
    assert prepare("pets", [downloads], root, force=True).lines[0] == "images.tar.gz: 1 file written, 9 were there"


def test_two_at_a_time_are_refused(downloads, root):
    pets_archives(downloads)
    folder = prepare("pets", [downloads], root).folder
    with Lease(folder / STATE / "lease"), pytest.raises(Held, match="is in use by process"):
        prepare("pets", [downloads], root)


def test_another_folder_that_comes_first_is_said(downloads, root):
    for name in ("imagenette2", "imagenette2-320"):
        files = {f"{name}/{part}/{wnid}/{wnid}_{part}.JPEG": picture(things, wnid) for part in ("train", "val") for wnid in SOME}
        source = tar(downloads / f"{name}.tgz", files)
        lines = prepare("imagenette", [source], root).lines
    assert lines[-1] == f"tasks read {root / 'imagenette2'}, which comes before {root / 'imagenette2-320'}; move it away to use the new one"


def test_what_needs_no_preparing(downloads, root):
    for name in ("digits", "folder"):
        with pytest.raises(UserError, match=f"{name} comes with ViRB or is read from your own folder"):
            prepare(name, [downloads], root)


def test_dtd(downloads, root):
    from torchvision.datasets import DTD

    palette = Palette(("banded", "dotted"))
    files = {f"dtd/images/{name}/{name}_{i:04d}.jpg": picture(palette, name) for name in palette.names for i in range(3)}
    for i, split in enumerate(("train", "val", "test")):
        files[f"dtd/labels/{split}1.txt"] = "".join(f"{name}/{name}_{i:04d}.jpg\n" for name in palette.names)
    files["dtd/imdb/imdb.mat"] = b"not needed"
    tar(downloads / "dtd-r1.0.1.tar.gz", files)
    done = made("dtd", downloads, root, palette)
    assert shown(done.dataset, "val", palette) == shown_by(DTD(root, "val"), palette)
    assert not (done.folder / "imdb").exists()


def mat(**values):
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, values)
    return file.getvalue()


def test_flowers(downloads, root):
    names = tuple(str(i) for i in range(1, 4))
    palette = Palette(names)
    labels = [1, 2, 3, 1, 2, 3, 3, 2, 1]
    tar(downloads / "102flowers.tgz", {f"jpg/image_{i:05d}.jpg": picture(palette, str(label)) for i, label in enumerate(labels, 1)})
    put(downloads / "imagelabels.mat", mat(labels=np.array([labels])))
    put(downloads / "setid.mat", mat(trnid=np.array([[1, 2, 3]]), valid=np.array([[4, 5, 6]]), tstid=np.array([[7, 8, 9]])))
    done = made("flowers102", downloads, root, palette)
    assert done.dataset.samples["test"].targets["class"].tolist() == [2, 1, 0]


def test_food(downloads, root):
    from torchvision.datasets import Food101

    palette = Palette(("apple_pie", "waffles"))
    files = {f"food-101/images/{name}/{i}.jpg": picture(palette, name) for name in palette.names for i in (1, 2)}
    for i, split in ((1, "train"), (2, "test")):
        files[f"food-101/meta/{split}.json"] = {name: [f"{name}/{i}"] for name in palette.names}
    tar(downloads / "food-101.tar.gz", files)
    done = made("food101", downloads, root, palette)
    assert shown(done.dataset, "test", palette) == shown_by(Food101(root, "test"), palette)


def test_cars_and_aircraft(downloads, root):
    palette = Palette(("AM General", "Smart fortwo"))
    kind = np.dtype([("fname", object), ("class", object)])
    for split in ("train", "test"):
        tar(downloads / f"cars_{split}.tgz", {f"cars_{split}/{i:05d}.jpg": picture(palette, palette.names[i - 1]) for i in (1, 2)})
    rows = np.array([[("00001.jpg", 1), ("00002.jpg", 2)]], dtype=kind)
    names = np.empty((1, 2), dtype=object)
    names[0] = palette.names
    tar(
        downloads / "car_devkit.tgz",
        {"devkit/cars_meta.mat": mat(class_names=names), "devkit/cars_train_annos.mat": mat(annotations=rows), "devkit/README.txt": "x"},
    )
    put(downloads / "cars_test_annos_withlabels.mat", mat(annotations=rows))
    made("stanford-cars", downloads, root, palette)

    variants = Palette(("707-320", "A300B4"))
    files = {f"fgvc-aircraft-2013b/data/images/{i:07d}.jpg": picture(variants, variants.names[i % 2]) for i in range(6)}
    files["fgvc-aircraft-2013b/data/variants.txt"] = "707-320\nA300B4\n"
    for k, split in enumerate(("train", "val", "test")):
        files[f"fgvc-aircraft-2013b/data/images_variant_{split}.txt"] = "".join(
            f"{i:07d} {variants.names[i % 2]}\n" for i in (2 * k, 2 * k + 1)
        )
    tar(downloads / "fgvc-aircraft-2013b.tar.gz", {**files, "fgvc-aircraft-2013b/evaluation.m": "x"})
    made("fgvc-aircraft", downloads, root, variants)


# SUN397, Places365, EuroSAT, Caltech: splits by lists or by the rule

SCENES = ("abbey", "apartment_building/outdoor", "zoo")
scenes = Palette(SCENES)


def sun_archive(folder):
    files = {f"SUN397/{name[0]}/{name}/sun_{name[:2]}{i}.jpg": picture(scenes, name) for name in SCENES for i in range(5)}
    tar(
        folder / "SUN397.tar.gz",
        {**files, "SUN397/ClassName.txt": "".join(f"/{name[0]}/{name}\n" for name in SCENES), "SUN397/README.txt": "x"},
    )


def test_sun397_with_and_without_partitions(downloads, root, tmp_path):
    sun_archive(downloads)
    done = made("sun397", downloads, root, scenes)
    assert [len(done.dataset.samples[split]) for split in ("train", "test")] == [12, 3]
    stored = json.loads((done.folder / "virb_split.json").read_text())
    assert stored["test"] == [str(i) for i in done.dataset.samples["test"].ids]
    assert "80 %" in stored["rule"]
    lists = {
        "Training_01.txt": "".join(f"/{name[0]}/{name}/sun_{name[:2]}{i}.jpg\n" for name in SCENES for i in (0, 3)),
        "Testing_01.txt": "".join(f"/{name[0]}/{name}/sun_{name[:2]}{i}.jpg\n" for name in SCENES for i in (1,)),
        "ClassName.txt": "x",
    }
    zipped(downloads / "Partitions.zip", lists)
    official = made("sun397", downloads, tmp_path / "other", scenes)
    assert official.dataset.note == "official partition 1"
    assert [len(official.dataset.samples[split]) for split in ("train", "test")] == [6, 3]
    assert not (official.folder / "virb_split.json").exists()


def test_places365(downloads, root):
    palette = Palette(("airfield", "alley/outdoor"))
    places = {"airfield": "/a/airfield", "alley/outdoor": "/a/alley/outdoor"}
    train = {f"data_256{place}/0000000{i}.jpg": picture(palette, name) for name, place in places.items() for i in (1, 2)}
    tar(downloads / "train_256_places365standard.tar", train)
    tar(downloads / "val_256.tar", {f"val_256/Places365_val_0000000{i}.jpg": picture(palette, palette.names[i]) for i in (0, 1)})
    lists = {
        "categories_places365.txt": "/a/airfield 0\n/a/alley/outdoor 1\n",
        "places365_train_standard.txt": "".join(f"{place}/0000000{i}.jpg {n}\n" for n, place in enumerate(places.values()) for i in (1, 2)),
        "places365_val.txt": "Places365_val_00000000.jpg 0\nPlaces365_val_00000001.jpg 1\n",
        "places365_test.txt": "x",
    }
    tar(downloads / "filelist_places365-standard.tar", lists)
    made("places365", downloads, root, palette)


@pytest.mark.parametrize(("file", "inside"), [("EuroSAT.zip", "2750/"), ("EuroSAT_RGB.zip", "EuroSAT_RGB/")])
def test_eurosat_stores_its_split(downloads, root, file, inside):
    from torchvision.datasets import EuroSAT

    land = Palette(("AnnualCrop", "Forest", "SeaLake"))
    zipped(
        downloads / file,
        {f"{inside}{name}/{name}_{i}.jpg": picture(land, name, size=(64, 64)) for name in land.names for i in range(1, 11)},
    )
    done = made("eurosat", downloads, root, land)
    stored = json.loads((done.folder / "virb_split.json").read_text())
    tested = sorted(path.rpartition("/")[2] for path in stored["test"])
    # by b2sum, as in tests/data/datasets
    assert tested == ["AnnualCrop_2.jpg", "AnnualCrop_7.jpg", "Forest_3.jpg", "Forest_8.jpg", "SeaLake_2.jpg", "SeaLake_7.jpg"]
    assert len(stored["train"]) == 24
    assert shown(done.dataset, "train", land) + shown(done.dataset, "test", land) == shown_by(EuroSAT(root), land)


OBJECTS = ("BACKGROUND_Google", "accordion", "ant")
objects = Palette(OBJECTS)


@pytest.mark.parametrize("outer", ["caltech-101.zip", "101_ObjectCategories.tar.gz"])
def test_caltech_with_an_archive_in_the_archive(downloads, root, tmp_path, outer):
    inner = {f"101_ObjectCategories/{name}/image_{i:04d}.jpg": picture(objects, name) for name in OBJECTS for i in range(1, 33)}
    tar(downloads / "101_ObjectCategories.tar.gz", {**inner, "101_ObjectCategories/BACKGROUND_Google/tmp": "x"})
    if outer.endswith(".zip"):
        raw = (downloads / "101_ObjectCategories.tar.gz").read_bytes()
        (downloads / "101_ObjectCategories.tar.gz").unlink()
        zipped(
            downloads / outer,
            {
                "caltech-101/101_ObjectCategories.tar.gz": raw,
                "caltech-101/Annotations.tar": b"not needed",
                "__MACOSX/caltech-101/._Annotations.tar": b"x",
            },
        )
    done = made("caltech101", downloads, root, objects)
    assert [len(done.dataset.samples[split]) for split in ("train", "test")] == [90, 6]
    assert (done.folder / "virb_split.json").exists()
    for split, i in (("train", 1), ("test", 2)):
        put(downloads / f"caltech101_{split}.json", [f"{name}/image_{i:04d}.jpg" for name in OBJECTS])
    listed = made("caltech101", downloads, tmp_path / "other", objects)
    assert [len(listed.dataset.samples[split]) for split in ("train", "test")] == [3, 3]


# CIFAR, STL-10


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("kind", ["python", "binary"])
def test_cifar(downloads, root, n, kind):
    import pickle

    names = [f"class {i}" for i in range(n)]
    palette = Palette(names)
    rows = [palette.pixels(name, 32).transpose(2, 0, 1).reshape(-1) for name in names]
    labels = list(range(n))
    key = "labels" if n == 10 else "fine_labels"
    files = ([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]) if n == 10 else ["train", "test"]
    if kind == "python":
        meta = {"batches.meta": {"label_names": names}} if n == 10 else {"meta": {"fine_label_names": names}}
        content = {**{file: {"data": np.stack(rows), key: labels} for file in files}, **meta}
        members = {file: pickle.dumps(value, protocol=2) for file, value in content.items()}
    else:
        head = [bytes([i]) if n == 10 else bytes([0, i]) for i in labels]
        record = b"".join(a + row.tobytes() for a, row in zip(head, rows, strict=True))
        members = {f"{file}.bin": record for file in files}
        members["batches.meta.txt" if n == 10 else "fine_label_names.txt"] = "\n".join(names).encode() + b"\n"
    folder = {(10, "python"): "cifar-10-batches-py", (10, "binary"): "cifar-10-batches-bin"}.get((n, kind), f"cifar-100-{kind}")
    tar(downloads / f"cifar-{n}-{kind}.tar.gz", {f"{folder}/{file}": value for file, value in members.items()})
    done = made(f"cifar{n}", downloads, root, palette)
    assert done.folder == root / folder


def test_stl10(downloads, root):
    palette = Palette([f"c{i}" for i in range(10)])
    pixels = np.stack([palette.pixels(name, 96).transpose(2, 1, 0) for name in palette.names]).tobytes()
    labels = bytes(range(1, 11))
    files = {f"stl10_binary/{split}_{what}.bin": {"X": pixels, "y": labels}[what] for split in ("train", "test") for what in "Xy"}
    files |= {"stl10_binary/class_names.txt": "\n".join(palette.names), "stl10_binary/unlabeled_X.bin": b"not needed"}
    tar(downloads / "stl10_binary.tar.gz", files)
    made("stl10", downloads, root, palette)
    assert not (root / "stl10_binary/unlabeled_X.bin").exists()


# CLEVR, THOR, nuScenes, Kinetics

COUNTS = Palette([str(n) for n in range(3, 11)])


def clevr_zip(folder):
    files = {}
    for part, counts in (("train", [3, 10, 4]), ("val", [4, 3])):
        scenes_ = []
        for i, n in enumerate(counts):
            file = f"CLEVR_{part}_{i:06d}.png"
            files[f"CLEVR_v1.0/images/{part}/{file}"] = picture(COUNTS, str(n), "PNG")
            scenes_.append({"image_filename": file, "objects": [{"3d_coords": [1, 0, 0], "pixel_coords": [0, 0, 9]}] * n})
        files[f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json"] = {"scenes": scenes_}
    files |= {"CLEVR_v1.0/images/test/CLEVR_test_000000.png": b"x", "CLEVR_v1.0/questions/CLEVR_test_questions.json": "{}"}
    zipped(folder / "CLEVR_v1.0.zip", files)


def test_clevr(downloads, root):
    clevr_zip(downloads)
    done = made("clevr", downloads, root, COUNTS, "count")
    assert done.dataset.samples["train"].targets["count"].tolist() == [0, 7, 1]
    assert not (done.folder / "images/test").exists()


@pytest.mark.parametrize("wrapper", ["", "thor_num_steps/", "data/thor/"])
def test_thor_num_steps(downloads, root, wrapper):
    steps = Palette([str(n) for n in range(4)])
    files = {}
    for part in ("train", "val"):
        files[f"{wrapper}{part}_labels.txt"] = "".join(f"{part}/FloorPlan{n}/{n} {n}\n" for n in range(4))
        files |= {f"{wrapper}{part}/FloorPlan{n}/{n}_rgb.jpg": picture(steps, str(n)) for n in range(4)}
    zipped(downloads / "thor_num_steps.zip", files)
    made("thor-num-steps", downloads, root, steps)


def test_thor_actions(downloads, root):
    moves = Palette(("MoveAhead", "RotateLeft", "RotateRight", "LookUp", "LookDown"))
    files = {}
    for part in ("train", "val"):
        files[f"thor_egomotion/{part}_labels.txt"] = "".join(f"{part}/FloorPlan1/{i} {move}\n" for i, move in enumerate(moves.names))
        for i, move in enumerate(moves.names):
            files |= {f"thor_egomotion/{part}/FloorPlan1/{i}_rgb_{which}.jpg": picture(moves, move) for which in "ab"}
    zipped(downloads / "thor_egomotion.zip", files)
    done = made("thor-actions", downloads, root, moves)
    assert done.dataset.samples["train"].fixed_rows().shape == (5, 2)


drive = Palette(("Move Ahead", "Turn Left"))


def nuscenes_lists(folder):
    def name(part, label, which):
        camera = "samples" if which == "a" else "sweeps"
        return f"{camera}/CAM_FRONT/n015-{part}-{label.replace(' ', '')}__CAM_FRONT__{which}.jpg"

    wanted = {}
    for part in ("train", "test"):
        rows = [{"img_a": name(part, label, "a"), "img_b": name(part, label, "b"), "label": label} for label in drive.names]
        put(folder / f"nuScenes_{part}.json", rows)
        wanted |= {row[key]: picture(drive, row["label"]) for row in rows for key in ("img_a", "img_b")}
    return wanted


def test_nuscenes_takes_the_listed_images_only(downloads, root):
    wanted = nuscenes_lists(downloads)
    first, second = dict(list(wanted.items())[:3]), dict(list(wanted.items())[3:])
    tar(downloads / "v1.0-trainval01_blobs.tgz", {**first, "samples/LIDAR_TOP/x.pcd.bin": b"x", "samples/CAM_FRONT/other.jpg": b"x"})
    tar(downloads / "v1.0-trainval02_blobs.tgz", second)
    done = made("nuscenes-actions", downloads, root, drive)
    assert set(tree(done.folder)) == {*wanted, "nuScenes_train.json", "nuScenes_test.json"}


def test_nuscenes_unpacked_already_is_linked(downloads, root):
    for path, data in nuscenes_lists(downloads).items():
        put(downloads / "nuscenes" / path, data)
    done = made("nuscenes-actions", downloads, root, drive)
    assert (done.folder / "samples").is_symlink()
    assert any("is now a link to" in line for line in done.lines)
    put(downloads / "nuScenes_train.json", {"img_a": "x"})
    tar(downloads / "v1.0-mini.tgz", {"samples/x.jpg": b"x"})
    with pytest.raises(UserError, match=r"nuScenes_train.json is of another version"):
        prepare("nuscenes-actions", [downloads], root)


actions = Palette(("abseiling", "zumba"))
CLIPS = {"train": {"-0abc_x": "abseiling", "AB__1": "zumba"}, "val": {"Zz9": "abseiling", "yy-8": "zumba"}}


@pytest.mark.parametrize("lists", ["json", "csv", "tar"])
def test_kinetics_from_archives_of_videos(downloads, root, tmp_path, lists):
    for i, (part, clips) in enumerate(CLIPS.items()):
        for k, (clip, label) in enumerate(clips.items()):
            video(tmp_path / "x.mp4", [actions.colour(label)] * 8)
            tar(downloads / f"k400/{part}/part_{k}.tar.gz", {f"./{clip}_00001{i}_000025.mp4": (tmp_path / "x.mp4").read_bytes()})
        official = "validate" if part == "val" else part
        as_json = {clip: {"annotations": {"label": label, "segment": [1, 11]}, "subset": official} for clip, label in clips.items()}
        as_csv = "label,youtube_id,time_start,time_end,split\n" + "".join(f"{label},{clip},1,11,{part}\n" for clip, label in clips.items())
        if lists == "json":
            put(downloads / f"kinetics400/{official}.json", as_json)
        elif lists == "csv":
            put(downloads / f"annotations/{part}.csv", as_csv)
        elif part == "val":
            rows = {clip: {"annotations": {"label": label}} for clip, label in CLIPS["train"].items()}
            files = {"kinetics400/train.json": rows, "kinetics400/validate.json": as_json, "kinetics400/test.csv": "x"}
            tar(downloads / "kinetics400.tar.gz", files)
    done = made("kinetics", downloads, root, actions)
    assert [done.dataset.samples[split].fixed_rows().shape for split in ("train", "test")] == [(2, 6), (2, 6)]


def test_kinetics_frames_unpacked_already_are_linked(downloads, root):
    for part, clips in CLIPS.items():
        official = "validate" if part == "val" else part
        put(downloads / f"{official}.json", {clip: {"annotations": {"label": label}} for clip, label in clips.items()})
        for clip, label in clips.items():
            for i in range(7):
                put(downloads / f"frames/{official}/{clip[:2]}/{clip}_{i}.jpg", picture(actions, label))
    done = made("kinetics", downloads, root, actions)
    assert (done.folder / "train").is_symlink()


# ImageNet and what belongs to it

SOME = (wnids()[0], wnids()[7], wnids()[999])
things = Palette(SOME)


def devkit(folder, truth, ids=(2, 1, 3)):
    kind = np.dtype([("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)])
    rows = [(i, wnid, "words", 0) for i, wnid in zip(ids, SOME, strict=True)] + [(1001, "n00000001", "entity", 3)]
    files = {
        "ILSVRC2012_devkit_t12/data/meta.mat": mat(synsets=np.array(rows, dtype=kind).reshape(-1, 1)),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(f"{i}\n" for i in truth),
        "ILSVRC2012_devkit_t12/readme.txt": "x",
    }
    return tar(folder / "ILSVRC2012_devkit_t12.tar.gz", files)


def imagenet_archives(folder, tmp_path):
    inner = {wnid: {f"{wnid}_{i}.JPEG": picture(things, wnid) for i in range(3)} for wnid in SOME}
    tar(folder / "ILSVRC2012_img_train.tar", {f"{wnid}.tar": tar_bytes(files, tmp_path) for wnid, files in inner.items()})
    devkit(folder, [3, 2, 1, 2])  # ILSVRC's own numbers: 3 is the last wnid, 2 the first
    shows = [SOME[2], SOME[0], SOME[1], SOME[0]]
    tar(folder / "ILSVRC2012_img_val.tar", {f"ILSVRC2012_val_{i:08d}.JPEG": picture(things, wnid) for i, wnid in enumerate(shows, 1)})
    return shows


def planted(dataset, palette):
    """Like ``check_planted``, for a palette of some of the classes."""
    for split, samples in dataset.samples.items():
        images = dataset.lists[samples.images]
        for i in range(len(samples)):
            assert palette.name_of(images.read(samples.rows(i)[0])) == dataset.classes["class"][int(samples.targets["class"][i])], split


def test_imagenet(downloads, root, tmp_path):
    shows = imagenet_archives(downloads, tmp_path)
    done = prepare("imagenet", [downloads], root)
    planted(done.dataset, things)
    assert {split: len(samples) for split, samples in done.dataset.samples.items()} == {"train": 9, "test": 4}
    assert (done.folder / f"val/{shows[0]}/ILSVRC2012_val_00000001.JPEG").is_file()
    assert (done.folder / f"train/{SOME[1]}/{SOME[1]}_2.JPEG").is_file()
    assert all("finished before" in line for line in prepare("imagenet", [downloads], root).lines)
    real = prepare("imagenet-real", [downloads], root)
    assert real.folder == done.folder


def test_a_development_kit_that_does_not_fit(downloads, root, tmp_path):
    imagenet_archives(downloads, tmp_path)
    devkit(downloads, [3, 2])
    with pytest.raises(UserError, match=r"has answers for 2 validation images, but there is ILSVRC2012_val_00000003.JPEG"):
        prepare("imagenet", [downloads], root)
    for truth, message in (([9], "has the class '9', which meta.mat does not name"), (["x"], "has the class 'x'")):
        with pytest.raises(UserError, match=message):
            validation_folders({"devkit": [devkit(downloads, truth)]})
    tar(downloads / "ILSVRC2012_devkit_t12.tar.gz", {"readme.txt": "x"})
    with pytest.raises(UserError, match=r"has no meta.mat and no ILSVRC2012_validation_ground_truth.txt"):
        validation_folders({"devkit": [downloads / "ILSVRC2012_devkit_t12.tar.gz"]})


def test_imagenet_from_kaggle(downloads, root):
    base = "ILSVRC/Data/CLS-LOC"
    files = {f"{base}/train/{wnid}/{wnid}_1.JPEG": picture(things, wnid) for wnid in SOME}
    files |= {f"{base}/val/ILSVRC2012_val_{i:08d}.JPEG": picture(things, wnid) for i, wnid in enumerate(SOME, 1)}
    files |= {f"{base}/test/ILSVRC2012_test_00000001.JPEG": b"x", "ILSVRC/Annotations/CLS-LOC/val/x.xml": "x"}
    rows = "".join(f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4\n" for i, wnid in enumerate(SOME, 1))
    files["LOC_val_solution.csv"] = f"ImageId,PredictionString\n{rows}"
    zipped(downloads / "imagenet-object-localization-challenge.zip", files)
    (downloads / "10percent.txt").write_text(f"{SOME[0]}_1.JPEG\n")
    done = prepare("imagenet", [downloads], root)
    planted(done.dataset, things)
    assert not (done.folder / "test").exists()
    assert (done.folder / "10percent.txt").read_text() == f"{SOME[0]}_1.JPEG\n"  # where lowshot looks for it


def test_subsets_of_imagenet(downloads, root):
    files = {f"imagenette2-320/{part}/{wnid}/{wnid}_{part}.JPEG": picture(things, wnid) for part in ("train", "val") for wnid in SOME}
    tar(downloads / "imagenette2-320.tgz", {**files, "imagenette2-320/noisy_imagenette.csv": "x"})
    done = made("imagenette", downloads, root, things)
    assert done.folder.name == "imagenette2-320"

    files = {f"train.X{i}/{wnid}/{i}.JPEG": picture(things, wnid) for i in range(1, 5) for wnid in SOME}
    files |= {f"val.X/{wnid}/v.JPEG": picture(things, wnid) for wnid in SOME} | {"Labels.json": dict.fromkeys(SOME, "a thing")}
    zipped(downloads / "archive.zip", files)
    assert len(made("imagenet100", downloads, root, things).dataset.samples["train"]) == 12


def test_sets_that_score_heads_of_imagenet(downloads, root):
    for letter in "ar":
        classes = wnids(f"imagenet_{letter}")[:3]
        palette = Palette(classes)
        tar(
            downloads / f"imagenet-{letter}.tar",
            {**{f"imagenet-{letter}/{wnid}/x.jpg": picture(palette, wnid) for wnid in classes}, f"imagenet-{letter}/README.txt": "x"},
        )
        planted(prepare(f"imagenet-{letter}", [downloads], root).dataset, palette)
    zipped(downloads / "ImageNet-Sketch.zip", {f"sketch/{wnid}/sketch_1.JPEG": picture(things, wnid) for wnid in SOME})
    planted(prepare("imagenet-sketch", [downloads], root).dataset, things)
    numbers = {wnids().index(wnid): wnid for wnid in SOME}
    tar(
        downloads / "imagenetv2-matched-frequency.tar.gz",
        {f"imagenetv2-matched-frequency-format-val/{n}/x.jpeg": picture(things, wnid) for n, wnid in numbers.items()},
    )
    done = prepare("imagenetv2", [downloads], root)
    planted(done.dataset, things)
    assert done.dataset.note == "matched-frequency"


def test_imagenet_c(downloads, root):
    groups = {
        "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
        "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        "weather": ("snow", "frost", "fog", "brightness"),
        "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    }
    for group, names in groups.items():
        files = {f"{name}/{k}/{wnid}/v.JPEG": picture(things, wnid) for name in names for k in range(1, 6) for wnid in SOME}
        tar(downloads / f"{group}.tar", files)
    dataset = prepare("imagenet-c", [downloads], root).dataset
    planted(dataset, things)
    assert len(dataset.samples["test"]) == 15 * 5 * 3


# VOC, iNaturalist, PatchCamelyon, Country211


def test_voc2007(downloads, root):
    from virb.data.datasets.voc import CLASSES

    palette = Palette(CLASSES)
    for archive, splits in (("VOCtrainval_06-Nov-2007", ("train", "val")), ("VOCtest_06-Nov-2007", ("test",))):
        files = {}
        for split in splits:
            ids = {f"{split}{i:02d}": name for i, name in enumerate(CLASSES)}
            files |= {f"VOCdevkit/VOC2007/JPEGImages/{i}.jpg": picture(palette, name) for i, name in ids.items()}
            files[f"VOCdevkit/VOC2007/ImageSets/Main/{split}.txt"] = "".join(f"{i}\n" for i in ids)
            for name in CLASSES:
                rows = "".join(f"{i} {1 if here == name else -1}\n" for i, here in ids.items())
                files[f"VOCdevkit/VOC2007/ImageSets/Main/{name}_{split}.txt"] = rows
        tar(downloads / f"{archive}.tar", files)
    dataset = prepare("voc2007", [downloads], root).dataset
    for split, samples in dataset.samples.items():
        for i in range(len(samples)):
            name = palette.name_of(dataset.lists[split].read(i))
            assert [CLASSES[c] for c in np.flatnonzero(samples.targets["labels"][i])] == [name]


def test_inat2018(downloads, root):
    species = Palette(("Accipiter gentilis", "Zosterops"))
    images, ids = {}, {}
    for split, n in (("train", 4), ("val", 2)):
        files = [f"train_val2018/Aves/{i % 2}/{split}{i}.jpg" for i in range(n)]
        images |= {file: picture(species, species.names[i % 2]) for i, file in enumerate(files)}
        ids = {
            "images": [{"id": i, "file_name": file} for i, file in enumerate(files)],
            "annotations": [{"image_id": i, "category_id": i % 2} for i in range(n)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(species.names)],
        }
        tar(downloads / f"{split}2018.json.tar.gz", {f"{split}2018.json": ids})
    tar(downloads / "train_val2018.tar.gz", images)
    made("inat2018", downloads, root, species)


def test_pcam(downloads, root):
    h5py = pytest.importorskip("h5py")
    kinds = Palette(("normal", "tumour"))
    for split in ("train", "valid", "test"):
        for what, value in (("x", np.stack([kinds.pixels(name, 96) for name in kinds.names])), ("y", np.array([0, 1]).reshape(2, 1, 1, 1))):
            file = io.BytesIO()
            with h5py.File(file, "w") as target:
                target[what] = value
            gzipped(downloads / f"camelyonpatch_level_2_split_{split}_{what}.h5.gz", file.getvalue())
    made("pcam", downloads, root, kinds)


def test_country211(downloads, root):
    lands = Palette(("AD", "ZW"))
    files = {f"country211/{part}/{name}/1.jpg": picture(lands, name) for part in ("train", "valid", "test") for name in lands.names}
    files = {path: data + part.encode() for (path, data), part in zip(files.items(), map(str, range(9)), strict=False)}
    tar(downloads / "country211.tgz", files)
    done = made("country211", downloads, root, lands)
    assert load_dataset("country211", root).classes == done.dataset.classes
