"""The methods by name: ViRB's own, with their keys but without their code, which needs torch (``--help`` and the check of options are made
from them), and those that ``@register_method`` or ``package.module:Class`` adds."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import BaseModel

from virb.errors import UserError, did_you_mean
from virb.pretraining.dino_options import PATCHWISE_NAMES, DINOOptions, PatchwiseOptions
from virb.sources import import_attribute

if TYPE_CHECKING:
    from virb.pretraining.methods import Method


@dataclass(frozen=True)
class MethodKeys:
    """``name`` finds the method in any process: of ViRB's own, or ``package.module:Class``; ``Options`` and ``aliases`` are its.
    ``module``: where one of ViRB's own registers itself."""

    name: str
    Options: type[BaseModel]
    aliases: Mapping[str, str] = field(default_factory=dict)
    module: str = ""


BUILTIN = (
    MethodKeys("dino", DINOOptions, module="virb.pretraining.dino"),
    MethodKeys("patchwise", PatchwiseOptions, PATCHWISE_NAMES, module="virb.pretraining.patchwise"),
)


def option_names() -> list[str]:
    """Of ViRB's own methods, and of those that were registered by what is imported."""
    return sorted({method.name for method in BUILTIN} | _registered().keys())


def option_sources(name: str) -> MethodKeys:
    """UserError when there is no such method."""
    for method in BUILTIN:
        if method.name == name:
            return method
    if ":" not in name and name not in _registered():
        raise UserError(f"no pretraining method {name!r}{did_you_mean(name, option_names())} (methods: {', '.join(option_names())})")
    found = load_method(name)
    place = f"{found.__module__}:{found.__qualname__}"
    return MethodKeys(name if found.__module__ == "__main__" or "<locals>" in place else place, found.Options, found.aliases)


def load_method(name: str) -> type[Method]:
    """The method itself; this imports torch. After a colon stands the class, or the name that it was registered under."""
    from virb.pretraining.methods import Method, find_method

    if ":" not in name:
        return find_method(name)
    module, _, attribute = name.partition(":")
    import_attribute(f"{module}:__name__", "method")
    registered = _registered().get(attribute)
    found = registered if registered is not None and registered.__module__ == module else import_attribute(name, "method")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"the method {name} is not a class that extends virb.pretraining.methods.Method")
    found.name = found.name or name
    return found


def _registered() -> Mapping[str, type[Method]]:
    """Without an import: nothing can be registered before ``methods`` is there."""
    methods = sys.modules.get("virb.pretraining.methods")
    return {} if methods is None else methods.registered()
