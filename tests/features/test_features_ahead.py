"""Reading ahead gives the same batches in the same order, a little ahead and no further, and leaves no thread."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from virb.features import ahead, feature_set
from virb.features.ahead import MappedFile, read_ahead
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.feature_set import MappedRows, SampleFeatures
from virb.probes import split as split_module
from virb.probes.split import Split

CPU = torch.device("cpu")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("virb-read")]


def test_order_and_distance() -> None:
    read: list[int] = []

    def double(chunk: torch.Tensor) -> torch.Tensor:
        read.append(int(chunk[0]))
        return chunk * 2

    found = []
    for chunk, values in read_ahead(double, torch.arange(40).split(4), CPU, depth=2):
        assert torch.equal(values, chunk * 2)
        found.append(int(chunk[0]))
        time.sleep(0.002)
        assert len(read) <= len(found) + 2
    assert found == list(range(0, 40, 4)) == read
    assert threads() == []
    assert list(read_ahead(double, [], CPU)) == []


def test_several_threads_read_at_once_and_in_order() -> None:
    """Two reads that wait for each other come to an end, and what is in memory is bounded as with one."""
    both, most = threading.Barrier(2, timeout=30), 0

    def read(chunk: torch.Tensor) -> torch.Tensor:
        both.wait()
        return chunk * 2

    for number, (chunk, values) in enumerate(read_ahead(read, torch.arange(40).split(4), CPU, depth=2, threads=2)):
        assert torch.equal(values, chunk * 2)
        assert int(chunk[0]) == 4 * number
        most = max(most, len(threads()))
    assert (number, most, threads()) == (9, 2, [])


def test_no_thread_is_left_after_an_error_or_an_early_end() -> None:
    def broken(chunk: torch.Tensor) -> torch.Tensor:
        if int(chunk[0]) == 8:
            raise ValueError("row 8")
        return chunk

    batches = read_ahead(broken, torch.arange(40).split(4), CPU)
    assert [int(next(batches)[0][0]) for _ in range(2)] == [0, 4]
    with pytest.raises(ValueError, match="row 8"):
        next(batches)
    assert threads() == []
    batches = read_ahead(broken, torch.arange(40).split(4), CPU)
    next(batches)
    batches.close()
    assert threads() == []


class FakeCuda:
    """Streams and events of a GPU that is not there; values that note who may use them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[tuple[str, int]] = []
        monkeypatch.setattr(ahead, "side_stream", lambda device, purpose: "side")
        monkeypatch.setattr(ahead.torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(ahead.torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(ahead.torch.cuda, "Event", lambda: self.Event(self))

    class Event:
        def __init__(self, cuda: FakeCuda) -> None:
            self.cuda = cuda

        def record(self, stream: str) -> None:
            self.number = [n for what, n in self.cuda.log if what == "read"][-1]

    def wait_event(self, event: FakeCuda.Event) -> None:
        self.log.append(("waited", event.number))

    class Values:
        def __init__(self, cuda: FakeCuda, number: int) -> None:
            self.cuda, self.number = cuda, number

        def record_stream(self, stream: FakeCuda) -> None:
            assert stream is self.cuda
            self.cuda.log.append(("guarded", self.number))

    def read(self, chunk: torch.Tensor) -> FakeCuda.Values:
        self.log.append(("read", int(chunk[0])))
        return self.Values(self, int(chunk[0]))


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: ([one], {}), lambda one: ([], {"targets": one})])
def test_on_a_gpu_each_batch_is_waited_for_and_guarded(monkeypatch: pytest.MonkeyPatch, wrap: Any) -> None:
    cuda = FakeCuda(monkeypatch)
    for chunk, _ in read_ahead(lambda chunk: wrap(cuda.read(chunk)), torch.arange(4).split(1), torch.device("cuda:0")):
        cuda.log.append(("used", int(chunk[0])))
    for number in range(4):
        places = [cuda.log.index((step, number)) for step in ("read", "waited", "guarded", "used")]
        assert places == sorted(places)
    assert len(cuda.log) == 16


def test_a_mapped_file_holds_no_file_open(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float16)
    (tmp_path / "values").write_bytes(values.tobytes())
    (tmp_path / "empty").write_bytes(b"")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else None
    files = [MappedFile(tmp_path / "values", "float16") for _ in range(50)]
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == before
    for file in files:
        file.will_need(4999, 1)
        np.testing.assert_array_equal(file.values, values)
    assert len(MappedFile(tmp_path / "empty", "float16").values) == 0


