"""Frozen is frozen, family by family: nothing that the encoder holds changes, whatever is asked of it and whoever holds it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from virb.encoders import huggingface, towers
from virb.encoders.base import Encoder, InputSpec
from virb.encoders.load import load_encoder


class Noisy(nn.Module):
    """A user's network with all that training would change: batch norm, dropout, a buffer, a learned weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8, momentum=0.5), nn.Dropout2d(0.5))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.training:
            self.seen += 1
        maps = self.stem(images)
        return {"tokens": maps, "embedding": maps.mean((2, 3))}


class Answer:
    def __init__(self, tokens: torch.Tensor) -> None:
        self.last_hidden_state, self.pooler_output = tokens, None


class Tower(nn.Module):
    """What a model of transformers looks like from outside, with dropout and a buffer that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, 0.5, batch_first=True) for _ in range(2))
        self.layernorm = nn.LayerNorm(16)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Answer:
        if self.training:
            self.seen += 1
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return Answer(self.layernorm(tokens))


HUBCONF = """
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.fc, self.drop = nn.LayerNorm(16), nn.Linear(16, 16), nn.Dropout(0.5)

        def forward(self, x):
            return x + self.drop(self.fc(self.norm1(x)))

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = nn.Conv2d(3, 16, 8, 8)
            self.bn = nn.BatchNorm2d(16, momentum=0.5)
            self.cls_token = nn.Parameter(torch.randn(1, 1, 16))
            self.blocks = nn.ModuleList(Block() for _ in range(2))
            self.norm = nn.LayerNorm(16)

        def forward(self, x):
            x = self.bn(self.patch_embed(x)).flatten(2).transpose(1, 2)
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
            for block in self.blocks:
                x = block(x)
            return self.norm(x)[:, 0]

    class Plain(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def vit():
        torch.manual_seed(0)
        return ViT().train()

    def plain():
        torch.manual_seed(0)
        return Plain().train()
"""


def from_hub(entry: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        (folder / "hubconf.py").write_text(dedent(HUBCONF))
        return {"hub": f"{folder}:{entry}"}

    return make


def from_transformers(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    drop = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "drop_path_rate": 0.5}
    transformers.Dinov2Config(**sizes, **drop).save_pretrained(folder)
    return {"hf": str(folder), "weights": "random", "input": {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3}}


def from_open_clip(folder: Path) -> Any:
    open_clip = pytest.importorskip("open_clip")
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    assert open_clip.__version__
    sizes = CLIPVisionCfg(layers=2, width=32, head_width=16, image_size=SIDE, patch_size=8, patch_dropout=0.5)
    return towers.wrap(_build_vision_tower(24, sizes).train(), "open_clip:tiny", {}, InputSpec(size=(SIDE, SIDE))).seal("tiny", "tiny")


def tower_stand_in(folder: Path) -> Any:
    network = huggingface.HuggingFaceModel(Tower(), False, maps=False)
    return towers.wrap(network.train(), "hf:stand-in", {}, InputSpec(size=(SIDE, SIDE))).seal("stand-in", "stand-in")


DROP = {"drop_rate": 0.5, "drop_path_rate": 0.5}
FAMILIES: dict[str, Any] = {
    "vit": {"arch": "vit", "weights": "random", "args": {"width": 32, "depth": 3, "heads": 2, "patch_size": 8, "img_size": 32}},
    "vit with registers": {
        "arch": "vit",
        "weights": "random",
        "args": {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 32, "registers": 3, "layer_scale": True},
    },
    "resnet": {"arch": "resnet18", "weights": "random"},
    "wide resnet": {"arch": "wide_resnet50_2", "weights": "random"},
    "timm vit": {
        "timm": "vit_tiny_patch16_224",
        "weights": "random",
        "args": {**DROP, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "pos_drop_rate": 0.5, "depth": 2},
    },
    "timm patch dropout": {"timm": "vit_tiny_patch16_224", "weights": "random", "args": {"patch_drop_rate": 0.5, "depth": 2}},
    "timm eva": {"timm": "vit_small_patch16_dinov3", "weights": "random", "args": {"drop_path_rate": 0.5, "depth": 2}},
    "timm batch norm": {"timm": "mobilenetv3_small_050", "weights": "random", "args": DROP},
    "timm convnext": {"timm": "convnext_atto", "weights": "random", "args": DROP},
    "timm swin": {"timm": "swin_tiny_patch4_window7_224", "weights": "random", "args": {**DROP, "depths": (1, 1, 1, 1)}},
    "module": Noisy(),
    "pixels": {"arch": "pixels"},
    "hub vit": from_hub("vit"),
    "hub": from_hub("plain"),
    "hf": from_transformers,
    "open_clip": from_open_clip,
    "hf stand-in": tower_stand_in,
}
SIDE = 64


def contents(encoder: Encoder) -> dict[str, Any]:
    tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    return {
        **{name: tensor.clone() for name, tensor in tensors.items()},
        **{f"{name} grad": tensor.requires_grad for name, tensor in encoder.named_parameters()},
        **{f"{name} training": module.training for name, module in encoder.named_modules()},
    }


def assert_unchanged(encoder: Encoder, before: dict[str, Any]) -> None:
    after = contents(encoder)
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value) if isinstance(value, torch.Tensor) else after[name] == value, name


def outputs(encoder: Encoder, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    values = encoder(images, encoder.spec.outputs).values()
    return tuple(tensor for value in values for tensor in (value if isinstance(value, tuple) else (value,)))


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes(family: str, tmp_path: Path) -> None:
    given = FAMILIES[family]
    encoder = load_encoder(given(tmp_path) if isinstance(given, FunctionType) else given)
    before = contents(encoder)
    assert not any(value for name, value in before.items() if name.endswith((" grad", " training")))
    pixels = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if "swin" in family:
        pixels = pixels.repeat(1, 1, 4, 4)[:, :, :224, :224]
    images = encoder.prepare(pixels)
    first = outputs(encoder, images)

    encoder.train()  # by itself, and as a part of something that is trained
    model = nn.Sequential(encoder, nn.Linear(1, 1)).train()
    assert model.training
    with torch.enable_grad():
        again = outputs(encoder, images.clone().requires_grad_())
    assert not any(tensor.requires_grad for tensor in again)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs(encoder, images)
    with torch.inference_mode():
        outputs(encoder, images)
    model.eval()
    encoder.network.train()  # past the encoder's own train()
    last = outputs(encoder, images)

    assert_unchanged(encoder, before)
    for tensors in (again, last):  # dropout, or statistics of the batch, would show
        assert all(torch.equal(a, b) for a, b in zip(first, tensors, strict=True))
    alone = encoder(images[:1])["embedding"]
    torch.testing.assert_close(alone, first[list(encoder.spec.outputs).index("embedding")][:1], atol=1e-4, rtol=1e-4)


def test_a_step_of_a_head_leaves_the_encoder_as_it_is() -> None:
    encoder = load_encoder(FAMILIES["resnet"])
    before = contents(encoder)
    head = nn.Linear(512, 3)
    model = nn.ModuleDict({"encoder": encoder, "head": head}).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    start = copy.deepcopy(head.weight)
    loss = head(encoder(torch.randn(4, 3, 32, 32))["embedding"]).square().mean()
    loss.backward()
    optimizer.step()
    assert not torch.equal(head.weight, start)
    assert_unchanged(encoder, before)


def test_dropout_in_the_arguments_changes_nothing() -> None:
    args = {"depth": 2}
    plain = load_encoder({"timm": "vit_tiny_patch16_224", "weights": "random", "args": args})
    dropping = load_encoder({"timm": "vit_tiny_patch16_224", "weights": "random", "args": {**args, **DROP}})
    dropping.network.load_state_dict(plain.network.state_dict())
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(plain(images)["embedding"], dropping(images)["embedding"])


def test_a_module_is_copied_and_the_users_own_stays_trainable() -> None:
    network = models.resnet18().train()
    network.fc = nn.Identity()
    encoder = load_encoder(network)
    encoder(torch.randn(2, 3, 32, 32))
    assert network.training
    assert network.bn1.training
    assert all(p.requires_grad for p in network.parameters())
    assert not network.bn1.running_mean.any()
