"""A perfect predictor scores perfectly: resized, padded to patches, mirrored, cut into windows, at whatever size the targets have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dense_support import Colours, Pictures, Planted, blocks, make_split, squash
from PIL import Image
from torch.nn import functional as F

from virb.config.dense import DenseLinearConfig
from virb.data.placement import DenseTarget, squashed
from virb.data.transforms import Geometry, View
from virb.data.windows import WindowedImages
from virb.errors import ViRBError
from virb.probes.dense_data import DenseSplit, loss_grid, resampled
from virb.probes.dense_losses import find_dense_loss
from virb.probes.dense_outputs import FLOW_UNIT
from virb.probes.dense_score import DenseSheet, score_heads

CONFIG = DenseLinearConfig(optimizer="adamw", lr=0.1, output="direct")
LABELS = DenseTarget("labels")
PALETTE = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], dtype=np.uint8)
CLASSES = 4
LOSS_OF = {"labels": "cross_entropy", "mask": "bce", "depth": "l1", "flow": "flow_l1", "map": "l1"}


def classify(maps: torch.Tensor) -> torch.Tensor:
    """Logits that are linear in the colour, with equal margins: none, red, green, blue."""
    return torch.cat([1 - maps.sum(1, keepdim=True), maps], 1) * 10


def score(split: DenseSplit, rule: Any, *metrics: str, batch: int = 2, **more: Any) -> DenseSheet:
    grid = loss_grid(split.seen, split.seen.canvas, None)
    loss = find_dense_loss(LOSS_OF[split.target.kind], split.target.kind)
    return score_heads({"a": Planted(rule)}, {"a": CONFIG}, split, metrics, loss, {"a": grid}, batch, **more)["a"]


def some_blocks(rows: int, columns: int, side: tuple[int, int], seed: int = 0, stripes: bool = False) -> np.ndarray:
    """``stripes``: blocks of a row (odd seeds) or column are alike. Where four classes meet, interpolated logits are no one's."""
    classes = np.random.default_rng(seed).integers(0, CLASSES, (rows, columns))
    if stripes:
        classes = np.broadcast_to(classes[:, :1] if seed % 2 else classes[:1], classes.shape)
    return blocks(classes, side)


SEGMENTATION = ("miou", "pixel_accuracy", "mean_pixel_class_accuracy", "foreground_iou")
PERFECT = dict.fromkeys(SEGMENTATION, 1.0)

# 4 x 6 blocks at native sizes that go into 40 x 60 (or are gone into) by whole numbers, each with an aspect of its own.
SIZES = [(10, 10), (5, 10), (10, 5), (20, 20), (2, 1), (5, 5), (30, 10)]


def natives(stripes: bool = False) -> list[np.ndarray]:
    return [some_blocks(4, 6, side, seed, stripes) for seed, side in enumerate(SIZES)]


@pytest.mark.parametrize("patch", [1, 2, 5])
def test_segmentation_at_native_sizes(patch: int) -> None:
    targets = natives(stripes=patch > 1)
    split = make_split(Pictures([PALETTE[t] for t in targets]), targets, [squash(40, 60)], Colours(patch), LABELS, CLASSES)
    sheet = score(split, classify, *SEGMENTATION)
    assert sheet.numbers() == PERFECT
    assert sheet.predictions().statistics["miou"].values.sum(0)[CLASSES * 2 :].sum() == sum(t.size for t in targets)


