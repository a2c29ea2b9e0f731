"""Dense heads that train together are those of plain loops of torch, one by one; and a training goes on where it was stopped."""

from __future__ import annotations

import math
import threading
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_support import held_split
from torch import Tensor, nn
from torch.nn import functional as F

from virb.config.dense import DenseConfig, DenseLinearConfig, DenseMultiConfig
from virb.data.placement import DenseTarget
from virb.functional.randomness import derive_seed, torch_generator
from virb.probes.dense_data import DenseSplit
from virb.probes.dense_heads import build_head
from virb.probes.dense_losses import find_dense_loss
from virb.probes.dense_outputs import n_outputs
from virb.probes.dense_train import DenseRecipe, TrainedHead, train_heads

LABELS = DenseTarget("labels")
N, C, EPOCHS, BATCH = 11, 3, 4, 4
SHAPES = [(5, 6, 6), (4, 3, 3)]
GRIDS = {"sgd": (12, 12), "adam": (8, 8), "adamw": (12, 12), "dropout": (6, 6), "dropout2": (6, 6), "wild": (12, 12), "multi": (12, 12)}
CONFIGS: dict[str, DenseConfig] = {
    "sgd": DenseLinearConfig(optimizer="sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, scheduler="cosine"),
    "adam": DenseLinearConfig(optimizer="adam", lr=0.01, norm="none"),
    "adamw": DenseLinearConfig(optimizer="adamw", lr=0.02, weight_decay=0.1, scheduler={"type": "Poly", "exponent": 1.0, "warmup": 3}),
    "dropout": DenseLinearConfig(optimizer="adamw", lr=0.01, dropout=0.4),
    "dropout2": DenseLinearConfig(optimizer="adamw", lr=0.02, dropout=0.4, scheduler={"type": "StepLR", "step_size": 2, "gamma": 0.1}),
    "wild": DenseLinearConfig(optimizer="sgd", lr=1e38, norm="none"),
    "multi": DenseMultiConfig(optimizer="sgd", lr=0.05, scheduler={"type": "OneCycle", "per": "step", "anneal": "cos"}),
}


def recipe(**more: Any) -> DenseRecipe:
    values = {"epochs": EPOCHS, "batch_size": BATCH, "test_batch_size": 5, "seed": 3, "loss_name": "cross_entropy"}
    return DenseRecipe(**{**values, "metrics": ("miou",), "higher_is_better": True, "only_last": True, **more})


def data(seed: int = 0, n: int = N) -> tuple[list[Tensor], np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randn((n, *shape), generator=generator) for shape in SHAPES]
    weights = torch.randn((C, SHAPES[1][0]), generator=generator)
    cells = torch.einsum("ck,nkhw->nchw", weights, maps[1]).argmax(1)
    targets = F.interpolate(cells[:, None].float(), (12, 12), mode="nearest")[:, 0].numpy().astype(np.uint8)
    targets[:, :2, 5] = 255
    return maps, targets


def make_head(name: str) -> nn.Module:
    torch.manual_seed(derive_seed(3, "head"))
    return build_head(CONFIGS[name], SHAPES, C)


def together(names: list[str], fit: DenseSplit, score: DenseSplit | None = None, **more: Any) -> dict[str, TrainedHead]:
    kwargs = {key: more.pop(key) for key in list(more) if key in ("checkpoint", "save_every_s", "on_epoch", "on_step")}
    configs = {name: CONFIGS[name] for name in names}
    return train_heads(make_head, configs, fit, score, recipe(**more), find_dense_loss("cross_entropy"), GRIDS, **kwargs)


# --- against torch's own optimizers and schedules -------------------------------------------------------------------------------------


def sampled(targets: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """The label under the centre of each cell."""
    rows = np.floor((np.arange(grid[0]) + 0.5) * targets.shape[1] / grid[0]).astype(int)
    columns = np.floor((np.arange(grid[1]) + 0.5) * targets.shape[2] / grid[1]).astype(int)
    return torch.from_numpy(targets[:, rows][:, :, columns].astype(np.int64))


def optimizer_of(name: str, head: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, Any, bool]:
    """torch's optimizer and schedule, and whether that is stepped once an epoch."""
    sgd, schedules = torch.optim.SGD, torch.optim.lr_scheduler
    weights = list(head.parameters())
    if name == "sgd":
        found: Any = sgd(weights, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
        return found, schedules.CosineAnnealingLR(found, EPOCHS), True
    if name == "adam":
        found = torch.optim.Adam(weights, 0.01)
        return found, schedules.ConstantLR(found, 1.0), True
    if name == "adamw":
        found = torch.optim.AdamW(weights, 0.02, weight_decay=0.1)
        total = EPOCHS * steps
        return found, schedules.LambdaLR(found, lambda i: min((i + 1) / 4, 1.0) * (1 - i / total)), False
    if name == "dropout":
        found = torch.optim.AdamW(weights, 0.01, weight_decay=0.0)
        return found, schedules.ConstantLR(found, 1.0), True
    if name == "dropout2":
        found = torch.optim.AdamW(weights, 0.02, weight_decay=0.0)
        return found, schedules.StepLR(found, 2, 0.1), True
    found = sgd(weights, 0.05, momentum=0.95)
    return found, schedules.OneCycleLR(found, 0.05, total_steps=EPOCHS * steps), False


def alone(name: str, maps: list[Tensor], targets: np.ndarray) -> tuple[nn.Module, list[float]]:
    """The same training as a plain loop; also the mean loss over valid cells of every epoch."""
    head = make_head(name)
    steps = math.ceil(len(targets) / BATCH)
    optimizer, schedule, per_epoch = optimizer_of(name, head, steps)
    wanted, losses = sampled(targets, GRIDS[name]), []
    for epoch in range(1, EPOCHS + 1):
        order = torch.randperm(len(targets), generator=torch_generator(3, "order", epoch))
        total, cells = 0.0, 0
        for step, batch in enumerate(order.split(BATCH)):
            torch.manual_seed(derive_seed(3, "dropout", epoch, step))
            head.train()
            outputs = F.interpolate(head([one[batch] for one in maps]), GRIDS[name], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(outputs, wanted[batch], ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not per_epoch:
                schedule.step()
            valid = int((wanted[batch] != 255).sum())
            total, cells = total + loss.item() * valid, cells + valid
        if per_epoch:
            schedule.step()
        losses.append(total / cells)
    return head, losses


@pytest.fixture(scope="module")
def all_together() -> dict[str, TrainedHead]:
    maps, targets = data()
    return together(list(CONFIGS), held_split(maps, targets, LABELS, C))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "wild"])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")
def test_together_as_alone_in_a_plain_loop(all_together: dict[str, TrainedHead], name: str) -> None:
    head, losses = alone(name, *data())
    found = all_together[name]
    assert [record["train_loss"] for record in found.history] == pytest.approx(losses, rel=2e-5)
    assert found.state is not None
    expected = head.state_dict()
    assert list(found.state) == list(expected)
    for key in expected:
        torch.testing.assert_close(found.state[key], expected[key], rtol=2e-4, atol=2e-5)
    assert found.best is not None
    assert found.best["epoch"] == EPOCHS


def test_one_diverges_and_the_others_do_not_notice(all_together: dict[str, TrainedHead]) -> None:
    wild = all_together["wild"]
    assert wild.diverged is not None
    assert (wild.best, wild.state) == (None, None)
    assert len(wild.history) == wild.diverged - 1
    for name in ("dropout", "sgd", "multi"):
        maps, targets = data()
        only = together([name], held_split(maps, targets, LABELS, C))[name]
        state = all_together[name].state or {}
        if name == "sgd":  # one product for all of its form: to rounding
            for mine, other in zip(only.history, all_together[name].history, strict=True):
                assert mine == pytest.approx(other, rel=1e-5)
            for key, value in (only.state or {}).items():
                torch.testing.assert_close(value, state[key], rtol=1e-4, atol=1e-6)
            continue
        assert only.history == all_together[name].history  # bit for bit, dropout included
        assert all(torch.equal(value, state[key]) for key, value in (only.state or {}).items())


def test_dropout_differs_between_steps(all_together: dict[str, TrainedHead]) -> None:
    losses = [record["train_loss"] for record in all_together["dropout"].history]
    assert len(set(losses)) == EPOCHS
    plain = CONFIGS["dropout"].model_copy(update={"dropout": 0.0})
    maps, targets = data()
    fit, loss = held_split(maps, targets, LABELS, C), find_dense_loss("cross_entropy")

    def make(name: str) -> nn.Module:
        torch.manual_seed(derive_seed(3, "head"))
        return build_head(plain, SHAPES, C)

    without = train_heads(make, {"dropout": plain}, fit, None, recipe(), loss, GRIDS)
    assert without["dropout"].history != all_together["dropout"].history


# --- order, remainder, void -----------------------------------------------------------------------------------------------------------


class Watched(DenseSplit):
    """Notes which samples are read to train."""

    def maps(self, samples: np.ndarray) -> list[Tensor]:
        self.__dict__.setdefault("batches_seen", []).append(samples.tolist())
        return super().maps(samples)


def watched(fit: DenseSplit) -> Any:
    return Watched(fit.name, fit.role, fit.target, fit.device, fit.n_classes)


def test_every_sample_once_an_epoch_in_an_order_of_the_seed() -> None:
    maps, targets = data()
    orders = []
    for seed in (3, 3, 4):
        fit = watched(held_split(maps, targets, LABELS, C))
        together(["adam"], fit, seed=seed)
        batches = fit.batches_seen
        assert [len(batch) for batch in batches] == [4, 4, 3] * EPOCHS
        epochs = [list(chain(*batches[i : i + 3])) for i in range(0, 3 * EPOCHS, 3)]
        assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
        assert epochs[0] != epochs[1]
        orders.append(epochs)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("ahead", [False, True])
def test_the_next_batches_are_read_while_heads_train_where_that_takes_long(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = data()
    fit, score = held_split(maps, targets, LABELS, C), held_split(maps, targets, LABELS, C)
    readers: set[str] = set()
    for features in (*fit.role.maps, *score.role.maps):
        features.reads_ahead = ahead  # type: ignore[attr-defined]
        gather = features.gather

        def noting(samples: Any, gather: Any = gather) -> Tensor:
            readers.add(threading.current_thread().name.rsplit("_", 1)[0])
            return gather(samples)

        features.gather = noting  # type: ignore[method-assign]
    found = together(["sgd", "adamw"], fit, score)
    assert readers == ({"virb-read"} if ahead else {"MainThread"})
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("virb-read")]
    expected = together(["sgd", "adamw"], held_split(maps, targets, LABELS, C), held_split(maps, targets, LABELS, C))
    for name, one in expected.items():
        assert found[name].history == one.history
        assert all(torch.equal(value, (found[name].state or {})[key]) for key, value in (one.state or {}).items())


def test_a_dense_stream_is_told_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, targets = data()
    fit, told = held_split(maps, targets, LABELS, C), []
    for features in fit.role.maps:
        features.decodes_ahead = True  # type: ignore[attr-defined]
        features.expect = lambda reads: told.append([samples.tolist() for samples in reads])  # type: ignore[attr-defined]
    fit = watched(fit)
    together(["adam"], fit)
    for epoch in range(EPOCHS):
        reads = fit.batches_seen[3 * epoch : 3 * epoch + 3]  # type: ignore[attr-defined]
        assert told[4 * epoch : 4 * epoch + 4] == [reads, reads, [], []]  # two maps


def test_void_samples_neither_train_nor_count() -> None:
    maps, targets = data()
    targets[[2, 7]] = 255
    other = [one.clone() for one in maps]
    for one in other:
        one[[2, 7]] = 1e3 * torch.randn(one[[2, 7]].shape)
    first, second = (
        together(["adam"], held_split(m, targets, LABELS, C), held_split(m, targets, LABELS, C))["adam"] for m in (maps, other)
    )
    assert first.history == second.history  # no trace of what the void samples look like
    for key, value in (first.state or {}).items():
        assert torch.equal(value, (second.state or {})[key])


def test_a_batch_without_a_valid_pixel_moves_nothing() -> None:
    maps, targets = data()
    targets[:] = 255
    found = together(["sgd", "adamw"], held_split(maps, targets, LABELS, C))
    for name in ("sgd", "adamw"):
        state = make_head(name).state_dict()
        for key, value in (found[name].state or {}).items():
            assert torch.equal(value, state[key]), (name, key)
        assert all("train_loss" not in record for record in found[name].history)


def test_progress_tells_every_step() -> None:
    maps, targets = data()
    steps: list[tuple[int, int]] = []
    together(["adam"], held_split(maps, targets, LABELS, C), on_step=lambda step, total: steps.append((step, total)))
    assert steps == [(step, 12) for step in range(1, 13)]


# --- choosing epochs ------------------------------------------------------------------------------------------------------------------


def test_the_best_scored_epoch_is_kept() -> None:
    maps, targets = data()
    fit, score = held_split(maps, targets, LABELS, C), held_split(*_other(), LABELS, C, name="select")
    found = together(["adam", "dropout"], fit, score, only_last=False, epochs=12)
    for name, one in found.items():
        scored = [record for record in one.history if "select_miou" in record]
        assert [record["epoch"] for record in scored] == [3, 6, 9, 12]  # at most five of twelve, the last always
        best = max(scored, key=lambda record: (record["select_miou"], -record["select_loss"], -record["epoch"]))
        assert one.best == best
        assert one.state is not None
        head = build_head(CONFIGS[name], SHAPES, C).eval()
        head.load_state_dict(one.state)
        with torch.inference_mode():
            outputs = F.interpolate(head(score.maps(np.arange(N))), (12, 12), mode="bilinear", align_corners=False)
        truth = torch.from_numpy(_other()[1].astype(np.int64))
        assert best["select_miou"] == pytest.approx(_miou(outputs.argmax(1), truth))
        wanted = sampled(_other()[1], GRIDS[name])
        at_grid = F.interpolate(head(score.maps(np.arange(N))), GRIDS[name], mode="bilinear", align_corners=False)
        assert best["select_loss"] == pytest.approx(F.cross_entropy(at_grid, wanted, ignore_index=255).item(), rel=1e-5)


def _other() -> tuple[list[Tensor], np.ndarray]:
    return data(1)


def _miou(found: Tensor, truth: Tensor) -> float:
    valid = truth != 255
    ious = []
    for label in range(C):
        a, b = (found == label) & valid, (truth == label) & valid
        ious.append(((a & b).sum() / (a | b).sum()).item())
    return float(np.mean(ious))


def test_without_selection_the_last_epoch_is_kept_and_no_other_scored() -> None:
    maps, targets = data()
    found = together(["adam"], held_split(maps, targets, LABELS, C), held_split(maps, targets, LABELS, C, "report"), only_last=True)["adam"]
    assert ["report_miou" in record for record in found.history] == [False] * (EPOCHS - 1) + [True]
    assert found.best == found.history[-1]


# --- resuming -------------------------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, at: int) -> None:
    maps, targets = data()
    names = list(CONFIGS)
    fit, score = held_split(maps, targets, LABELS, C), held_split(*_other(), LABELS, C, name="select")
    told: list[tuple[int, dict[str, Any]]] = []
    whole = together(names, fit, score, only_last=False, on_epoch=lambda epoch, records: told.append((epoch, dict(records))))

    def stop(epoch: int, records: Any) -> None:
        if epoch == at:
            raise Stop

    path = tmp_path / "state.pt"
    with pytest.raises(Stop):
        together(names, fit, score, only_last=False, checkpoint=path, save_every_s=0.0, on_epoch=stop)
    assert path.is_file()
    again: list[tuple[int, dict[str, Any]]] = []
    counted = watched(fit)
    resumed = together(
        names, counted, score, only_last=False, checkpoint=path, on_epoch=lambda epoch, records: again.append((epoch, dict(records)))
    )
    assert len(counted.batches_seen) == 3 * (EPOCHS - at)
    assert again == told
    for name in names:
        assert (resumed[name].history, resumed[name].best, resumed[name].diverged) == (
            whole[name].history,
            whole[name].best,
            whole[name].diverged,
        )
        assert (resumed[name].state is None) == (whole[name].state is None)
        for key, value in (whole[name].state or {}).items():
            assert torch.equal(value, (resumed[name].state or {})[key]), (name, key)


def test_states_of_other_settings_and_damaged_ones_are_not_used(tmp_path: Path) -> None:
    maps, targets = data()
    fit, path = held_split(maps, targets, LABELS, C), tmp_path / "state.pt"
    together(["adam"], fit, checkpoint=path, save_every_s=0.0)
    for damaged, seed in ((False, 4), (True, 3)):
        if damaged:
            path.write_bytes(path.read_bytes()[:-200])
        counted = watched(fit)
        found = together(["adam"], counted, checkpoint=path, save_every_s=1e9, seed=seed)["adam"]
        assert len(counted.batches_seen) == 3 * EPOCHS
        assert len(found.history) == EPOCHS


# --- other targets --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "loss", "values"),
    [
        (DenseTarget("mask"), "bce", (N, 12, 12)),
        (DenseTarget("depth", range=(0.1, 5.0)), "sig_loss", (N, 12, 12)),
        (DenseTarget("depth"), "l1", (N, 12, 12)),
        (DenseTarget("flow"), "flow_l1", (N, 3, 12, 12)),
        (DenseTarget("map", channels=3), "l1", (N, 3, 12, 12)),
    ],
)
def test_every_kind_of_target_trains(target: DenseTarget, loss: str, values: tuple[int, ...]) -> None:
    maps, _ = data()
    random = np.random.default_rng(0)
    mask = target.kind == "mask"
    truth: np.ndarray = random.integers(0, 2, values).astype(np.uint8) if mask else random.uniform(0.2, 3, values).astype(np.float32)
    config = DenseLinearConfig(optimizer="adamw", lr=0.03)
    metric = {"mask": "virb2021_iou_binary", "depth": "rmse", "flow": "epe", "map": "l1"}[target.kind]

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        return build_head(config, SHAPES[:1], n_outputs(target, None, config))

    fit = held_split(maps[:1], truth, target, None)
    loss_of = find_dense_loss(loss, target.kind)
    found = train_heads(make, {"a": config}, fit, fit, recipe(metrics=(metric,), loss_name=loss, epochs=6), loss_of, {"a": (6, 6)})["a"]
    losses = [record["train_loss"] for record in found.history]
    assert losses[-1] < losses[0]
    assert found.best is not None
    assert f"fit_{metric}" in found.best
