"""From what an experiment list says to a frozen, sealed encoder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from virb.encoders import checkpoints, custom, timm
from virb.encoders.base import Encoder, InputSpec
from virb.encoders.layouts import recognise, vit_arguments
from virb.encoders.registry import build, encoder_names, find_builder, register_encoder
from virb.encoders.requests import suggest
from virb.encoders.vit import SIZES
from virb.errors import NotAvailableYet, UserError
from virb.functional.randomness import derive_seed

__all__ = ["encoder_names", "load_encoder", "register_encoder"]

RANDOM, SUPERVISED, PRETRAINED = "random", "supervised", "pretrained"
_KEYS = ("weights", "arch", "timm", "module", "checkpoint_key", "args", "input", "meta")
_LATER = {"http://": "download it and name the file", "https://": "download it and name the file", "hub:": "", "hf:": "", "open_clip:": ""}


@dataclass(frozen=True)
class Recipe:
    """One entry of an experiment list; texts are None where nothing was said."""

    weights: str | None = None
    arch: str | None = None
    timm: str | None = None
    module: str | None = None
    checkpoint_key: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)


def load_encoder(what: Any, *, name: str | None = None, seed: int = 0) -> Encoder:
    """A frozen encoder from a path, ``timm:NAME``, a mapping (or object) with the keys of an experiment list, an ``nn.Module``, or an
    encoder, which is returned as it is (under ``name``, if one is given).

    The weights file fills every parameter, or it is a UserError. ``weights: random`` draws from ``seed``, alike in every process.
    """
    if isinstance(what, Encoder):
        return _renamed(what, name)
    if isinstance(what, nn.Module):
        return _wrap(what, InputSpec(), name)
    recipe = _read(what)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "encoder"))  # the CPU alone: weights are drawn there
        try:
            return _load(recipe, name or _default_name(recipe), seed)
        except ValueError as error:  # a bad `input:`
            raise UserError(f"{name or _default_name(recipe)}: {error}") from error


def _load(recipe: Recipe, name: str, seed: int) -> Encoder:
    if recipe.timm is not None:
        return _load_timm(recipe, name, seed)
    if recipe.module is not None:
        return _load_module(recipe, name, seed)
    if recipe.arch is not None:
        return _load_architecture(recipe, recipe.arch, name, seed)
    if recipe.weights in ("", SUPERVISED):  # ViRB 2021: no path means torchvision's supervised ResNet-50
        return _load_architecture(replace(recipe, weights=SUPERVISED), "resnet50", name, seed)
    if recipe.weights is None or recipe.weights in (RANDOM, PRETRAINED):
        raise UserError(f"{name}: which network? name `arch:` ({', '.join(encoder_names())}), `timm:` or `module:`")
    return _load_file(recipe, Path(recipe.weights).expanduser(), name)


def _load_architecture(recipe: Recipe, arch: str, name: str, seed: int) -> Encoder:
    find_builder(arch)
    if recipe.weights in (None, ""):
        encoder = build(arch, recipe.args)
        if encoder.spec.n_params:
            raise UserError(f"{name}: arch {arch} needs weights: a file, or `weights: random` if random ones are meant")
        return _seal(encoder, recipe, name, f"{encoder.spec.architecture}, no parameters")
    if recipe.weights == RANDOM:
        return _seal_random(build(arch, recipe.args), recipe, name, seed)
    if recipe.weights == SUPERVISED:
        encoder = build(arch, recipe.args)
        state, origin, input_spec = encoder.supervised_state()
        encoder.set_input(input_spec)
        filled = checkpoints.fill(encoder.network, checkpoints.Branch("", state), Path(origin), encoder.spec.architecture, encoder.ignored)
        return _seal(encoder, recipe, name, filled)
    path = _file(recipe)
    content = checkpoints.read_file(path)
    branch = checkpoints.find_branch(content, path, recipe.checkpoint_key)
    told = vit_arguments(branch.state, sized=arch in SIZES) if arch in ("vit", *SIZES) else {}
    if "patch_size" in recipe.args:  # the file's img_size was worked out with the file's patch
        told.pop("img_size", None)
    return _seal_filled(build(arch, {**told, **recipe.args}), recipe, name, content, branch, path)


def _load_file(recipe: Recipe, path: Path, name: str) -> Encoder:
    """A path alone: the architecture comes from the names and shapes in the file."""
    if not path.exists() and str(path) in encoder_names():
        raise UserError(f"{path} is an architecture, not a file; write {{arch: {path}, weights: random}} or name its weights file")
    content = checkpoints.read_file(path)
    branch = checkpoints.find_branch(content, path, recipe.checkpoint_key)
    found = recognise(branch.state)
    if not isinstance(found, tuple):
        what = found or f"no layout that ViRB knows (its keys look like {', '.join(list(branch.state)[:3])})"
        raise UserError(f"{path} holds {what}; name `arch:` with `args:`, or `module:`")
    arch, arguments = found
    return _seal_filled(build(arch, {**arguments, **recipe.args}), recipe, name, content, branch, path)


def _load_timm(recipe: Recipe, name: str, seed: int) -> Encoder:
    model = str(recipe.timm)
    pretrained = recipe.weights in (None, "", PRETRAINED)
    encoder = timm.create(model, recipe.args, pretrained)
    if pretrained:
        return _seal(encoder, recipe, name, timm.describe_pretrained(encoder.network))
    if recipe.weights == RANDOM:
        return _seal_random(encoder, recipe, name, seed)
    path = _file(recipe)
    content = checkpoints.read_file(path)
    return _seal_filled(encoder, recipe, name, content, checkpoints.find_branch(content, path, recipe.checkpoint_key), path)


def _load_module(recipe: Recipe, name: str, seed: int) -> Encoder:
    module = str(recipe.module)
    network = custom.construct(module, recipe.args)
    filled = f"{module}, as its constructor made it (seed {seed})"
    extra = {} if recipe.weights not in (None, "", RANDOM) else {"seed": seed}
    if not extra:
        path = _file(recipe)
        content = checkpoints.read_file(path)
        branch = checkpoints.find_branch(content, path, recipe.checkpoint_key)
        filled = checkpoints.fill(network, branch, path, module, others=checkpoints.other_branches(content, branch))
    record = custom.identity_record(network)  # before the first forward, which may leave things behind
    encoder = custom.CustomEncoder(network, module, _plain(recipe.args), InputSpec().override(recipe.input))
    return encoder.seal(name, filled, {**record, **extra})


def _wrap(network: nn.Module, spec: InputSpec, name: str | None) -> Encoder:
    label = type(network).__name__
    record = custom.identity_record(network)
    encoder = custom.CustomEncoder(copy.deepcopy(network), label, {}, spec)  # a copy: freezing must not touch the user's own
    return encoder.seal(name or label, f"{label}, given as a module", record)


# Sealing


def _seal(encoder: Encoder, recipe: Recipe, name: str, source: str, record: Mapping[str, Any] | None = None) -> Encoder:
    encoder.set_input(encoder.spec.input.override(recipe.input))
    encoder.arguments = _plain(encoder.arguments)
    return encoder.seal(name, source, record)


def _seal_random(encoder: Encoder, recipe: Recipe, name: str, seed: int) -> Encoder:
    return _seal(encoder, recipe, name, f"{encoder.spec.architecture}, random weights (seed {seed})", {"seed": seed})


def _seal_filled(encoder: Encoder, recipe: Recipe, name: str, content: Any, branch: checkpoints.Branch, path: Path) -> Encoder:
    others = checkpoints.other_branches(content, branch)
    return _seal(encoder, recipe, name, checkpoints.fill(encoder.network, branch, path, encoder.spec.architecture, encoder.ignored, others))


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able, for the hash; what is not becomes its ``repr``."""
    return json.loads(json.dumps(dict(arguments), default=repr))


