"""A user's own network: its ``forward(images)`` returns a tensor (the embedding) or a dict with any of the named outputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from virb.encoders import identity
from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage
from virb.encoders.requests import KINDS, OUTPUTS
from virb.errors import UserError, ViRBError, did_you_mean
from virb.sources import import_attribute

_MAPS = ("conv", "block1", "block2", "block3", "block4")
_AXES = {"embedding": 2, "cls": 2}  # all others have 4


class CustomEncoder(Encoder):
    """The network's own forward computes all its outputs; those wanted are passed on. ``tokens`` is ``block4`` where a dict in ViRB 2021's
    form has no tokens, and ``pyramid`` its conv and blocks (else the tokens)."""

    family = "module"

    def __init__(self, network: nn.Module, label: str, arguments: Mapping[str, Any], input_spec: InputSpec) -> None:
        draft = EncoderSpec(
            name=label,
            embed_dim=0,
            patch_size=None,
            stages=(),
            n_heads=None,
            input=input_spec,
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=(),
            architecture=label,
        )
        super().__init__(network, draft, arguments)
        self._learn_spec()

    def _learn_spec(self) -> None:
        """Outputs and sizes, from one forward on noise at the input size."""
        from dataclasses import replace

        spec = self.spec
        tensor = next(self.network.parameters(), torch.empty(0))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn((2, 3, *spec.input.size), generator=generator).to(tensor)
        try:
            with torch.no_grad():
                found = self._named(self.network(noise), len(noise))
        except ViRBError:
            raise
        except Exception as error:  # the user's code may raise anything; it is their mistake to see, not ours to hide
            raise UserError(
                f"{spec.architecture} fails on images of shape {tuple(noise.shape)}: {type(error).__name__}: {error}"
            ) from error
        outputs = [name for name in OUTPUTS if name in found]
        levels = [name for name in _MAPS if name in found]
        stages = [_stage(name, found[name], spec.input.size) for name in levels]
        if not stages and "pyramid" in found:
            stages = [_stage(f"pyramid[{i}]", level, spec.input.size) for i, level in enumerate(found["pyramid"])]
        if not stages and "tokens" in found:
            stages = [_stage("tokens[-1]", found["tokens"], spec.input.size)]
        if stages and "pyramid" not in outputs:
            outputs.append("pyramid")
        width = found["embedding"].shape[1] if "embedding" in found else stages[-1].channels if stages else 0
        heads = found["attention"].shape[1] if "attention" in found else None
        self.spec = replace(spec, embed_dim=width, stages=tuple(stages), outputs=tuple(outputs), n_heads=heads)

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        found = self._named(self.network(images), len(images))
        absent = sorted({single.name for single in wanted} - set(found))
        if absent:
            raise ViRBError(f"{self.spec.architecture} gave no {', '.join(absent)} for this batch; its dict held {', '.join(found)}")
        return {single: found["pyramid"][single.block or 0] if single.name == "pyramid" else found[single.name] for single in wanted}

    def _named(self, answer: Any, n: int) -> dict[str, Any]:
        """Checked outputs by name; what has no name of ours (``img`` of 2021 ...) is left out."""
        if isinstance(answer, Tensor):
            answer = {"embedding": answer}
        if not isinstance(answer, Mapping):
            kind = type(answer).__name__
            raise ViRBError(f"{self.spec.architecture}: forward returned a {kind}; expected a tensor or a dict of named outputs")
        found = {name: answer[name] for name in answer if name in KINDS}
        if not found:
            near = next((text for key in answer if (text := did_you_mean(str(key), OUTPUTS))), "")
            keys = ", ".join(map(str, answer)) or "nothing"
            raise ViRBError(f"{self.spec.architecture}: forward returned {keys}{near} (named outputs: {', '.join(OUTPUTS)})")
        for name, value in found.items():
            for tensor in value if name == "pyramid" and isinstance(value, list | tuple) else (value,):
                self._check(name, tensor, n)
        if "tokens" not in found and "block4" in found:
            found["tokens"] = found["block4"]
        return found

    def _check(self, name: str, tensor: Any, n: int) -> None:
        axes = _AXES.get(name, 4)
        expected = f"{n} x D" if axes == 2 else f"{n} x D x h x w" if KINDS[name] == "map" else f"{n} x heads x tokens x d"
        if not isinstance(tensor, Tensor):
            raise ViRBError(f"{self.spec.architecture}: output {name} is a {type(tensor).__name__}; expected a tensor {expected}")
        if tensor.ndim != axes or len(tensor) != n or 0 in tensor.shape:
            hint = '; return a dict {"tokens": map, "embedding": vector} for maps' if name == "embedding" and tensor.ndim == 4 else ""
            raise ViRBError(
                f"{self.spec.architecture}: output {name} has shape {tuple(tensor.shape)} for {n} images; expected {expected}{hint}"
            )


def _stage(name: str, tensor: Tensor, size: tuple[int, int]) -> Stage:
    return Stage(name, tensor.shape[1], max(1, round(size[0] / tensor.shape[2])))


def construct(module: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Imports ``pkg.mod:Class`` (from the current folder too) and calls it. UserError names the module and the reason."""
    make = import_attribute(module, "module")
    try:
        network = make(**arguments)
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"module: {module} cannot be built with {dict(arguments)}: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"module: {module} gives a {type(network).__name__}; expected a torch.nn.Module")
    return network


def identity_record(network: nn.Module, *modules: str) -> dict[str, Any]:
    """What identifies a network that is not ours, besides its tensors: class, source (of ``modules`` too, which made it), and plain
    settings of every part."""
    return {
        "class": type(network).__qualname__,
        "source": identity.source_of(network, *modules),
        "definition": identity.definition_of(network),
        "settings": identity.settings_of(network),
    }
