"""The ViT against stored outputs of DINO's original code, and against timm with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from virb.encoders.load import load_encoder
from virb.encoders.vit import ViTEncoder

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS, ATTENTION, POSITIONS = 5e-5, 4e-6, 4e-5  # tolerances of the stored numbers
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
    sizes = {("vit_tiny", 16): 5_524_416, ("vit_small", 8): 21_670_272}
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
