"""Outputs come back a batch later on a GPU, and are the same; values that are not finite are found where they are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from virb.data.images import ArrayImages
from virb.data.transforms import Geometry
from virb.features import encoding, passes
from virb.features.cache import FeatureCache
from virb.features.encoding import Memory, Numerics, PassOptions, Sent, first_not_finite, send
from virb.features.passes import Wanted, run_slices

CPU = torch.device("cpu")
OPTIONS = PassOptions(Numerics("float32", "cpu"), 4, 0)
SMALL, OTHER = Geometry((8, 8), "squash"), Geometry((6, 8), "squash")


class Fake:
    def __init__(self, name: str, log: list[str], fails: int = -1) -> None:
        self.spec, self.log, self.fails, self.calls = SimpleNamespace(name=name), log, fails, 0

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float()

    def __call__(self, images: torch.Tensor, requests: Any) -> dict[str, torch.Tensor]:
        self.log.append(f"send {self.spec.name} {self.calls}")
        self.calls += 1
        if self.calls - 1 == self.fails:
            raise ValueError("broken")
        return {"embedding": images.mean((2, 3)), "tokens[-1]": images[:, :, :2, :2].contiguous()}


@pytest.fixture
def images() -> ArrayImages:
    return ArrayImages("noise", np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8), [f"{i}" for i in range(10)])


def wanted(*names: str) -> list[Wanted]:
    return [
        Wanted(name, geometry, request, f"{name}{geometry.size}{request}".encode().hex())
        for name in names
        for geometry in (SMALL, OTHER)
        for request in ("embedding", "tokens[-1]")
    ]


def files(cache: FeatureCache) -> dict[str, bytes]:
    return {path.relative_to(cache.folder).as_posix(): path.read_bytes() for path in cache.folder.rglob("*.bin")}


@pytest.mark.parametrize("fails", [-1, 0, 3, 5])
def test_the_outputs_of_a_forward_are_taken_when_the_next_is_sent(
    images: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """As on a GPU, with the same files and the same failures as without."""
    take = Sent.take
    found = {}
    for behind in (0, 1):
        log: list[str] = []

        def noted(self: Sent, log: list[str] = log) -> Any:
            log.append("take")
            return take(self)

        monkeypatch.setattr(Sent, "take", noted)
        monkeypatch.setitem(passes._BEHIND, "cpu", behind)
        cache = FeatureCache(tmp_path / str(behind))
        encoders: Any = {"a": Fake("a", log, fails), "b": Fake("b", log)}
        report = run_slices(images, [(0, 10)], wanted("a", "b"), encoders, cache, CPU, OPTIONS)
        found[behind] = {key: reason.splitlines()[0] for key, reason in report.failed.items()}, files(cache)
        sends = [place for place, word in enumerate(log) if word != "take"]
        takes = [place for place, word in enumerate(log) if word == "take"]
        assert all(place > sends[number] for number, place in enumerate(takes)) or fails >= 0
        if fails < 0:
            assert log[:3] == (["send a 0", "take", "send a 1"] if behind == 0 else ["send a 0", "send a 1", "take"])
        assert len(takes) == len(sends) - (fails >= 0)
    assert found[0] == found[1]
    assert len(found[0][1]) == (8 if fails < 0 else 6)  # one forward's two outputs are lost


def test_a_culprit_is_named_with_a_lag_too(images: ArrayImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Fake):
        def __call__(self, batch: torch.Tensor, requests: Any) -> dict[str, torch.Tensor]:
            found = super().__call__(batch, requests)
            if self.calls == 2:
                found["tokens[-1]"][1, 0, 1, 1] = float("inf")
            return found

    monkeypatch.setitem(passes._BEHIND, "cpu", 1)
    items = [item for item in wanted("a") if item.geometry == SMALL]
    report = run_slices(images, [(0, 10)], items, {"a": Broken("a", [])}, FeatureCache(tmp_path), CPU, OPTIONS)  # type: ignore[dict-item]
    assert report.failed == {items[1].key: "a gave NaN or infinite values of tokens[-1] for image 5; check its weights and normalisation"}
    assert FeatureCache(tmp_path).has_slice(items[0].key, 0)


def test_places_that_are_no_image_are_zeros_and_never_the_culprit() -> None:
    sent = Sent(["x"], blank={1, 4})
    values = torch.arange(12.0).reshape(6, 2)
    values[1] = float("nan")
    sent.add({"x": values[:4]})
    sent.add({"x": values[4:]})
    taken = sent.take()["x"]
    expected = values.clone()
    expected[[1, 4]] = 0
    assert torch.equal(torch.as_tensor(taken.values), expected)
    assert taken.culprit is None
    sent = Sent(["x"], blank=[0])
    sent.add({"x": torch.tensor([[float("nan")], [1.0], [float("-inf")], [float("nan")]])})
    assert sent.take()["x"].culprit == 2


class _Event:
    """Stands in for a CUDA event."""

    waited = False

    def synchronize(self) -> None:
        self.waited = True


def test_a_batch_is_waited_for_once_whatever_it_has_of_outputs() -> None:
    sent = Sent(["a", "b"])
    sent.add({"a": torch.ones(2, 3), "b": torch.ones(2, 1)})
    sent._arrived = event = _Event()
    taken = sent.take()
    assert event.waited
    assert set(taken) == {"a", "b"}


def test_memory_that_can_be_spared_is_tried_before_smaller_batches() -> None:
    class Greedy(Fake):
        room = False

        def __call__(self, batch: torch.Tensor, requests: Any) -> dict[str, torch.Tensor]:
            if not Greedy.room:
                raise torch.OutOfMemoryError("no room")
            return super().__call__(batch, requests)

    def spare() -> bool:
        before, Greedy.room = Greedy.room, True
        return not before

    memory = Memory(spare=spare)
    pixels = torch.zeros((5, 3, 8, 8), dtype=torch.uint8)
    found = send(Greedy("g", []), pixels, ["embedding"], CPU, OPTIONS, memory).take()  # type: ignore[arg-type]
    assert len(found["embedding"].values) == 5
    assert (memory.notes, memory.most) == ([], {})


@pytest.mark.parametrize("spared", [False, True])
def test_outputs_that_find_no_room_are_encoded_again(monkeypatch: pytest.MonkeyPatch, spared: bool) -> None:
    """The check for values that are not finite takes memory, too; half of a forward's outputs are never kept."""
    pixels = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    requests = ["embedding", "tokens[-1]"]
    expected = send(Fake("a", []), pixels, requests, CPU, OPTIONS).take()  # type: ignore[arg-type]
    to_host, calls = encoding._to_host, []

    def greedy(values: torch.Tensor) -> torch.Tensor:
        calls.append(len(values))
        if len(calls) == 7:  # the second output of the second forward
            raise torch.OutOfMemoryError("no room")
        return to_host(values)

    monkeypatch.setattr(encoding, "_to_host", greedy)
    memory = Memory(spare=lambda: spared)
    found = send(Fake("a", []), pixels, requests, CPU, OPTIONS, memory).take()  # type: ignore[arg-type]
    for request in requests:
        assert torch.equal(torch.as_tensor(found[request].values), torch.as_tensor(expected[request].values))
    assert set(memory.most.values()) == (set() if spared else {2})


def test_first_not_finite() -> None:
    nan, fine = torch.tensor([1.0, float("nan")]), torch.ones(2)
    assert first_not_finite([fine, nan, nan]) == 1
    assert first_not_finite([fine, fine]) is None
    assert first_not_finite([torch.ones(3), fine, torch.zeros(0), nan]) == 3  # of different shapes
    assert first_not_finite([torch.zeros(0), torch.zeros(0)]) is None
    assert encoding.first_not_finite([]) is None
