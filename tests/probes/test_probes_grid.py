"""The grid against ``torch.nn.Linear`` and ``torch.optim`` in a plain loop, one config at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from virb.config import GradientConfig, MlpConfig, SchedulerConfig
from virb.functional.randomness import torch_generator
from virb.probes.grid import Recipe, Trained, train_grid
from virb.probes.heads import HeadShape, init_head
from virb.probes.split import Split

CPU = torch.device("cpu")
GOLDEN = Path(__file__).parents[1] / "golden"
WIDTH, CLASSES = 12, 4


class TensorFeatures:
    """Features in one tensor; remembers which epochs it was told of."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.shape, self.epochs = values, tuple(values.shape[1:]), []

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def gather(self, samples: torch.Tensor) -> torch.Tensor:
        return self.values[samples]

    def sample(self, index: int) -> list[torch.Tensor]:
        return [self.values[index]]


def split(name: str, n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(99))
    targets = torch.randint(CLASSES, (n,), generator=generator)
    x = centres[targets] + 1.5 * torch.randn(n, WIDTH, generator=generator)
    return Split(name, ((TensorFeatures(x), torch.arange(n)),), targets)


FIT, SELECT = split("fit", 103, 1), split("select", 37, 2)  # with batches of 16 the last one has 7
RECIPE = Recipe(epochs=5, batch_size=16, test_batch_size=10, seed=3)

CONFIGS = {
    "sgd": GradientConfig(optimizer="sgd", lr=0.1),
    "adamw": GradientConfig(optimizer="adamw", lr=0.01, weight_decay=0.1),
    "diverges": GradientConfig(optimizer="sgd", lr=3e38, momentum=0.9),
    "momentum": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.9, scheduler=SchedulerConfig(type="StepLR", step_size=2, gamma=0.3)),
    "nesterov": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.01),
    "adam": GradientConfig(optimizer="adam", lr=0.02, scheduler=SchedulerConfig(type="Poly", exponent=0.9)),
    "adam-decay": GradientConfig(optimizer="adam", lr=0.01, weight_decay=0.05, scheduler=SchedulerConfig(type="cosine", per="step")),
    "adam-cycle": GradientConfig(optimizer="adam", lr=0.03, scheduler=SchedulerConfig(type="OneCycle", per="step")),
    "sgd-cycle": GradientConfig(optimizer="sgd", lr=0.1, scheduler=SchedulerConfig(type="OneCycle")),
    "adamw-cosine": GradientConfig(optimizer="adamw", lr=0.02, weight_decay=0.01, scheduler=SchedulerConfig(type="cosine", min_lr=1e-3)),
    "sgd-decay": GradientConfig(
        optimizer="sgd", lr=0.2, weight_decay=0.02, scheduler=SchedulerConfig(type="Poly", exponent=2.0, per="epoch")
    ),
}


def optimizer_of(config: GradientConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay
        )
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](
        parameters, lr=config.lr, weight_decay=config.weight_decay
    )


def scheduler_of(config: GradientConfig, optimizer: torch.optim.Optimizer, total: int) -> torch.optim.lr_scheduler.LRScheduler | None:
    s, lib = config.scheduler, torch.optim.lr_scheduler
    if s is None:
        return None
    if s.type == "StepLR":
        return lib.StepLR(optimizer, s.step_size, s.gamma)
    if s.type == "Poly":
        return lib.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total) ** s.exponent)
    if s.type == "cosine":
        return lib.CosineAnnealingLR(optimizer, total, s.min_lr)
    return lib.OneCycleLR(optimizer, config.lr, total, anneal_strategy="linear")


