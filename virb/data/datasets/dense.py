"""What the readers of datasets with a target of a value per pixel share: images and target files are paired by name, never by order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from virb.data.datasets.common import check_apart, check_there, image_paths, some
from virb.data.images import Dataset, FileImages, Samples
from virb.data.sequences import FileSequence
from virb.errors import UserError, did_you_mean

Variant = Literal["virb2021"]


@dataclass(frozen=True)
class Pairs:
    """Images of one split and their target files, in the same order, relative to the dataset's folder; ``source`` named them. ``units``:
    what statistics resample (a video of each frame), every image by itself when None."""

    images: Sequence[str]
    targets: Sequence[str]
    source: str
    units: Sequence[str] | None = None


def from_pairs(
    name: str,
    folder: Path,
    splits: Mapping[str, Pairs],
    target: str,
    read: Callable[[str], np.ndarray],
    record: Mapping[str, Any],
    classes: Sequence[str] = (),
    *,
    note: str = "",
) -> Dataset:
    """The dataset of these files, whose targets ``read(path)`` reads when they are asked for; ``record`` says what ``read`` makes of them.

    Checks that all files are there, and that no image is in two splits."""
    lists, samples = {}, {}
    for split, pairs in splits.items():
        check_there(name, folder, pairs.images, pairs.source)
        check_there(name, folder, pairs.targets, pairs.source, "masks" if classes else "targets")
        lists[split] = FileImages(split, folder, pairs.images)
        values = FileSequence(folder, pairs.targets, read, record)
        samples[split] = Samples.one_per_image(lists[split], {target: values}, pairs.units)
    check_apart(name, {split: pairs.images for split, pairs in splits.items()})
    return Dataset(name, lists, samples, {target: tuple(classes)} if classes else {}, note)


def files_by_stem(folder: Path, place: str, ending: str, extensions: tuple[str, ...]) -> dict[str, str]:
    """Path below ``place``, without ``ending`` and the extension -> path below ``folder``: of the files at any depth whose name ends so."""
    base = folder / place
    found = {}
    for path in sorted(image_paths(base, extensions)) if base.is_dir() else ():
        stem = path[: path.rindex(".")]
        if stem.endswith(ending):
            found[stem[: len(stem) - len(ending)]] = f"{place}/{path}"
    return found


def matched(
    name: str, images: Mapping[str, str], targets: Mapping[str, str], where: str, what: str = "mask"
) -> tuple[list[str], list[str]]:
    """Paths of images and targets of equal key, sorted by key. UserError where an image has no target, or a target no image."""
    if not images:
        raise UserError(f"{name}: there are no images in {where}")
    for present, absent, one, other in ((images, targets, "image", what), (targets, images, what, "image")):
        lonely = [present[key] for key in sorted(set(present) - set(absent))]
        if lonely:
            raise UserError(f"{name}: {len(lonely)} {one}s in {where} have no {other}: {some(lonely)}; is the download complete?")
    keys = sorted(images)
    return [images[key] for key in keys], [targets[key] for key in keys]


def paired_folders(
    name: str, folder: Path, images: tuple[str, str], targets: tuple[str, str], extensions: Iterable[str] = (".png",), what: str = "mask"
) -> Pairs:
    """Two trees of files, each given by its place and what the names end in besides the extension, paired by the rest of the name."""
    found = files_by_stem(folder, *images, (".jpg", ".jpeg", ".png"))
    answers = files_by_stem(folder, *targets, tuple(extensions))
    where = f"{folder / images[0]} and {folder / targets[0]}" if images[0] != targets[0] else str(folder / images[0])
    return Pairs(*matched(name, found, answers, where, what), source=where)


def checked_variant(name: str, variant: str | None) -> Variant | None:
    """The option ``variant`` of a dataset: None, or the target as of ViRB 2021."""
    if variant is not None and variant not in get_args(Variant):
        raise UserError(f"{name} has no variant {variant!r}{did_you_mean(variant, get_args(Variant)) or '; there is virb2021'}")
    return cast("Variant | None", variant)
