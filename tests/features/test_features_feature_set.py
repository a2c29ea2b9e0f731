"""Samples read their rows equally from every tier: device, host, the mapped file, or a stream."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from virb.features import cache as cache_module
from virb.features import feature_set
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.feature_set import EncodedRows, MappedRows, SampleFeatures

CPU = torch.device("cpu")
TIERS = ["device", "host", "mapped", "streamed"]
N_ROWS = 23


@pytest.fixture
def cache(tmp_path, monkeypatch) -> FeatureCache:
    monkeypatch.setattr(cache_module, "SLICE_ROWS", 5)
    return FeatureCache(tmp_path)


def values_of(view: int, shape: tuple[int, ...] = (3, 2)) -> np.ndarray:
    """float32, exact in float16."""
    return np.random.default_rng(view).normal(size=(N_ROWS, *shape)).astype(np.float16).astype(np.float32)


def rows_of(cache: FeatureCache, tier: str, values: np.ndarray, key: str):
    if tier == "streamed":
        return EncodedRows(len(values), values.shape[1:], lambda rows: torch.from_numpy(values[rows]))
    for start, stop in slice_bounds(len(values)):
        cache.write_slice(key, start, values[start:stop], {})
    return MappedRows(cache.slices(key, len(values)))


def ragged_rows(cache: FeatureCache, tier: str, values: list[np.ndarray], key: str = "ragged"):
    if tier == "streamed":
        return EncodedRows(len(values), None, lambda rows: [torch.from_numpy(values[row]) for row in rows])
    for start, stop in slice_bounds(len(values)):
        cache.write_slice(key, start, values[start:stop], {})
    return MappedRows(cache.slices(key, len(values)))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("k", [1, 3])
def test_gather_and_sample(cache, tier, k):
    values = values_of(0)
    picks = np.random.default_rng(9).integers(0, N_ROWS, (11, k))  # rows shared, repeated, not in order, some never used
    features = SampleFeatures([rows_of(cache, tier, values, "key")], picks.reshape(-1), np.arange(12) * k, CPU, tier)
    assert features.shape == ((3, 2) if k == 1 else (k, 3, 2))
    assert len(features) == 11
    samples = np.array([10, 0, 3, 3, 7])
    expected = values[picks[samples]].reshape(5, *features.shape)
    for asked in (samples, torch.from_numpy(samples)):
        got = features.gather(asked)
        assert got.dtype == torch.float32
        assert np.array_equal(got.numpy(), expected)
    assert features.gather(np.array([], dtype=np.int64)).shape == (0, *features.shape)
    for index in (0, 10):
        rows = features.sample(index)
        assert len(rows) == k
        assert all(row.dtype == torch.float32 for row in rows)
        assert np.array_equal(torch.stack(rows).numpy(), values[picks[index]])


@pytest.mark.parametrize("tier", TIERS)
def test_views_go_round_with_the_epochs(cache, tier):
    views = [values_of(view) for view in range(3)]
    picks = np.array([4, 22, 0, 4])
    rows = [rows_of(cache, tier, values, f"key{view}") for view, values in enumerate(views)]
    features = SampleFeatures(rows, picks, np.arange(5), CPU, tier)
    for epoch, view in [(0, 0), (1, 1), (2, 2), (3, 0), (7, 1)]:
        features.set_epoch(epoch)
        assert np.array_equal(features.gather(np.array([3, 1])).numpy(), views[view][[4, 22]])
        assert np.array_equal(features.sample(2)[0].numpy(), views[view][0])


@pytest.mark.parametrize("tier", TIERS)
def test_samples_of_different_lengths(cache, tier):
    values = values_of(0)
    picks, offsets = np.array([3, 1, 1, 22, 0, 5]), np.array([0, 2, 3, 6])
    features = SampleFeatures([rows_of(cache, tier, values, "key")], picks, offsets, CPU, tier)
    assert features.shape is None
    assert len(features) == 3
    for index, expected in enumerate([[3, 1], [1], [22, 0, 5]]):
        assert np.array_equal(torch.stack(features.sample(index)).numpy(), values[expected])
    with pytest.raises(TypeError, match="one by one"):
        features.gather(np.array([0]))


@pytest.mark.parametrize("tier", TIERS)
def test_rows_of_different_shapes(cache, tier):
    random = np.random.default_rng(1)
    values = [random.normal(size=(2, 1 + i % 3, 4)).astype(np.float16).astype(np.float32) for i in range(9)]
    features = SampleFeatures([ragged_rows(cache, tier, values)], np.array([8, 0, 1]), np.array([0, 2, 3]), CPU, tier)
    assert features.shape is None
    for index, expected in enumerate([[8, 0], [1]]):
        for got, row in zip(features.sample(index), expected, strict=True):
            assert got.dtype == torch.float32
            assert np.array_equal(got.numpy(), values[row])
    with pytest.raises(TypeError, match="one by one"):
        features.gather(np.array([0]))


def test_a_copy_holds_only_the_rows_in_use_in_storage_precision(cache):
    read = []
    rows = rows_of(cache, "mapped", values_of(0), "key")
    original = rows.read
    rows.read = lambda wanted: read.append(wanted) or original(wanted)
    features = SampleFeatures([rows], np.array([20, 3, 20, 7]), np.arange(5), CPU, "host")
    assert [wanted.tolist() for wanted in read] == [[3, 7, 20]]
    features.gather(np.arange(4))
    features.sample(1)
    assert len(read) == 1
    assert features._copies[0].dtype == torch.float16


def test_tiers_agree_where_a_slice_overflows(cache):
    values = values_of(0)
    values[7, 1, 1] = 123456.789
    expected = values[[7, 3, 6]]
    for tier in ("device", "host", "mapped"):
        features = SampleFeatures([rows_of(cache, tier, values, "key")], np.arange(N_ROWS), np.arange(N_ROWS + 1), CPU, tier)
        assert np.array_equal(features.gather(np.array([7, 3, 6])).numpy(), expected)


def test_a_device_without_a_number_gathers_on_the_device(cache, monkeypatch):
    """``cuda`` is not equal to the ``cuda:0`` where its tensors lie: such a copy must not be gathered into page-locked memory."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    features = SampleFeatures([rows_of(cache, "mapped", values_of(0), "key")], np.arange(4), np.arange(5), torch.device("cuda"), "mapped")
    assert features.device == torch.device("cuda:0")
    rows = torch.tensor([2, 0])

    class Copy:
        device = torch.device("cuda:0")

        def __getitem__(self, wanted):
            assert wanted is rows
            return SimpleNamespace(to=lambda device: "gathered there")

    for device in ("cuda", "cuda:0"):
        features.device = torch.device(device)
        assert features._sent(Copy(), rows) == "gathered there"


