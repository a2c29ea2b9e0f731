"""What the readers of public datasets share: find the folder, read lists, pair labels with files, and say what is wrong for people."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets.facts import FACTS
from virb.data.images import Dataset, FileImages, Samples
from virb.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")
_FIRST = 3  # names that a message gives before "and n more"


@dataclass(frozen=True)
class Layout:
    """One way a dataset lies on disk: all of ``wants`` are below its folder, and ``also`` holds where there is no telling name."""

    name: str
    wants: tuple[str, ...] = ()
    also: Callable[[Path], bool] | None = None

    def __str__(self) -> str:
        return " + ".join(self.wants) or self.name or "class folders with images"

    def matches(self, folder: Path) -> bool:
        return folder.is_dir() and all((folder / want).exists() for want in self.wants) and (self.also is None or self.also(folder))


def locate(name: str, root: Path | None, layouts: Sequence[Layout], places: Sequence[str] | None = None) -> tuple[Path, str]:
    """The dataset's folder and the name of its layout: tried are the known places below ``root``, then ``root`` itself.

    UserError, with what was looked for and where to get it, when there is none.
    """
    facts = FACTS[name]
    if root is None:
        raise UserError(f"{name}: no folder is given; use --data_root, or data: {{root: /path}} in the task")
    places = facts.places if places is None else places
    folders = [Path(root) / place for place in places] + [Path(root)]
    for folder in folders:
        for layout in layouts:
            if layout.matches(folder):
                return folder, layout.name
    there = next((folder for folder in folders[:-1] if folder.is_dir()), None)
    wanted = ", or ".join(map(str, layouts))
    if there is not None:
        problem = f"{there} is there, but lacks what is looked for ({wanted})"
    else:
        problem = f"not found: looked for {wanted} in {', '.join(map(str, folders))}"
    how = f"What you downloaded, virb data prepare {name} --source FOLDER unpacks; virb data list {name} says more."
    raise UserError(f"{name}: {problem}.\nGet it from {facts.source}; {facts.size}; {facts.licence}. {how}")


# Reading


def read_lines(name: str, path: Path) -> list[str]:
    """Lines that are not empty, stripped."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{name}: the list {path} is not there") from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{name}: {path} cannot be read as text ({error})") from None


def read_json(name: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{name}: {path} is not there") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: {path} is not JSON that can be read ({error}); is the download complete?") from None


def read_mat(name: str, path: Path, key: str) -> Any:
    """One variable of a MATLAB file, squeezed."""
    import struct
    import zlib

    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    # scipy reads a damaged file until something does not fit
    damage = (MatReadError, OSError, ValueError, TypeError, LookupError, EOFError, NotImplementedError, struct.error, zlib.error)
    try:
        content = loadmat(path, squeeze_me=True)
    except FileNotFoundError:
        raise UserError(f"{name}: {path} is not there") from None
    except damage as error:
        raise UserError(f"{name}: {path} is not a MATLAB file that can be read ({error}); is the download complete?") from None
    if key not in content:
        raise UserError(f"{name}: {path} has no variable {key!r}; it is of another version")
    return content[key]


def another_version(name: str, path: Path, expected: str) -> UserError:
    return UserError(f"{name}: {path} is of another version or another file; expected {expected}")


def image_paths(folder: Path, extensions: tuple[str, ...] = EXTENSIONS) -> Iterator[str]:
    """Images at any depth, relative to ``folder``, with forward slashes; hidden ones are ignored, links followed, but not in circles."""

    def walk(place: str, prefix: str, above: frozenset[str]) -> Iterator[str]:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in above:
                        yield from walk(entry.path, f"{prefix}{entry.name}/", above | {real})
                elif entry.name.lower().endswith(extensions):
                    yield prefix + entry.name

    return walk(str(folder), "", frozenset({os.path.realpath(folder)}))


def subfolders(folder: Path) -> list[str]:
    """Names of the folders right below, sorted, without hidden ones."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def holds_class_folders(folder: Path) -> bool:
    """Whether most folders right below ``folder``, and at least two, have images right in them: a data root with datasets does not."""

    def has_image(place: Path) -> bool:
        with os.scandir(place) as entries:
            return any(entry.name.lower().endswith(EXTENSIONS) and entry.is_file() for entry in entries)

    names = subfolders(folder)
    found = sum(has_image(folder / name) for name in names)
    return found >= 2 and 2 * found > len(names)


# Building


@dataclass(frozen=True)
class Split:
    """Images of one split, relative to the dataset's root, with a class number each; ``source`` is the list or folder that named them."""

    paths: Sequence[str]
    labels: Sequence[int]
    source: str
    listed: bool = True  # by a file, so it may name images that are not there


