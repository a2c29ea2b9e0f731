"""Views for the training: images are decoded once for all their crops, by processes that work ahead.

Which images a batch has and what is drawn for them is a function of its number, so the work can start at any step. Processes rather than
threads: on two cores they are equally fast (copying costs what sharing an interpreter does), on many cores only processes go on getting
faster. What comes back is one block of bytes per batch in shared memory: finished crops, or, for a GPU, the decoded images, which are
cropped there. Floats are made from bytes at the very end.
"""

from __future__ import annotations

import mmap
import multiprocessing
import multiprocessing.util
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from virb.data.images import ArrayImages, ImageList
from virb.errors import BadImage, UnreadImage, ViRBError
from virb.functional.randomness import numpy_generator
from virb.io import available_cores
from virb.pretraining.augment import Draws, augment_pil, check_views, draw, normalize, squash
from virb.pretraining.augment_tensors import augment_tensors, squash_tensor
from virb.pretraining.data import largest_size, rows_of
from virb.pretraining.methods import Views, ViewSpec
from virb.pretraining.signals import deaths
from virb.processes import when_parent_ends

if TYPE_CHECKING:
    from virb.pretraining.plan import BatchPlan

AugmentationPath = Literal["auto", "tensors", "pil"]
_AHEAD = 2  # batches per process
_STORE_BUDGET = 512 * 2**20  # bytes of decoded images that are kept
_PAUSE = 0.5  # seconds before an image that could not be read is tried again
_STAND_INS = 20  # images that may stand in for a bad one
_HINT = "; repair it, or set on_bad_image: skip"  # without it, all epochs would have other batches
_SHM = Path("/dev/shm")


@dataclass
class Packet:
    """A batch on its way: ``pixels`` are tensors of ``shapes`` (uint8), one after the other. ``problem``: why there are none.
    ``skipped``: rows that others stand in for."""

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    draws: Draws | None
    rows: np.ndarray
    problem: str = ""
    skipped: Sequence[int] = ()

    def tensors(self) -> list[Tensor]:
        ends = list(accumulate(map(prod, self.shapes)))
        return [self.pixels[end - prod(shape) : end].view(shape) for end, shape in zip(ends, self.shapes, strict=True)]

    def pin_memory(self) -> Packet:
        """Called by the loader where the batch goes to a GPU."""
        self.pixels = self.pixels.pin_memory()
        return self


class Store:
    """Decoded images of up to ``room`` bytes, kept in memory that forked processes share: each is decoded once in a training, not once per
    epoch."""

    def __init__(self, n: int, room: int) -> None:
        self.bytes = np.frombuffer(mmap.mmap(-1, n * room), dtype=np.uint8).reshape(n, room)
        self.sizes = np.frombuffer(mmap.mmap(-1, n * 4), dtype=np.uint32)  # height << 16 | width; 0 where there is nothing yet

    @classmethod
    def of(cls, images: ImageList, budget: int = _STORE_BUDGET) -> Store | None:
        """None where it would be of no use, or too large."""
        if isinstance(images, ArrayImages):
            return None
        room = prod(largest_size(images)) * 3
        return cls(len(images), room) if len(images) * room <= budget else None

    def get(self, row: int) -> np.ndarray | None:
        height, width = divmod(int(self.sizes[row]), 1 << 16)
        return self.bytes[row, : height * width * 3].reshape(height, width, 3) if height else None

    def put(self, row: int, pixels: np.ndarray) -> None:
        height, width, _ = pixels.shape
        if pixels.size <= self.bytes.shape[1] and max(height, width) < 1 << 16:
            self.bytes[row, : pixels.size] = pixels.reshape(-1)
            self.sizes[row] = height << 16 | width  # last, and at once: another process may be looking


