"""Splits: where positions are kept, whose samples they are, and how probes without epochs read them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from torch import Tensor
from vector_support import CPU, WIDTH, ArrayFeatures, predicted, roles, settings, x_of

from virb.probes import ncm, standard
from virb.probes import split as split_module
from virb.probes.fewshot import FewshotConfig, FewshotProbe
from virb.probes.knn import KnnConfig, KnnProbe
from virb.probes.logistic import LogisticConfig, LogisticProbe
from virb.probes.lowshot import LowshotConfig, LowshotProbe
from virb.probes.ncm import NcmConfig, NcmProbe
from virb.probes.split import Split, join

META = torch.device("meta")  # a device that only keeps book of shapes and of what is where


class There:
    """Features on another device; remembers where it was asked from."""

    def __init__(self) -> None:
        self.shape, self.index_device, self.asked = (3,), META, []

    def __len__(self) -> int:
        return 10

    def set_epoch(self, epoch: int) -> None: ...

    def gather(self, samples: Tensor) -> Tensor:
        self.asked.append(samples.device)
        return torch.empty(len(samples), 3, device=META)

    def sample(self, index: int) -> list[Tensor]:
        raise NotImplementedError


class Here(There):
    def __init__(self) -> None:
        super().__init__()
        del self.index_device

    def gather(self, samples: Tensor) -> Tensor:
        self.asked.append(samples.device)
        return samples[:, None].float().expand(-1, 3)


def test_positions_are_kept_where_the_features_are() -> None:
    features = There()
    split = Split("fit", ((features, torch.arange(10).flip(0)),), torch.zeros(10, dtype=torch.int64, device=META))
    chunks = list(split.chunks(4))
    assert [(len(chunk), chunk.device) for chunk in chunks] == [(4, META), (4, META), (2, META)]
    assert split.features(chunks[0]).shape == (4, 3)
    assert split.features(torch.arange(2)).shape == (2, 3)  # from the host they are sent
    assert features.asked == [META, META]


def test_other_features_are_asked_from_the_host() -> None:
    split = Split("fit", ((Here(), torch.tensor([7, 5, 3])),), torch.arange(3))
    assert split.index_device == torch.device("cpu")
    assert split.features(torch.tensor([2, 0])).tolist() == [[3.0] * 3, [7.0] * 3]
    both = join(split, Split("select", ((Here(), torch.tensor([1, 2])),), torch.arange(2)))
    assert both.index_device == torch.device("cpu")
    assert both.features(torch.tensor([4, 1, 3])).tolist() == [[2.0] * 3, [5.0] * 3, [1.0] * 3]


# --- features that take long to read --------------------------------------------------------------------------------------------------


class Slow(ArrayFeatures):
    """Read ahead (a tier that takes long), or decoded ahead (a stream); notes who reads how much, and what it was told to expect."""

    device = torch.device("cpu")

    def __init__(self, values: np.ndarray, stream: bool) -> None:
        super().__init__(values)
        self.reads_ahead, self.decodes_ahead = not stream, stream
        self.readers: set[str] = set()
        self.reads: list[list[int]] = []
        self.told: list[list[list[int]]] = []

    def expect(self, reads: Sequence[Tensor]) -> None:
        self.told.append([samples.tolist() for samples in reads])

    def gather(self, samples: Tensor) -> Tensor:
        self.readers.add(threading.current_thread().name.rsplit("_", 1)[0])
        self.reads.append(samples.tolist())
        return super().gather(samples)


PROBES: dict[str, tuple[Any, dict[str, BaseModel]]] = {
    "knn": (KnnProbe, {"k": KnnConfig(k=3), "dot": KnnConfig(k=5, normalise=False)}),
    "knn, faiss": (KnnProbe, {"flat": KnnConfig(k=3, index="flat"), "ivf": KnnConfig(k=3, index="ivf")}),
    "logistic": (LogisticProbe, {"C": LogisticConfig(C=0.1), "own": LogisticConfig(C=1.0, standardise=True, precision="float64")}),
    "ncm": (NcmProbe, {"cosine": NcmConfig(), "euclidean": NcmConfig(metric="euclidean")}),
    "fewshot": (FewshotProbe, {"ncm": FewshotConfig(shots=9), "logistic": FewshotConfig(shots=9, head="logistic")}),
    "lowshot": (LowshotProbe, {"C": LowshotConfig(share=0.5)}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["tier", "stream"])
@pytest.mark.parametrize("name", list(PROBES))
def test_probes_without_epochs_read_ahead_and_find_the_same(name: str, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read is longer than reading ahead allows, whatever the probe asks for at once; a stream is told of each before it comes."""
    probe, configs = PROBES[name]
    refit = name in ("knn", "logistic", "ncm")
    expected = probe().from_features(roles(), settings(configs, refit=refit), CPU)
    monkeypatch.setattr(split_module, "_READ_BYTES", 4 * WIDTH * 23)
    monkeypatch.setattr(ncm, "_READ", 20)
    monkeypatch.setattr(standard, "_READ_ROWS", 20)
    monkeypatch.setattr(split_module, "_CHECK_ROWS", 20)
    slow = {role: replace(data, features=Slow(x_of(data), stream)) for role, data in roles().items()}
    found = probe().from_features(slow, settings(configs, refit=refit, test_batch_size=20), CPU)
    for data in slow.values():
        features: Any = data.features
        assert features.readers == {"MainThread" if stream else "virb-read"}
        assert max(map(len, features.reads)) <= 23
        if stream:
            promised = [read for told in features.told for read in told]
            assert promised == features.reads
            assert features.told[-1] == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virb-read")]
    np.testing.assert_array_equal(predicted(found), predicted(expected))
    for config, one in found.runs[0].configs.items():
        for key, tensor in (one.head or {}).items():
            # Of means and class means the sums are made in other pieces here, which is all that may differ.
            torch.testing.assert_close(tensor, expected.runs[0].configs[config].head[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["knn", "logistic"])
def test_long_pieces_put_together_have_the_bits_of_one_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    probe, configs = PROBES[name]
    found = []
    for size in (1, 23, 10_000):
        monkeypatch.setattr(split_module, "_READ_BYTES", 4 * WIDTH * size)
        slow = {role: replace(data, features=Slow(x_of(data), False)) for role, data in roles().items()}
        found.append(probe().from_features(slow, settings(configs, metrics=("top1",)), CPU))
    plain = probe().from_features(roles(), settings(configs, metrics=("top1",)), CPU)
    for other in found:
        for config, one in plain.runs[0].configs.items():
            mine = other.runs[0].configs[config]
            assert (mine.select_loss, mine.select_metrics) == (one.select_loss, one.select_metrics)
            assert all(torch.equal(tensor, mine.head[key]) for key, tensor in (one.head or {}).items())


def test_a_stream_is_encoded_once_for_all_evaluations_of_logistic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory has room; else the numbers are the same, and the stream is read by every evaluation."""
    configs, reads, heads = {"C": LogisticConfig(C=0.1)}, {}, {}
    for tier in ("host", "mapped"):
        monkeypatch.setattr(split_module, "working_tier", lambda nbytes, device, workers, tier=tier: tier)
        slow = {role: replace(data, features=Slow(x_of(data), True)) for role, data in roles().items()}
        heads[tier] = LogisticProbe().from_features(slow, settings(configs), CPU).runs[0].configs["C"]
        reads[tier] = sum(map(len, slow["fit"].features.reads)) / len(slow["fit"])  # type: ignore[attr-defined]
    assert reads["host"] == 3  # looked at, held, and scored
    evaluations = int(heads["mapped"].notes[0].split("after ")[1].split()[0])
    assert reads["mapped"] > evaluations > 5
    for key, tensor in heads["host"].head.items():  # type: ignore[union-attr]
        assert torch.equal(tensor, heads["mapped"].head[key])  # type: ignore[index]


def test_a_stream_is_encoded_once_for_several_searches() -> None:
    _, configs = PROBES["knn"]
    slow = {role: replace(data, features=Slow(x_of(data), True)) for role, data in roles().items()}
    KnnProbe().from_features(slow, settings(configs), CPU)
    reads = {role: sum(map(len, data.features.reads)) / len(data) for role, data in slow.items()}  # type: ignore[attr-defined]
    assert reads == {"fit": 3, "select": 2, "report": 2}  # looked at, held for both searches; and the bank of the report


def test_pieces_may_be_written_to() -> None:
    """Whatever slow features hand out; those at hand are gathered, which copies."""
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    features = Slow(x, stream=True)
    features.gather = lambda samples: features.values  # type: ignore[method-assign]  # gives itself away, as a whole held entry may
    split = Split("fit", ((features, torch.arange(10)),), None)
    for _, piece in split.pieces([torch.arange(10)]):
        piece.zero_()
    assert torch.equal(features.values, torch.from_numpy(x))
    assert [len(piece) for _, piece in split.pieces([])] == []
