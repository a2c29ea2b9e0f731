"""Heads over the images of a sample: mean and attention against autograd, alone and in a grid against ``torch.optim``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from virb.config import GradientConfig, MlpConfig
from virb.errors import ViRBError
from virb.functional.randomness import torch_generator
from virb.probes.grid import Recipe, train_grid
from virb.probes.heads import IMAGES, QUERY, HeadShape, apply_head, backward, forward, head_shape, init_head, stack_heads, with_images
from virb.probes.split import Split

IMAGES_PER, WIDTH, CLASSES = 3, 5, 4
CPU = torch.device("cpu")


def shape(pool: str, hidden: int | None) -> HeadShape:
    return HeadShape(IMAGES_PER * WIDTH, CLASSES, hidden, IMAGES_PER, pool)  # type: ignore[arg-type]


def plain(head: dict[str, Tensor], x: Tensor, pool: str) -> Tensor:
    """The same head in the words of torch, one sample's images after another."""
    images = x.view(len(x), IMAGES_PER, WIDTH)
    if pool == "attention":
        weights = torch.softmax(images @ head[QUERY] / math.sqrt(WIDTH), dim=1)
        pooled = (weights[..., None] * images).sum(1)
    else:
        pooled = images.mean(1) if pool == "mean" else x
    if "head.weight" in head:
        return pooled @ head["head.weight"].t() + head["head.bias"]
    hidden = torch.relu(pooled @ head["head.0.weight"].t() + head["head.0.bias"])
    return hidden @ head["head.2.weight"].t() + head["head.2.bias"]


@pytest.mark.parametrize("hidden", [None, 6])
@pytest.mark.parametrize("pool", ["concat", "mean", "attention"])
def test_forward_and_backward_equal_autograd(pool: str, hidden: int | None) -> None:
    heads = [init_head(shape(pool, hidden), seed) for seed in range(3)]
    for seed, head in enumerate(heads):
        if QUERY in head:
            head[QUERY] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    stack = stack_heads(heads)
    x, grad = torch.randn(7, IMAGES_PER * WIDTH), torch.randn(7, 3, CLASSES)
    outputs, kept = forward(stack, x)
    out = backward(stack, x, kept, grad)
    for row, head in enumerate(heads):
        own = {name: tensor.clone().requires_grad_() for name, tensor in head.items()}
        expected = plain(own, x, pool)
        torch.testing.assert_close(outputs[:, row], expected, rtol=1e-5, atol=1e-6)
        expected.backward(grad[:, row])
        for name, tensor in own.items():
            torch.testing.assert_close(out[name][row], tensor.grad, rtol=1e-4, atol=1e-6, msg=name)


class Given:
    def __init__(self, values: Tensor) -> None:
        self.values, self.shape = values, tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def set_epoch(self, epoch: int) -> None: ...

    def gather(self, samples: Tensor) -> Tensor:
        return self.values[samples]


def split_of(name: str, n: int) -> Split:
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(n, IMAGES_PER, WIDTH, generator=generator)
    return Split(name, ((Given(values), torch.arange(n)),), torch.randint(0, CLASSES, (n,), generator=generator))


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_grid_of_both_equals_a_plain_loop(pool: str) -> None:
    fit, score = split_of("fit", 40), split_of("select", 10)
    configs = {
        "linear": GradientConfig(optimizer="sgd", lr=0.3, momentum=0.9, head=pool, init="normal0.01"),
        "mlp": MlpConfig(optimizer="adamw", lr=0.02, weight_decay=0.1, hidden=6, head=pool),
        "concat": GradientConfig(optimizer="adam", lr=0.01),
    }
    shapes = {"linear": HeadShape(15, 4, None, 3, pool, "normal0.01"), "mlp": shape(pool, 6), "concat": HeadShape(15, 4)}  # type: ignore[arg-type]
    recipe = Recipe(3, 16, 100, 0, score_every=False)
    trained = train_grid(shapes, configs, fit, score, recipe, CPU)
    for name, config in configs.items():
        head = {key: tensor.clone().requires_grad_() for key, tensor in init_head(shapes[name], 0).items()}
        options: dict[str, float] = {"lr": config.lr, "weight_decay": config.weight_decay}
        if config.optimizer == "sgd":
            options["momentum"] = config.momentum
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        optimizer = kinds[config.optimizer](head.values(), **options)  # type: ignore[operator]
        for epoch in range(1, 4):
            for positions in torch.randperm(40, generator=torch_generator(0, "order", epoch)).split(16):
                optimizer.zero_grad()
                logits = plain(head, fit.features(positions), shapes[name].pool)
                torch.nn.functional.cross_entropy(logits, fit.targets[positions]).backward()  # type: ignore[index]
                optimizer.step()
        for key, tensor in head.items():
            torch.testing.assert_close(trained[name].head[key], tensor.detach(), rtol=1e-4, atol=1e-5, msg=f"{name} {key}")  # type: ignore[index]


def test_attention_starts_as_the_mean() -> None:
    x = torch.randn(5, IMAGES_PER * WIDTH)
    attention, mean = init_head(shape("attention", None), 0), init_head(shape("mean", None), 0)
    outputs = [forward(stack_heads([head]), x)[0] for head in (attention, mean)]
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("pool", ["concat", "mean", "attention"])
@pytest.mark.parametrize("hidden", [None, 6])
def test_a_finished_head_says_what_it_takes(pool: str, hidden: int | None) -> None:
    head = with_images(init_head(shape(pool, hidden), 0), shape(pool, hidden))
    found = head_shape(head)
    assert (found.in_features, found.n_outputs, found.hidden, found.pool) == (IMAGES_PER * WIDTH, CLASSES, hidden, pool)
    assert (IMAGES in head) == (pool != "concat")
    x = torch.randn(2, IMAGES_PER, WIDTH)
    torch.testing.assert_close(apply_head(head, x), plain(head, x.flatten(1), pool))
    with pytest.raises(ViRBError, match="the head takes 15 numbers per sample, but the features have 10"):
        apply_head(head, x[:, :2])


def test_the_initial_weights_of_dino() -> None:
    head = init_head(HeadShape(400, 300, init="normal0.01"), 0)
    assert head["head.weight"].std() == pytest.approx(0.01, rel=0.01)
    assert head["head.weight"].mean() == pytest.approx(0.0, abs=1e-4)
    assert not head["head.bias"].any()