class Jobs:
    """Packet by number, for the training's own process or others. ``crop``: "tensors" or "pil" for finished crops, "" for images.
    ``skip_bad``: another image stands in for one that cannot be decoded."""

    def __init__(
        self, images: ImageList, spec: ViewSpec, seed: int, plan: BatchPlan, crop: str, store: Store | None, skip_bad: bool = False
    ) -> None:
        self.images, self.spec, self.seed, self.plan, self.crop, self.store = images, spec, seed, plan, crop, store
        self.skip_bad = skip_bad

    def __getitem__(self, number: int) -> Packet:
        epoch, rows = rows_of(self.plan, len(self.images), self.seed, number)
        skipped: list[int] = []
        try:
            decoded = [self._read_or_other(int(row), epoch, skipped) for row in rows]
        except BadImage as error:  # as a value: across processes an error comes with its traceback
            hint = "" if self.skip_bad or isinstance(error, UnreadImage) else _HINT
            return Packet(torch.empty(0, dtype=torch.uint8), [], None, rows, f"{error}{hint}")
        pictures, sizes = self._prepare(decoded)
        draws = draw(self.spec, self.seed, epoch, rows, sizes)
        if self.crop == "pil":
            pictures = augment_pil(pictures, draws, self.spec)
        elif self.crop == "tensors":
            pictures = augment_tensors(pictures, draws, self.spec)
        pixels = torch.cat([picture.reshape(-1) for picture in pictures])
        return Packet(pixels, [tuple(picture.shape) for picture in pictures], draws, rows, skipped=skipped)

    def _read_or_other(self, row: int, epoch: int, skipped: list[int]) -> np.ndarray:
        """The image, or where that is skipped the first that can be decoded of those drawn for (seed, epoch, image): so a batch keeps its
        size, and any process that makes it makes the same. What is drawn for its crops stays that of ``row``."""
        try:
            return self._read(row)
        except BadImage as error:
            if not self.skip_bad or isinstance(error, UnreadImage):
                raise
        skipped.append(row)
        for other in numpy_generator(self.seed, "stand-in", epoch, row).integers(0, len(self.images), _STAND_INS):
            try:
                return self._read(int(other))
            except BadImage as error:
                if isinstance(error, UnreadImage):
                    raise
                last = error
        raise BadImage(f"{last}; nor could {_STAND_INS - 1} others, drawn to stand in for {self.images.ids[row]}") from None

    def _read(self, row: int) -> np.ndarray:
        kept = self.store.get(row) if self.store is not None else None
        if kept is not None:
            return kept
        try:
            pixels = np.array(self.images.read(row))
        except UnreadImage:  # a network disk's faults often pass
            time.sleep(_PAUSE)
            pixels = np.array(self.images.read(row))
        if self.store is not None:
            self.store.put(row, pixels)
        return pixels

    def _prepare(self, decoded: Sequence[np.ndarray]) -> tuple[Any, list[tuple[int, int]]]:
        """What is cropped, squashed if wanted, and its sizes."""
        if self.crop == "pil":
            pictures = [squash(Image.fromarray(pixels), self.spec) for pixels in decoded]
            return pictures, [(picture.height, picture.width) for picture in pictures]
        tensors = [squash_tensor(torch.from_numpy(pixels).permute(2, 0, 1), self.spec) for pixels in decoded]
        return tensors, [(tensor.shape[1], tensor.shape[2]) for tensor in tensors]