def test_the_copies_of_a_role_lie_on_its_tier(cache, monkeypatch):
    """On the host in ordinary memory at once, on a device piece by piece (test_features_copies.py)."""
    asked = []
    monkeypatch.setattr(feature_set, "copied", lambda read, rows, shape, place: asked.append((rows.tolist(), shape, place)) or read(rows))
    source = rows_of(cache, "mapped", values_of(0), "key")
    for tier, place in (("host", "cpu"), ("device", "cuda:0")):
        SampleFeatures([source, source], np.array([20, 3, 20, 7]), np.arange(5), torch.device("cuda:0"), tier)
        assert asked == [([3, 7, 20], (3, 2), torch.device(place))] * 2
        asked.clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tier", TIERS)
def test_on_cuda(cache, tier, monkeypatch):
    monkeypatch.setattr("virb.features.copies._PIECE_BYTES", 5 * 6 * 4)  # 5 rows
    cuda = torch.device("cuda")
    values = values_of(0)
    picks = np.random.default_rng(9).integers(0, N_ROWS, (11, 3))
    features = SampleFeatures([rows_of(cache, tier, values, "key")], picks.reshape(-1), np.arange(12) * 3, cuda, tier)
    samples = torch.tensor([10, 0, 3], device=cuda)
    got = features.gather(samples)
    assert got.device.type == "cuda"
    assert np.array_equal(got.cpu().numpy(), values[picks[[10, 0, 3]]])
    assert features.sample(4)[2].device.type == "cuda"
    assert np.array_equal(features.sample(4)[2].cpu().numpy(), values[picks[4, 2]])
    rows = features.gather_rows(np.array([4, 0]))
    assert rows.device.type == "cuda"
    assert np.array_equal(rows.cpu().numpy(), values[picks[[4, 0]].reshape(-1)])


def test_a_sample_of_a_stream_is_encoded_at_once():
    values, asked = values_of(0), []
    stream = EncodedRows(N_ROWS, values.shape[1:], lambda rows: asked.append(rows.tolist()) or torch.from_numpy(values[rows]))
    features = SampleFeatures([stream], np.array([4, 1, 7, 2]), np.array([0, 3, 3, 4]), CPU, "streamed")
    assert np.array_equal(torch.stack(features.sample(0)).numpy(), values[[4, 1, 7]])
    assert features.sample(1) == []
    assert asked == [[4, 1, 7]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rows_that_lie_on_the_device_beside_others_that_are_streamed():
    """A job may stream one map of a request and hold another: both are read without copies then."""
    cuda, values = torch.device("cuda"), values_of(0)
    held = SimpleNamespace(shape=values.shape[1:], nbytes=0, read=lambda rows: torch.from_numpy(values).to(cuda)[torch.from_numpy(rows)])
    features = SampleFeatures([held], np.arange(N_ROWS), np.arange(N_ROWS + 1), cuda, "streamed")
    for found in (features.gather(np.array([4, 0])), features.gather_rows(np.array([4, 0]))):
        assert np.array_equal(found.cpu().numpy(), values[[4, 0]])
