"""From pixels to an encoder's outputs: batches of one fixed shape, in a stated precision, whose outputs come back while others are made."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from virb.data.images import ImageList
from virb.data.transforms import Geometry
from virb.encoders.base import Encoder
from virb.errors import ViRBError
from virb.features.cache import STORAGE
from virb.features.compiled import COMPILED, compiled, first_time
from virb.features.layout import channels_last

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Block = torch.Tensor | list[torch.Tensor]  # (n, *shape) float32, or one tensor per image where their shapes differ


@dataclass(frozen=True)
class Numerics:
    """How values are computed and kept; part of every cache key."""

    compute: str  # a key of PRECISIONS
    device_kind: str  # "cpu" or "cuda"
    compile: bool = False

    def record(self, encoder: Encoder, geometry: Geometry) -> dict[str, str]:
        """How an encoder's values of images at a geometry are made."""
        record = {"compute": self.compute, "storage": STORAGE, "device": self.device_kind}
        if channels_last(encoder, self.device_kind):
            record["layout"] = "channels last"
        if self.compile and geometry.size is not None:  # every native size would be compiled anew: they never are
            record["compile"] = COMPILED
        return record

    def context(self) -> AbstractContextManager[Any]:
        if self.compute == "float32":
            return nullcontext()
        return torch.autocast(self.device_kind, dtype=PRECISIONS[self.compute])


@dataclass(frozen=True)
class PassOptions:
    numerics: Numerics
    batch_size: int
    loader_threads: int


@dataclass
class Memory:
    """How many images of a shape an encoder takes at once, as running out of memory has taught, and what to tell the user about it."""

    notes: list[str] = field(default_factory=list)
    most: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)
    spare: Callable[[], bool] = lambda: False  # frees what memory of the device can be spared; whether there was any

    def reduced(self, encoder: str, geometry: Geometry, batch_size: int) -> tuple[int, int] | None:
        """(images at once, images meant), or None when all fit. Images of different sizes go one by one anyway."""
        most = self.most.get((encoder, (3, *geometry.size)), batch_size) if geometry.size else batch_size
        return (most, batch_size) if most < batch_size else None


@dataclass(frozen=True)
class Taken:
    """One output of a batch, on the host. ``culprit``: the place of the first image with a value that is not finite."""

    values: Block
    culprit: int | None