class ViewSource:
    """Views of ``images``, as ``engine.Source`` asks for them.

    ``workers``: processes that work ahead, never more than there are cores; 0 does the work in line. ``path``: where crops are made.
    "tensors" (and "auto", as the faster one): on tensors, on the GPU that trains or else by the workers; "pil": the reference path.
    ``skip_bad``: other images stand in for those that cannot be decoded; ``skipped`` counts how often, by row.
    """

    def __init__(
        self,
        images: ImageList,
        spec: ViewSpec,
        seed: int = 0,
        workers: int = 0,
        device: torch.device | str = "cpu",
        path: AugmentationPath = "auto",
        skip_bad: bool = False,
    ) -> None:
        check_views(spec)
        self.images, self.spec, self.seed, self.device = images, spec, seed, torch.device(device)
        self._on_device = path != "pil" and self.device.type != "cpu"
        self._crop = "" if self._on_device else "pil" if path == "pil" else "tensors"
        self._neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks on this machine, this one included
        self.workers = min(workers, max(1, available_cores() // self._neighbours))
        self._store = Store.of(images)
        self.skip_bad = skip_bad
        self.skipped: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, plan: BatchPlan, first_step: int = 0) -> Generator[Views, None, None]:
        """All micro-batches of this rank from ``first_step`` to the end of the training. No process is left when it ends or is closed."""
        jobs = Jobs(self.images, self.spec, self.seed, plan, self._crop, self._store, self.skip_bad)
        numbers = range(first_step * plan.micro, plan.total_steps * plan.micro)
        packets = self._ahead(jobs, numbers) if self.workers else (jobs[number] for number in numbers)
        with closing(packets):
            for packet in packets:
                if packet.problem or packet.draws is None:
                    raise BadImage(packet.problem)
                self.skipped.update(packet.skipped)
                yield self._views(packet, packet.draws)

    def _views(self, packet: Packet, draws: Draws) -> Views:
        packet.pixels = packet.pixels.to(self.device, non_blocking=True)
        crops: Sequence[Tensor] = packet.tensors()
        if self._on_device:
            crops = augment_tensors(crops, draws, self.spec)
        samples = torch.from_numpy(packet.rows.astype(np.int64))
        return Views(tuple(map(normalize, crops)), self.spec.n_global, draws.geometry(self.spec), samples)

    def _ahead(self, jobs: Jobs, numbers: range) -> Generator[Packet, None, None]:
        from torch.utils.data import DataLoader

        can_fork = "fork" in multiprocessing.get_all_start_methods()
        if not can_fork:
            jobs.store = None  # it is shared by forking only
        workers = self._fitting(jobs.plan)
        if not workers:
            yield from (jobs[number] for number in numbers)
            return
        multiprocessing.util.get_temp_dir()  # made here, workers share it, and it goes with this process even if one of them is killed
        loader: Any = DataLoader(
            jobs,  # type: ignore[arg-type]  # it has all that is asked of a Dataset
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=_AHEAD,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # or it would draw from the global one, that networks draw from
            multiprocessing_context="fork" if can_fork else None,  # others would run the user's script again
        )
        packets: Any = iter(loader)
        waiting = deaths()
        try:
            while True:
                with waiting:
                    packet = next(packets, None)
                if packet is None:
                    return
                yield packet
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_of_a_death(error):
                raise
            raise ViRBError(f"a process that loads images has died (out of memory?): {error}; try a smaller num_workers") from error
        finally:
            packets._shutdown_workers()  # an error on its way out would keep them, and who leaves waits for them without telling them

    def _fitting(self, plan: BatchPlan) -> int:
        """How many processes' batches fit into shared memory; containers often have 64 MB, and writing more than that kills."""
        if not _SHM.is_dir():
            return self.workers
        if self._on_device:
            per_image = prod(self.spec.squash or largest_size(self.images)) * 3
        else:
            per_image = sum(3 * view.size**2 for view in self.spec.views)
        batches = shutil.disk_usage(_SHM).free // self._neighbours // max(1, plan.batch * per_image)
        return max(0, min(self.workers, (batches - 1) // (_AHEAD + 1)))


def _is_of_a_death(error: Exception) -> bool:
    """What a process found wrong is raised again by the loader, which says so; other errors of the system are of reading what a process
    sent that is no more."""
    told = "in DataLoader worker process" in str(error)
    return not told and (not isinstance(error, RuntimeError) or "DataLoader worker" in str(error))


def _start_worker(_: int) -> None:
    """A worker goes when the training goes, also when that one is killed; but what asks it to stop and save must not take its data away."""
    when_parent_ends(_leave)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _leave() -> None:
    """The end of a worker whose training was killed: it may be waiting for ever to hand on a batch, so it does not end by itself."""
    shutil.rmtree(multiprocessing.util.get_temp_dir(), ignore_errors=True)  # where it listens, to hand on shared memory
    os._exit(1)