@pytest.mark.parametrize("batch", [7, 64, 4000])  # fewer rows than slices, more, and all
@pytest.mark.parametrize("wide", [False, True])
def test_mapped_and_host_give_the_same_batches(tmp_path: Path, batch: int, wide: bool) -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(4000, 3, 5)).astype(np.float32)
    if wide:
        values[700] *= 1e6  # that slice is kept in float32
    cache = FeatureCache(tmp_path)
    for start, stop in slice_bounds(len(values)):
        cache.write_slice("key", start, values[start:stop], {})
    rows = MappedRows(cache.slices("key", len(values)))
    order = torch.from_numpy(random.permutation(4000))
    found = {}
    for tier in ("host", "mapped"):
        features = SampleFeatures([rows], np.arange(4000), np.arange(4001), CPU, tier)
        assert features.reads_ahead == (tier == "mapped")
        split = Split("fit", ((features, torch.arange(4000)),), None)
        found[tier] = list(split.batches(order.split(batch)))
        for number, chunk in enumerate(order.split(batch)):  # one by one, as other probes read
            assert torch.equal(features.gather(chunk).flatten(1), found[tier][number][1])
    for (positions, x), (expected_positions, expected) in zip(found["mapped"], found["host"], strict=True):
        assert torch.equal(positions, expected_positions)
        assert torch.equal(x, expected)
        assert x.dtype == torch.float32
    np.testing.assert_allclose(found["mapped"][0][1].numpy(), values[order[:batch]].reshape(-1, 15), rtol=1e-3)


def test_small_batches_are_read_together_and_lie_as_if_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path)
    values = np.random.default_rng(2).normal(size=(2000, 5)).astype(np.float32)
    for start, stop in slice_bounds(len(values)):
        cache.write_slice("key", start, values[start:stop], {})
    rows = MappedRows(cache.slices("key", len(values)))
    reads: list[int] = []
    read = rows.read
    monkeypatch.setattr(rows, "read", lambda wanted: (reads.append(len(wanted)), read(wanted))[1])
    features = SampleFeatures([rows], np.arange(2000), np.arange(2001), CPU, "mapped")
    split = Split("fit", ((features, torch.arange(2000)),), None)
    monkeypatch.setattr(split_module, "_READ_BYTES", 100 * 5 * 4)  # 100 rows
    monkeypatch.setitem(split_module._MOST_READ, "cpu", 100 * 5 * 4)
    chunks = torch.randperm(2000).split(30)
    for number, (positions, x) in enumerate(split.batches(chunks)):
        assert torch.equal(positions, chunks[number])
        assert torch.equal(x, torch.from_numpy(values.astype(np.float16)).float()[positions])
        assert x.data_ptr() % 64 == 0
    assert number == 66
    assert reads == [90] * 22 + [20]
    assert len(list(split.batches(torch.arange(2000).split(500)))) == 4  # each longer than a read should be
    assert reads[23:] == [500] * 4


def test_several_threads_read_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each makes room for its maps while the other opens one."""
    values = np.random.default_rng(3).normal(size=(2000, 5)).astype(np.float16)
    cache = FeatureCache(tmp_path)
    for start, stop in slice_bounds(len(values)):
        cache.write_slice("key", start, values[start:stop].astype(np.float32), {})
    rows = MappedRows(cache.slices("key", len(values)))
    monkeypatch.setattr(feature_set, "_MOST_MAPS", 1)

    class Slow(OrderedDict[int, MappedFile]):
        def __setitem__(self, index: int, file: MappedFile) -> None:
            super().__setitem__(index, file)
            time.sleep(0.001)

    rows._maps = Slow()
    order = torch.from_numpy(np.random.default_rng(4).permutation(2000))
    for chunk, read in read_ahead(lambda chunk: rows.read(chunk.numpy()), order.split(50), CPU, depth=4, threads=4):
        np.testing.assert_array_equal(read.numpy(), values[chunk.numpy()])


@pytest.mark.parametrize(("rows", "reads"), [(48, [10] * 4 + [8]), (320, [20] * 16), (1000, [40] * 25)])
def test_beside_a_gpu_reads_grow_with_the_entry(monkeypatch: pytest.MonkeyPatch, rows: int, reads: list[int]) -> None:
    """16 of an epoch where they are neither shorter than 10 rows nor longer than 40, by two threads."""
    monkeypatch.setattr(split_module, "_READ_BYTES", 10 * 5 * 4)
    monkeypatch.setitem(split_module._MOST_READ, "cuda", 40 * 5 * 4)
    found: list[int] = []

    def looking(read: Any, groups: Any, device: torch.device, threads: int) -> Any:
        assert (device.type, threads) == ("cuda", 2)
        for group in groups:
            found.append(sum(map(len, group)))
            yield group, read(group)

    monkeypatch.setattr(split_module, "read_ahead", looking)
    values = torch.randn(rows, 5)
    features = SimpleNamespace(shape=(5,), reads_ahead=True, device=torch.device("cuda:0"), gather=lambda samples: values[samples])
    split = Split("fit", ((features, torch.arange(rows)),), None)
    batches = list(split.batches(torch.arange(rows).split(2)))
    assert torch.equal(torch.cat([positions for positions, _ in batches]), torch.arange(rows))
    assert torch.equal(torch.cat([x for _, x in batches]), values)
    assert found == reads
