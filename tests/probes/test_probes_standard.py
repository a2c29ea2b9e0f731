"""Heads on standardised features: against scikit-learn's StandardScaler and torch's optimizers, folded, mixed with others, resumed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from vector_support import CPU as CONTEXT
from vector_support import role, settings

from virb.config import GradientConfig, MlpConfig
from virb.errors import ViRBError
from virb.features import cache as cache_module
from virb.features.cache import FeatureCache, slice_bounds
from virb.features.feature_set import EncodedRows, MappedRows, SampleFeatures
from virb.functional.randomness import torch_generator
from virb.probes import stacks, standard
from virb.probes.base import RoleData
from virb.probes.grid import Recipe, Trained, train_grid
from virb.probes.heads import QUERY, HeadShape, apply_head, init_head, with_images
from virb.probes.linear import LinearProbe, MlpProbe
from virb.probes.split import Split, join
from virb.probes.standard import Standard, fold, make_standard, moments, standards

IMAGES, WIDTH, CLASSES = 3, 6, 4
CPU = torch.device("cpu")


class Given:
    """Features in one tensor; remembers which epochs it was told of."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.shape, self.epochs = values, tuple(values.shape[1:]), []

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def gather(self, samples: Tensor) -> Tensor:
        return self.values[samples]


def samples(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Values (n, IMAGES, WIDTH) of small and different spread around large means; feature 2 is the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (n,), generator=generator)
    centres = torch.randn(CLASSES, IMAGES, WIDTH, generator=torch.Generator().manual_seed(99))
    x = centres[targets] + torch.randn(n, IMAGES, WIDTH, generator=generator)
    x = x * torch.logspace(-2, 1, WIDTH) + torch.linspace(-8, 20, WIDTH) + torch.arange(IMAGES)[:, None]
    x[..., 2] = 0.1
    return x, targets


def split(name: str, n: int, seed: int) -> Split:
    x, targets = samples(n, seed)
    return Split(name, ((Given(x), torch.arange(n)),), targets)


def values_of(part: Split) -> Tensor:
    return part.parts[0][0].values


FIT, SELECT = split("fit", 103, 1), split("select", 37, 2)
RECIPE = Recipe(epochs=4, batch_size=16, test_batch_size=10, seed=3)
CONFIGS: dict[str, GradientConfig] = {
    "raw": GradientConfig(optimizer="sgd", lr=1e-4),
    "sgd": GradientConfig(optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=0.01, standardise=True),
    "adamw": GradientConfig(optimizer="adamw", lr=0.01, weight_decay=0.1, standardise=True),
    "mlp": MlpConfig(optimizer="adamw", lr=0.01, weight_decay=0.1, hidden=8, standardise=True),
    "mean": GradientConfig(optimizer="sgd", lr=0.1, head="mean", standardise=True),
    "attention": GradientConfig(optimizer="adam", lr=0.05, head="attention", init="normal0.01", standardise=True),
    "attention-mlp": MlpConfig(optimizer="adam", lr=0.02, head="attention", hidden=7, standardise=True),
    "raw-attention": GradientConfig(optimizer="adam", lr=0.001, head="attention"),
}


def shape_of(config: GradientConfig) -> HeadShape:
    return HeadShape(IMAGES * WIDTH, CLASSES, getattr(config, "hidden", None), IMAGES, config.head, config.init)


SHAPES = {name: shape_of(config) for name, config in CONFIGS.items()}


def train(configs: dict[str, GradientConfig] = CONFIGS, fit: Split = FIT, score: Split = SELECT, **options: object) -> dict[str, Trained]:
    shapes = {name: SHAPES[name] for name in configs}
    found = standards(fit, shapes, configs)
    return train_grid(shapes, configs, fit, score, RECIPE, CPU, standards=found, **options)  # type: ignore[arg-type]


def scaled(x: Tensor, head: str) -> Tensor:
    """By scikit-learn: every number of the sample, or, for heads that pool, every feature over all images of all samples."""
    by = (lambda v: v.reshape(-1, WIDTH)) if head != "concat" else (lambda v: v.flatten(1))
    scaler = StandardScaler().fit(by(values_of(FIT)).double().numpy())
    return torch.from_numpy(scaler.transform(by(x).double().numpy())).reshape(len(x), -1)


def plain(head: dict[str, Tensor], x: Tensor, pool: str) -> Tensor:
    """A head in the words of torch, in the precision of its tensors."""
    images = x.view(len(x), IMAGES, WIDTH)
    pooled = x
    if pool == "mean":
        pooled = images.mean(1)
    elif pool == "attention":
        pooled = (torch.softmax(images @ head[QUERY] / math.sqrt(WIDTH), 1)[..., None] * images).sum(1)
    if "head.weight" in head:
        return nn.functional.linear(pooled, head["head.weight"], head["head.bias"])
    hidden = torch.relu(nn.functional.linear(pooled, head["head.0.weight"], head["head.0.bias"]))
    return nn.functional.linear(hidden, head["head.2.weight"], head["head.2.bias"])


