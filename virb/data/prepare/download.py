"""Fetches a dataset with torchvision's own class, which knows the address and the md5 sum. Only ``virb data download`` calls this."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from virb.data.datasets import load_dataset
from virb.data.datasets.facts import FACTS
from virb.data.images import Dataset
from virb.errors import UserError, ViRBError

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
    return dataset in _CALLS


def download(dataset: str, root: Path, say: Callable[[str], None] = lambda _: None) -> Dataset:
    """The dataset below ``root``, fetched unless it is there. UserError, with where to get it, for those that cannot be fetched."""
    if dataset not in _CALLS:
        raise _by_hand(dataset)
    try:
        return load_dataset(dataset, root)
    except UserError as error:
        if "not found" not in str(error):
            say(f"what is there cannot be used: {str(error).splitlines()[0]}")
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


def _by_hand(dataset: str) -> UserError:
    facts = FACTS.get(dataset)
    if facts is None:
        return UserError(f"{dataset} is no public dataset; there is nothing to download")
    return UserError(f"{dataset} is not downloaded by ViRB. Get it from {facts.source}; {facts.size}; {facts.licence}.")
