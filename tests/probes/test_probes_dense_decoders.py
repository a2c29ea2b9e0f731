"""The pixel-shuffle decoder and its siamese form against ViRB 2021's own numbers, and on pyramids that ViRB 2021 never had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from virb.probes.dense_decoders import MapShape, PixelShuffle, Siamese, cost_volume, resize

GOLDEN = Path(__file__).parents[1] / "golden" / "virb_heads_small.npz"
NAMES = ("conv", "block1", "block2", "block3", "block4")
RESNET50 = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
RESNET18 = [(64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
CONVNEXT = [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)]
VIT = [(384, 14, 14)] * 4


def golden(case: str, weights: str) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Maps (finest first), what ViRB 2021 made of them, and the weights it had."""
    with np.load(GOLDEN) as stored:
        maps = [torch.from_numpy(stored[f"{case}.in.{name}"]) for name in NAMES]
        state = {key.split(".sd.")[1]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith(f"{weights}.sd.")}
        return maps, torch.from_numpy(stored[f"{case}.out"]), state


def shapes_of(maps: list[Tensor]) -> list[MapShape]:
    return [tuple(x.shape[-3:]) for x in maps]  # type: ignore[misc]


def on_meta(shapes: list[MapShape], n_outputs: int, images: int | None = None, **options) -> tuple[int, tuple[int, ...], set[str]]:
    """Parameters, shape of the output for two samples, and names, without any arithmetic."""
    with torch.device("meta"):
        head = Siamese(shapes, n_outputs, **options) if images else PixelShuffle(shapes, n_outputs)
        out = head([torch.empty(2, *([images] if images else []), *shape) for shape in shapes])
    return sum(p.numel() for p in head.parameters()), tuple(out.shape), set(head.state_dict())


@pytest.mark.parametrize("case", ["pixelwise_even", "pixelwise_odd"])
def test_pixel_shuffle_is_virb_2021s(case: str) -> None:
    maps, expected, state = golden(case, "pixelwise")
    head = PixelShuffle(shapes_of(maps), 3)
    head.load_state_dict(state)  # the same names, all of them
    with torch.no_grad():
        found = head(maps)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_siamese_is_virb_2021s() -> None:
    maps, expected, state = golden("siamese", "siamese")
    head = Siamese(shapes_of(maps), 3)
    head.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(head(maps), expected, rtol=1e-4, atol=1e-4)
        swapped = head([x.flip(1) for x in maps])
    assert (swapped - expected).abs().max() > 0.1  # which image is the first one matters


@pytest.mark.parametrize(("n_outputs", "parameters"), [(1, 99_689_988), (3, 99_694_604), (201, 100_151_588)])
def test_a_resnet50_has_the_published_parameters(n_outputs: int, parameters: int) -> None:
    count, shape, names = on_meta(RESNET50, n_outputs)
    assert count == parameters
    assert shape == (2, n_outputs, 224, 224)
    assert names == {f"up{level}.0.{part}" for level in range(1, 6) for part in ("weight", "bias")}


def test_a_resnet50_pair_has_the_published_parameters() -> None:
    count, shape, names = on_meta(RESNET50, 1, images=2)
    assert count == 110_843_204
    assert shape == (2, 1, 224, 224)
    assert len(names) == 20


