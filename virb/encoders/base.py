"""The encoder: a frozen network with named outputs, and the record of what it is."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virb.encoders.identity import encoder_id
from virb.encoders.requests import Output, Request, Single, Term, Value, reduce
from virb.errors import UserError, ViRBError, did_you_mean

__all__ = ["Encoder", "EncoderSpec", "InputSpec", "Output", "Request", "Single", "Stage", "Term", "check_outputs", "reduce"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InputSpec:
    """What an encoder wants to see. ``size`` is (height, width) in pixels; ``mean`` and ``std`` are for values in [0, 1], in the
    network's own channel order. ``resize`` and ``crop`` mean what they mean in a geometry."""

    size: tuple[int, int] = (224, 224)
    resize: Literal["shorter", "squash"] = "shorter"
    crop: Literal["center", "none"] = "center"
    crop_pct: float = 0.875
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    channels: Literal["rgb", "bgr"] = "rgb"

    def normalisation(self) -> dict[str, Any]:
        """What happens to the pixels after the geometry: the ``normalisation`` of a cache key."""
        return {"mean": list(self.mean), "std": list(self.std), "channels": self.channels}

    def override(self, changes: Mapping[str, Any]) -> InputSpec:
        """A copy with some fields changed, values as YAML gives them (``size`` may be one number). ValueError names a bad field."""
        valid = tuple(self.__dataclass_fields__)
        for key in changes:
            if key not in valid:
                raise ValueError(f"input has no key {key!r}{did_you_mean(str(key), valid)} (keys: {', '.join(valid)})")
        return replace(self, **{key: _input_value(key, value) for key, value in changes.items()})


_CHOICES = {
    "resize": ("shorter", "squash"),
    "crop": ("center", "none"),
    "interpolation": ("nearest", "bilinear", "bicubic"),
    "channels": ("rgb", "bgr"),
}


