"""The ViT against stored outputs of DINO's original code, and against timm with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from virb.encoders.load import load_encoder
from virb.encoders.vit import ViTEncoder
from virb.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS, ATTENTION, POSITIONS = 1e-5, 1e-6, 1e-6
MODES = ("exact", "dino", "antialias")
TINY = {"width": 64, "depth": 5, "heads": 2, "patch_size": 16, "img_size": 224}


def golden(patch: int, mode: str, folder: Path) -> tuple[Any, ViTEncoder]:
    stored = np.load(GOLDEN / f"dino_vit_p{patch}.npz", allow_pickle=False)
    state = {key[3:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("sd.")}
    torch.save(state, folder / "vit.pth")
    args = {"heads": 2, "position_mode": mode}
    encoder = load_encoder({"arch": "vit", "weights": str(folder / "vit.pth"), "args": args})
    assert isinstance(encoder, ViTEncoder)
    return stored, encoder


def assert_near(ours: torch.Tensor, stored: np.ndarray, tolerance: float) -> None:
    torch.testing.assert_close(ours, torch.from_numpy(stored), atol=tolerance, rtol=0)


def as_map(tokens: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    return tokens[:, 1:].transpose(0, 2, 1).reshape(len(tokens), -1, *grid)


@pytest.mark.parametrize("patch", [16, 8])
def test_dino_mode_equals_the_original(patch: int, tmp_path: Path) -> None:
    stored, encoder = golden(patch, "dino", tmp_path)
    for height, width in stored["sizes"].tolist():
        size, grid = f"{height}x{width}", (height // patch, width // patch)
        want = ("embedding", "cls[-4:]", "tokens[-4:]", "tokens[-1]", "attention[-1]")
        found = encoder(torch.from_numpy(stored[f"{size}.x"]), want)
        assert_near(found["embedding"], stored[f"{size}.cls"], TOKENS)
        assert_near(encoder.network.positions(height, width), stored[f"{size}.pos"], POSITIONS)
        attention = stored[f"{size}.attention_cls_row"][:, :, 1:]
        assert_near(found["attention[-1]"], attention.reshape(*attention.shape[:2], *grid), ATTENTION)
        if f"{size}.layers" in stored.files:
            layers = stored[f"{size}.layers"]
            assert_near(found["cls[-4:]"], layers[:, :, 0].transpose(1, 0, 2), TOKENS)
            for ours, layer in zip(found["tokens[-4:]"], layers, strict=True):
                assert_near(ours, as_map(layer, grid), TOKENS)
            assert_near(found["tokens[-1]"], as_map(layers[-1], grid), TOKENS)
        else:
            assert_near(found["cls[-4:]"], stored[f"{size}.layers_cls"].transpose(1, 0, 2), TOKENS)
            assert_near(found["tokens[-1]"], as_map(stored[f"{size}.last_tokens"], grid), TOKENS)


def test_copy_detection_descriptor_equals_the_original(tmp_path: Path) -> None:
    """From uint8 pixels: normalisation, [CLS] and the GeM of the patch tokens, joined."""
    stored = np.load(GOLDEN / "dino_copydetect.npz", allow_pickle=False)
    torch.save({key[3:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("sd.")}, tmp_path / "vit.pth")
    encoder = load_encoder({"arch": "vit", "weights": tmp_path / "vit.pth", "args": {"heads": 2}})
    images = encoder.prepare(torch.from_numpy(stored["images"]).permute(0, 3, 1, 2))
    request = "cls[-1]+tokens[-1].gem(4)"
    assert_near(encoder(images, (request,))[request], stored["descriptor"], 2e-5)


def test_tokens_before_the_first_block(tmp_path: Path) -> None:
    stored, encoder = golden(16, "dino", tmp_path)
    tokens, grid = encoder.network.embed(torch.from_numpy(stored["64x96.x"]))
    assert grid == (4, 6)
    assert_near(tokens, stored["64x96.tokens_before_blocks"], TOKENS)


def test_exact_mode_equals_the_original_only_where_nothing_is_interpolated(tmp_path: Path) -> None:
    stored, encoder = golden(16, "exact", tmp_path)
    assert_near(encoder(torch.from_numpy(stored["224x224.x"]))["embedding"], stored["224x224.cls"], TOKENS)
    other = encoder(torch.from_numpy(stored["96x96.x"]))["embedding"]
    assert (other - torch.from_numpy(stored["96x96.cls"])).abs().max() > 1e-3


def test_exact_positions_are_those_of_a_resized_image() -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": TINY})
    positions = encoder.network.positions(64, 96)
    raster = encoder.network.pos_embed[0, 1:].T.reshape(1, 64, 14, 14)
    expected = F.interpolate(raster, size=(4, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(positions[0, 1:].T.reshape(1, 64, 4, 6), expected)
    torch.testing.assert_close(positions[:, 0], encoder.network.pos_embed[:, 0])


def timm_twin(encoder: ViTEncoder) -> torch.nn.Module:
    options = {"embed_dim": 64, "depth": 5, "num_heads": 2, "img_size": 224, "num_classes": 0}
    twin = timm.create_model("vit_small_patch16_224", **options).eval()
    twin.load_state_dict(encoder.network.state_dict())
    return twin


def test_same_weights_same_outputs_as_timm() -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": TINY})
    assert isinstance(encoder, ViTEncoder)
    twin = timm_twin(encoder)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        raw = twin.forward_intermediates(images, norm=False, intermediates_only=True)
        normed = twin.forward_intermediates(images, norm=True, intermediates_only=True)
        embedding = twin(images)
    found = encoder(images, ("embedding", "tokens[1](norm=false)", "pyramid", "pyramid(norm=false)"))
    torch.testing.assert_close(found["embedding"], embedding, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["tokens[1](norm=false)"], raw[1], atol=1e-5, rtol=0)
    for key, maps in (("pyramid", normed), ("pyramid(norm=false)", raw)):
        for ours, theirs in zip(found[key], [maps[i] for i in (0, 1, 2, 4)], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("family", ["vit", "timm"])
def test_attention_of_many_tokens_stays_linear(family: str) -> None:
    args = {"width": 48, "depth": 2, "heads": 3, "patch_size": 8, "img_size": 480}
    theirs = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8, "img_size": 480}
    what = {"arch": "vit", "args": args} if family == "vit" else {"timm": "vit_tiny_patch16_224", "args": theirs}
    encoder = load_encoder({"weights": "random", **what})
    images = torch.randn(1, 3, 480, 480)
    with Largest() as plain:
        encoder(images)
    with Largest() as watched:
        found = encoder(images, ("attention[0]", "attention[-1]"))
    assert found["attention[-1]"].shape == (1, 3, 60, 60)
    assert watched.elements <= plain.elements < 3601 * 3601


def test_attention_of_every_block_is_the_class_tokens_row() -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": {**TINY, "registers": 2, "layer_scale": True}})
    lively(encoder)
    images = torch.randn(2, 3, 48, 32)
    x, grid = encoder.network.embed(images)
    found = encoder(images, ("attention[:]", "keys[3]", "tokens[:](norm=false)"))
    for i, block in enumerate(encoder.network.blocks):
        queries, keys, _ = block.attn.qkv(block.norm1(x)).reshape(2, 9, 3, 2, 32).permute(2, 0, 3, 1, 4)
        rows = (queries @ keys.transpose(2, 3) / 32**0.5).softmax(-1)
        torch.testing.assert_close(found["attention[:]"][i], rows[:, :, 0, 3:].unflatten(2, grid), atol=1e-6, rtol=1e-5)
        x = block(x)
        torch.testing.assert_close(found["tokens[:](norm=false)"][i], x[:, 3:].transpose(1, 2).unflatten(2, grid))
        if i == 3:
            torch.testing.assert_close(found["keys[3]"], keys)


def lively(encoder: Any) -> None:
    """Weights away from their start, so that scales, norms, registers and attention do something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in encoder.network.named_parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator) * (0.5 if parameter.ndim == 1 else 0.1 if "qkv" in name else 0.05)
            )