@pytest.mark.parametrize("size", [(224, 224), (192, 256), (375, 1242), (225, 225), (97, 131)])
def test_output_is_twice_the_finest_map(size: tuple[int, int]) -> None:
    """Odd sizes come out one pixel larger, as in 2021: 375 x 1242 gives 376 x 1242."""
    grids = [tuple(-(-side // (2 << level)) for side in size) for level in range(5)]
    _, shape, _ = on_meta([(shape[0], *grid) for shape, grid in zip(RESNET50, grids, strict=True)], 3)  # type: ignore[misc]
    assert shape[-2:] == tuple(side + side % 2 for side in size)


@pytest.mark.parametrize(
    ("shapes", "side"), [(RESNET18, 224), (CONVNEXT, 112), (VIT, 112), (VIT[:1], 28), (VIT[:2], 28), (VIT[:3], 56), (CONVNEXT[1:], 56)]
)
def test_any_pyramid(shapes: list[MapShape], side: int) -> None:
    """A ViT's four maps become strides of a half, one, two, four times its patch's; widths fall by half where channels do not."""
    _, shape, names = on_meta(shapes, 5)
    assert shape == (2, 5, side, side)
    aligned = {name for name in names if name.startswith("align")}
    assert bool(aligned) == (shapes in (VIT, VIT[:2], VIT[:3]))
    assert on_meta(shapes, 5, images=2)[1] == (2, 5, side, side)


def test_levels_of_a_vit_are_spread_by_hand() -> None:
    """The whole decoder over two equal maps, written out: half the grid, up, plus the aligned other map, up."""
    torch.manual_seed(0)
    maps = [torch.randn(2, 64, 6, 5), torch.randn(2, 64, 6, 5)]
    head = PixelShuffle(shapes_of(maps), 3)
    assert set(dict(head.named_children())) == {"up1", "up2", "align2"}
    state = head.state_dict()
    with torch.no_grad():
        low = F.interpolate(maps[1], (3, 2), mode="bilinear", align_corners=False)
        up = F.pixel_shuffle(F.conv2d(low, state["up1.0.weight"], state["up1.0.bias"], padding=1), 2)
        up = torch.where(up > 0, up, 0.01 * up)
        up = F.interpolate(up, (6, 5), mode="bilinear", align_corners=False)
        skip = F.conv2d(maps[0], state["align2.weight"], state["align2.bias"])
        expected = F.pixel_shuffle(F.conv2d(up + skip, state["up2.0.weight"], state["up2.0.bias"], padding=1), 2)
        torch.testing.assert_close(head(maps), expected)


def test_aligning_before_resizing_is_aligning_after_it() -> None:
    torch.manual_seed(0)
    x, conv = torch.randn(2, 12, 5, 7), torch.nn.Conv2d(12, 4, 1)
    with torch.no_grad():
        torch.testing.assert_close(resize(conv(x), (20, 28)), conv(resize(x, (20, 28))), rtol=1e-5, atol=1e-5)


def test_a_head_takes_maps_of_other_sizes_than_it_was_built_for() -> None:
    head = PixelShuffle([(16, 8, 8), (32, 4, 4)], 2)
    assert head([torch.randn(1, 16, 11, 13), torch.randn(1, 32, 6, 7)]).shape == (1, 2, 22, 26)
    spread = PixelShuffle([(32, 4, 4)] * 3, 2)
    assert spread([torch.randn(1, 32, 7, 3)] * 3).shape == (1, 2, 28, 12)


@pytest.mark.parametrize("radius", [1, 2])
def test_cost_volume_place_by_place(radius: int) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    found = cost_volume(torch.from_numpy(first), torch.from_numpy(second), radius).numpy()
    side = 2 * radius + 1
    assert found.shape == (2, side**2, 4, 5)
    for b, dy, dx, y, x in np.ndindex(2, side, side, 4, 5):
        yy, xx = y + dy - radius, x + dx - radius
        expected = 0.0
        if 0 <= yy < 4 and 0 <= xx < 5:
            p, q = first[b, :, y, x], second[b, :, yy, xx]
            expected = p @ q / np.linalg.norm(p) / np.linalg.norm(q)
        assert found[b, dy * side + dx, y, x] == pytest.approx(expected, abs=1e-5)


def test_cost_volume_finds_a_shift() -> None:
    torch.manual_seed(0)
    scene = torch.randn(1, 8, 12, 12)
    moved = scene.roll((1, -2), (2, 3))  # what was at (y, x) is at (y + 1, x - 2)
    best = cost_volume(scene, moved, 3).argmax(1)[0, 3:-3, 3:-3]
    assert (best == (1 + 3) * 7 + (-2 + 3)).all()


def test_correlation_compares_at_two_levels_and_uses_image_one_elsewhere() -> None:
    torch.manual_seed(0)
    shapes = [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    head = Siamese(shapes, 2, fusion="correlation", radius=2).eval()
    fusions = {name: tuple(p.shape) for name, p in head.named_parameters() if "fusion" in name and "weight" in name}
    assert fusions == {"fusion1.weight": (16, 16 + 25, 1, 1), "fusion2.weight": (8, 8 + 25, 1, 1)}
    maps = [torch.randn(2, 2, *shape) for shape in shapes]
    with torch.no_grad():
        expected = head(maps)
        changed = [x.clone() for x in maps]
        changed[0][:, 1] += 1.0  # image 2 at the finest level: not compared
        torch.testing.assert_close(head(changed), expected, rtol=0, atol=0)
        for level in (1, 2):
            changed = [x.clone() for x in maps]
            changed[level][:, 1] += torch.randn_like(changed[level][:, 1])
            assert (head(changed) - expected).abs().max() > 1e-4
        decoder = PixelShuffle(shapes, 2)
        decoder.load_state_dict({key: value for key, value in head.state_dict().items() if key.startswith("up")})
        fused = [maps[0][:, 0]]
        for x, fusion in ((maps[1], head.fusion2), (maps[2], head.fusion1)):
            fused.append(fusion(torch.cat([x[:, 0], cost_volume(x[:, 0], x[:, 1], 2)], 1)))
        torch.testing.assert_close(expected, decoder(fused))
