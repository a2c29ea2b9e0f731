"""Datasets by name. A dataset is a function ``(root: Path | None, **options) -> Dataset``; the modules here hold one family each.

A user's own is named ``module:function`` and needs no registration.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from virb.data.images import Dataset
from virb.data.packed import load_packed, packed_folder
from virb.errors import UserError, did_you_mean
from virb.sources import import_attribute

_FAMILIES = (
    "digits", "folder", "shapes", "imagenet", "cifar", "caltech", "sun397", "eurosat", "pets", "dtd", "clevr", "thor", "nuscenes",
    "kinetics", "torchvision_sets", "pcam", "voc", "inaturalist", "pets_masks",
    "egohands", "cityscapes", "nyu", "ade20k", "voc_masks", "camvid", "thor_depth", "taskonomy", "kitti", "coco",
)  # fmt: skip
_DATASETS: dict[str, Callable[..., Dataset]] = {}
_Function = TypeVar("_Function", bound=Callable[..., Dataset])


def register_dataset(name: str) -> Callable[[_Function], _Function]:
    """Function decorator: makes the dataset available under this name."""

    def register(function: _Function) -> _Function:
        known = _DATASETS.setdefault(name, function)
        if (known.__module__, known.__qualname__) != (function.__module__, function.__qualname__):
            raise UserError(f"two datasets are named {name}: {known.__module__} and {function.__module__}")
        return function

    return register


def dataset_names() -> list[str]:
    """All registered names, sorted."""
    _load_builtin()
    return sorted(_DATASETS)


def find_dataset(name: str) -> Callable[..., Dataset]:
    """A registered dataset's function, or a user's own by ``module:function`` (UserError when that cannot be imported). KeyError for an
    unknown name."""
    if ":" in name:
        return _user_function(name)
    _load_builtin()
    return _DATASETS[name]


def load_dataset(name: str, /, root: str | Path | None = None, **options: Any) -> Dataset:
    """The dataset with these options; UserError for an unknown name or option, with the nearest valid one."""
    try:
        function = find_dataset(name)
    except KeyError:
        raise UserError(f"no dataset {name!r}{_suggestion(name, dataset_names())}") from None
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        known = [p.name for p in parameters if p.name != "root"]
        for option in options:
            if option not in known:
                raise UserError(f"dataset {name} has no option {option!r}{_suggestion(option, known)}")
    if root is not None and (packed := packed_folder(name, Path(root))) is not None:
        return load_packed(packed, options)
    return function(None if root is None else Path(root), **options)


def needs_root(name: str) -> bool:
    """Whether the dataset lies in files: ``root`` has no default then, and where no root is given it is looked for below the data root.
    False for a name that nobody knows: loading it says so."""
    try:
        root = inspect.signature(find_dataset(name)).parameters.get("root")
    except KeyError:
        return False
    return root is not None and root.default is inspect.Parameter.empty


def _user_function(name: str) -> Callable[..., Dataset]:
    function = import_attribute(name, "dataset")
    if not callable(function):
        raise UserError(f"the dataset {name} is a {type(function).__name__}, not a function")
    return function


def _suggestion(word: str, known: list[str]) -> str:
    return did_you_mean(word, known) or (f"; there are {', '.join(sorted(known))}" if 0 < len(known) <= 20 else "")


def _load_builtin() -> None:
    for family in _FAMILIES:
        importlib.import_module(f"{__name__}.{family}")