def dinov2_twin(encoder: Any, registers: int) -> Any:
    """timm's DINOv2 with the same weights: it has [CLS]'s position inside the token, and none for the registers."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    options = {"reg_tokens": registers} if registers else {}
    twin = timm.create_model(name, embed_dim=64, depth=5, num_heads=2, img_size=70, num_classes=0, dynamic_img_size=True, **options).eval()
    state = encoder.network.state_dict()
    if registers:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    twin.load_state_dict(state)
    return twin


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_equals_timm(registers: int) -> None:
    """Keys of DINOv2's hub files; timm interpolates positions as DINOv2 with registers does."""
    args = {**TINY, "patch_size": 14, "img_size": 70, "registers": registers, "layer_scale": True, "position_mode": "antialias"}
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": args})
    lively(encoder)
    twin = dinov2_twin(encoder, registers)
    for height, width in ((70, 70), (42, 56), (98, 70)):
        images = torch.randn(2, 3, height, width)
        with torch.no_grad():
            maps = twin.forward_intermediates(images, norm=True, intermediates_only=True, return_prefix_tokens=True)
        found = encoder(images, ("embedding", "tokens[:]", "cls[:]"))
        for i, (patches, prefix) in enumerate(maps):
            torch.testing.assert_close(found["tokens[:]"][i], patches, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found["cls[:]"][:, i], prefix[:, 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["embedding"], maps[-1][1][:, 0], atol=1e-5, rtol=1e-5)


def test_position_modes_differ_only_away_from_the_stored_grid() -> None:
    modes = {mode: load_encoder({"arch": "vit", "weights": "random", "args": {**TINY, "position_mode": mode}}) for mode in MODES}
    for size, same in (((224, 224), True), ((96, 96), False)):
        positions = [encoder.network.positions(*size) for encoder in modes.values()]
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert torch.equal(positions[i], positions[j]) == same
    assert {encoder.spec.position_mode for encoder in modes.values()} == set(MODES)
    assert len({encoder.spec.encoder_id for encoder in modes.values()}) == 3


def test_keys_are_dinov2s() -> None:
    encoder = load_encoder(
        {"arch": "vit_small", "weights": "random", "args": {"patch_size": 14, "img_size": 518, "registers": 4, "layer_scale": True}}
    )
    state = encoder.network.state_dict()
    assert len(state) == 5 + 12 * 14 + 2
    assert state["register_tokens"].shape == (1, 4, 384)
    assert state["pos_embed"].shape == (1, 1370, 384)
    assert state["blocks.11.ls2.gamma"].shape == state["blocks.0.ls1.gamma"].shape == (384,)
    assert encoder.spec.n_params == 22_058_112 - 384  # the hub's file has a mask_token besides
    assert encoder.spec.architecture == "vit_small/14 reg4"


@pytest.mark.parametrize(("argument", "value"), [("registers", -1), ("registers", 1.5), ("position_mode", "dinov2")])
def test_wrong_arguments_are_named(argument: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{argument} is"):
        load_encoder({"arch": "vit", "weights": "random", "args": {**TINY, argument: value}})


def test_queries_keys_and_values_make_the_attention() -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": TINY})
    with torch.no_grad():
        encoder.network.blocks[2].attn.qkv.weight.mul_(20)  # away from uniform attention
    found = encoder(torch.randn(2, 3, 32, 48), ("queries[2]", "keys[2]", "values[2]", "attention[2]", "attention[2,4]"))
    assert all(found[key].shape == (2, 2, 7, 32) for key in ("queries[2]", "keys[2]", "values[2]"))
    attention = (found["queries[2]"] @ found["keys[2]"].transpose(2, 3) / 32**0.5).softmax(-1)
    assert attention.std() > 0.02
    torch.testing.assert_close(found["attention[2]"], attention[:, :, 0, 1:].reshape(2, 2, 2, 3))
    torch.testing.assert_close(found["attention[2,4]"][0], found["attention[2]"])


def test_only_wanted_blocks_run() -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": TINY})
    ran: list[int] = []
    for i, block in enumerate(encoder.network.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    images = torch.randn(1, 3, 32, 32)
    for want, blocks in (("tokens[1]", [0, 1]), ("attention[-1]", [0, 1, 2, 3]), ("embedding", [0, 1, 2, 3, 4])):
        ran.clear()
        encoder(images, (want,))
        assert ran == blocks, want


def test_known_sizes_have_dinos_number_of_parameters() -> None:
    sizes = {("vit_tiny", 16): 5_524_416, ("vit_small", 8): 21_670_272, ("vit_base", 16): 85_798_656}
    for (arch, patch), count in sizes.items():
        spec = load_encoder({"arch": arch, "weights": "random", "args": {"patch_size": patch}}).spec
        assert (spec.n_params, spec.patch_size, spec.architecture) == (count, patch, f"{arch}/{patch}")


def test_initial_weights() -> None:
    network = load_encoder({"arch": "vit_tiny", "weights": "random", "args": {"img_size": 64}}).network
    assert network.blocks[3].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert network.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert not network.blocks[3].mlp.fc1.bias.any()


def test_bf16_autocast_gives_nearly_the_same() -> None:
    encoder = load_encoder({"arch": "vit", "weights": "random", "args": TINY})
    images = torch.randn(2, 3, 32, 48)
    want = ("embedding", "cls[-2:]", "tokens[-1].mean", "attention[-1]", "queries[-1]", "pyramid")
    exact = encoder(images, want)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = encoder(images, want)
    for key in ("embedding", "cls[-2:]", "tokens[-1].mean", "attention[-1]"):
        torch.testing.assert_close(rough[key].float(), exact[key], atol=0.05, rtol=0.05)
