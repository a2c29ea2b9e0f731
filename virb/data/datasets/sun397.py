"""SUN397: scenes."""

from __future__ import annotations

from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import (
    Layout,
    Split,
    another_version,
    by_class,
    from_folders,
    from_splits,
    image_paths,
    locate,
    numbered,
    read_lines,
    ruled_split,
    some,
)
from virb.data.images import Dataset
from virb.errors import UserError

_TRAIN_SHARE = 0.8


@register_dataset("sun397")
def sun397(root: Path | None, partition: int = 1, seed: int = 0) -> Dataset:
    """As published (and by torchvision): ``ClassName.txt`` and ``a/abbey/sun_*.jpg``; or ViRB 2021's ``{train,test}/<class>/*``.

    The split, where it is not folders: the official ``Training_<NN>.txt`` and ``Testing_<NN>.txt`` of ``partition`` (50 and 50 per class)
    when they lie in the folder, in ``Partitions/`` below or beside it; else 80 % of each class by the fixed rule with ``seed``.
    """
    name = "sun397"
    if partition not in range(1, 11):
        raise UserError(f"{name}: partition is {partition!r}; there are 1 to 10")
    layouts = (Layout("folders", ("train", "test")), Layout("published", ("ClassName.txt",)))
    folder, layout = locate(name, root, layouts)
    if layout == "folders":
        return from_folders(name, folder, {"train": "train", "test": "test"}, note="folders of ViRB 2021")
    classes = [_class(line, folder / "ClassName.txt") for line in read_lines(name, folder / "ClassName.txt")]
    lists = _partition(folder, partition)
    if lists is not None:
        splits = {split: _listed(path, classes) for split, path in lists.items()}
        return from_splits(name, folder, splits, classes, note=f"official partition {partition}")
    found: dict[str, list[str]] = {}
    for path in sorted(path for path in image_paths(folder) if path.rpartition("/")[2].startswith("sun_")):
        found.setdefault(_class(f"/{path.rpartition('/')[0]}", folder), []).append(path)
    if not found:
        raise UserError(f"{name}: there are no images sun_*.jpg below {folder}")
    number = numbered(name, classes, found, f"the folders of {folder}")
    train, test = ruled_split(name, found, _TRAIN_SHARE, seed)
    parts = {"train": by_class(train, number, str(folder)), "test": by_class(test, number, str(folder))}
    return from_splits(name, folder, parts, classes, note=f"split: 80 % of each class by the fixed rule, seed {seed}")


def _class(path: str, source: Path) -> str:
    """``abbey`` of ``/a/abbey``, ``apartment_building/outdoor`` of ``/a/apartment_building/outdoor``."""
    words = path.strip("/").split("/")
    if len(words) < 2 or len(words[0]) != 1:
        raise another_version("sun397", source, f"classes as /a/abbey, but there is {path!r}")
    return "/".join(words[1:])


def _partition(folder: Path, partition: int) -> dict[str, Path] | None:
    for place in (folder, folder / "Partitions", folder.parent / "Partitions", folder.parent):
        lists = {"train": place / f"Training_{partition:02d}.txt", "test": place / f"Testing_{partition:02d}.txt"}
        there = {split: path.is_file() for split, path in lists.items()}
        if all(there.values()):
            return lists
        if any(there.values()):
            lacks = [path.name for split, path in lists.items() if not there[split]]
            raise UserError(f"sun397: {place} has half a partition: {some(lacks)} is not there")
    return None


def _listed(path: Path, classes: list[str]) -> Split:
    lines = [line.strip("/") for line in read_lines("sun397", path)]
    named = [_class(f"/{line.rpartition('/')[0]}", path) for line in lines]
    number = numbered("sun397", classes, named, str(path))
    return Split(lines, [number[cls] for cls in named], str(path))
