"""Oxford-IIIT Pets: 37 breeds."""

from __future__ import annotations

from pathlib import Path

from virb.data.datasets import register_dataset
from virb.data.datasets.common import Layout, Split, another_version, from_folders, from_splits, locate, read_lines
from virb.data.images import Dataset

_NUMBERS = frozenset(str(n) for n in range(1, 38))  # of the breeds


@register_dataset("pets")
def pets(root: Path | None) -> Dataset:
    """``images/`` with ``annotations/{trainval,test}.txt`` (as published, and torchvision's ``oxford-iiit-pet/``), or ViRB 2021's
    ``{train,test}/<breed>/*``. ``train`` is the official trainval. Class numbers are the official ones minus 1 (alphabetical, capitals
    and all), with the names as in the files."""
    return read_pets("pets", root)


def read_pets(name: str, root: Path | None) -> Dataset:
    """The images and breeds, for the dataset ``name``."""
    lists = Layout("lists", ("images", "annotations/trainval.txt", "annotations/test.txt"))
    folder, layout = locate(name, root, (lists, Layout("folders", ("train", "test"))))
    if layout == "folders":
        return from_folders(name, folder, {"train": "train", "test": "test"}, key=str.casefold, note="folders of ViRB 2021")
    names: dict[int, str] = {}
    splits = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        path = folder / "annotations" / file
        ids, labels = _read(name, path, names)
        splits[split] = Split([f"images/{image}.jpg" for image in ids], labels, str(path))
    classes = [names.get(i, f"breed {i + 1}") for i in range(max(names) + 1)]
    return from_splits(name, folder, splits, classes, note="official lists")


def _read(name: str, path: Path, names: dict[int, str]) -> tuple[list[str], list[int]]:
    """Lines ``Abyssinian_100 1 1 1``: image, breed from 1, species, number within the species. Fills in the breeds' names."""
    ids, labels = [], []
    for line in read_lines(name, path):
        if line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 4 or words[1] not in _NUMBERS:
            expected = f"lines of image, breed (1 to {len(_NUMBERS)}), species and number"
            raise another_version(name, path, f"{expected}, but there is {line!r}")
        ids.append(words[0])
        labels.append(int(words[1]) - 1)
        breed = words[0].rpartition("_")[0]
        if names.setdefault(labels[-1], breed) != breed:
            raise another_version(name, path, f"one breed per number, but {words[1]} is {names[labels[-1]]} and {breed}")
    return ids, labels
