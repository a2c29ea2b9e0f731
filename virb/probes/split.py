"""The samples that one step of a probe works on: a role, some of its samples, or two roles one after the other."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from virb.errors import UserError, ViRBError
from virb.features.ahead import expecting, read_ahead
from virb.features.limits import working_tier
from virb.probes.base import Features, RoleData

_CPU = torch.device("cpu")
_CHECK_ROWS = 4096  # samples read at once when features are checked
_READ_BYTES = 16 << 20  # of float32, read at once: three of these are in memory
# Each read of a big entry visits all its slices, in Python: beside a GPU, whose steps are fast, reads are fewer and two threads share them.
_MOST_READ = {"cpu": _READ_BYTES, "cuda": 128 << 20}
_READERS = {"cpu": 1, "cuda": 2}
_READS = 16  # an epoch has at least, or steps would wait for a good part of it
_PLENTY = 8  # times what features held in memory take
_ALIGNED = 64  # bytes: where torch lets a tensor begin


@dataclass(frozen=True)
class Split:
    """Samples numbered 0 to N-1: the chosen samples of each part, in order. ``targets`` (N, ...) are on the device the features come on."""

    name: str  # for messages: "fit", "select", "report"
    parts: Sequence[tuple[Features, Tensor]]  # features of a role, and which of its samples (int64, CPU)
    targets: Tensor | None

    def __len__(self) -> int:
        return sum(len(chosen) for _, chosen in self.parts)

    @cached_property
    def index_device(self) -> torch.device:
        """Where positions are best kept: where features in device memory are, so that no step sends numbers from the host."""
        features, _ = self.parts[0]
        return getattr(features, "index_device", _CPU) if len(self.parts) == 1 else _CPU

    @cached_property
    def _chosen(self) -> Tensor:
        return self.parts[0][1].to(self.index_device)

    def features(self, positions: Tensor) -> Tensor:
        """(B, D) float32, all images of a sample concatenated in order; ``positions`` is int64, wherever it is."""
        if len(self.parts) == 1:
            features, _ = self.parts[0]
            return features.gather(self._chosen[positions.to(self.index_device)]).flatten(1)
        positions = positions.cpu()
        out: Tensor | None = None
        for features, here, samples in self._by_part(positions):
            rows = features.gather(samples).flatten(1)
            out = rows.new_empty(len(positions), rows.shape[1]) if out is None else out
            out[here.to(rows.device)] = rows
        return out if out is not None else self.parts[0][0].gather(positions[:0]).flatten(1)

    def batches(self, chunks: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Each chunk of positions with its features, which are read ahead where that takes long; a stream's images are decoded ahead."""
        slow: list[Any] = [features for features, _ in self.parts if getattr(features, "reads_ahead", False)]
        if slow:
            return self._ahead(chunks, slow[0].device)
        if any(getattr(features, "decodes_ahead", False) for features, _ in self.parts):
            return self._streamed(list(chunks))
        return ((positions, self.features(positions)) for positions in chunks)

    def _ahead(self, chunks: Iterable[Tensor], device: torch.device) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Several chunks are one read: a file is visited once for all of them, in its own order."""
        most = max(_READ_BYTES, min(_MOST_READ[device.type], len(self) * self._width // _READS))
        groups = _grouped(chunks, most // self._width)
        reads = read_ahead(lambda group: self.features(torch.cat(group)), groups, device, threads=_READERS[device.type])
        with closing(reads):
            for group, values in reads:
                for positions, here in zip(group, values.split([len(positions) for positions in group]), strict=True):
                    # Products may round otherwise where a tensor begins elsewhere: chunks lie in memory as if each were read alone.
                    yield positions, here if here.data_ptr() % _ALIGNED == 0 else here.clone()

    @property
    def _width(self) -> int:
        """Bytes of a sample in float32."""
        return max(1, 4 * math.prod(self.parts[0][0].shape or ()))

    def pieces(self, chunks: Iterable[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The same for chunks that may be long, each in memory of its own, which may be written to: slow features are put together from
        short reads, so that reading ahead takes no more memory than ``batches`` does."""
        if not any(getattr(features, kind, False) for features, _ in self.parts for kind in ("reads_ahead", "decodes_ahead")):
            return ((positions, self.features(positions)) for positions in chunks)  # gathered from where all of them are: a copy
        return self._put_together(list(chunks))

    def _put_together(self, chunks: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        parts = [positions.split(max(1, _READ_BYTES // self._width)) for positions in chunks]
        with closing(self.batches([part for several in parts for part in several])) as reads:
            for positions, several in zip(chunks, parts, strict=True):
                whole: Tensor | None = None
                filled = 0
                for part, here in islice(reads, len(several)):
                    whole = here.new_empty(len(positions), here.shape[1]) if whole is None else whole
                    whole[filled : filled + len(part)] = here
                    filled += len(part)
                if whole is not None:
                    yield positions, whole

    def held(self) -> Split:
        """The same samples for one who reads them many times: what a stream would encode anew each time is encoded once, if memory has
        plenty of room for it."""
        device = torch.device("cpu") if self.targets is None else self.targets.device
        nbytes = len(self) * self._width
        fastest = "host" if device.type == "cpu" else "device"
        streams = any(getattr(features, "decodes_ahead", False) for features, _ in self.parts)
        if not streams or not len(self) or working_tier(_PLENTY * nbytes, str(device), 1) != fastest:
            return self
        ((positions, values),) = self.pieces([torch.arange(len(self))])
        return Split(self.name, ((_Held(values), positions),), self.targets)

    def _streamed(self, chunks: Sequence[Tensor]) -> Generator[tuple[Tensor, Tensor], None, None]:
        reads: dict[int, tuple[Any, list[Tensor]]] = {}  # what each stream is asked for, in order
        for positions in chunks:
            for features, _, samples in self._by_part(positions.cpu()):
                reads.setdefault(id(features), (features, []))[1].append(samples)
        with expecting(reads.values()):
            for positions in chunks:
                yield positions, self.features(positions)

    def _by_part(self, positions: Tensor) -> Iterator[tuple[Features, Tensor, Tensor]]:
        """Of each part that these positions (on the CPU) are in: its features, which of the positions, and their samples there."""
        start = 0
        for features, chosen in self.parts:
            here = torch.nonzero((positions >= start) & (positions < start + len(chosen)))[:, 0]
            if len(here):
                yield features, here, chosen[positions[here] - start]
            start += len(chosen)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """All positions in order, ``size`` at a time; the last chunk may be shorter."""
        return iter(torch.arange(len(self), device=self.index_device).split(size)) if len(self) else iter(())

    def set_epoch(self, epoch: int) -> None:
        """Turns to the augmented view of this epoch (0-based), where features have several."""
        for features, _ in self.parts:
            features.set_epoch(epoch)


class _Held:
    """Features in memory (``virb.probes.base.Features``), of one view."""

    def __init__(self, values: Tensor) -> None:
        self._values, self.index_device = values, values.device
        self.shape: tuple[int, ...] | None = tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self._values)

    def set_epoch(self, epoch: int) -> None: ...

    def gather(self, samples: Tensor | np.ndarray) -> Tensor:
        return self._values[torch.as_tensor(samples, device=self.index_device)]

    gather_rows = gather

    def sample(self, index: int) -> list[Tensor]:
        return [self._values[index]]


def _grouped(chunks: Iterable[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Consecutive chunks of ``most`` positions together, or one that is longer."""
    group: list[Tensor] = []
    for positions in chunks:
        if group and sum(map(len, group)) + len(positions) > most:
            yield group
            group = []
        group.append(positions)
    if group:
        yield group


def make_split(name: str, role: RoleData, targets: Tensor | None, device: torch.device, chosen: np.ndarray | None = None) -> Split:
    """A role, or the samples ``chosen`` from it. ``targets`` are those of the whole role."""
    index = torch.arange(len(role)) if chosen is None else torch.from_numpy(np.asarray(chosen, dtype=np.int64))
    return Split(name, ((role.features, index),), None if targets is None else targets[index].to(device))


def join(first: Split, second: Split) -> Split:
    """Both, one after the other."""
    if first.targets is None or second.targets is None:
        raise ViRBError(f"{first.name} and {second.name} cannot be joined: one has no targets")
    return Split(f"{first.name} + {second.name}", (*first.parts, *second.parts), torch.cat([first.targets, second.targets]))


def sample_width(role: str, shape: tuple[int, ...] | None) -> int:
    """Numbers per sample, all images concatenated, from the shape of a sample's features; UserError where they are no vectors."""
    if shape is None:
        raise UserError(f"the {role} features differ in shape from sample to sample; a head on vectors needs a reduction: {_REDUCTIONS}")
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    if not 1 <= len(shape) <= 2:
        size = " x ".join(map(str, shape)) or "a single number"
        raise UserError(f"the {role} features are {size} per sample; a head on vectors needs a reduction: {_REDUCTIONS}")
    return int(np.prod(shape))


def n_images(shape: tuple[int, ...] | None) -> int:
    """How many images a sample has, from the shape of its features, which are a vector per image."""
    return shape[0] if shape is not None and len(shape) == 2 else 1


_REDUCTIONS = "features: tokens[-1].mean, tokens[-1].max, tokens[-1].gem(4), or embedding"


def check_finite(split: Split) -> None:
    """ViRBError that says how many samples have features with NaN or infinity."""
    bad: Tensor | None = None
    for _, features in split.batches(split.chunks(_CHECK_ROWS)):
        count = (~torch.isfinite(features).all(1)).sum()
        bad = count if bad is None else bad + count
    if bad is not None and (n := int(bad)):
        raise ViRBError(
            f"{n:,} of {len(split):,} rows of the {split.name} features are NaN or infinite: "
            "look at the encoder's weights and input, or encode with --precision fp32"
        )
