"""CLEVR: rendered scenes with their descriptions. The official test split has none, so ``test`` is the official validation split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_classes, image_paths, locate, read_json, some
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

_COUNTS = tuple(str(n) for n in range(3, 11))  # objects of a scene, by construction
_CAMERA = (8.0, 8.5, 9.0, 9.5, 10.0)  # bins of VTAB's distance
_CAMERA_NAMES = ("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "above 10")  # as in VTAB, a bin has its upper bound
_FAR = 1000.0  # no coordinate of a scene is near this


@register_dataset("clevr")
def clevr(root: Path | None) -> Dataset:
    """``images/{train,val}/*.png`` and ``scenes/CLEVR_{train,val}_scenes.json``, joined by file name.

    Targets, int64: ``count``: number of objects, 3 to 10, as classes 0 to 7. ``distance``: ViRB 2021's, floor(2 x the smallest Euclidean
    norm of ``3d_coords``), the nearest object's distance to the middle of the scene in bins of half a unit. ``camera_distance``: VTAB's,
    6 bins of the smallest depth (third of ``pixel_coords``).
    """
    wants = tuple(f"{kind}/{name}" for kind, name in (("images", "train"), ("images", "val"), ("scenes", "CLEVR_train_scenes.json")))
    folder, _ = locate("clevr", root, (Layout("published", wants),))
    lists, samples, distances = {}, {}, []
    for split, part in (("train", "train"), ("test", "val")):
        source = folder / "scenes" / f"CLEVR_{part}_scenes.json"
        scenes = _scenes(source)
        files = sorted(image_paths(folder / "images" / part))
        _check_pairs(files, scenes, folder / "images" / part, source)
        lists[split] = FileImages(split, folder, [f"images/{part}/{file}" for file in files])
        answers = np.array([_answers(scenes[file], source, file) for file in files], dtype=np.int64).reshape(len(files), 3)
        targets = {"count": answers[:, 0], "distance": answers[:, 1], "camera_distance": answers[:, 2]}
        samples[split] = Samples.one_per_image(lists[split], targets)
        distances.append(answers[:, 1].max())
    bins = tuple(f"{n / 2:g} to {(n + 1) / 2:g}" for n in range(int(max(distances)) + 1))
    classes = {"count": _COUNTS, "distance": bins, "camera_distance": _CAMERA_NAMES}
    for target in ("count", "camera_distance"):
        check_classes(f"clevr ({target})", classes[target], {split: part.targets[target] for split, part in samples.items()})
    # The outer bins of the distance have few scenes, and the published splits are as they are: a bin that only test has is no mistake.
    alone = ~np.isin(samples["test"].targets["distance"], samples["train"].targets["distance"])
    note = f"{int(alone.sum())} test scenes are in bins of the distance that no training scene is in" if alone.any() else ""
    return Dataset("clevr", lists, samples, classes, note)


def _scenes(path: Path) -> dict[str, list[Any]]:
    """File name -> objects."""
    content = read_json("clevr", path)
    scenes = content.get("scenes") if isinstance(content, dict) else None
    expected = "a list 'scenes' with image_filename and objects in each"
    if not isinstance(scenes, list) or not all(isinstance(scene, dict) for scene in scenes):
        raise another_version("clevr", path, expected)
    try:
        found = {scene["image_filename"]: scene["objects"] for scene in scenes}
    except KeyError as error:
        raise another_version("clevr", path, f"{expected}, but one has no {error}") from None
    if len(found) != len(scenes):
        raise UserError(f"clevr: {path} describes an image twice ({len(scenes)} scenes of {len(found)} images)")
    return found


def _check_pairs(files: list[str], scenes: dict[str, Any], images: Path, source: Path) -> None:
    without_image, without_scene = sorted(set(scenes) - set(files)), sorted(set(files) - set(scenes))
    if without_image or without_scene:
        worse = f"{len(without_image)} scenes have no image" if without_image else f"{len(without_scene)} images have no scene"
        first = some(without_image or without_scene)
        raise UserError(f"clevr: {images} has {len(files)} images and {source} {len(scenes)} scenes; {worse}: {first}")
    if not files:
        raise UserError(f"clevr: there are no images in {images}")


def _answers(objects: Any, source: Path, file: str) -> tuple[int, int, int]:
    try:
        count = len(objects)
        places = [[float(x) for x in thing["3d_coords"]] for thing in objects]
        depths = [float(thing["pixel_coords"][2]) for thing in objects]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise another_version("clevr", source, f"objects with 3d_coords and pixel_coords, but {file} lacks {error}") from None
    if not 3 <= count <= 10:
        raise UserError(f"clevr: {source}: {file} has {count} objects; CLEVR's scenes have 3 to 10")
    wrong = next((x for x in (*depths, *(x for place in places for x in place)) if not abs(x) < _FAR), None)  # NaN is wrong, too
    if wrong is not None:
        raise UserError(f"clevr: {source}: {file} has an object with the coordinate {wrong}")
    nearest = min(math.sqrt(sum(x**2 for x in place)) for place in places)
    return count - 3, int(2 * nearest), int(np.searchsorted(_CAMERA, min(depths), side="left"))
