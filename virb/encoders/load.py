"""From what an experiment list says to a frozen, sealed encoder."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from virb.encoders import checkpoints, custom, hub, huggingface, openclip, timm
from virb.encoders.base import Encoder, InputSpec
from virb.encoders.filling import fill
from virb.encoders.layouts import check_heads, layout_of, normalisation, recognise, vit_arguments
from virb.encoders.offline import only_cached, timm_source, torch_cache
from virb.encoders.recipes import PRETRAINED, RANDOM, SUPERVISED, Recipe, read_recipe, resolve
from virb.encoders.registry import build, encoder_names, find_builder, register_encoder
from virb.encoders.vit import SIZES
from virb.errors import UserError
from virb.functional.randomness import derive_seed
from virb.transfer import Tell

__all__ = ["encoder_names", "load_encoder", "register_encoder"]


def load_encoder(what: Any, *, name: str | None = None, seed: int = 0, offline: bool = False, progress: Tell | None = None) -> Encoder:
    """A frozen encoder from a path, an address, a short name (``dino_vits16``), ``timm:NAME``, ``hub:``, ``hf:``, ``open_clip:``, a mapping
    (or object) with the keys of an experiment list, an ``nn.Module``, or an encoder, which is returned as it is (under ``name``, if one is
    given).

    The weights file fills every parameter, or it is a UserError. ``weights: random`` draws from ``seed``, alike in every process.
    What is not on this machine is downloaded once, ``progress`` being told of weights files; with ``offline`` it is NotDownloaded (a
    UserError), which names the address and the place where it goes.
    """
    if isinstance(what, Encoder):
        return _renamed(what, name)
    if isinstance(what, nn.Module):
        return _wrap(what, InputSpec(), name)
    recipe = read_recipe(what)
    name = name or recipe.default_name
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "encoder"))  # the CPU alone: weights are drawn there
        try:
            return _load(resolve(recipe, offline=offline, progress=progress), name, seed, offline)
        except ValueError as error:  # a bad `input:`
            raise UserError(f"{name}: {error}") from error


def _load(recipe: Recipe, name: str, seed: int, offline: bool) -> Encoder:
    if recipe.timm is not None:
        return _load_timm(recipe, name, seed, offline)
    if recipe.hub is not None:
        return _load_hub(recipe, recipe.hub, name, offline)
    if recipe.hf is not None or recipe.open_clip is not None:
        return _load_tower(recipe, name, seed, offline)
    if recipe.module is not None:
        return _load_module(recipe, name, seed)
    if recipe.arch is not None:
        return _load_architecture(recipe, recipe.arch, name, seed, offline)
    if recipe.weights in ("", SUPERVISED):  # ViRB 2021: no path means torchvision's supervised ResNet-50
        return _load_architecture(replace(recipe, weights=SUPERVISED), "resnet50", name, seed, offline)
    if recipe.weights is None or recipe.weights in (RANDOM, PRETRAINED):
        raise UserError(f"{name}: which network? name `arch:` ({', '.join(encoder_names())}), `timm:`, `module:` ...")
    return _load_file(recipe, Path(recipe.weights).expanduser(), name)


def _load_architecture(recipe: Recipe, arch: str, name: str, seed: int, offline: bool) -> Encoder:
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
        with only_cached(offline, "torchvision", f"a run puts it in {torch_cache()}; without a network, put it there yourself"):
            state, origin, input_spec = encoder.supervised_state()
        encoder.set_input(input_spec)
        filled = fill(encoder.network, checkpoints.from_state(state, origin), encoder.spec.architecture, encoder.ignored)
        return _seal(encoder, recipe, name, filled)
    checkpoint = checkpoints.read(recipe.weights_path())
    told = vit_arguments(checkpoint, recipe.checkpoint_key, arch, recipe.args) if arch in ("vit", *SIZES) else {}
    if "patch_size" in recipe.args:  # the file's img_size was worked out with the file's patch
        told.pop("img_size", None)
    return _seal_filled(build(arch, {**told, **recipe.args}), recipe, name, checkpoint)


def _load_file(recipe: Recipe, path: Path, name: str) -> Encoder:
    """A path alone: the architecture comes from the names and shapes in the file."""
    if not path.exists() and str(path) in encoder_names():
        raise UserError(f"{path} is an architecture, not a file; write {{arch: {path}, weights: random}} or name its weights file")
    checkpoint = checkpoints.read(path)
    arch, arguments = recognise(checkpoint, recipe.checkpoint_key)
    arguments = {**arguments, **recipe.args}
    is_timm = arch.startswith("timm:")
    encoder = timm.create(arch.removeprefix("timm:"), arguments, pretrained=False) if is_timm else build(arch, arguments)
    return _seal_filled(encoder, recipe, name, checkpoint)


def _load_timm(recipe: Recipe, name: str, seed: int, offline: bool) -> Encoder:
    model = str(recipe.timm)
    pretrained = recipe.weights in (None, "", PRETRAINED)
    address, advice = timm_source(model) if offline and pretrained else ("", "")
    with only_cached(offline and pretrained, address, advice):
        encoder = timm.create(model, recipe.args, pretrained)
    if pretrained:
        return _seal(encoder, recipe, name, timm.describe_pretrained(encoder.network))
    if recipe.weights == RANDOM:
        return _seal_random(encoder, recipe, name, seed)
    return _seal_filled(encoder, recipe, name, checkpoints.read(recipe.weights_path()))


def _load_hub(recipe: Recipe, text: str, name: str, offline: bool) -> Encoder:
    if recipe.weights in (RANDOM, SUPERVISED):
        raise UserError(
            f"{name}: the entry of hub: decides its weights; leave out `weights: {recipe.weights}` (try args: {{pretrained: false}})"
        )
    encoder, record = hub.create(text, recipe.args, InputSpec(interpolation="bicubic").override(recipe.input), offline=offline)
    if recipe.weights in (None, "", PRETRAINED):
        return _seal(encoder, recipe, name, f"{encoder.spec.architecture}, as its repository loads it", record)
    checkpoint = checkpoints.read(recipe.weights_path())
    filled = fill(encoder.network, checkpoint, encoder.spec.architecture, encoder.ignored or ("head.",), recipe.checkpoint_key)
    return _seal(encoder, recipe, name, filled, record)


def _load_tower(recipe: Recipe, name: str, seed: int, offline: bool) -> Encoder:
    if recipe.weights not in (None, "", PRETRAINED, RANDOM):
        raise UserError(f"{name}: weights of hf: and open_clip: come with their name; leave out weights, or say `weights: random`")
    random = recipe.weights == RANDOM
    maker, text = (huggingface, recipe.hf) if recipe.hf is not None else (openclip, recipe.open_clip)
    encoder, source, record = maker.create(str(text), recipe.args, recipe.input, random=random, offline=offline)
    return _seal(encoder, recipe, name, source, {**record, **({"seed": seed} if random else {})})


def _load_module(recipe: Recipe, name: str, seed: int) -> Encoder:
    module = str(recipe.module)
    network = custom.construct(module, recipe.args)
    filled = f"{module}, as its constructor made it (seed {seed})"
    extra = {} if recipe.weights not in (None, "", RANDOM) else {"seed": seed}
    if not extra:
        filled = fill(network, checkpoints.read(recipe.weights_path()), module, key=recipe.checkpoint_key)
    record = custom.identity_record(network, module.partition(":")[0])  # before the first forward, which may leave things behind
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


def _seal_filled(encoder: Encoder, recipe: Recipe, name: str, checkpoint: checkpoints.Checkpoint) -> Encoder:
    filled = fill(encoder.network, checkpoint, encoder.spec.architecture, encoder.ignored or ("head.",), recipe.checkpoint_key)
    rule = layout_of(checkpoint, recipe.checkpoint_key, encoder.network.state_dict())
    check_heads(checkpoint, rule, encoder.spec.embed_dim, encoder.spec.n_heads, recipe.args)
    told = normalisation(rule)
    encoder.set_input(encoder.spec.input.override(told))
    if not told and not {"mean", "std"} <= recipe.input.keys():
        spec = encoder.spec.input.override(recipe.input)
        filled += f"; normalisation assumed: mean {_numbers(spec.mean)}, std {_numbers(spec.std)} (say input: {{mean: ..., std: ...}})"
    training = checkpoint.training
    if training:
        filled += f"; trained by {', '.join(f'{value}' if key == 'method' else f'{key} {value}' for key, value in training.items())}"
    sealed = _seal(encoder, recipe, name, filled)
    sealed.spec = replace(sealed.spec, training=tuple(training.items()))
    return sealed


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """JSON-able, for the hash; what is not becomes its ``repr``."""
    return json.loads(json.dumps(dict(arguments), default=repr))


def _renamed(encoder: Encoder, name: str | None) -> Encoder:
    if name is None or name == encoder.spec.name:
        return encoder
    renamed = copy.copy(encoder)  # the same tensors
    renamed.spec = replace(encoder.spec, name=name)
    return renamed