def _renamed(encoder: Encoder, name: str | None) -> Encoder:
    if name is None or name == encoder.spec.name:
        return encoder
    renamed = copy.copy(encoder)  # the same tensors
    renamed.spec = replace(encoder.spec, name=name)
    return renamed


# Reading what was asked for


def _read(what: Any) -> Recipe:
    if isinstance(what, str | PathLike):
        text = str(what)
        recipe = Recipe(timm=text.removeprefix("timm:")) if text.startswith("timm:") else Recipe(weights=text)
        return _checked(recipe)
    if isinstance(what, Mapping):
        for key in what:
            if key not in _KEYS:
                raise UserError(f"unknown key {key!r} of an encoder{suggest(str(key), _KEYS)} (keys: {', '.join(_KEYS)})")
        values = dict(what)
    elif any(hasattr(what, key) for key in ("weights", "arch", "timm", "module")):
        values = {key: getattr(what, key, None) for key in _KEYS}
    else:
        raise UserError(f"expected a path, timm:NAME, a mapping, a torch.nn.Module or an encoder, but got {type(what).__name__}")
    texts = {key: _text(key, values.get(key)) for key in ("weights", "arch", "timm", "module", "checkpoint_key")}
    return _checked(Recipe(**texts, args=_mapping("args", values.get("args")), input=_mapping("input", values.get("input"))))


def _text(key: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, PathLike):
        return str(value)
    raise UserError(f"{key} is {value!r}; expected text")


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):  # a pydantic record: only what was set
        return value.model_dump(exclude_unset=True, exclude_none=True)
    raise UserError(f"{key} is {value!r}; expected a mapping")


def _checked(recipe: Recipe) -> Recipe:
    named = [key for key in ("arch", "timm", "module") if getattr(recipe, key) is not None]
    if len(named) > 1:
        raise UserError(f"an encoder has one of arch, timm and module, but got {' and '.join(named)}")
    for text in (recipe.weights, recipe.arch, recipe.timm, recipe.module):
        later = next((prefix for prefix in _LATER if text is not None and text.startswith(prefix)), None)
        if later is not None:
            raise NotAvailableYet(f"{text}: {later} is not available yet{'; ' + _LATER[later] if _LATER[later] else ''}")
    return recipe


def _file(recipe: Recipe) -> Path:
    if recipe.weights in (SUPERVISED, PRETRAINED):
        valid = "timm models" if recipe.weights == PRETRAINED else "torchvision's ResNets"
        raise UserError(f"`weights: {recipe.weights}` is for {valid}; name a file, or `weights: random`")
    return Path(str(recipe.weights)).expanduser()


def _default_name(recipe: Recipe) -> str:
    label = recipe.timm or (recipe.module or "").rpartition(":")[2] or recipe.arch
    return label or (Path(recipe.weights).stem if recipe.weights else "encoder")