def plain_loop(config: GradientConfig, shape: HeadShape, recipe: Recipe, fit: Split, select: Split) -> dict:
    """One config alone, as anybody would write it. Returns the state and what was measured after every epoch."""
    linear = nn.Linear(shape.in_features, shape.n_outputs)
    if shape.hidden:
        linear = nn.Sequential(nn.Linear(shape.in_features, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, shape.n_outputs))
    module = nn.ModuleDict({"head": linear})
    module.load_state_dict(init_head(shape, recipe.seed))
    (x, _), (x_select, _) = (s.parts[0] for s in (fit, select))
    x, x_select = x.values.flatten(1), x_select.values.flatten(1)
    optimizer = optimizer_of(config, list(module.parameters()))
    steps = math.ceil(len(x) / recipe.batch_size)
    per_step = config.scheduler is not None and config.scheduler.per == "step"
    scheduler = scheduler_of(config, optimizer, recipe.epochs * (steps if per_step else 1))
    history, states = [], []
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(x), generator=torch_generator(recipe.seed, "order", epoch))
        loss_sum, hits = 0.0, 0
        for step in range(steps):
            batch = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            outputs = module["head"](x[batch])
            loss = nn.functional.cross_entropy(outputs, fit.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            if scheduler is not None and per_step and (epoch - 1) * steps + step + 1 < recipe.epochs * steps:
                scheduler.step()
            loss_sum += loss.item() * len(batch)
            hits += int((outputs.argmax(1) == fit.targets[batch]).sum())
        if scheduler is not None and not per_step and epoch < recipe.epochs:
            scheduler.step()
        with torch.no_grad():
            outputs = module["head"](x_select)
            select_loss = nn.functional.cross_entropy(outputs, select.targets).item()
            select_top1 = (outputs.argmax(1) == select.targets).double().mean().item()
        row = {"epoch": epoch, "lr": lr, "train_loss": loss_sum / len(x), "train_top1": hits / len(x)}
        history.append(row | {"select_loss": select_loss, "select_top1": select_top1})
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
    return {"history": history, "states": states}


def same(found: Trained, expected: dict, kept: int) -> None:
    assert found.diverged is None
    assert len(found.history) == len(expected["history"])
    for mine, theirs in zip(found.history, expected["history"], strict=True):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            assert mine[key] == pytest.approx(theirs[key], rel=2e-5, abs=1e-7), (key, mine["epoch"])
    for name, tensor in expected["states"][kept - 1].items():
        torch.testing.assert_close(found.head[name], tensor, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("hidden", [None, (8, 8, 5)])
def test_k_together_equal_each_alone(hidden: tuple[int, ...] | None) -> None:
    """Mixed optimizers and schedules, heads of two shapes in the MLP case, and one config that diverges among them."""
    widths = hidden or (None,)
    shapes = {name: HeadShape(WIDTH, CLASSES, widths[i % len(widths)]) for i, name in enumerate(CONFIGS)}
    trained = train_grid(shapes, CONFIGS, FIT, SELECT, RECIPE, CPU)
    assert list(trained) == list(CONFIGS)
    for name, config in CONFIGS.items():
        if name == "diverges":
            assert trained[name].diverged is not None
            assert trained[name].head is None
            assert all(math.isfinite(value) for record in trained[name].history for value in record.values())
            continue
        expected = plain_loop(config, shapes[name], RECIPE, FIT, SELECT)
        best = max(expected["history"], key=lambda r: (r["select_top1"], -r["select_loss"]))["epoch"]
        assert trained[name].best["epoch"] == best
        same(trained[name], expected, best)


def test_without_scoring_the_last_head_is_kept() -> None:
    shapes = {"adam": HeadShape(WIDTH, CLASSES)}
    expected = plain_loop(CONFIGS["adam"], shapes["adam"], RECIPE, FIT, SELECT)
    for score, recipe in ((None, RECIPE), (SELECT, Recipe(5, 16, 10, 3, score_every=False))):
        found = train_grid(shapes, {"adam": CONFIGS["adam"]}, FIT, score, recipe, CPU)["adam"]
        torch.testing.assert_close(found.head, expected["states"][-1], rtol=2e-4, atol=2e-5)
        assert found.best["epoch"] == 5
        assert ["select_loss" in record for record in found.history] == [False] * 4 + [score is not None]


def test_stopping_early_keeps_the_schedule() -> None:
    """A refit for three epochs sees the rates of the first three of five."""
    shapes = {"adam": HeadShape(WIDTH, CLASSES)}
    expected = plain_loop(CONFIGS["adam"], shapes["adam"], RECIPE, FIT, SELECT)
    found = train_grid(shapes, {"adam": CONFIGS["adam"]}, FIT, None, Recipe(5, 16, 10, 3, stop_after=3), CPU)["adam"]
    torch.testing.assert_close(found.head, expected["states"][2], rtol=2e-4, atol=2e-5)


def test_a_config_does_not_depend_on_its_neighbours() -> None:
    shapes = {name: HeadShape(WIDTH, CLASSES) for name in CONFIGS}
    together = train_grid(shapes, CONFIGS, FIT, SELECT, RECIPE, CPU)["nesterov"]
    alone = train_grid(shapes, {"nesterov": CONFIGS["nesterov"]}, FIT, SELECT, RECIPE, CPU)["nesterov"]
    for name in alone.head:
        torch.testing.assert_close(together.head[name], alone.head[name], rtol=1e-4, atol=1e-6)
    assert together.best == pytest.approx(alone.best, rel=1e-5)


def test_the_chunks_of_scoring_do_not_change_its_sums() -> None:
    shapes = {name: HeadShape(WIDTH, CLASSES) for name in CONFIGS}
    small = train_grid(shapes, CONFIGS, FIT, SELECT, Recipe(5, 16, 1, 3), CPU)
    large = train_grid(shapes, CONFIGS, FIT, SELECT, Recipe(5, 16, 1000, 3), CPU)
    for name in CONFIGS:
        for a, b in zip(small[name].history, large[name].history, strict=True):
            assert a == pytest.approx(b, rel=1e-6)


def test_the_batch_may_be_larger_than_the_set() -> None:
    found = train_grid({"sgd": HeadShape(WIDTH, CLASSES)}, {"sgd": CONFIGS["sgd"]}, FIT, SELECT, Recipe(2, 1000, 1000, 3), CPU)["sgd"]
    expected = plain_loop(CONFIGS["sgd"], HeadShape(WIDTH, CLASSES), Recipe(2, 1000, 1000, 3), FIT, SELECT)
    assert [r["train_loss"] for r in found.history] == pytest.approx([r["train_loss"] for r in expected["history"]])


def test_features_turn_to_the_view_of_the_epoch() -> None:
    fit, select = split("fit", 20, 1), split("select", 8, 2)
    train_grid({"sgd": HeadShape(WIDTH, CLASSES)}, {"sgd": CONFIGS["sgd"]}, fit, select, Recipe(3, 16, 10, 0), CPU)
    assert fit.parts[0][0].epochs == [0, 1, 2]
    assert set(select.parts[0][0].epochs) == {0}


@pytest.mark.parametrize("case", ["adam", "sgd"])
def test_equals_virb_2021s_training(case: str) -> None:
    """Four full batches of the original, whose head starts from given weights: its losses are what we report for ours."""
    with np.load(GOLDEN / "virb_training.npz") as stored:
        data = {key: stored[key] for key in stored.files if key != "about"}
    x, x_test = (torch.from_numpy(data[f"{part}.x"]).half().float() for part in ("train", "test"))
    fit = Split("fit", ((TensorFeatures(x), torch.arange(24)),), torch.from_numpy(data["train.y"]))
    scored = int(data["test_items_scored"])  # the original drops the rest
    test = Split("report", ((TensorFeatures(x_test[:scored]), torch.arange(scored)),), torch.from_numpy(data["test.y"][:scored]))
    config = GradientConfig(optimizer=case, lr=float(data[f"{case}.lr"]), momentum=0.9 if case == "sgd" else 0.0)
    start = {key.removeprefix("head0."): torch.from_numpy(data[key]) for key in data if key.startswith("head0.")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("virb.probes.stacks.init_head", lambda shape, seed: start)
        history = []
        for epochs in range(1, 5):  # the original keeps the last head, so each epoch's head is looked at as a last one
            recipe = Recipe(4, 24, 5, 0, score_every=False, stop_after=epochs)
            found = train_grid({case: HeadShape(12, 4)}, {case: config}, fit, test, recipe, CPU)[case]
            history.append([found.best[key] for key in ("train_loss", "train_top1", "report_loss", "report_top1")])
    np.testing.assert_allclose(np.array(history)[:, [0, 2]], data[f"{case}.history"][:, [0, 2]], rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.array(history)[:, [1, 3]], data[f"{case}.history"][:, [1, 3]], rtol=0, atol=1e-6)
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(found.head[name].numpy(), data[f"{case}.head.{name}"], rtol=0, atol=1e-4)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path, stop: int, hidden: int | None) -> None:
    shapes = {name: HeadShape(WIDTH, CLASSES, hidden) for name in CONFIGS}
    undisturbed = train_grid(shapes, CONFIGS, FIT, SELECT, RECIPE, CPU)

    def interrupt(epoch: int, records: object) -> None:
        if epoch == stop:
            raise Interrupted

    file = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        train_grid(shapes, CONFIGS, FIT, SELECT, RECIPE, CPU, on_epoch=interrupt, checkpoint=file, save_every_s=0)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    told: list[tuple[int, dict]] = []
    fit = split("fit", 103, 1)
    resumed = train_grid(
        shapes, CONFIGS, fit, SELECT, RECIPE, CPU, on_epoch=lambda e, r: told.append((e, dict(r))), checkpoint=file, save_every_s=0
    )
    assert fit.parts[0][0].epochs == list(range(stop, 5))  # the epochs done are not trained again
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4, 5]  # but told again, so that curves are whole
    for name in CONFIGS:
        assert resumed[name].history == undisturbed[name].history
        assert resumed[name].best == undisturbed[name].best
        assert resumed[name].diverged == undisturbed[name].diverged
        if undisturbed[name].head is not None:
            for key, tensor in undisturbed[name].head.items():
                assert torch.equal(resumed[name].head[key], tensor), (name, key)


def test_a_state_of_another_training_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    shapes = {"sgd": HeadShape(WIDTH, CLASSES)}
    train_grid(shapes, {"sgd": CONFIGS["sgd"]}, FIT, SELECT, RECIPE, CPU, checkpoint=file, save_every_s=0)
    other = {"sgd": GradientConfig(optimizer="sgd", lr=0.2)}
    found = train_grid(shapes, other, FIT, SELECT, RECIPE, CPU, checkpoint=file, save_every_s=100)
    assert found["sgd"].history == train_grid(shapes, other, FIT, SELECT, RECIPE, CPU)["sgd"].history
    file.write_bytes(b"half a file")
    found = train_grid(shapes, other, FIT, SELECT, RECIPE, CPU, checkpoint=file, save_every_s=100)
    assert len(found["sgd"].history) == 5


def test_states_are_saved_no_more_often_than_asked(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    train_grid({"sgd": HeadShape(WIDTH, CLASSES)}, {"sgd": CONFIGS["sgd"]}, FIT, SELECT, RECIPE, CPU, checkpoint=file, save_every_s=100)
    assert not file.exists()


def test_mlp_widths_are_the_configs() -> None:
    """MlpConfig carries the width; the grid trains what the shapes say."""
    config = MlpConfig(optimizer="adam", lr=0.01, hidden=7)
    trained = train_grid({"a": HeadShape(WIDTH, CLASSES, config.hidden)}, {"a": config}, FIT, SELECT, Recipe(1, 16, 10, 0), CPU)
    assert trained["a"].head["head.0.weight"].shape == (7, WIDTH)
