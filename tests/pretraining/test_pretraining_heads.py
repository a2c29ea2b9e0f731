"""Head and multi-crop forward against stored outputs of the original code."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from virb.pretraining import networks as nets
from virb.pretraining.heads import DINOHead, MultiCrop

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def state(stored: dict[str, np.ndarray], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): torch.from_numpy(value) for key, value in stored.items() if key.startswith(prefix)}


def near(ours: Tensor, stored: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(stored), atol=tolerance, rtol=0)


CASES = {
    "norm_last": dict(),
    "free_last": dict(norm_last_layer=False),
    "bn": dict(batch_norm=True),
    "two_layers": dict(layers=2),
    "one_layer": dict(layers=1),
}


@pytest.mark.parametrize("case", CASES)
def test_head_equals_the_original(case: str) -> None:
    stored = load("dino_head")
    head = DINOHead(64, 48, hidden=96, bottleneck=32, **CASES[case])
    head.load_state_dict(state(stored, f"{case}.sd."))
    x = torch.from_numpy(stored["x"])
    near(head.eval()(x), stored[f"{case}.y"], 5e-6)
    assert [name for name, parameter in head.named_parameters() if parameter.requires_grad] == stored[f"{case}.trainable"].tolist()
    if case == "bn":
        near(head.train()(x), stored["bn.y_train_mode"], 5e-6)
        after = state(stored, "bn.sd_after_one_train_forward.")
        for key, value in head.state_dict().items():
            torch.testing.assert_close(value, after[key], atol=1e-6, rtol=0)


def test_head_starts_as_the_original() -> None:
    torch.manual_seed(0)
    head = DINOHead(256, 4096, hidden=512, bottleneck=64)
    assert head.last_layer.weight_g.eq(1).all()
    bound = 64**-0.5  # torch's start of a linear layer: uniform
    assert head.last_layer.weight_v.abs().max() <= bound
    assert head.last_layer.weight_v.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
    for linear in (module for module in head.mlp.modules() if isinstance(module, nn.Linear)):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert linear.bias.eq(0).all()


def test_head_can_be_copied_after_a_forward() -> None:
    head = DINOHead(8, 16, hidden=12, bottleneck=6)
    x = torch.randn(3, 8)
    y = head(x)
    torch.testing.assert_close(copy.deepcopy(head)(x), y)


class Watched(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(tuple(images.shape))
        return self.network(images)


def network(stored: dict[str, np.ndarray], tokens: bool) -> MultiCrop:
    config = nets.BackboneConfig("vit", 16, (64, 32), embed_dim=32, depth=2, num_heads=2, position_mode="dino")
    backbone = nets.find_backbone(config, tokens)
    found = MultiCrop(backbone.build(0.0), DINOHead(32, 24, hidden=48, bottleneck=16), backbone.extract)
    found.load_state_dict(state(stored, "sd."))
    return found


def crops(stored: dict[str, np.ndarray]) -> list[Tensor]:
    return [torch.from_numpy(stored[f"crop{i}"]) for i in range(len(stored["widths"]))]


def test_multi_crop_equals_the_original() -> None:
    stored = load("dino_multicrop")
    found, views = network(stored, tokens=False), crops(stored)
    near(torch.cat(found(views)), stored["student"], 2e-5)
    near(torch.cat(found(views[:2])), stored["teacher"], 2e-5)
    near(torch.cat(found([views[0], views[2], views[1]])), stored["mixed_order"], 2e-5)


def test_one_forward_per_run_of_equal_sizes() -> None:
    stored = load("dino_multicrop")
    original, views = network(stored, tokens=False), crops(stored)
    watched = Watched(original.backbone)
    found = MultiCrop(watched, original.head, lambda backbone, images, noise: backbone(images))
    found(views)
    assert watched.calls == list(map(tuple, stored["backbone_calls"].tolist()))
    watched.calls.clear()
    found([views[0], views[2], views[1]])
    assert watched.calls == list(map(tuple, stored["mixed_backbone_calls"].tolist()))


def test_multi_crop_of_tokens_equals_the_original() -> None:
    stored = load("patchwise_multicrop")
    found, views = network(stored, tokens=True), crops(stored)
    student = found(views)
    near(torch.cat(student[:2]), stored["student_global"], 2e-5)
    near(torch.cat(student[2:]), stored["student_local"], 2e-5)
    near(torch.cat(found(views[:2])), stored["teacher"], 2e-5)
    near(found.extract(found.backbone, views[0], None), stored["tokens"], 2e-5)


def test_a_head_of_their_own_for_patches() -> None:
    stored = load("patchwise_multicrop")
    shared, views = network(stored, tokens=True), crops(stored)
    other = DINOHead(32, 24, hidden=48, bottleneck=16)
    both = MultiCrop(shared.backbone, shared.head, shared.extract, other)
    for logits, expected, view in zip(both(views), shared(views), views, strict=True):
        torch.testing.assert_close(logits[:, 0], expected[:, 0])
        torch.testing.assert_close(logits[:, 1:], other(shared.extract(shared.backbone, view, None)[:, 1:]))
    assert {key.split(".")[0] for key in both.state_dict()} == {"backbone", "head", "patch_head"}


def test_each_image_and_view_gets_its_own_noise() -> None:
    seen: list[Tensor] = []

    def extract(backbone: nn.Module, images: Tensor, noise: Tensor | None) -> Tensor:
        assert noise is not None
        seen.append(torch.stack([images[:, 0, 0, 0], noise[:, 0]]))
        return images.flatten(1)[:, :4]

    noise = torch.arange(6.0).view(2, 3, 1)  # 2 images, 3 views
    views = [torch.full((2, 3, size, size), 0.0) for size in (8, 8, 4)]
    for v, view in enumerate(views):
        for b in range(2):
            view[b] = noise[b, v, 0]
    MultiCrop(nn.Identity(), DINOHead(4, 5, hidden=4, bottleneck=3), extract)(views, noise)
    assert [len(pair[0]) for pair in seen] == [4, 2]
    assert all(torch.equal(pair[0], pair[1]) for pair in seen)