def class_folders(name: str, folder: Path, place: str) -> dict[str, list[str]]:
    """Class -> its images relative to ``folder``, both sorted, of ``folder/place/<class>/**``."""
    base = folder / place
    if not base.is_dir():
        raise UserError(f"{name}: {base} is not there, though {folder} is")
    prefix = "" if place in ("", ".") else f"{place}/"
    found = {cls: [f"{prefix}{cls}/{path}" for path in sorted(image_paths(base / cls))] for cls in subfolders(base)}
    if not any(found.values()):
        raise UserError(f"{name}: there are no images in {base}/<class>/")
    return found


def from_folders(
    name: str,
    folder: Path,
    places: Mapping[str, str],
    classes: Sequence[str] | None = None,
    *,
    key: Callable[[str], Any] | None = None,
    note: str = "",
    closed: bool = True,
) -> Dataset:
    """Splits that are trees ``folder/<place>/<class>/*``. Class numbers are those of ``classes``, else of the union of all splits' folders
    sorted by ``key``, so that a class missing in one split shifts nothing."""
    found = {split: class_folders(name, folder, place) for split, place in places.items()}
    check_all_classes(name, set().union(*found.values()), folder)
    if classes is None:
        classes = sorted(set().union(*found.values()), key=key or (lambda text: text))
    splits = {}
    for split, images in found.items():
        number = numbered(name, classes, images, f"the folders of {folder / places[split]}")
        paths = [path for cls in images for path in images[cls]]
        labels = [number[cls] for cls in images for _ in images[cls]]
        splits[split] = Split(paths, labels, str(folder / places[split]), listed=False)
    return from_splits(name, folder, splits, classes, note=note, closed=closed)


def numbered(name: str, classes: Sequence[str], used: Iterable[str], source: str) -> dict[str, int]:
    """Class -> its number; UserError when ``source`` uses a class that is not in the official list."""
    number = {cls: i for i, cls in enumerate(classes)}
    unknown = sorted(set(used) - set(number))
    if unknown:
        raise UserError(f"{name}: {source} have {some(unknown)}, which {name} does not know among its {len(classes)} classes")
    return number


def from_splits(
    name: str,
    folder: Path,
    splits: Mapping[str, Split],
    classes: Sequence[str],
    *,
    target: str = "class",
    note: str = "",
    closed: bool = True,
) -> Dataset:
    """The dataset of these files. Checks that files are there, that no file is in two splits and, if ``closed``, that every class of a
    later split has images in ``train``."""
    lists, samples = {}, {}
    for split, part in splits.items():
        if len(part.paths) != len(part.labels):
            raise UserError(f"{name}: {part.source} has {len(part.paths)} images but {len(part.labels)} labels")
        if part.listed:
            check_there(name, folder, part.paths, part.source)
        lists[split] = FileImages(split, folder, part.paths)
        samples[split] = Samples.one_per_image(lists[split], {target: np.array(part.labels, dtype=np.int64)})
    check_apart(name, {split: part.paths for split, part in splits.items()})
    if closed:
        check_classes(name, classes, {split: part.labels for split, part in splits.items()})
    return Dataset(name, lists, samples, {target: tuple(classes)}, note)


def n_classes_of(name: str) -> int | None:
    """How many classes the published dataset has, where that is known."""
    return FACTS[name].n_classes if name in FACTS else None


def check_all_classes(name: str, classes: Collection[str], folder: Path, without: int = 0) -> None:
    """As many class folders as the published dataset has, less those that are left out: ``train`` and ``test`` are names that other
    datasets have, too, and numbers on a part of the classes are no numbers of this dataset."""
    wanted = n_classes_of(name)
    if wanted is not None and len(classes) != wanted - without:
        raise UserError(
            f"{name}: {folder} has {len(classes):,} class folders ({some(sorted(classes))}), but {name} has {wanted:,} classes. "
            "Is it another dataset, or not complete? To try things on fewer samples of all classes there is limit; for classes of your "
            "own, task: folder"
        )


