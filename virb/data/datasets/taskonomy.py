"""Taskonomy: rooms with their depth, their edges, and themselves with a hole. The unit is the building, of which many samples come."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from virb.data.blanked import BlankedImages, ImageTargets
from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, another_version, check_apart, locate, ranked, subfolders
from virb.data.datasets.dense import checked_variant, files_by_stem, matched
from virb.data.images import Dataset, FileImages, Samples
from virb.data.maps import read_depth_png, read_grey
from virb.data.sequences import FileSequence
from virb.errors import UserError, did_you_mean

_NAME = "taskonomy"
TARGETS = ("depth", "edges", "inpainting")
PARTITIONS = ("tiny", "medium", "full", "fullplus")
FARTHEST = 20.0  # metres: of rooms, little is behind that, and much of it through windows
_FOLDERS = {"depth": ("depth_zbuffer",), "edges": ("edges", "edge_texture")}  # ViRB 2021's name, the published one
_PER_METRE = 512
_MISSING = 65535  # nothing was scanned there
_SQUARE = (224, 224)
_DOMAIN = re.compile(r"_domain_[a-z0-9_]+$")
_SHARE = 0.8  # of the buildings to train, where no list says


@register_dataset(_NAME)
def taskonomy(root: Path | None, target: str | None = None, partition: str = "tiny", variant: str | None = None) -> Dataset:
    """Rooms, in ViRB 2021's folders ``{train,test}/{rgb,depth_zbuffer,edges}/<building>/*.png``, or as published,
    ``{rgb,depth_zbuffer,edge_texture}/<building>/point_<p>_view_<v>_domain_<domain>.png`` (also with ``taskonomy/`` before the building,
    as Omnidata has it). The published form is split by ``splits_taskonomy/train_val_test_<partition>.csv``, without it by a fixed rule,
    80 % of the buildings to train.

    ``target``: "depth", "edges" or "inpainting"; None: depth and edges, whichever are there. Targets, float32:
    ``depth`` (H, W): metres along the axis of the camera (value / 512), NaN where nothing was scanned (65535) and beyond 20 m.
    ``edges`` (1, H, W): 0 to 1 (value / 65535).
    ``inpainting`` (3, H, W): the image in [0, 1] where the list of images has a hole, NaN around it.

    ``variant="virb2021"``: depth and edges (1, H, W) as stored, nothing masked, to be resized and then scaled to each image; inpainting
    with images squashed to 224 x 224, normalised, the whole image as target.
    """
    historic = checked_variant(_NAME, variant) is not None
    for option, value, known in (("target", target, TARGETS), ("partition", partition, PARTITIONS)):
        if value not in (*known, None):
            raise UserError(f"{_NAME} has no {option} {value!r}{did_you_mean(str(value), known) or '; there are ' + ', '.join(known)}")
    folder, layout = locate(_NAME, root, (Layout("ViRB 2021", ("train/rgb", "test/rgb")), Layout("published", ("rgb",))))
    if layout == "ViRB 2021":
        trees, note = {split: _Tree(folder, f"{split}/") for split in ("train", "test")}, "folders of ViRB 2021"
    else:
        trees, note = _published(folder, partition)
    wanted = [kind for kind in _FOLDERS if any(tree.place(kind) for tree in trees.values())] if target is None else [target]
    lists, samples, alone = {}, {}, 0
    for split, tree in trees.items():
        files, n_alone = tree.files([kind for kind in wanted if kind in _FOLDERS])
        images = FileImages(split, folder, files["rgb"])
        alone += n_alone
        buildings = [path.split("/")[-2] for path in files["rgb"]]
        targets: dict[str, FileSequence | ImageTargets] = {}
        for kind in wanted:
            if kind == "inpainting":
                size = _SQUARE if historic else None
                targets[kind] = ImageTargets(images, hidden=not historic, normalised=historic, size=size)
            else:
                read = read_raw if historic else {"depth": read_depth, "edges": read_edges}[kind]
                targets[kind] = FileSequence(folder, files[kind], read, {"unit": "stored" if historic else kind})
        lists[split] = BlankedImages(images, _SQUARE if historic else None) if "inpainting" in wanted else images
        samples[split] = Samples.one_per_image(lists[split], targets, buildings)
    check_apart(_NAME, {split: list(images.ids) for split, images in lists.items()})
    return Dataset(_NAME, lists, samples, note=f"{note}; {alone:,} images lack a target and are left out" if alone else note)


@dataclass(frozen=True)
class _Tree:
    """The files of a split: ``<prefix><domain>/**/<building>/*.png``, of the buildings named or of all."""

    folder: Path
    prefix: str
    buildings: frozenset[str] | None = None

    def place(self, kind: str) -> str | None:
        """The folder of a kind of targets, if it is there."""
        return next((f"{self.prefix}{name}" for name in _FOLDERS[kind] if (self.folder / self.prefix / name).is_dir()), None)

    def files(self, kinds: list[str]) -> tuple[dict[str, list[str]], int]:
        """Paths of images ("rgb") and of each kind of targets in the same order, and how many images lack one."""
        images = self._of(f"{self.prefix}rgb")
        answers: dict[str, dict[str, str]] = {}
        for kind in kinds:
            place = self.place(kind)
            if place is None:
                raise UserError(f"{_NAME}: {self.folder / self.prefix / _FOLDERS[kind][0]} is not there, where the {kind} maps should be")
            answers[kind] = self._of(place)
        keys = set(images)
        for kind, found in answers.items():
            matched(_NAME, {key: images[key] for key in images if key in found}, found, str(self.folder / self.prefix), f"{kind} map")
            keys &= set(found)
        if not keys:
            raise UserError(f"{_NAME}: there are no images in {self.folder / self.prefix}rgb/<building>/ for this split")
        order = sorted(keys, key=lambda key: images[key])
        return {"rgb": [images[key] for key in order], **{kind: [found[key] for key in order] for kind, found in answers.items()}}, (
            len(images) - len(keys)
        )

    def _of(self, place: str) -> dict[str, str]:
        """<building>/<point and view> -> path."""
        found = {}
        for stem, path in files_by_stem(self.folder, place, "", (".png",)).items():
            parts = stem.split("/")
            if len(parts) >= 2 and (self.buildings is None or parts[-2] in self.buildings):
                found[f"{parts[-2]}/{_DOMAIN.sub('', parts[-1])}"] = path
        return found


def _published(folder: Path, partition: str) -> tuple[dict[str, _Tree], str]:
    inner = folder / "rgb" / "taskonomy"
    there = set(subfolders(inner if inner.is_dir() else folder / "rgb"))
    file = f"train_val_test_{partition}.csv"
    source = next((path for path in (folder / "splits_taskonomy" / file, folder / file) if path.is_file()), None)
    if source is None:
        order = ranked(_NAME, sorted(there))
        cut = min(max(round(_SHARE * len(order)), 1), max(len(order) - 1, 1))
        parts = {"train": order[:cut], "test": order[cut:]}
        if not parts["test"]:
            raise UserError(f"{_NAME}: {folder / 'rgb'} has {len(order)} buildings; at least 2 are needed for a split")
        note = "80 % of the buildings to train by the fixed rule"
    else:
        listed = _split_list(source)
        parts = {split: [name for name in names if name in there] for split, names in listed.items()}
        n_listed = sum(map(len, listed.values()))
        note = f"official split {partition}, {sum(map(len, parts.values()))} of {n_listed} buildings are there"
        lacking = [split for split in ("train", "test") if not parts[split]]
        if lacking:
            raise UserError(f"{_NAME}: {folder / 'rgb'} has no building of {' and of '.join(lacking)} by {source}; give another partition?")
    return {split: _Tree(folder, "", frozenset(names)) for split, names in parts.items() if names}, note


def _split_list(path: Path) -> Mapping[str, list[str]]:
    """Buildings by split, of the official table: a line each, a 1 in the column of its split."""
    expected = "the columns id, train, val and test with 0 or 1"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {split: [row["id"] for row in rows if int(row[split])] for split in ("train", "val", "test")}
    except (KeyError, TypeError, ValueError, csv.Error):
        raise another_version(_NAME, path, expected) from None
    except OSError as error:
        raise UserError(f"{_NAME}: {path} cannot be read ({error.strerror or error})") from None


def read_depth(path: str) -> np.ndarray:
    """float32 (H, W) metres."""
    depth = read_depth_png(path, 1 / _PER_METRE, (0, _MISSING))
    depth[depth > FARTHEST] = np.nan
    return depth


def read_edges(path: str) -> np.ndarray:
    """float32 (1, H, W) in [0, 1]."""
    return (_sixteen_bits(path) / np.float32(65535))[None]


def read_raw(path: str) -> np.ndarray:
    """float32 (1, H, W) as stored, 0 to 65535: in 2021 maps were resized first and scaled after that (DenseTarget.rescale)."""
    return _sixteen_bits(path)[None]


def _sixteen_bits(path: str) -> np.ndarray:
    return read_grey(path).astype(np.float32)