class Sent:
    """Outputs of a batch on their way to the host. On a GPU ``take`` waits for this batch alone: later ones may be at work by then."""

    def __init__(self, requests: Sequence[str], blank: Collection[int] = ()) -> None:
        """``blank``: places of images that are none. Their values are zeros, and never not finite."""
        self._parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {request: [] for request in requests}
        self._blank = sorted(blank)
        self._arrived: Any = None

    def add(self, found: Mapping[str, torch.Tensor]) -> None:
        """Outputs (n, *shape) of the next images, on the device."""
        device = next((values.device for values in found.values()), torch.device("cpu"))
        with torch.inference_mode():
            parts = {request: (_to_host(values), _to_host(torch.isfinite(values).flatten(1).all(1))) for request, values in found.items()}
        for request, part in parts.items():  # all of them or, where one has no room, none
            self._parts[request].append(part)
        if device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(device))

    def take(self) -> dict[str, Taken]:
        """Request -> what came of it, for all images in one block."""
        if self._arrived is not None:
            self._arrived.synchronize()
        with torch.inference_mode():
            return {request: self._joined(parts) for request, parts in self._parts.items()}

    def _joined(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Taken:
        if not parts:
            return Taken([], None)
        values, finite = (torch.cat([part[i] for part in parts]) if len(parts) > 1 else parts[0][i] for i in range(2))
        if self._blank:
            values, finite = values.clone(), finite.clone()
            values[self._blank], finite[self._blank] = 0, True
        elif self._arrived is not None and len(parts) == 1:
            values = values.clone()  # page-locked memory is scarce
        culprits = (~finite).nonzero()
        return Taken(values, int(culprits[0]) if len(culprits) else None)


class SentOneByOne:
    """The same of images of different sizes, each a batch of its own; those that are none have an empty tensor."""

    def __init__(self, requests: Sequence[str], each: Sequence[Sent | None]) -> None:
        self._requests, self._each = requests, each

    def take(self) -> dict[str, Taken]:
        taken = [None if sent is None else sent.take() for sent in self._each]
        outputs = {}
        for request in self._requests:
            values = [torch.zeros(0) if found is None else found[request].values[0] for found in taken]
            culprits = (place for place, found in enumerate(taken) if found is not None and found[request].culprit is not None)
            outputs[request] = Taken(values, next(culprits, None))
        return outputs


def _to_host(values: torch.Tensor) -> torch.Tensor:
    """On its way when it comes from a GPU: nobody has waited for it."""
    if values.device.type != "cuda":
        return values.cpu()
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def encode(
    encoder: Encoder,
    pixels: torch.Tensor | Sequence[torch.Tensor],
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    memory: Memory | None = None,
    skip: Collection[int] = (),
) -> dict[str, list[torch.Tensor]]:
    """Outputs per request, one float32 CPU tensor per image: what ``send`` sends, waited for."""
    found = send(encoder, pixels, requests, device, options, memory, skip).take()
    return {request: list(taken.values) for request, taken in found.items()}


def send(
    encoder: Encoder,
    pixels: torch.Tensor | Sequence[torch.Tensor],
    requests: Sequence[str],
    device: torch.device,
    options: PassOptions,
    memory: Memory | None = None,
    skip: Collection[int] = (),
) -> Sent | SentOneByOne:
    """Encodes images. Batches have one fixed shape (the last is padded), so that no image's values depend on how many neighbours it has;
    images of different sizes go one by one.

    ``skip``: places of images that could not be decoded. They get zeros, or an empty tensor where sizes differ."""
    memory = memory or Memory()
    if isinstance(pixels, torch.Tensor):
        sent = Sent(requests, skip)
        _send_block(sent, encoder, pixels, requests, device, options.numerics, options.batch_size, memory)
        return sent
    each: list[Sent | None] = []
    eager = Numerics(options.numerics.compute, options.numerics.device_kind)  # every size would be compiled anew
    for place, image in enumerate(pixels):
        each.append(None if place in skip else Sent(requests))
        if (one := each[-1]) is not None:
            _send_block(one, encoder, image[None], requests, device, eager, 1, memory)
    return SentOneByOne(requests, each)


def _send_block(
    sent: Sent,
    encoder: Encoder,
    pixels: torch.Tensor,
    requests: Sequence[str],
    device: torch.device,
    numerics: Numerics,
    batch_size: int,
    memory: Memory,
) -> None:
    kind = (encoder.spec.name, tuple(pixels.shape[1:]))
    begin = 0
    while begin < len(pixels):
        size = min(batch_size, memory.most.get(kind, batch_size))
        try:
            sent.add(forward(encoder, pixels[begin : begin + size], requests, device, numerics, size))
            room = True
        except torch.OutOfMemoryError:
            room = False
        if not room:  # not in the except clause, where the error still holds the tensors of the failed forward
            if memory.spare():
                continue
            torch.cuda.empty_cache()
            if size == 1:
                raise ViRBError(f"{encoder.spec.name} ran out of memory on {device} with a single image of {tuple(pixels.shape[-2:])}")
            memory.most[kind] = size // 2
            memory.notes.append(f"{device} ran out of memory encoding with {encoder.spec.name} (batch {size}): going on with {size // 2}")
            continue
        begin += size


def forward(
    encoder: Encoder,
    pixels: torch.Tensor,
    requests: Sequence[str],
    device: torch.device,
    numerics: Numerics,
    batch_size: int,
) -> dict[str, torch.Tensor]:
    """One padded batch on the device: request -> (n, *shape) float32."""
    n = len(pixels)
    if n < batch_size:
        pixels = torch.cat([pixels, pixels.new_zeros((batch_size - n, *pixels.shape[1:]))])
    with torch.inference_mode(), numerics.context():
        images = encoder.prepare(pixels.to(device, non_blocking=True))
        if channels_last(encoder, device.type):
            images = images.contiguous(memory_format=torch.channels_last)
        found = compiled(encoder, images, requests) if numerics.compile else encoder(images, requests)
    outputs = {}
    for request in requests:
        values = found[request]
        if not isinstance(values, torch.Tensor):
            raise ViRBError(f"{request} of {encoder.spec.name} is several {_what_to_write(encoder, request)}")
        if values.ndim < 2 or len(values) != batch_size:
            raise ViRBError(
                f"{encoder.spec.name} gave {request} of shape {tuple(values.shape)} for a batch of {batch_size} images; "
                f"expected {batch_size} rows of at least one value"
            )
        outputs[request] = values[:n].float()
    return outputs


def warm_up(
    encoder: Encoder, pixels: torch.Tensor | Sequence[torch.Tensor], requests: Sequence[str], device: torch.device, options: PassOptions
) -> None:
    """Compiles what ``send`` will run, so that its seconds are the encoder's. What has no room is for ``send`` to find out."""
    if not options.numerics.compile or not isinstance(pixels, torch.Tensor):
        return
    if first_time(encoder, (tuple(requests), tuple(pixels.shape[1:]), options.batch_size)):
        with suppress(torch.OutOfMemoryError):
            forward(encoder, pixels[:1], requests, device, options.numerics, options.batch_size)


def _what_to_write(encoder: Encoder, request: str) -> str:
    """Where one tensor is needed and the request gives several."""
    each = encoder.spec.expand(request)
    if len(each) > 1 and each[0].kind == "vector":
        return f"vectors; write {'+'.join(map(str, each))}, or a list of {len(each)} requests"
    return "maps; ask for one of them (or reduce each and join with +)"


def first_not_finite(values: Sequence[torch.Tensor]) -> int | None:
    if len({value.shape for value in values}) == 1 and values[0].ndim:  # at once where they are one block
        bad = (~torch.isfinite(torch.stack(list(values))).flatten(1).all(1)).nonzero()
        return int(bad[0]) if len(bad) else None
    return next((place for place, value in enumerate(values) if not torch.isfinite(value).all()), None)


def not_finite(encoder: str, request: str, images: ImageList, row: int) -> str:
    return f"{encoder} gave NaN or infinite values of {request} for image {images.ids[row]}; check its weights and normalisation"
