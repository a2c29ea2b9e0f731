"""One process or many: ranks find each other by the variables that torchrun sets, add up tensors, and stop together with the reason."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from virb.errors import UserError, ViRBError
from virb.pretraining.troubles import first_line, of_a_peer
from virb.processes import when_parent_ends

_GRACE = 3.0  # seconds that ranks have to say that they live, after one was lost
_REASON = "virb/reason"
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class LostRank(ViRBError):
    """Another rank is gone, or has told why it stops."""


class Ranks:
    """The processes of a run, this one being number ``rank`` of ``world``, on ``device``. One process needs no group."""

    def __init__(self, rank: int, world: int, device: torch.device, store: Any = None, keeper: str = "rank 0") -> None:
        """``keeper``: whose end takes the store away."""
        self.rank, self.world, self.device = rank, world, device
        self._store, self._keeper = store, keeper
        self._turns = 0
        self._told: str | None = None  # why another rank stopped
        self._lost: set[int] = set()  # nobody waits for them any more
        self._closed = threading.Event()
        self._listener: threading.Thread | None = None
        if world > 1 and store is not None:
            # A rank in a collective is deaf, and rank 0 may take the store with it: a thread listens.
            self._listener = threading.Thread(target=self._listen, name="ranks", daemon=True)
            self._listener.start()

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes its sum over ranks, in place; one message per dtype."""
        if self.world == 1:
            return
        with self.together():
            for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
                group = [tensor for tensor in tensors if tensor.dtype == dtype]
                flat = torch.cat([tensor.reshape(-1) for tensor in group])
                dist.all_reduce(flat)
                for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def add_up_named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        names = sorted(tensors)  # the same order everywhere
        self.add_up([tensors[name] for name in names])
        return {name: tensors[name] for name in names}

    def anywhere(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        if self.world == 1:
            return here
        told = torch.tensor([float(here)], device=self.device)
        self.add_up([told])
        return float(told) > 0

    @contextmanager
    def one_by_one(self) -> Iterator[bool]:
        """The first rank does what is inside (it gets True) while the others wait at the end, however long it takes: they ask the store,
        and no message between ranks is under way that could run out of time."""
        self._turns += 1
        yield self.is_main
        if self.world == 1:
            return
        name = f"virb/turn/{self._turns}"
        if self.is_main:
            with self.together():
                self._store.set(name, b"1")
            return
        while not self._is_set(name):
            if self._told:
                raise LostRank(f"rank {self.rank} stops: {self._told}")
            time.sleep(0.05)

    def _is_set(self, name: str) -> bool:
        try:
            return bool(self._store.check([name]))
        except RuntimeError as error:
            self._lost = set(range(self.world))
            raise LostRank(f"rank {self.rank} stops: {self._told or f'{self._keeper} was lost'}") from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what needs all ranks: when one is gone, the error says which and, if it told, why. What fails on this rank itself goes
        through as it is; whoever tells it leaves word for the others (``tell``)."""
        if self.world == 1:
            yield
            return
        try:
            yield
        except RuntimeError as error:  # torch's DistBackendError is one; gloo raises plain ones
            if not of_a_peer(error):
                raise
            raise LostRank(f"rank {self.rank} stops: {self._who_is_lost(error)}") from error

    def tell(self, reason: str) -> None:
        """Leaves word for the others why this rank stops, and waits a little until they have heard it."""
        if self.world == 1 or self._store is None or self._told:
            return
        with suppress(RuntimeError):
            self._store.set(_REASON, f"rank {self.rank} on {socket.gethostname()} failed: {reason}".encode())
            others = [f"virb/heard/{rank}" for rank in range(self.world) if rank != self.rank and rank not in self._lost]
            deadline = time.monotonic() + _GRACE
            while others and time.monotonic() < deadline and not self._store.check(others):
                time.sleep(0.05)

    def _listen(self) -> None:
        while not self._closed.wait(0.5):
            try:
                if self._store.check([_REASON]):
                    self._told = bytes(self._store.get(_REASON)).decode()
                    self._store.set(f"virb/heard/{self.rank}", b"1")
                    return
            except RuntimeError:  # the store is gone, and rank 0 with it
                return

    def _who_is_lost(self, error: RuntimeError) -> str:
        try:
            self._store.set(f"virb/lives/{self.rank}", b"1")
            deadline = time.monotonic() + _GRACE
            while time.monotonic() < deadline and not self._told:
                time.sleep(0.1)
            self._lost = {rank for rank in range(self.world) if not self._store.check([f"virb/lives/{rank}"])}
            lost = f"rank {', '.join(map(str, sorted(self._lost)))}" if self._lost else ""
        except RuntimeError:
            lost, self._lost = self._keeper, set(range(self.world))
        if self._told:
            return self._told
        if lost:
            return f"{lost} was lost (killed, or its machine is gone: {first_line(error)}); the last checkpoint is whole, start again"
        return f"the ranks lost each other ({first_line(error)})"

    def stop_alone(self) -> None:
        """torchrun was killed and could not end its ranks: the training saves and ends by itself, if it is not ending already."""
        if not self._lost and not self._closed.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None:
        """Leaves the group. Always called before the program ends: a thread that is inside the store's C++ then would abort the process."""
        self._closed.set()
        if self._listener is not None:
            self._listener.join(5.0)
            self._wait_until_all_left()
        if self.world > 1 and dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _wait_until_all_left(self) -> None:
        """The store goes with rank 0: a rank that still asks it whether a turn is over would take rank 0 for lost."""
        with suppress(RuntimeError):
            self._store.set(f"virb/left/{self.rank}", b"1")
            names = [f"virb/left/{rank}" for rank in range(self.world) if rank not in self._lost]
            deadline = time.monotonic() + _GRACE
            while self.is_main and time.monotonic() < deadline and not self._store.check(names):
                time.sleep(0.02)


def join(device: str = "auto", timeout: float = 600.0) -> Ranks:
    """The ranks as the environment says (torchrun's variables; none of them: one process). UserError for what is not there.

    nccl between GPUs, gloo between CPUs. ``timeout``: seconds without an answer after which a rank is lost.
    """
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return Ranks(0, 1, _pick(device, 0))
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise UserError(f"the environment has a rank or a world size, but not {', '.join(missing)}; start with torchrun")
    try:
        rank, world, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers ({error})") from error
    place = _pick(device, local)
    if world == 1:
        return Ranks(0, 1, place)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    wait = timedelta(seconds=timeout)
    try:
        # torchrun keeps a store of its own at this address; without it, rank 0 opens one.
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        server = dist.TCPStore(os.environ["MASTER_ADDR"], port, world, rank == 0 and not hosted, wait)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # the agent's store survives a restart of its workers
        store = dist.PrefixStore(f"virb/{attempt}", server)
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", store=store, rank=rank, world_size=world, timeout=wait)
    except RuntimeError as error:
        raise ViRBError(f"rank {rank} cannot reach the others at {os.environ['MASTER_ADDR']}:{port} ({first_line(error)})") from error
    ranks = Ranks(rank, world, place, store, "torchrun" if hosted else "rank 0")
    if hosted:
        when_parent_ends(ranks.stop_alone, parent=os.getppid())
    return ranks


def _pick(device: str, local_rank: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = torch.device("meta")
    if place.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if place.type == "cpu":
        return place
    index = local_rank if place.index is None else place.index
    if index >= count:
        raise UserError(f"device: {device} is not there; this machine has {count} CUDA device{'s' * (count != 1)}")
    return torch.device("cuda", index)