@pytest.mark.parametrize("patch", [7, 9, 16])
def test_segmentation_padded_to_whole_patches(patch: int) -> None:
    """Stripes of one patch, the last two alike: the padding is in the map, and never in a prediction."""
    size = (4 * patch - 3, 6 * patch - patch // 2)
    for seed in (0, 1):
        truth = some_blocks(4, 6, (patch, patch), seed, stripes=True)
        truth[:, 5 * patch :], truth[3 * patch :] = truth[:, 4 * patch : 5 * patch], truth[2 * patch : 3 * patch]
        truth = truth[: size[0], : size[1]]

        class Pure(Colours):
            """The padding is black and mixes into the last cells, whose colour is made pure again."""

            def _outputs(self, images: torch.Tensor, wanted: Any) -> Any:
                return {key: (value > 0.05).float() for key, value in super()._outputs(images, wanted).items()}

        split = make_split(Pictures([PALETTE[truth]]), [truth], [squash(*size)], Pure(patch), LABELS, CLASSES)
        assert split.seen.canvas == (4 * patch, 6 * patch)
        assert [one.shape for one in split.maps(np.array([0]))] == [(1, 3, 4, 6)]
        sheet = score(split, classify, "pixel_accuracy", picture=(0,))
        np.testing.assert_array_equal(sheet.pictures[0], truth)
        assert sheet.numbers() == {"pixel_accuracy": 1.0}


def test_void_pixels_do_not_count() -> None:
    targets = natives()
    images = Pictures([PALETTE[t] for t in targets])
    wrong = [t.copy() for t in targets]
    for t in wrong:
        t[:2] = 255
        t[:, -1:] = 255
    split = make_split(images, wrong, [squash(40, 60)], Colours(), LABELS, CLASSES)
    sheet = score(split, lambda m: classify(m), *SEGMENTATION)
    assert sheet.numbers() == PERFECT
    true = sheet.parts["miou"]
    assert sum(part.values[:, 2 * CLASSES :].sum() for part in true) == sum((t != 255).sum() for t in wrong)


def test_predictions_are_the_bilinear_upsampling_of_logits() -> None:
    """What is compared at native size, against torch's own interpolation."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (23, 37, 3), dtype=np.uint8)
    target = random.integers(0, CLASSES, (23, 37)).astype(np.uint8)
    split = make_split(Pictures([image]), [target], [squash(16, 24, "bilinear")], Colours(4), LABELS, CLASSES)
    sheet = score(split, classify, "pixel_accuracy", picture=(0,))
    logits = classify(split.maps(np.array([0]))[0])
    expected = F.interpolate(logits, (23, 37), mode="bilinear", align_corners=False).argmax(1)[0].numpy()
    np.testing.assert_array_equal(sheet.pictures[0], expected)
    assert sheet.numbers()["pixel_accuracy"] == pytest.approx((expected == target).mean())


def test_the_loss_is_that_at_the_loss_grid_over_all_valid_cells() -> None:
    targets = [some_blocks(4, 6, (10, 10), seed) for seed in range(3)]
    images = Pictures([PALETTE[t] for t in targets])
    targets[1][:20] = 255
    split = make_split(images, targets, [squash(40, 60)], Colours(), LABELS, CLASSES)
    sheet = score(split, lambda m: classify(m) / 10, "miou")
    logits = torch.cat([classify(split.maps(np.array([i]))[0]) / 10 for i in range(3)])
    truth = torch.from_numpy(np.stack(targets).astype(np.int64))
    assert sheet.loss == pytest.approx(F.cross_entropy(logits, truth, ignore_index=255).item(), rel=1e-5)


# --- other targets --------------------------------------------------------------------------------------------------------------------


def test_depth() -> None:
    levels = np.array([0.5, 1.0, 2.5, 4.0], dtype=np.float32)
    labels = [some_blocks(4, 6, side, seed) for seed, side in enumerate(SIZES) if max(side) <= 10]  # larger ones mix depths at borders
    targets = [levels[t] for t in labels]
    for t in targets:
        t[0, 0] = np.nan

    def rule(maps: torch.Tensor) -> torch.Tensor:
        """softplus(x) + the least depth, turned round."""
        return torch.log(torch.expm1(torch.from_numpy(levels)[classify(maps).argmax(1, keepdim=True)] - 0.25))

    depth = DenseTarget("depth", range=(0.25, 10.0))
    split = make_split(Pictures([PALETTE[t] for t in labels]), targets, [squash(40, 60)], Colours(), depth)
    sheet = score(split, rule, "rmse", "abs_rel", "delta1")
    close = pytest.approx(0, abs=1e-5)
    assert sheet.numbers() == {"rmse": close, "abs_rel": close, "delta1": 1.0}
    assert sheet.loss == close


def test_depth_out_of_the_range_is_not_scored() -> None:
    target = np.full((8, 8), 3.0, dtype=np.float32)
    target[:2], target[2:4], target[4] = 0.0, 30.0, np.nan
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    split = make_split(Pictures([image]), [target], [squash(8, 8)], Colours(), DenseTarget("depth", range=(0.5, 10.0)))
    raw = float(np.log(np.expm1(2.5)))
    sheet = score(split, lambda m: torch.full_like(m[:, :1], raw), "rmse")
    assert sheet.numbers()["rmse"] == pytest.approx(0, abs=1e-6)
    assert sheet.loss == pytest.approx(0, abs=1e-6)
    assert sheet.loss_cells == 24


@pytest.mark.parametrize("patch", [1, 5])
def test_flow_in_pixels_of_the_native_image(patch: int) -> None:
    """The flow is constant: 6 pixels right and 3 up at native size, whatever size the network saw."""
    sizes = [(40, 60), (20, 20), (25, 90)]
    images, targets = [], []
    for height, width in sizes:
        images += [np.full((height, width, 3), 100, dtype=np.uint8)] * 2
        target = np.zeros((3, height, width), dtype=np.float32)
        target[0], target[1], target[2] = 6.0, -3.0, 1.0
        target[:, :3] = np.nan
        target[2, 5:7] = 0.0
        targets.append(target)
    split = make_split(Pictures(images), targets, [squash(40, 60)], Colours(patch), DenseTarget("flow"), per_sample=2)
    assert split.maps(np.array([0]))[0].shape[:3] == (1, 2, 3)

    for number, (height, width) in enumerate(sizes):
        one = make_split(
            Pictures(images[2 * number : 2 * number + 2]),
            targets[number : number + 1],
            [squash(40, 60)],
            Colours(patch),
            DenseTarget("flow"),
            per_sample=2,
        )

        def rule(maps: torch.Tensor, height: int = height, width: int = width) -> torch.Tensor:
            vector = torch.tensor([6.0 * 60 / width, -3.0 * 40 / height]) / FLOW_UNIT
            return vector[None, :, None, None].expand(len(maps), 2, *maps.shape[-2:])

        sheet = score(one, rule, "epe", "epe_noc", "fl_all")
        assert sheet.numbers() == {"epe": pytest.approx(0, abs=1e-5), "epe_noc": pytest.approx(0, abs=1e-5), "fl_all": 0.0}
        assert sheet.loss == pytest.approx(0, abs=1e-4)
        assert sheet.parts["epe"][0].values[0, 1] == (height - 3) * width
        assert sheet.parts["epe_noc"][0].values[0, 1] == (height - 5) * width
    wrong = score(split, lambda m: torch.zeros(len(m), 2, *m.shape[-2:]), "epe", "fl_all").numbers()
    assert wrong == {"epe": pytest.approx(np.hypot(6, 3)), "fl_all": 1.0}


def test_two_planes_of_flow_are_all_visible() -> None:
    target = np.ones((2, 8, 8), dtype=np.float32)
    target[:, 0] = np.nan
    images = Pictures([np.zeros((8, 8, 3), dtype=np.uint8)] * 2)
    split = make_split(images, [target], [squash(8, 8)], Colours(), DenseTarget("flow"), per_sample=2)
    numbers = score(split, lambda m: torch.full((len(m), 2, 8, 8), 1 / FLOW_UNIT), "epe_noc")
    assert numbers.numbers()["epe_noc"] == pytest.approx(0, abs=1e-6)
    assert numbers.parts["epe_noc"][0].values[0, 1] == 56


def test_maps_and_masks() -> None:
    labels = natives()[:1]
    colours = [PALETTE[t].transpose(2, 0, 1).astype(np.float32) / 255 for t in labels]
    colours[0][:, :4] = np.nan
    images = Pictures([PALETTE[t] for t in labels])
    split = make_split(images, colours, [squash(40, 60)], Colours(), DenseTarget("map", channels=3))
    assert score(split, lambda m: m, "l1", "l2").numbers() == {"l1": pytest.approx(0, abs=1e-7), "l2": pytest.approx(0, abs=1e-7)}
    mask = [(t > 0).astype(np.uint8) for t in labels]
    split = make_split(images, mask, [squash(40, 60)], Colours(), DenseTarget("mask"), 2)
    assert score(split, lambda m: m.sum(1, keepdim=True) - 0.5, "foreground_iou", "miou").numbers() == {"foreground_iou": 1.0, "miou": 1.0}


# --- in the frame of the input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score_size", [60, 30, 12, 6])
def test_score_size(score_size: int) -> None:
    """4 x 6 blocks: 6 cells on the longer side are one for each block."""
    targets = natives()
    split = make_split(Pictures([PALETTE[t] for t in targets]), targets, [squash(40, 60)], Colours(), LABELS, CLASSES)
    sheet = score(split, classify, *SEGMENTATION, score_size=score_size, picture=(0,))
    assert sheet.numbers() == PERFECT
    assert sheet.pictures[0].shape == (score_size * 40 // 60, score_size)
    counted = sum(part.values[:, 2 * CLASSES :].sum() for part in sheet.parts["miou"])
    assert counted == len(targets) * score_size * (score_size * 40 // 60)  # every image counts alike


def test_score_size_of_flow_is_in_pixels_of_the_input() -> None:
    target = np.ones((3, 20, 30), dtype=np.float32)
    target[0], target[1] = 4, 2
    images = Pictures([np.zeros((20, 30, 3), dtype=np.uint8)] * 2)
    split = make_split(images, [target], [squash(40, 60)], Colours(), DenseTarget("flow"), per_sample=2)

    def rule(maps: torch.Tensor) -> torch.Tensor:
        return torch.tensor([8.0, 4.0])[None, :, None, None].expand(1, 2, 40, 60) / FLOW_UNIT

    assert score(split, rule, "epe", score_size=12).numbers()["epe"] == pytest.approx(0, abs=1e-5)


def test_targets_resized_with_the_image_keep_clear_of_the_padding() -> None:
    """``at="view"``: 40 x 60 in patches of 9 is a canvas of 45 x 63."""
    truth = some_blocks(4, 6, (20, 20))
    images = Pictures([PALETTE[truth]])
    target = DenseTarget("labels", at="view", resample="nearest")

    class Pixelwise(Colours):
        def _outputs(self, pixels: torch.Tensor, wanted: Any) -> Any:
            return dict.fromkeys(wanted, pixels)

    split = make_split(images, [truth], [squash(40, 60)], Pixelwise(9), target, CLASSES)
    assert split.seen.canvas == (45, 63)
    sheet = score(split, classify, *SEGMENTATION)
    assert sheet.numbers() == PERFECT
    assert sheet.parts["miou"][0].values[:, 2 * CLASSES :].sum() == 40 * 60
    grid = split.at_grid(np.array([0]), (45, 63))[0]
    assert (grid[40:] == 255).all()
    assert (grid[:, 60:] == 255).all()


def test_masks_of_2021_are_what_is_not_exactly_zero() -> None:
    truth = np.zeros((20, 20), dtype=np.uint8)
    truth[:, 10:] = 200
    target = DenseTarget("mask", at="view", resample="bilinear")
    split = make_split(Pictures([np.zeros((20, 20, 3), dtype=np.uint8)]), [truth], [squash(8, 8)], Colours(), target, 2)
    found = split.at_grid(np.array([0]), (8, 8))[0]
    assert found.unique().tolist() == [0.0, 1.0]
    assert (found[0] != 0).tolist() == [False] * 3 + [True] * 5  # the filter reaches over the border


# --- views ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["crop-flip", "scale-crop-flip"])
@pytest.mark.parametrize("patch", [1, 8])
def test_targets_follow_augmented_views(augment: Any, patch: int) -> None:
    """The colour that the network saw at the centre of each cell is that of the target there, in every view, flips included."""
    targets = [some_blocks(4, 6, side, seed) for seed, side in enumerate([(20, 20), (9, 13), (31, 17)])]
    views = [Geometry((44, 60), "squash", "none", 1.0, "nearest", View(number, augment, 5)) for number in range(6)]
    split = make_split(Pictures([PALETTE[t] for t in targets]), targets, views, Colours(patch), LABELS, CLASSES)
    canvas = split.seen.canvas
    assert canvas == ((44, 60) if patch == 1 else (48, 64))
    exact, cells, flips = 0.0, 0, set()
    for epoch in range(6):
        split.set_epoch(epoch)
        for sample in range(3):
            placement = split.placement(sample, (targets[sample].shape[0], targets[sample].shape[1]))
            flips.add(placement.flip)
            seen = split.seen.views[epoch].apply(split_image(targets[sample]), sample).numpy()
            at_pixels = split.at_grid(np.array([sample]), canvas)[0].numpy()
            inside = at_pixels != 255
            assert not inside[44:].any()
            assert not inside[:, 60:].any()
            top, left, height, width = placement.inside
            assert inside[top : top + height, left : left + width].all()
            assert inside.sum() == height * width
            shown = seen.transpose(1, 2, 0)[: canvas[0], : canvas[1]]
            same = (shown == PALETTE[np.where(inside, at_pixels, 0)[:44, :60]]).all(-1)[inside[:44, :60]]
            exact, cells = exact + same.sum(), cells + same.size
            expected = Colours(patch).prepare(split.seen.views[epoch].apply(split_image(targets[sample]), sample)[None])
            found = split.maps(np.array([sample]))[0]
            cells_of = F.avg_pool2d(expected, patch) if patch > 1 else expected
            torch.testing.assert_close(found, cells_of, rtol=0, atol=1e-3)
    assert exact / cells > 0.995  # Pillow's nearest may round the other way where a pixel's centre is on a border
    assert flips == {True, False}


def split_image(labels: np.ndarray) -> Any:
    return Pictures([PALETTE[labels]]).read(0)


def test_scoring_turns_to_the_plain_view() -> None:
    targets = natives()[:2]
    views = [squash(40, 60), Geometry((40, 60), "squash", "none", 1.0, "nearest", View(1, "crop-flip", 0))]
    split = make_split(Pictures([PALETTE[t] for t in targets]), targets, views, Colours(), LABELS, CLASSES)
    split.set_epoch(1)
    assert score(split, classify, *SEGMENTATION).numbers() == PERFECT


# --- sliding windows ------------------------------------------------------------------------------------------------------------------


def windowed(targets: list[np.ndarray], size: tuple[int, int], stride: tuple[int, int], patch: int = 1, **more: Any) -> DenseSplit:
    images = Pictures([PALETTE[t] for t in targets])
    windows = WindowedImages(images, more.pop("shorter", None), size, stride)
    seen = more.pop("seen", size)
    return make_split(images, targets, [squash(*seen)], Colours(patch), LABELS, CLASSES, windows=windows, **more)


@pytest.mark.parametrize(("size", "stride"), [((40, 40), (40, 40)), ((40, 40), (24, 30)), ((60, 40), (60, 20)), ((20, 30), (13, 7))])
def test_windows_give_what_one_big_input_gives(size: tuple[int, int], stride: tuple[int, int]) -> None:
    targets = [some_blocks(6, 9, (10, 10), 0), some_blocks(12, 5, (10, 10), 1), some_blocks(8, 8, (10, 11), 2)]
    sheet = score(windowed(targets, size, stride), classify, *SEGMENTATION, picture=(0, 1, 2))
    assert sheet.numbers() == PERFECT
    for sample, target in enumerate(targets):
        one = make_split(Pictures([PALETTE[target]]), [target], [squash(*target.shape)], Colours(), LABELS, CLASSES)
        big = score(one, classify, "miou", picture=(0,))
        np.testing.assert_array_equal(sheet.pictures[sample], big.pictures[0])
        np.testing.assert_array_equal(np.concatenate([part.values for part in sheet.parts["miou"]])[sample], big.parts["miou"][0].values[0])
    assert sheet.loss is None  # windows have no targets of their own


def test_windows_of_resized_images_and_of_windows_that_are_resized() -> None:
    targets = [some_blocks(4, 8, (20, 20), 0), some_blocks(8, 4, (10, 10), 1)]
    resized = windowed(targets, (32, 32), (16, 16), shorter=80)
    assert [len(resized.seen.rows(i)) for i in range(2)] == [36, 36]
    assert score(resized, classify, *SEGMENTATION).numbers()["pixel_accuracy"] > 0.99  # bilinear: colours mix at borders
    larger = windowed(targets, (40, 40), (40, 40), seen=(80, 80))
    assert score(larger, classify, *SEGMENTATION).numbers() == PERFECT


@pytest.mark.parametrize("patch", [1, 8])
def test_images_smaller_than_a_window_are_padded_and_the_padding_is_forgotten(patch: int) -> None:
    targets = [some_blocks(3, 2, (8, 8), 0), some_blocks(2, 7, (8, 8), 1), some_blocks(9, 9, (8, 8), 2)]
    split = windowed(targets, (40, 36), (16, 16), patch)
    assert split.seen.canvas == (40, 36 if patch == 1 else 40)
    sheet = score(split, classify, *SEGMENTATION, picture=(0, 1, 2))
    assert [sheet.pictures[i].shape for i in range(3)] == [t.shape for t in targets]
    numbers = sheet.numbers()
    if patch == 1:
        assert numbers == PERFECT
    else:  # windows begin and end within a patch
        assert numbers["pixel_accuracy"] > 0.85


def test_many_windows_go_through_in_parts() -> None:
    targets = [some_blocks(6, 9, (10, 10), 0)]
    calls = []

    def rule(maps: torch.Tensor) -> torch.Tensor:
        calls.append(len(maps))
        return classify(maps)

    assert score(windowed(targets, (20, 20), (10, 10)), rule, "miou").numbers()["miou"] == 1.0
    assert sum(calls) == 40
    assert max(calls) <= 16


# --- targets that are wrong -----------------------------------------------------------------------------------------------------------


def refused(target: Any, kind: DenseTarget, message: str, n_classes: int | None = None, size: tuple[int, int] = (8, 8)) -> None:
    images = Pictures([np.zeros((*size, 3), dtype=np.uint8)] * (2 if kind.kind == "flow" else 1))
    split = make_split(images, [target], [squash(8, 8)], Colours(), kind, n_classes, per_sample=len(images))
    with pytest.raises(ViRBError, match=message):
        split.native(0)
    with pytest.raises(ViRBError, match=message):
        split.at_grid(np.array([0]), (4, 4))


def test_targets_that_are_wrong_are_named() -> None:
    zeros = np.zeros((8, 8), dtype=np.uint8)
    nan = np.full((8, 8), np.nan, dtype=np.float32)
    refused(zeros, LABELS, r"^sample0: the image is 8 x 9 pixels, but its target 8 x 8$", 4, (8, 9))
    refused(zeros + 7, LABELS, r"^sample0: label 7 is none of the 4 classes \(0 to 3, 255 ignored\)$", 4)
    refused(zeros.astype(np.int64) - 1, LABELS, "sample0: labels run from -1 to -1; expected 0 to 255", 4)
    refused(zeros.astype(np.uint16) + 300, LABELS, "sample0: labels run from 300 to 300", 4)
    refused(zeros.astype(np.float32), LABELS, "sample0: a label map is integers H x W, but this is float32", 4)
    refused(zeros[None], LABELS, r"sample0: a label map is integers H x W, but this is uint8 of shape \(1, 8, 8\)", 4)
    refused(zeros + 2, DenseTarget("mask"), "sample0: label 2 is none of the 2 classes", 2)
    refused(nan, DenseTarget("depth"), "sample0: the depth has no valid pixel; leave the sample out")
    far = np.full((8, 8), 99.0, dtype=np.float32)
    refused(far, DenseTarget("depth", range=(0.1, 10.0)), "sample0: the depth has no valid pixel from 0.1 to 10; leave the sample out")
    refused(np.stack([nan] * 3), DenseTarget("flow"), "sample0: the flow has no valid pixel")
    refused(zeros.astype(np.float32), DenseTarget("flow"), r"sample0: a flow target has shape 3 x H x W, not \(8, 8\)")
    refused(np.zeros((2, 8, 8), np.float32), DenseTarget("map", channels=3), r"sample0: a map target has shape 3 x H x W, not \(2, 8, 8\)")
    refused(np.zeros((1, 8, 8), np.float32), DenseTarget("depth"), r"sample0: a depth target has shape H x W, not \(1, 8, 8\)")


# --- the grid of the loss, and targets that are kept ----------------------------------------------------------------------------------


def test_loss_grid() -> None:
    def grid(canvas: tuple[int, int], outputs: tuple[int, int], longer: int | None = None, every: bool = True) -> tuple[int, int]:
        split = make_split(Pictures([np.zeros((8, 8, 3), np.uint8)]), [np.zeros((8, 8), np.uint8)], [squash(*canvas)], Colours(), LABELS, 2)
        return loss_grid(split.seen, outputs, longer, every)

    assert grid((224, 224), (14, 14)) == (56, 56)  # four times the features' grid
    assert grid((512, 512), (32, 32)) == (128, 128)
    assert grid((512, 1024), (64, 128)) == (64, 128)  # at most 128
    assert grid((384, 480), (24, 30)) == (96, 120)
    assert grid((224, 224), (224, 224)) == (224, 224)  # never fewer cells than the head gives
    assert grid((224, 224), (224, 224), every=False) == (128, 128)  # but where weights are shared between cells
    assert grid((64, 64), (32, 32)) == (64, 64)  # never more than pixels
    assert grid((448, 448), (28, 28), 100) == (100, 100)
    assert grid((448, 224), (28, 14), 100) == (100, 50)
    assert grid((32, 32), (16, 16), 512) == (32, 32)


def test_targets_are_read_once_where_they_are_kept_and_every_time_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import virb.probes.dense_data as dense_data

    reads: list[int] = []

    class Read(list):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            reads.append(index)
            return super().__getitem__(index)

    targets = [some_blocks(4, 6, (10, 10), seed) for seed in range(3)]
    views = [Geometry((40, 60), "squash", "none", 1.0, "nearest", View(number, "crop-flip", 0)) for number in range(3)]
    for most in (2**31, 3 * 20 * 30, 0):
        monkeypatch.setattr(dense_data, "_KEPT_BYTES", most)
        split = make_split(Pictures([PALETTE[t] for t in targets]), targets, views, Colours(), LABELS, CLASSES)
        split.role.__dict__["targets"] = Read(targets)
        reads.clear()
        first = [_views_of(split, epoch) for epoch in range(3)]
        again = [_views_of(split, epoch) for epoch in range(3)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not torch.equal(first[0], first[1])
        # of three views the second and third do not fit; what does not fit is tried first, by one sample
        assert len(set(reads)) == 3
        if most == 2**31:
            assert len(reads) == 9 + 3  # the first sample of a view tells the size
        else:
            assert len(reads) > 12


def _views_of(split: DenseSplit, epoch: int) -> torch.Tensor:
    split.set_epoch(epoch)
    return split.at_grid(np.arange(3), (20, 30))


def test_maps_of_2021_are_scaled_after_they_were_resized() -> None:
    raw = np.random.default_rng(0).integers(500, 9_000, (40, 60)).astype(np.float32)
    raw[:8, :9] = 65_535  # not scanned: the filter smears it before it is cut
    placement = squashed((40, 60), (20, 30))
    small = np.asarray(Image.fromarray(raw).resize((30, 20), Image.Resampling.BICUBIC))
    far = np.minimum(small, 10_000) / np.minimum(small, 10_000).max()
    above = small - small.min()
    for rescale, wanted in (("far", far - far.min()), ("range", above / above.max())):
        found = resampled(raw[None], DenseTarget("map", at="view", resample="bicubic", rescale=rescale), placement, (20, 30), (20, 30))
        np.testing.assert_allclose(found[0], wanted, atol=1e-6)
    assert np.isnan(resampled(0 * raw[None], DenseTarget("map", at="view", rescale="far"), placement, (20, 30), (20, 30))).all()