def check_there(name: str, folder: Path, paths: Iterable[str], source: str, what: str = "images") -> None:
    """Every file of a list (of ``what``) is there. Folders are listed once: much faster than asking for each of a million files."""
    listings: dict[str, set[str]] = {}
    missing: list[str] = []
    total = 0
    for path in paths:
        total += 1
        parent, _, file = path.rpartition("/")
        if parent not in listings:
            try:
                listings[parent] = set(os.listdir(folder / parent))
            except OSError:
                listings[parent] = set()
        if file not in listings[parent]:
            missing.append(path)
    if missing:
        raise UserError(
            f"{name}: {source} names {total} {what}, but {len(missing)} of them are not below {folder}: {some(missing)}.\n"
            f"Is the download complete, and do list and {what} belong together?"
        )
    if not total:
        raise UserError(f"{name}: {source} names no {what}")


def check_once(name: str, paths: Sequence[str], source: str) -> None:
    """No list names an image twice: it would count twice."""
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = [path for path in paths if path in seen or seen.add(path)]  # type: ignore[func-returns-value]
        raise UserError(f"{name}: {source} names {len(twice)} images twice: {some(twice)}")


def check_apart(name: str, splits: Mapping[str, Sequence[str]], what: str = "images") -> None:
    """No image is in two splits."""
    seen: dict[str, set[str]] = {}
    for split, paths in splits.items():
        here = set(paths)
        for other, known in seen.items():
            both = sorted(here & known)
            if both:
                raise UserError(f"{name}: {len(both)} {what} are in {other} and in {split}: {some(both)}")
        seen[split] = here


def check_classes(name: str, classes: Sequence[str], labels: Mapping[str, Sequence[int] | np.ndarray]) -> None:
    """Every class of ``val`` and ``test`` has samples in ``train``; nobody can learn it otherwise."""
    if "train" not in labels:
        return
    known = set(np.unique(np.asarray(labels["train"], dtype=np.int64)).tolist())
    for split, numbers in labels.items():
        unseen = [classes[number] for number in sorted(set(np.unique(np.asarray(numbers, dtype=np.int64)).tolist()) - known)]
        if unseen:
            raise UserError(f"{name}: {split} has samples of {some(unseen)}, but train has none; every class needs images to learn from")


def some(names: Sequence[str]) -> str:
    """The first few, quoted, and how many more."""
    more = f" and {len(names) - _FIRST} more" if len(names) > _FIRST else ""
    return ", ".join(map(repr, names[:_FIRST])) + more


def ranked(purpose: str, items: Sequence[str], seed: int = 0) -> list[str]:
    """``items`` in an order that is random, and fixed: by the BLAKE2b hash of ``virb/<purpose>/<seed>/<item>``. An item's place depends on
    no other item, no library and no listing order, so a split made by it is the same everywhere."""

    def place(item: str) -> bytes:
        return hashlib.blake2b(f"virb/{purpose}/{seed}/{item}".encode("utf-8", "surrogateescape"), digest_size=16).digest()

    return sorted(items, key=place)


def ruled_split(
    purpose: str,
    images: Mapping[str, Sequence[str]],
    train: int | float,
    seed: int = 0,
    hashed: Callable[[str], str] = lambda path: path,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Class -> images for train and for test: of each class ``train`` images (or this share of them, rounded) by the fixed rule of
    ``ranked``, at least one left for test where there are two. ``hashed``: what of a path the rule sees, which every layout has alike."""
    first: dict[str, list[str]] = {}
    rest: dict[str, list[str]] = {}
    for cls, paths in images.items():
        wanted = train if isinstance(train, int) else round(train * len(paths))
        n = min(max(wanted, 1), max(len(paths) - 1, 1))
        chosen = set(ranked(purpose, [hashed(path) for path in paths], seed)[:n])
        first[cls] = [path for path in paths if hashed(path) in chosen]
        rest[cls] = [path for path in paths if hashed(path) not in chosen]
    return first, rest


def has_lists(name: str, lists: Iterable[Path]) -> bool:
    """Whether the lists of a split are there; UserError where only some of them are, because another split would be measured silently."""
    lists = list(lists)
    missing = [path.name for path in lists if not path.is_file()]
    if 0 < len(missing) < len(lists):
        raise UserError(f"{name}: {lists[0].parent} has half a split: {some(missing)} {'is' if len(missing) == 1 else 'are'} not there")
    return not missing


def by_class(images: Mapping[str, Sequence[str]], number: Mapping[str, int], source: str, listed: bool = False) -> Split:
    """Images by class as one split, in the mapping's order."""
    paths = [path for cls in images for path in images[cls]]
    return Split(paths, [number[cls] for cls in images for _ in images[cls]], source, listed)