def _input_value(key: str, value: Any) -> Any:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise ValueError(f"input.{key} is {value!r}; expected one of {', '.join(_CHOICES[key])}")
        return value
    if key == "size":
        size = (value, value) if _is_number(value) else tuple(value) if isinstance(value, list | tuple) else ()
        if len(size) != 2 or not all(_is_number(side) and side >= 1 and side == int(side) for side in size):
            raise ValueError(f"input.size is {value!r}; expected pixels such as 224, or [height, width]")
        return int(size[0]), int(size[1])
    if key == "crop_pct":
        if not (_is_number(value) and 0 < value <= 1):
            raise ValueError(f"input.crop_pct is {value!r}; expected more than 0 and at most 1")
        return float(value)
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
    least = 0 if key == "std" else -math.inf
    if len(values) != 3 or not all(_is_number(item) and least < item < math.inf for item in values):
        raise ValueError(f"input.{key} is {value!r}; expected three numbers{' above 0' if key == 'std' else ''}, for pixels in [0, 1]")
    return tuple(float(item) for item in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Stage:
    """One level of the pyramid. ``name`` is the request that gives it; ``stride`` in pixels of the encoder's input size."""

    name: str
    channels: int
    stride: int


@dataclass(frozen=True)
class EncoderSpec:
    """What a plan needs to know of an encoder, and what a result says about it; small and picklable.

    ``depth`` is how many blocks ``[...]`` can name; ``outputs`` are names without blocks. ``encoder_id`` and ``source`` are empty
    until the encoder is sealed.
    """

    name: str
    embed_dim: int
    patch_size: int | None
    stages: tuple[Stage, ...]
    n_heads: int | None
    input: InputSpec
    n_params: int
    encoder_id: str
    source: str  # one line: what was loaded from where, and how much of it was filled
    family: str
    format: int  # raised when the family's code changes what it computes
    outputs: tuple[str, ...]
    architecture: str = ""
    depth: int = 1
    position_mode: str | None = None
    training: tuple[tuple[str, str | int], ...] = ()  # of ViRB's own pretraining: method, step, epoch, recipe

    def check(self, request: Request | str) -> Request:
        """The parsed request; UserError when this encoder has no such output or block."""
        try:
            parsed = Request.parse(request) if isinstance(request, str) else request
            for term in parsed.terms:
                self._singles(term.output)
        except ValueError as error:
            raise UserError(f'encoder "{self.name}" ({self.architecture}): {error}') from None
        return parsed

    def expand(self, request: Request | str) -> tuple[Request, ...]:
        """One request per tensor: ``pyramid.pool(2)`` becomes one per stage, ``tokens[3,5]`` one per block; others stay whole."""
        parsed = self.check(request)
        if not parsed.several:
            return (parsed,)
        (term,) = parsed.terms
        tail = "".join(map(str, term.reductions))
        return tuple(Request.parse(f"{_single_text(single)}{tail}") for single in self._singles(term.output))

    def _singles(self, output: Output) -> tuple[Single, ...]:
        if output.name not in self.outputs:
            raise ValueError(f"no output {output.name!r}{did_you_mean(output.name, self.outputs)} (it has {', '.join(self.outputs)})")
        if output.name == "pyramid":
            return tuple(self._stage(i, output.norm) for i in output.indices(len(self.stages)))
        if output.blocks is None:
            return (Single(output.name),)
        return tuple(Single(output.name, block, output.norm) for block in output.indices(self.depth))

    def _stage(self, level: int, norm: bool) -> Single:
        output = Request.parse(self.stages[level].name).terms[0].output
        if output.name == "pyramid":
            return Single("pyramid", level, norm)
        block = None if output.blocks is None else output.indices(self.depth)[0]
        return Single(output.name, block, norm or output.name != "tokens")


def _single_text(single: Single) -> str:
    return str(Output(single.name, None if single.block is None else (single.block,), single.norm))


class Encoder(nn.Module):
    """Base of every encoder family. A subclass gives the network, a draft of its spec and ``_outputs``; ``seal`` completes the spec once
    the weights are in. Frozen from the start: eval mode, no gradients, and ``train()`` changes nothing.

    The forward runs in the dtype of its input under the caller's autocast; outputs have the dtype the network gives.
    """

    family: ClassVar[str]
    format: ClassVar[int] = 1
    ignored: tuple[str, ...] = ()  # prefixes of keys (heads) that a weights file may hold and no output uses

    def __init__(self, network: nn.Module, draft: EncoderSpec, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.spec = replace(draft, n_params=sum(p.numel() for p in network.parameters()))
        self.arguments = dict(arguments)  # every constructor argument, defaults included, JSON-able
        self.frozen = True
        self.requires_grad_(False)
        super().train(False)

    @abstractmethod
    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> Mapping[Single, Tensor]:
        """The wanted tensors, in one forward that computes nothing else. The base class has checked that they exist."""

    def supervised_state(self) -> tuple[Mapping[str, Tensor], str, InputSpec]:
        """State dict, where it is from, and the preprocessing that goes with it: what ``weights: supervised`` means here."""
        raise UserError(f"there are no supervised weights for {self.spec.architecture}; name a file, or `weights: random`")

    def set_input(self, spec: InputSpec) -> None:
        """The preprocessing that the weights or the user ask for; called before ``seal``."""
        self.spec = replace(self.spec, input=spec)

    def seal(self, name: str, source: str, record: Mapping[str, Any] | None = None) -> Encoder:
        """Fixes the name, what was loaded, and the ``encoder_id`` of the tensors now in memory. ``record``: more that identifies it."""
        identity = {
            "family": self.family,
            "architecture": self.spec.architecture,
            "arguments": self.arguments,
            "position_mode": self.spec.position_mode,
            **(record or {}),
        }
        self.spec = replace(self.spec, name=name, source=source, encoder_id=encoder_id(self.network, identity))
        return self

    def train(self, mode: bool = True) -> Encoder:
        """Nothing while frozen, so that a model around the encoder cannot switch it."""
        return self if self.frozen else super().train(mode)

    def prepare(self, pixels: Tensor) -> Tensor:
        """uint8 RGB (B, 3, h, w) -> normalised float32 on the same device, in the network's channel order. Sides are padded right and
        below to a multiple of the patch, where there is one, with 0: the mean colour."""
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ViRBError(f"{self.spec.name}: expected uint8 images B x 3 x h x w, but got {pixels.dtype} {tuple(pixels.shape)}")
        if self.spec.input.channels == "bgr":
            pixels = pixels.flip(1)
        mean, std = _colours(self.spec.input.mean, self.spec.input.std, pixels.device)
        images = pixels.float().div_(255).sub_(mean).div_(std)
        patch = self.spec.patch_size or 1
        below, right = -images.shape[2] % patch, -images.shape[3] % patch
        return F.pad(images, (0, right, 0, below)) if below or right else images

    def forward(self, images: Tensor, want: Sequence[str | Request] = ("embedding",)) -> dict[str, Value]:
        """images: normalised float B x 3 x h x w (see ``prepare``). Returns canonical request text -> tensor, or a tuple of tensors for
        a pyramid or several blocks of tokens. Only what is wanted is computed, in one forward."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ViRBError(f"{self.spec.name}: expected images B x 3 x h x w, but got {tuple(images.shape)}")
        requests = [self.spec.check(request) for request in want]
        wanted = {term.output: self.spec._singles(term.output) for request in requests for term in request.terms}
        singles = tuple(dict.fromkeys(single for group in wanted.values() for single in group))
        if self.frozen and any(module.training for module in self.modules()):  # someone reached past our train()
            super().train(False)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self._outputs(images, singles)
            raw = {output: _gather(output, [found[single] for single in group]) for output, group in wanted.items()}
            return {str(request): request.value(raw) for request in requests}

    def output_shapes(self, want: Sequence[str | Request], size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Shapes without the batch axis of each output at ``size`` (height, width; default the encoder's own), by one forward of one
        black image: canonical request text -> tuple, or a tuple of tuples where the output is several tensors."""
        tensor = next(iter((*self.network.parameters(), *self.network.buffers())), torch.empty(0))
        black = torch.zeros((1, 3, *(size or self.spec.input.size)), dtype=torch.uint8, device=tensor.device)
        images = self.prepare(black).to(tensor.dtype if tensor.is_floating_point() else torch.float32)
        return {
            key: tuple(tuple(part.shape[1:]) for part in value) if isinstance(value, tuple) else tuple(value.shape[1:])
            for key, value in self(images, want).items()
        }


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # kept for callers in every mode
def _colours(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Both as 3 x 1 x 1 on the device. Kept, because every copy to a GPU waits for the batches before it."""
    return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)


def _gather(output: Output, tensors: list[Tensor]) -> Value:
    if not output.several:
        return tensors[0]
    return torch.stack(tensors, dim=1) if output.name == "cls" else tuple(tensors)


def evenly_spaced(depth: int, count: int = 4) -> tuple[int, ...]:
    """The blocks of a pyramid over a network whose maps all have one size: the last of each of ``count`` equal parts (12: 2, 5, 8, 11)."""
    return tuple(sorted({max(depth * part // count - 1, 0) for part in range(1, count + 1)}))


def check_outputs(encoder: Encoder, outputs: Mapping[str, Value], n: int) -> None:
    """ViRBError naming encoder and output unless every output has ``n`` finite rows, and embeddings have the promised width."""
    for request, value in outputs.items():
        where = f'encoder "{encoder.spec.name}": output {request}'
        for tensor in value if isinstance(value, tuple) else (value,):
            _check_output(where, tensor, n)
            if request == "embedding" and tensor.shape[1:] != (encoder.spec.embed_dim,):
                raise ViRBError(f"{where} has shape {tuple(tensor.shape)}; expected {n} x {encoder.spec.embed_dim}")


def _check_output(where: str, tensor: Tensor, n: int) -> None:
    if tensor.ndim < 2 or len(tensor) != n:
        raise ViRBError(f"{where} has shape {tuple(tensor.shape)} for a batch of {n} images; expected {n} rows of at least one value")
    bad = int((~torch.isfinite(tensor)).flatten(1).any(1).sum())
    if bad:
        raise ViRBError(f"{where} has NaN or infinite values in {bad} of {n} images; check its weights and its normalisation")


def arguments_text(names: Iterable[str]) -> str:
    """For messages: the valid arguments of something, or that it takes none."""
    return ", ".join(sorted(names)) or "none"
