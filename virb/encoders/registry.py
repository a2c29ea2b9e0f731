"""Architectures by name: ``@register_encoder("vit_small")`` puts a builder here, ``arch: vit_small`` finds it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from virb.encoders.base import Encoder, arguments_text
from virb.errors import UserError, did_you_mean

Builder = Callable[..., Encoder]

_BUILDERS: dict[str, Builder] = {}
_BUILTIN = ("virb.encoders.vit", "virb.encoders.resnet", "virb.encoders.torchvision", "virb.encoders.pixels")


def register_encoder(name: str) -> Callable[[Builder], Builder]:
    """Decorator: a function of keyword arguments that builds an unsealed, randomly initialised encoder becomes ``arch: name``."""

    def register(builder: Builder) -> Builder:
        if _BUILDERS.get(name, builder) is not builder:
            raise UserError(f"two encoders are named {name}: {_BUILDERS[name].__module__} and {builder.__module__}")
        _BUILDERS[name] = builder
        return builder

    return register


def encoder_names() -> list[str]:
    _load_builtin()
    return sorted(_BUILDERS)


def find_builder(arch: str) -> Builder:
    """UserError when there is no such architecture."""
    _load_builtin()
    if arch not in _BUILDERS:
        raise UserError(f"no architecture {arch!r}{did_you_mean(arch, _BUILDERS)} (architectures: {', '.join(sorted(_BUILDERS))})")
    return _BUILDERS[arch]


def build(arch: str, arguments: Mapping[str, Any]) -> Encoder:
    """UserError for an unknown architecture, an argument that it does not have, or a value that it refuses."""
    builder = find_builder(arch)
    parameters = inspect.signature(builder).parameters
    for key in arguments:
        if key not in parameters:
            raise UserError(f"{arch} has no argument {key!r}{did_you_mean(str(key), parameters)} (arguments: {arguments_text(parameters)})")
    lacking = [key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in arguments]
    if lacking:
        raise UserError(f"{arch} needs {', '.join(lacking)} under `args:`")
    try:
        return builder(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{arch} cannot be built with {dict(arguments)}: {error}") from error


def _load_builtin() -> None:
    for module in _BUILTIN:
        importlib.import_module(module)
