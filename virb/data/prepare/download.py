"""Fetches a dataset: with torchvision's own class, which knows the address and the md5 sum, or from plain addresses, to be unpacked by its
recipe. Only ``virb data download`` calls this."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from virb.data.datasets import load_dataset
from virb.data.datasets.facts import FACTS
from virb.data.images import Dataset
from virb.data.prepare import prepare, state_of
from virb.data.prepare.addresses import ARCHIVES, LISTS, Address
from virb.errors import UserError, ViRBError
from virb.io import make_folder, write_atomic, writing
from virb.transfer import Progress, alone, hash_of, name_in, note_of, size_of, transfer

Say = Callable[[str], None]
Tell = Callable[[str, int, int], None]  # what is fetched or unpacked, bytes done, bytes in all
DOWNLOADS = "downloads"  # below the data root: archives, in a folder for each dataset

# Dataset -> torchvision's class, and the arguments of each call that is needed. The root is the data root, or a folder below it.
_CALLS: Mapping[str, tuple[str, tuple[Mapping[str, Any], ...], str]] = {
    "caltech101": ("Caltech101", ({},), ""),
    "cifar10": ("CIFAR10", ({},), ""),
    "cifar100": ("CIFAR100", ({},), ""),
    "clevr": ("CLEVRClassification", ({},), ""),
    "country211": ("Country211", ({},), ""),
    "dtd": ("DTD", ({},), ""),
    "eurosat": ("EuroSAT", ({},), ""),
    "fgvc-aircraft": ("FGVCAircraft", ({},), ""),
    "flowers102": ("Flowers102", ({},), ""),
    "food101": ("Food101", ({},), ""),
    "imagenette": ("Imagenette", ({},), ""),
    "pcam": ("PCAM", tuple({"split": split} for split in ("train", "val", "test")), ""),
    "pets": ("OxfordIIITPet", ({},), ""),
    "pets-masks": ("OxfordIIITPet", ({},), ""),
    "places365": ("Places365", tuple({"split": split, "small": True} for split in ("train-standard", "val")), "places365"),
    "stl10": ("STL10", ({},), ""),
    "sun397": ("SUN397", ({},), ""),
    "voc2012-masks": ("VOCSegmentation", ({"year": "2012", "image_set": "trainval"},), ""),
    "voc2007": ("VOCDetection", tuple({"year": "2007", "image_set": part} for part in ("trainval", "test")), ""),
}


def downloadable(dataset: str) -> bool:
    """Whether all of it can be fetched."""
    return dataset in _CALLS or dataset in ARCHIVES


def lists_only(dataset: str) -> bool:
    """Whether its lists can be fetched, but not its images."""
    return dataset in LISTS and not downloadable(dataset)


def download(dataset: str, root: Path, say: Say = lambda _: None, tell: Tell = lambda *_: None) -> Dataset:
    """The dataset below ``root``, fetched unless it is there. UserError, with where to get it, for those that cannot be fetched."""
    if not (downloadable(dataset) or lists_only(dataset)):
        raise _by_hand(dataset)
    found = _there(dataset, root, say)
    if found is None and dataset in _CALLS:
        found = _by_torchvision(dataset, root, say)
    elif found is None and dataset in ARCHIVES:
        found = _by_addresses(dataset, root, say, tell)
    elif found is None:
        folder = _fetch_all(dataset, LISTS[dataset], root, tell)
        facts = FACTS[dataset]
        raise UserError(
            f"{dataset}: ViRB's lists are in {folder}; the images are not downloaded by ViRB. Get them from {facts.source}; {facts.size}; "
            f"{facts.licence}. Then: virb data prepare {dataset} --source {folder} FOLDER"
        )
    return _with_lists(dataset, found, root, say, tell) if dataset in LISTS else found


def _there(dataset: str, root: Path, say: Say) -> Dataset | None:
    try:
        return load_dataset(dataset, root)
    except UserError as error:
        if "not found" not in str(error):
            say(f"what is there cannot be used: {str(error).splitlines()[0]}")
    return None


def _by_torchvision(dataset: str, root: Path, say: Say) -> Dataset:
    import torchvision.datasets

    name, calls, below = _CALLS[dataset]
    folder = root / below
    facts = FACTS[dataset]
    say(f"{dataset}: {facts.size} from {facts.source}, by torchvision's {name}, to {folder}; {facts.licence}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for arguments in calls:
            getattr(torchvision.datasets, name)(folder, download=True, **arguments)
    except ImportError as error:
        raise UserError(f"{dataset}: downloading needs another package ({error})") from None
    except (OSError, http.client.HTTPException, RuntimeError, ValueError) as error:  # URLError is an OSError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ViRBError(f"{dataset} could not be downloaded ({reason}). By hand: {facts.source}; then virb data prepare") from None
    return load_dataset(dataset, root)


def _by_addresses(dataset: str, root: Path, say: Say, tell: Tell) -> Dataset:
    """Archives, and what ``virb data prepare`` does with them."""
    facts, addresses = FACTS[dataset], ARCHIVES[dataset]
    folder = root / DOWNLOADS / dataset
    say(f"{dataset}: {facts.size} from {', '.join(address.url for address in addresses)}, to {folder}; {facts.licence}")
    lost = state_of(dataset, root)[0] == "found"  # finished once, and cannot be read: archives are gone through again
    done = prepare(dataset, [_fetch_all(dataset, addresses, root, tell)], root, force=lost, tell=tell)
    for line in done.lines:
        say(line)
    say(f"the archives in {folder} are no longer needed")
    return done.dataset


def _with_lists(dataset: str, found: Dataset, root: Path, say: Say, tell: Tell) -> Dataset:
    """The split of ViRB 2021 instead of the fixed rule's, where its lists can be had."""
    (folder,) = {Path(str(getattr(images, "root", root))) for images in found.lists.values()}
    names = [str(name_in(address.url)) for address in LISTS[dataset]]
    if all((folder / name).is_file() for name in names):
        return found
    try:
        source = _fetch_all(dataset, LISTS[dataset], root, tell)
    except ViRBError as error:
        say(f"ViRB's lists cannot be had ({error}); {found.note}")
        return found
    for name in names:  # both are here: half a split would be refused
        write_atomic(folder / name, (source / name).read_bytes())
    say(f"ViRB's lists {' and '.join(names)} are in {folder}")
    return load_dataset(dataset, root)


