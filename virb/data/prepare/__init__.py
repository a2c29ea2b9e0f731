"""From the archives that the makers of a dataset publish to the layout that its reader in ``virb.data.datasets`` understands.

A module per family of archives registers recipes; ``prepare`` follows one. Sources are only read.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from virb.data.datasets import load_dataset
from virb.data.datasets.facts import FACTS
from virb.data.images import Dataset
from virb.data.prepare.extract import STATE, Target, Tell, link, unpack
from virb.data.prepare.recipes import Recipe, choose, registered
from virb.errors import UserError
from virb.io import Lease, read_json, write_json

__all__ = ["STATE", "Prepared", "Recipe", "places_of", "prepare", "recipes_of", "state_of", "stored_split"]

_FAMILIES = (
    "caltech", "cifar", "clevr", "coco", "eurosat", "fine_grained", "imagenet", "imagenet_shifts", "kinetics", "nuscenes", "others",
    "scenes", "semantic", "structural", "thor",
)  # fmt: skip
SPLIT_FILE = "virb_split.json"
_OPEN = "unfinished.json"  # lies beside the stamps from the first archive until the dataset can be read
_RULED = "by the fixed rule"  # what a reader's note says of a split that is not official


@dataclass(frozen=True)
class Prepared:
    """The folder, the dataset as it is read from there, and one line per thing that was done."""

    folder: Path
    dataset: Dataset
    lines: tuple[str, ...]


def recipes_of(dataset: str) -> list[Recipe]:
    """Ways to make this dataset, the preferred one first; none for what is built in or has to be laid out by hand."""
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
    return list(registered().get(dataset, ()))


def places_of(dataset: str) -> tuple[str, ...]:
    """Folders below the data root where the dataset may lie."""
    facts = FACTS.get(dataset)
    if facts is None:
        return ()
    return facts.places or tuple(dict.fromkeys(recipe.place for recipe in recipes_of(dataset)))


def state_of(dataset: str, root: Path) -> tuple[str, Path | None]:
    """``found``, ``unfinished`` (preparing was begun) or ``absent``, with the folder. A look at folders, not at what is in them."""
    for place in places_of(dataset):
        folder = root / place
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in os.scandir(folder)):
            return ("unfinished" if (folder / STATE / _OPEN).exists() else "found"), folder
    return "absent", None


def prepare(dataset: str, sources: Sequence[Path], root: Path, *, force: bool = False, tell: Tell = lambda *_: None) -> Prepared:
    """Unpacks the dataset below ``root`` and reads it. May be stopped at any time; the same call goes on.

    ``force``: archives that are finished are gone through again, for files that were lost. UserError where sources are missing.
    """
    ways = recipes_of(dataset)
    if not ways:
        raise _no_recipe(dataset)
    recipe, found = choose(ways, sources, root)
    folder = root / recipe.place
    every = tuple(path for paths in found.values() for path in paths)
    lines = []
    target = Target(folder, every)
    with Lease(target.state / "lease"):
        target.clean()
        write_json(target.state / _OPEN, {"dataset": dataset})
        for part in recipe.parts:
            for source in found[part.key]:
                if source.is_dir():
                    fresh = link(source, target, part.link)
                    lines.append(f"{folder / part.link} {'is now' if fresh else 'is'} a link to {source}: keep that folder")
                    continue
                rename = part.rename_with(found) if part.rename_with else part.rename_for(source) if part.rename_for else part.rename
                assert rename is not None  # by the recipe
                done = unpack(source, target, rename, key=part.key, nested=part.is_nested, tell=tell, force=force)
                if done.before:
                    lines.append(f"{source.name}: finished before")
                else:
                    there = f", {done.kept:,} were there" if done.kept else ""
                    lines.append(f"{source.name}: {done.written:,} file{'s' * (done.written != 1)} written{there}")
                if done.left_out:
                    lines.append(f"{source.name}: left out {len(done.left_out)} links to what was not unpacked, such as {done.left_out[0]}")
        if recipe.convert is not None:
            lines += recipe.convert(folder, tell)
        result = _read(dataset, root, folder)
        lines += [
            f"tasks read {place}, which comes before {folder}; move it away to use the new one" for place in _elsewhere(result, folder)
        ]
        if _RULED in result.note:
            write_json(folder / SPLIT_FILE, split_record(result))
            lines.append(f"{folder / SPLIT_FILE}: the split, for the record")
        (target.state / _OPEN).unlink()
    return Prepared(folder, result, tuple(lines))


def _read(dataset: str, root: Path, folder: Path) -> Dataset:
    """The dataset as tasks will read it."""
    try:
        return load_dataset(dataset, root)
    except UserError as error:
        raise UserError(f"everything is unpacked in {folder}, but cannot be read as it is: {error}\nIf files were lost: --force") from None


def _elsewhere(dataset: Dataset, folder: Path) -> Iterator[str]:
    """Folders that tasks read in place of ``folder``, because they come first."""
    here = folder.resolve()
    for place in sorted({str(images.root) for images in dataset.lists.values() if hasattr(images, "root")}):
        there = Path(place).resolve()
        if not (there.is_relative_to(here) or here.is_relative_to(there)):
            yield place


def split_record(dataset: Dataset) -> dict[str, object]:
    """The samples of each split by id, and the rule."""
    return {"rule": dataset.note, **{split: [str(i) for i in samples.ids] for split, samples in dataset.samples.items()}}


def stored_split(folder: Path) -> dict[str, object] | None:
    """What ``prepare`` stored of a split that is not official."""
    try:
        found = read_json(folder / SPLIT_FILE)
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def _no_recipe(dataset: str) -> UserError:
    if dataset in FACTS:
        facts = FACTS[dataset]
        return UserError(f"{dataset} has no archives that ViRB knows to unpack. Get it from {facts.source}; {facts.size}; {facts.licence}.")
    return UserError(f"{dataset} comes with ViRB or is read from your own folder; there is nothing to prepare")