def trained_by_torch(name: str) -> tuple[list[dict[str, float]], list[Tensor]]:
    """Losses of every epoch, and the outputs on SELECT after it: StandardScaler before the head, torch.optim, the same batches."""
    config = CONFIGS[name]
    given = [values_of(part) for part in (FIT, SELECT)]
    x, x_select = (scaled(v, config.head).float() if config.standardise else v.flatten(1) for v in given)
    head = {key: tensor.clone().requires_grad_() for key, tensor in init_head(SHAPES[name], RECIPE.seed).items()}
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    more = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer = kind(list(head.values()), lr=config.lr, weight_decay=config.weight_decay, **more)
    history, outputs = [], []
    for epoch in range(1, RECIPE.epochs + 1):
        total = 0.0
        for batch in torch.randperm(len(x), generator=torch_generator(RECIPE.seed, "order", epoch)).split(RECIPE.batch_size):
            loss = nn.functional.cross_entropy(plain(head, x[batch], config.head), FIT.targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            outputs.append(plain(head, x_select, config.head))
        score = nn.functional.cross_entropy(outputs[-1], SELECT.targets).item()
        history.append({"train_loss": total / len(x), "select_loss": score})
    return history, outputs


def finished(found: Trained, name: str) -> dict[str, Tensor]:
    assert found.head is not None
    return with_images(found.head, SHAPES[name])


def test_a_mixed_grid_equals_scikit_learns_scaler_and_torchs_optimizers() -> None:
    found = train()
    for name in CONFIGS:
        history, outputs = trained_by_torch(name)
        for mine, theirs in zip(found[name].history, history, strict=True):
            for key, value in theirs.items():
                assert mine[key] == pytest.approx(value, rel=1e-4), (name, key)
        # What is handed out takes the features as they are.
        kept = outputs[int(found[name].best["epoch"]) - 1]
        torch.testing.assert_close(apply_head(finished(found[name], name), values_of(SELECT)), kept, rtol=1e-3, atol=2e-3)


def test_a_config_does_not_depend_on_its_neighbours() -> None:
    together = train()
    for name in CONFIGS:
        alone = train({name: CONFIGS[name]})[name]
        for a, b in zip(together[name].history, alone.history, strict=True):
            assert a == pytest.approx(b, rel=1e-5), name
        for key, tensor in alone.head.items():
            torch.testing.assert_close(together[name].head[key], tensor, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


def test_without_standardise_nothing_is_read() -> None:
    fit = split("fit", 20, 1)
    assert standards(fit, SHAPES, {"raw": CONFIGS["raw"]}) == {}
    assert fit.parts[0][0].epochs == []
    found = standards(fit, SHAPES, CONFIGS)
    assert list(found) == [name for name, config in CONFIGS.items() if config.standardise]
    assert found["sgd"] is found["mlp"] is not found["mean"] is found["attention"]
    assert fit.parts[0][0].epochs == [0]  # augmented views: the first epoch's


@pytest.mark.parametrize("hidden", [None, 5])
@pytest.mark.parametrize("pool", ["concat", "mean", "attention"])
def test_a_folded_head_gives_for_features_what_it_gave_for_standardised_ones(pool: str, hidden: int | None) -> None:
    shape = HeadShape(IMAGES * WIDTH, CLASSES, hidden, IMAGES, pool)  # type: ignore[arg-type]
    head = init_head(shape, 7)
    if QUERY in head:
        head[QUERY] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    own = make_standard(*moments(FIT), 1 if pool == "concat" else IMAGES)
    folded = fold(head, own)
    assert list(folded) == list(head)
    assert all(tensor.dtype == torch.float32 for tensor in folded.values())
    expected = plain(head, scaled(values_of(SELECT), pool).float(), pool)
    # By the arithmetic of the fold alone, and in float32.
    exact = plain({key: tensor.double() for key, tensor in folded.items()}, values_of(SELECT).flatten(1).double(), pool)
    torch.testing.assert_close(exact.float(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(apply_head(with_images(folded, shape), values_of(SELECT)), expected, rtol=1e-4, atol=1e-3)


def test_the_statistics_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of a few samples, on one split and on two joined."""
    monkeypatch.setattr(standard, "_READ_ROWS", 7)
    for part, x in ((FIT, values_of(FIT)), (join(FIT, SELECT), torch.cat([values_of(FIT), values_of(SELECT)]))):
        for images, by in ((1, x.flatten(1)), (IMAGES, x.reshape(-1, WIDTH))):
            scaler = StandardScaler().fit(by.double().numpy())
            found = make_standard(*moments(part), images)
            assert found.mean.shape == found.scale.shape == (IMAGES * WIDTH,)
            np.testing.assert_allclose(found.mean[: by.shape[1]], scaler.mean_, rtol=1e-7)
            np.testing.assert_allclose(1 / found.scale[: by.shape[1]].double(), scaler.scale_, rtol=1e-6)
            assert torch.equal(found.mean.view(images, -1)[0], found.mean.view(images, -1)[-1])


def test_what_does_not_vary_only_loses_its_mean() -> None:
    """Constants, rounding around a large number, and the least that does vary."""
    n = 1000
    x = torch.zeros(n, 6)
    x[:, 0], x[:, 1] = 0.1, 1e30
    x[:, 2] = torch.where(torch.arange(n) % 2 == 0, torch.tensor(1000.0), torch.nextafter(torch.tensor(1000.0), torch.tensor(2000.0)))
    x[0, 4] = 1e-6
    x[:, 5] = torch.linspace(999, 1001, n)
    part = Split("fit", ((Given(x), torch.arange(n)),), torch.arange(n) % 2)
    mean, spread = moments(part)
    assert spread[[0, 1, 3]].tolist() == [0.0] * 3
    found = make_standard(mean, spread)
    assert found.scale[:4].tolist() == [1.0] * 4
    assert found.scale[4].item() == pytest.approx(1 / x[:, 4].double().std(correction=0).item(), rel=1e-6)
    assert found(x)[:, [0, 1, 3]].abs().max() == 0
    assert found(x).abs().max() < 32
    configs = {"a": GradientConfig(optimizer="sgd", lr=0.1, standardise=True)}
    head = train_grid({"a": HeadShape(6, 2)}, configs, part, None, RECIPE, CPU, standards={"a": found})["a"].head
    assert all(torch.isfinite(tensor).all() for tensor in head.values())
    # A feature that is constant in every place, but not the same in all places, varies for a head that pools.
    places = make_standard(torch.tensor([1.0, 5.0, 3.0, 5.0]).double(), torch.zeros(4).double(), 2)
    assert places.mean.tolist() == [2.0, 5.0] * 2
    assert places.scale.tolist() == [1.0, 1.0] * 2


def test_no_samples() -> None:
    with pytest.raises(ViRBError, match="there are no fit samples"):
        moments(split("fit", 0, 1))


@pytest.mark.parametrize("stop", [1, 3])
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path, stop: int) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(epoch: int, records: object) -> None:
        if epoch == stop:
            raise Interrupted

    undisturbed = train()
    file = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        train(on_epoch=interrupt, checkpoint=file, save_every_s=0.0)
    state = torch.load(file, weights_only=True)
    assert state["epoch"] == stop
    equal_bits(train(checkpoint=file, save_every_s=100.0), undisturbed)
    # A state that was left without the key is not one of this training.
    other = {name: config.model_copy(update={"standardise": False}) for name, config in CONFIGS.items()}
    equal_bits(train(other, checkpoint=file), train(other))


def equal_bits(a: dict[str, Trained], b: dict[str, Trained]) -> None:
    assert list(a) == list(b)
    for name in a:
        assert a[name].history == b[name].history, name
        assert all(torch.equal(tensor, b[name].head[key]) for key, tensor in a[name].head.items()), name


@pytest.mark.parametrize("tier", ["device", "mapped", "streamed"])
def test_every_tier_gives_the_bits_of_the_host(tier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 on disk and in memory, read in pieces."""
    monkeypatch.setattr(cache_module, "SLICE_ROWS", 50)
    monkeypatch.setattr(standard, "_READ_ROWS", 16)
    x = values_of(FIT).reshape(-1, WIDTH).half()
    cache = FeatureCache(tmp_path)
    for start, stop in slice_bounds(len(x)):
        cache.write_slice("key", start, x[start:stop].numpy(), {})

    def fit(where: str) -> Split:
        rows = MappedRows(cache.slices("key", len(x)))
        source = EncodedRows(len(x), (WIDTH,), lambda numbers: x[numbers]) if where == "streamed" else rows
        index = np.random.default_rng(0).permutation(len(x))
        features = SampleFeatures([source], index, np.arange(len(FIT) + 1) * IMAGES, CPU, where)
        return Split("fit", ((features, torch.arange(len(FIT))),), FIT.targets)

    assert fit("host").features(torch.arange(2)).dtype == torch.float32
    equal_bits(train(fit=fit(tier)), train(fit=fit("host")))


def test_the_bits_are_the_same_for_any_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what heads see is computed once per batch, however many groups of them see it."""
    monkeypatch.setattr(stacks, "_LEAST_WEIGHTS", 1)
    monkeypatch.setattr(stacks, "_LEAST_WORK", 1)
    calls: list[int] = []
    real = Standard.__call__
    monkeypatch.setattr(Standard, "__call__", lambda own, x: calls.append(id(own)) or real(own, x))
    configs = {f"{name}{i}": config for i in range(3) for name, config in CONFIGS.items()}
    shapes = {name: SHAPES[name.rstrip("012")] for name in configs}
    found = []
    for cores in (1, 3):
        calls.clear()
        own = standards(FIT, shapes, configs)
        found.append(train_grid(shapes, configs, FIT, SELECT, RECIPE, CPU, standards=own, cores=cores))
        of_batches = RECIPE.epochs * (math.ceil(len(FIT) / 16) + math.ceil(len(SELECT) / 10))
        assert {calls.count(number) for number in calls} == {of_batches}
        assert len(set(calls)) == 2  # numbers in their places, and images
    equal_bits(*found)


def digits(offset: float, scale: float) -> dict[str, RoleData]:
    x, y = load_digits(return_X_y=True)
    x = (x * scale + offset).astype(np.float16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    parts = {"fit": order[:1000], "select": order[1000:1300], "report": order[1300:]}
    return {name: role(name, x[part], y[part]) for name, part in parts.items()}


@pytest.mark.parametrize("probe", [LinearProbe, MlpProbe])
@pytest.mark.parametrize("refit", [False, True])
def test_on_digits_the_saved_head_has_the_scores_of_its_training(probe: type, refit: bool) -> None:
    """Around a mean of fifty spreads, where a plain head has learned next to nothing."""
    data = digits(16.0, 0.04)
    kind = {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}
    configs = {str(value): MlpConfig(**kind, standardise=value, hidden=32) for value in (False, True)}
    options = settings(configs, num_epochs=10, batch_size=64, n_classes=10, refit=refit)
    outcome = probe().from_features(data, options, CONTEXT)
    assert outcome.chosen == "True"
    found = outcome.runs[0].configs
    assert found["True"].select_metrics["top1"] > 0.93 > 0.6 > found["False"].select_metrics["top1"]
    kept, part = found["True"].head, data["report" if refit else "select"]
    logits = apply_head(kept, part.features.values)
    top1 = float((logits.argmax(1).numpy() == part.targets).mean())
    if refit:
        np.testing.assert_array_equal(logits.numpy(), found["True"].report.values)
        assert top1 > 0.93
        return
    assert top1 == found["True"].select_metrics["top1"]
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(part.targets)).item()
    assert loss == pytest.approx(found["True"].select_loss, rel=1e-4)


def test_the_statistics_are_of_the_samples_that_are_trained_on() -> None:
    """Not of those that choose or report; and of both after a refit."""
    data = digits(16.0, 0.04)
    configs = {"a": GradientConfig(optimizer="sgd", lr=0.05, standardise=True)}
    options = settings(configs, num_epochs=3, batch_size=64, n_classes=10)
    far = {name: part if name == "fit" else role(name, part.features.values.numpy() + 3, part.targets) for name, part in data.items()}
    histories = [LinearProbe().from_features(given, options, CONTEXT).runs[0].configs["a"].history for given in (data, far)]
    assert [r["train_loss"] for r in histories[0]] == [r["train_loss"] for r in histories[1]]
    assert histories[0][-1]["select_loss"] != histories[1][-1]["select_loss"]

    refitted = LinearProbe().from_features(data, replace(options, refit=True), CONTEXT).runs[0].configs["a"]
    both = role(
        "fit",
        np.concatenate([data[name].features.values.numpy() for name in ("fit", "select")]),
        np.concatenate([data[name].targets for name in ("fit", "select")]),
    )
    last = replace(options, selection="test-last", num_epochs=refitted.epoch)
    whole = LinearProbe().from_features({"fit": both, "report": data["report"]}, last, CONTEXT).runs[0].configs["a"]
    assert all(torch.equal(refitted.head[key], whole.head[key]) for key in whole.head)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_step_is_captured_and_gives_the_numbers_of_the_cpu() -> None:
    device, notes = torch.device("cuda:0"), []
    fit, select = (
        Split(part.name, ((Given(values_of(part).to(device)), torch.arange(len(part))),), part.targets.to(device)) for part in (FIT, SELECT)
    )
    found = train_grid(SHAPES, CONFIGS, fit, select, RECIPE, device, standards=standards(fit, SHAPES, CONFIGS), notes=notes)
    assert notes == []
    for name, expected in train().items():
        for a, b in zip(found[name].history, expected.history, strict=True):
            assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4), name