def _fetch_all(dataset: str, addresses: Sequence[Address], root: Path, tell: Tell) -> Path:
    folder = make_folder(root / DOWNLOADS / dataset)
    for address in addresses:
        fetch(address, folder, tell)
    return folder


def fetch(address: Address, folder: Path, tell: Tell = lambda *_: None) -> Path:
    """The file in ``folder``, whole, under the name that the address ends with; one that is there is not fetched again. May be stopped at
    any time. ViRBError when it cannot be had; UserError, too, when it has another md5 sum than was published."""
    name = str(name_in(address.url))
    path, part = folder / name, folder / f"{name}.part"

    def told(state: Progress) -> None:
        tell(f"fetching {name}", state.done, state.total or state.done)

    with alone(folder / f"{name}.lease"):
        if path.is_file():
            _check(address, path, f"{path} is there, but")
            return path
        transfer(address.url, part, told)
        try:
            _check(address, part, f"what {address.url} gave")
        except UserError:
            part.unlink()
            note_of(part).unlink(missing_ok=True)
            raise
        with writing(path):
            part.replace(path)
            note_of(part).unlink(missing_ok=True)
    return path


def _check(address: Address, path: Path, what: str) -> None:
    found = None if address.md5 is None else hash_of(path, "md5")
    if found != address.md5:
        again = "move it away to go on" if path.suffix != ".part" else "it is not kept; try again, or get it by hand"
        raise UserError(f"{what} has the md5 sum {found} ({size_of(path):,} bytes), published is {address.md5}: {again}")


def _by_hand(dataset: str) -> UserError:
    facts = FACTS.get(dataset)
    if facts is None:
        return UserError(f"{dataset} is no public dataset; there is nothing to download")
    return UserError(f"{dataset} is not downloaded by ViRB. Get it from {facts.source}; {facts.size}; {facts.licence}.")
