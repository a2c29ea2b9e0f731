"""What a recipe is: which archives make a dataset, where their files go, and how they are found among somebody's downloads."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from virb.data.datasets.facts import FACTS
from virb.data.prepare.extract import Rename, Tell, fingerprint
from virb.errors import UserError

_DEPTH = 3  # folders below a source that are looked through
Found = Mapping[str, Sequence[Path]]  # files or folders by part
Convert = Callable[[Path, Tell], Iterable[str]]  # (the dataset's folder, progress) -> a line per thing that was done; safe to call again


def rules(*pairs: tuple[str, str]) -> Rename:
    """(pattern of a member's whole path, its new path with ``\\1`` ...): the first that matches; what matches none is not needed."""
    compiled = [(re.compile(pattern, re.DOTALL), new) for pattern, new in pairs]

    def rename(path: str) -> str | None:
        for pattern, new in compiled:
            match = pattern.fullmatch(path)
            if match:
                return match.expand(new)
        return None

    return rename


def below(folder: str, new: str = "") -> Rename:
    """Everything in ``folder`` of the archive."""
    return rules((re.escape(folder.strip("/")) + "/(.+)", f"{new.strip('/')}/\\1".lstrip("/")))


def named(new: str = r"\g<0>") -> Rename:
    """A single file, under its own name or a new one."""
    return rules((".+", new))


@dataclass(frozen=True)
class Part:
    """One file of the download, or ``several`` alike. ``names``: patterns for the end of its path, the better ones first."""

    key: str
    names: tuple[str, ...]
    rename: Rename | None = None
    rename_with: Callable[[Found], Rename] | None = None  # where another part says what goes where
    rename_for: Callable[[Path], Rename] | None = None  # where the archive's own name says what goes where
    nested: str = ""  # pattern of members that are archives themselves
    folders: tuple[str, ...] = ()  # the same unpacked already: linked as ``link``
    link: str = ""
    needed: bool = True
    several: bool = False

    def __str__(self) -> str:
        return f"{self.names[0] if self.names else f'the folder {self.folders[0]}'}{' ...' * self.several}"

    def is_nested(self, path: str) -> bool:
        return bool(self.nested) and re.fullmatch(self.nested, path) is not None


@dataclass(frozen=True)
class Recipe:
    """Parts that make a dataset in ``place`` below the data root; ``title`` tells several recipes of a dataset apart."""

    dataset: str
    place: str
    parts: tuple[Part, ...]
    title: str = ""
    note: str = ""
    convert: Convert | None = None  # what is left to do when everything is unpacked

    @property
    def needed(self) -> list[Part]:
        return [part for part in self.parts if part.needed]


_RECIPES: dict[str, list[Recipe]] = {}


def add(dataset: str, place: str, *parts: Part, title: str = "", note: str = "", convert: Convert | None = None) -> None:
    """Registers one way to make ``dataset``; of several, the first whose parts are there is taken."""
    known = _RECIPES.setdefault(dataset, [])
    recipe = Recipe(dataset, place, parts, title, note, convert)
    if all(other.title != title for other in known):
        known.append(recipe)


def registered() -> dict[str, list[Recipe]]:
    return _RECIPES


def choose(recipes: Sequence[Recipe], sources: Sequence[Path], root: Path) -> tuple[Recipe, Found]:
    """The first recipe whose needed parts are all there, with their files; UserError that names what is missing."""
    everything = _candidates(sources)
    closest: tuple[int, Recipe, list[Part]] | None = None
    for recipe in recipes:
        candidates = _outside(everything, sources, root / recipe.place)
        found = {part.key: _find(part, candidates) for part in recipe.parts}
        missing = [part for part in recipe.needed if not found[part.key]]
        if not missing:
            return recipe, found
        there = sum(bool(paths) for paths in found.values())
        if closest is None or there > closest[0]:
            closest = (there, recipe, missing)
    assert closest is not None  # a registered dataset has a recipe
    _, recipe, missing = closest
    facts = FACTS[recipe.dataset]
    where = ", ".join(map(str, sources))
    others = f" (or {' or '.join(other.title for other in recipes if other is not recipe)})" if len(recipes) > 1 else ""
    raise UserError(
        f"{recipe.dataset}: {', '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'} not in {where}{others}.\n"
        f"Get it from {facts.source}; {facts.size}; {facts.licence}."
    )


def _candidates(sources: Sequence[Path]) -> list[Path]:
    """Files and folders that were given, and those in the folders given, sorted."""
    found: list[Path] = []
    for source in sources:
        if not source.exists():
            raise UserError(f"--source {source} does not exist")
        found.append(source.absolute())
        if not source.is_dir():
            continue
        base = source.absolute()
        for place, folders, files in os.walk(base, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = Path(place)
            found += [here / name for name in (*folders, *sorted(files)) if not name.startswith(".")]
            if len(here.relative_to(base).parts) >= _DEPTH:
                folders.clear()
    return found


def _outside(candidates: Sequence[Path], sources: Sequence[Path], folder: Path) -> list[Path]:
    """Without what was unpacked before, when the data root lies below a source (``--source .``)."""
    folder = folder.absolute()
    if any(source.absolute().is_relative_to(folder) for source in sources):
        return list(candidates)
    return [path for path in candidates if not path.is_relative_to(folder)]


def _find(part: Part, candidates: Sequence[Path]) -> list[Path]:
    for patterns, is_kind in ((part.names, os.path.isfile), (part.folders, os.path.isdir)):
        for pattern in patterns:
            matches = [path for path in candidates if PurePosixPath(path.as_posix()).match(pattern) and is_kind(path)]
            paths = list({os.path.realpath(path): path for path in reversed(matches)}.values())[::-1]
            if len(paths) > 1 and not part.several and is_kind is os.path.isfile:  # two copies of one file are as good as one
                paths = list({fingerprint(path): path for path in sorted(paths, key=_depth, reverse=True)}.values())[::-1]
            if len(paths) > 1 and not part.several:
                raise UserError(f"{pattern} is there several times: {', '.join(map(str, paths))}; give one of them as --source")
            if paths:
                return paths
    return []


def _depth(path: Path) -> int:
    return len(path.parts)
