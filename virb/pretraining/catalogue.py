"""The methods' names and keys without their code, which needs torch: what ``--help`` and the check of options are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel

from virb.errors import UserError, did_you_mean
from virb.pretraining.dino_options import DINOOptions, PatchwiseOptions
from virb.sources import import_attribute

if TYPE_CHECKING:
    from virb.pretraining.methods import Method


@dataclass(frozen=True)
class MethodKeys:
    """``name`` finds the method, also one of a user's own (``package.module:Class``); ``Options`` and ``aliases`` are its."""

    name: str
    Options: type[BaseModel]
    aliases: Mapping[str, str] = field(default_factory=dict)


_BUILTIN = (
    MethodKeys("dino", DINOOptions),
    MethodKeys("patchwise", PatchwiseOptions, {"global_scale": "global_crops_size", "local_scale": "local_crops_size"}),
)


def option_names() -> list[str]:
    return sorted(method.name for method in _BUILTIN)


def option_sources(name: str) -> MethodKeys:
    """UserError when there is no such method."""
    for method in _BUILTIN:
        if method.name == name:
            return method
    if ":" in name:
        found = load_method(name)
        return MethodKeys(name, found.Options, found.aliases)
    raise UserError(f"no pretraining method {name!r}{did_you_mean(name, option_names())} (methods: {', '.join(option_names())})")


def load_method(name: str) -> type[Method]:
    """The method itself; this imports torch."""
    from virb.pretraining.methods import Method, find_method

    if ":" not in name:
        return find_method(name)
    found = import_attribute(name, "method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"the method {name} is not a class that extends virb.pretraining.methods.Method")
    found.name = found.name or name
    return found
