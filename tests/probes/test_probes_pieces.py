"""Pieces of a job's work: found once, by anybody, in any split of them; a job in parts is the whole job bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel
from vector_support import CLASSES, CPU, WIDTH, roles, settings

from virb.config import GradientConfig, MlpConfig
from virb.errors import ViRBError
from virb.functional import knn as neighbours
from virb.probes import knn, logistic, stacks
from virb.probes.base import ConfigOutcome, Context, Outcome, RoleData, Settings
from virb.probes.knn import KnnConfig, KnnProbe
from virb.probes.linear import LinearProbe, MlpProbe
from virb.probes.logistic import LogisticConfig, LogisticProbe
from virb.probes.pieces import WHOLE, KeptPieces, Part, PartDone, Sizes, Stage, check_stages

NAMES = ["a", "b", "c", "d", "e"]


class Finder:
    """Finds pieces and remembers which."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, numbers: list[int]) -> list[dict[str, Any]]:
        self.asked += numbers
        return [{"x": torch.full((2,), float(number)), "note": f"piece {number}", "loss": None} for number in numbers]


def do(folder: Path, stage: str, number: int, count: int, find: Finder, names: list[str] = NAMES) -> None:
    with pytest.raises(PartDone):
        KeptPieces(folder, Part(stage, number, count)).of(stage, names, find)


def test_a_whole_job_finds_all_pieces_at_once() -> None:
    find = Finder()
    assert [found["note"] for found in WHOLE.of("s", NAMES, find)] == [f"piece {number}" for number in range(5)]
    assert find.asked == [0, 1, 2, 3, 4]
    assert not WHOLE.shared


def test_parts_find_their_share_and_the_job_only_reads(tmp_path: Path) -> None:
    find = Finder()
    do(tmp_path, "s", 1, 2, find)
    assert find.asked == [1, 3]
    do(tmp_path, "s", 0, 2, find)
    assert find.asked == [1, 3, 0, 2, 4]
    found = KeptPieces(tmp_path).of("s", NAMES, find)
    assert len(find.asked) == 5
    assert [(one["note"], one["x"].tolist(), one["loss"]) for one in found] == [(f"piece {n}", [n, n], None) for n in range(5)]
    # A part of the next stage reads those of this one.
    assert [one["note"] for one in KeptPieces(tmp_path, Part("t", 0, 2)).of("s", NAMES, find)] == [one["note"] for one in found]
    assert len(find.asked) == 5


def test_with_another_number_of_devices_only_what_is_missing_is_found(tmp_path: Path) -> None:
    find = Finder()
    do(tmp_path, "s", 0, 3, find)  # 0 and 3
    again = Finder()
    do(tmp_path, "s", 0, 2, again)
    do(tmp_path, "s", 1, 2, again)
    assert again.asked == [2, 4, 1]
    last = Finder()
    KeptPieces(tmp_path).of("s", NAMES, last)
    assert last.asked == []


def test_each_piece_is_kept_before_the_next_is_found(tmp_path: Path) -> None:
    def breaks(numbers: list[int]) -> Any:
        for number in numbers:
            if number == 3:
                raise OSError("power cut")
            yield {"note": f"piece {number}"}

    with pytest.raises(OSError, match="power cut"):
        KeptPieces(tmp_path, Part("s", 0, 1)).of("s", NAMES, breaks)
    find = Finder()
    do(tmp_path, "s", 0, 1, find)
    assert find.asked == [3, 4]


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "of another job", "of fewer pieces"])
def test_what_is_not_there_is_found_again(tmp_path: Path, damage: str) -> None:
    find = Finder()
    do(tmp_path, "s", 0, 1, find)
    file = sorted(tmp_path.glob("s-*.pt"))[2]
    names = NAMES
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        names = ["a", "b", "C", "d", "e"] if damage == "of another job" else NAMES[:3]
    again = Finder()
    found = KeptPieces(tmp_path).of("s", names, again)
    assert again.asked == ([0, 1, 2] if damage == "of fewer pieces" else [2])
    assert found[2]["note"] == "piece 2"


def test_names_of_stages() -> None:
    check_stages("p", [Stage("fit", 1.0, 2), Stage("re-fit", 1.0, 2)])
    for names in (("a", "a"), ("../a",), ("",), ("a b",)):
        with pytest.raises(ViRBError, match="the probe p names its stages"):
            check_stages("p", [Stage(name, 1.0, 2) for name in names])


# Probes


GRADIENT = {
    "diverges": GradientConfig(optimizer="sgd", lr=3e38, momentum=0.9),
    "adamw": GradientConfig(optimizer="adamw", lr=0.01, weight_decay=0.1),
    "sgd": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.9),
    "slow": GradientConfig(optimizer="sgd", lr=0.001),
    "adam": GradientConfig(optimizer="adam", lr=0.01),
}
MLP = {name: MlpConfig(**{**config.model_dump(), "hidden": 24 if name == "adam" else 12}) for name, config in GRADIENT.items()}
KNN = {f"k{k}{'n' * n}": KnnConfig(k=k, normalise=n) for k in (1, 9, 30) for n in (True, False)}
LOGISTIC = {f"C{c:g}": LogisticConfig(C=c) for c in (1e-4, 1e-3, 1e-2, 0.1, 1.0)}
TRAINING = {"num_epochs": 4, "seeds": (0, 4), "metrics": ("top1", "mean_class_accuracy")}
CASES = {
    "linear": (LinearProbe, GRADIENT, TRAINING),
    "linear, refit": (LinearProbe, GRADIENT, {**TRAINING, "refit": True}),
    "linear, test-best": (LinearProbe, GRADIENT, {**TRAINING, "selection": "test-best"}),
    "linear, test-last": (LinearProbe, GRADIENT, {**TRAINING, "selection": "test-last"}),
    "mlp": (MlpProbe, MLP, TRAINING),
    "knn": (KnnProbe, KNN, {}),
    "knn, refit": (KnnProbe, KNN, {"refit": True}),
    "knn, test-best": (KnnProbe, KNN, {"selection": "test-best"}),
    "logistic": (LogisticProbe, LOGISTIC, {}),
    "logistic, refit": (LogisticProbe, LOGISTIC, {"refit": True}),
    "logistic, test-best": (LogisticProbe, LOGISTIC, {"selection": "test-best"}),
}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny jobs have some."""
    monkeypatch.setattr(stacks, "_LEAST_WEIGHTS", 60)
    monkeypatch.setattr(stacks, "_LEAST_WORK", 60)
    monkeypatch.setattr(knn, "QUERY_BLOCK", 23)
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", 23)
    monkeypatch.setattr(logistic, "_LEAST_WEIGHTS", 120)
    monkeypatch.setattr(logistic, "_LEAST_WORK", {"cpu": 120})


class Watched:
    """Notes the stages that a probe asks for, and how many pieces each has."""

    def __init__(self, pieces: Any) -> None:
        self.pieces, self.shared = pieces, pieces.shared
        self.stages: dict[str, int] = {}

    def of(self, stage: str, names: list[Any], find: Callable[[list[int]], Any]) -> list[Any]:
        self.stages[stage] = len(names)
        return self.pieces.of(stage, names, find)


def in_parts(
    probe: type, data: Mapping[str, RoleData], how: Settings, folder: Path, stages: list[str], count: int, told: list[Any]
) -> Outcome:
    scratch = folder / "scratch"
    scratch.mkdir()
    for part in [Part(stage, number, count) for stage in stages for number in range(count)]:
        context = replace(CPU, scratch=scratch, pieces=KeptPieces(folder, part))
        with pytest.raises(PartDone):
            probe().from_features(data, how, context)

    def never(*_: object) -> None:
        raise AssertionError("the job itself has only to read")

    pieces = KeptPieces(folder)
    reads = lambda stage, names, find: KeptPieces.of(pieces, stage, names, never)  # noqa: E731
    watched = Watched(pieces)
    watched.of = reads  # type: ignore[method-assign]
    return probe().from_features(data, how, replace(CPU, pieces=watched, scalars=lambda *what: told.append(what)))


def assert_same_bits(one: Outcome, other: Outcome) -> None:
    assert (one.chosen, one.selected_on, one.index_lists, one.notes) == (other.chosen, other.selected_on, other.index_lists, other.notes)
    for a, b in zip(one.runs, other.runs, strict=True):
        assert list(a.configs) == list(b.configs)
        for name in a.configs:
            assert_same_config(a.configs[name], b.configs[name])


def assert_same_config(a: ConfigOutcome, b: ConfigOutcome) -> None:
    plain = ("train_loss", "train_metrics", "select_loss", "select_metrics", "epoch", "diverged", "history", "notes")
    assert {key: getattr(a, key) for key in plain} == {key: getattr(b, key) for key in plain}
    assert (a.head is None) == (b.head is None)
    for key, tensor in (a.head or {}).items():
        assert torch.equal(tensor, b.head[key])
    assert (a.report is None) == (b.report is None)
    if a.report is not None:
        assert a.report.loss == b.report.loss
        np.testing.assert_array_equal(a.report.values, b.report.values, strict=True)
        for name, statistics in (a.report.statistics or {}).items():
            np.testing.assert_array_equal(statistics.values, b.report.statistics[name].values, strict=True)


@pytest.mark.parametrize("count", [2, 3, 20])
@pytest.mark.parametrize("case", CASES)
def test_a_job_in_parts_is_the_whole_job(tmp_path: Path, case: str, count: int) -> None:
    probe, configs, changes = CASES[case]
    data, how = roles(), settings(configs, **changes)
    watched, told, curves = Watched(WHOLE), [], []
    whole = probe().from_features(data, how, replace(CPU, pieces=watched, scalars=lambda *what: curves.append(what)))
    assert all(pieces >= 3 for pieces in watched.stages.values())
    parts = in_parts(probe, data, how, tmp_path, list(watched.stages), count, told)
    assert_same_bits(whole, parts)
    assert told == curves


@pytest.mark.parametrize("case", CASES)
def test_the_plan_foresees_stages_and_pieces(case: str) -> None:
    probe, configs, changes = CASES[case]
    data, how = roles(), settings(configs, **changes)
    watched = Watched(WHOLE)
    probe().from_features(data, how, replace(CPU, pieces=watched))
    counts = {name: len(one) for name, one in data.items()}
    sizes = Sizes(counts, WIDTH, 1, CLASSES, how.num_epochs, how.batch_size, how.seeds, how.selection, "cpu")
    stages = probe.stages(configs, sizes)
    assert {stage.name: stage.pieces for stage in stages} == watched.stages
    assert all(stage.flops > 0 for stage in stages)


def test_an_index_of_faiss_is_not_shared() -> None:
    sizes = Sizes({"fit": 10**6, "select": 10**5, "report": 10**5}, 384, 1, 1000, 1, 32, (0,), "val", "cpu")
    both: dict[str, BaseModel] = {"a": KnnConfig(), "b": KnnConfig(index="flat")}
    assert KnnProbe.stages(both, sizes) == ()
    choose, report = KnnProbe.stages({"a": KnnConfig(k=10), "b": KnnConfig(k=20)}, sizes)
    assert choose.flops == report.flops == 2.0 * 10**6 * 10**5 * 384


def test_a_part_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    data, how = roles(), settings(GRADIENT, **TRAINING)
    seen: list[int] = []

    def stop(phase: str, done: int, total: int) -> None:
        seen.append(done)
        assert total == 8
        if len(seen) == 3:
            raise KeyboardInterrupt

    context = Context(torch.device("cpu"), scratch=tmp_path, progress=stop, pieces=KeptPieces(tmp_path, Part("train", 0, 2)))
    probe = LinearProbe()
    probe.save_every_s = 0.0  # type: ignore[misc]
    with pytest.raises(KeyboardInterrupt):
        probe.from_features(data, how, context)
    assert list(tmp_path.glob("grid-seed0.pt"))
    with pytest.raises(PartDone):
        probe.from_features(data, how, context)
    whole = LinearProbe().from_features(data, how, CPU)
    parts = LinearProbe().from_features(data, how, replace(CPU, pieces=KeptPieces(tmp_path)))
    assert_same_bits(whole, parts)
