"""Which patches match: against the original's lists, against a search over all pairs, and in cases that can be worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from virb.errors import UserError
from virb.pretraining.geometry import Crop, grid_of, match

GOLDEN = Path(__file__).parents[1] / "golden" / "patchwise_correspondences.npz"


def rows(*crops: Crop) -> torch.Tensor:
    return torch.tensor([crop.row() for crop in crops], dtype=torch.float32)


def pairs_of(a: Crop, b: Crop, patch: int, **options: object) -> set[tuple[int, int]]:
    found = match(rows(a), rows(b), patch, **options)  # type: ignore[arg-type]
    assert (found.first[0], found.second[0]) == (0, 0)
    assert (found.first[1:] > 0).all()
    assert (found.second[1:] > 0).all()
    return set(zip(found.first[1:].tolist(), found.second[1:].tolist(), strict=True))


def random_crop(random: np.random.Generator, scale: tuple[float, float], size: int, side: int = 256) -> Crop:
    while True:
        area, ratio = side * side * random.uniform(*scale), math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if width <= side and height <= side:
            top, left = random.integers(0, side - height + 1), random.integers(0, side - width + 1)
            return Crop(int(top), int(left), height, width, bool(random.random() < 0.5), size)


def overlaps(a: Crop, b: Crop, patch: int, pairs: set[tuple[int, int]]) -> np.ndarray:
    """Intersection over union of matched patches, in the image."""
    one, two = a.patch_boxes(patch), b.patch_boxes(patch)
    found = []
    for i, j in pairs:
        (x0, y0, x1, y1), (u0, v0, u1, v1) = one[i - 1], two[j - 1]
        common = max(0.0, min(x1, u1) - max(x0, u0)) * max(0.0, min(y1, v1) - max(y0, v0))
        found.append(common / ((x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - common))
    return np.array(found)


def test_linspace_is_the_original() -> None:
    golden = np.load(GOLDEN)
    ends = golden["offsets"]
    for i, row in enumerate(golden["pairs"]):
        found = match(torch.tensor(row[None, 3:9]), torch.tensor(row[None, 9:15]), int(row[2]), rule="linspace")
        part = slice(ends[i], ends[i + 1])
        assert found.first.tolist() == golden["tokens_a.values"][part].tolist(), golden["pair_kind"][i]
        assert found.second.tolist() == golden["tokens_b.values"][part].tolist(), golden["pair_kind"][i]


def test_linspace_is_the_originals_pipeline() -> None:
    golden = np.load(GOLDEN)
    crops, ends = torch.tensor(golden["pipeline.crops"]).float(), golden["pipeline.offsets"]
    for i, (teacher, student) in enumerate(golden["pipeline.pairs"]):
        found = match(crops[[teacher]], crops[[student]], 16, rule="linspace")
        part = slice(ends[i], ends[i + 1])
        assert found.first.tolist() == golden["pipeline.tokens_teacher.values"][part].tolist()
        assert found.second.tolist() == golden["pipeline.tokens_student.values"][part].tolist()


def nearest_by_search(a: Crop, b: Crop, patch: int) -> set[tuple[int, int]]:
    """Each patch's nearest centre among all of the other view; pairs that choose each other, where that centre is not beyond the edge."""
    one, two = a.patch_boxes(patch), b.patch_boxes(patch)
    centre, other = (one[:, :2] + one[:, 2:]) / 2, (two[:, :2] + two[:, 2:]) / 2
    distance = ((centre[:, None] - other[None]) ** 2).sum(-1)
    half = np.minimum(one[0, 2:] - one[0, :2], two[0, 2:] - two[0, :2]) / 2
    found = set()
    for i, j in enumerate(distance.argmin(1)):
        if distance[:, j].argmin() == i and (abs(centre[i] - other[j]) <= half + 1e-9).all():
            found.add((i + 1, int(j) + 1))
    return found


@pytest.mark.parametrize(("patch", "sizes"), [(16, (224, 96)), (32, (224, 224)), (8, (96, 96))])
def test_nearest_is_a_search_over_all_patches(patch: int, sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    for _ in range(25):
        a, b = random_crop(random, (0.4, 1), sizes[0]), random_crop(random, (0.05, 1), sizes[1])
        a = Crop(a.top, a.left, a.height | 1, a.width | 1, a.flip, a.size)  # odd sides: hardly any ties
        b = Crop(b.top, b.left, b.height | 1, b.width | 1, b.flip, b.size)
        assert pairs_of(a, b, patch) == nearest_by_search(a, b, patch)


def test_nearest_knows_no_order_of_views() -> None:
    golden = np.load(GOLDEN)
    for row in golden["pairs"]:
        a, b = Crop.of(row[3:9]), Crop.of(row[9:15])
        assert pairs_of(a, b, int(row[2])) == {(i, j) for j, i in pairs_of(b, a, int(row[2]))}


def test_a_flip_renames_columns() -> None:
    random = np.random.default_rng(1)
    a, b = random_crop(random, (0.4, 1), 224), random_crop(random, (0.2, 0.4), 96)
    mirrored = Crop(b.top, b.left, b.height, b.width, not b.flip, b.size)
    expected = {(i, 1 + (j - 1) // 6 * 6 + 5 - (j - 1) % 6) for i, j in pairs_of(a, b, 16)}
    assert expected
    assert pairs_of(a, mirrored, 16) == expected


def test_one_box_matches_itself() -> None:
    box = Crop(3, 5, 101, 77, False, 64)
    assert pairs_of(box, box, 16) == {(i, i) for i in range(1, 17)}
    mirrored = Crop(3, 5, 101, 77, True, 64)
    assert pairs_of(box, mirrored, 16) == {(r * 4 + c + 1, r * 4 + 3 - c + 1) for r in range(4) for c in range(4)}


def test_half_a_patch_of_shift_is_a_tie_that_does_not_lose_pairs() -> None:
    a, b = Crop(0, 0, 64, 64, False, 64), Crop(0, 8, 64, 64, False, 64)
    assert pairs_of(a, b, 16) == pairs_of(b, a, 16) == {(i, i) for i in range(1, 17)}


def test_views_apart_share_cls_alone() -> None:
    a, b = Crop(0, 0, 100, 100, False, 96), Crop(0, 100, 100, 100, True, 96)
    assert pairs_of(a, b, 16) == set()


def test_no_patch_is_matched_twice_and_all_that_match_overlap() -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        a, b = random_crop(random, (0.4, 1), 224), random_crop(random, (0.05, 0.4), 96)
        found = pairs_of(a, b, 16)
        assert len({i for i, _ in found}) == len({j for _, j in found}) == len(found)
        assert (overlaps(a, b, 16, found) > 0).all()


def test_threshold_is_the_share_of_the_smaller_patch() -> None:
    a, b = Crop(0, 0, 64, 64, False, 64), Crop(0, 4, 64, 64, False, 64)  # patches of 16: 3/4 of each pair is common
    assert len(pairs_of(a, b, 16, min_overlap=0.75)) == 16  # the last column's common part is 12 wide too
    assert pairs_of(a, b, 16, min_overlap=0.76) == set()
    small = Crop(20, 20, 16, 16, False, 64)  # its patches, 4 x 4, lie in one of a's each: wholly common
    inside = pairs_of(a, small, 16, min_overlap=1.0)
    assert inside == pairs_of(a, small, 16) != set()


def test_matches_more_closely_than_the_original() -> None:
    random = np.random.default_rng(3)
    for second, scale, least in ((224, (0.4, 1.0), 0.39), (96, (0.05, 0.4), 0.34)):
        found: dict[str, list[float]] = {"nearest": [], "linspace": []}
        counts = {"nearest": 0, "linspace": 0}
        for _ in range(150):
            a, b = random_crop(random, (0.4, 1), 224), random_crop(random, scale, second)
            for rule in ("nearest", "linspace"):
                pairs = pairs_of(a, b, 16, rule=rule)
                found[rule] += overlaps(a, b, 16, pairs).tolist()
                counts[rule] += len(pairs)
        mean = {rule: float(np.mean(values)) for rule, values in found.items()}
        assert mean["nearest"] > least
        assert mean["linspace"] < 0.27
        assert counts["nearest"] == pytest.approx(counts["linspace"], rel=0.06)


def test_images_of_a_batch_have_their_own_pairs() -> None:
    random = np.random.default_rng(4)
    crops = [(random_crop(random, (0.4, 1), 224), random_crop(random, (0.05, 0.4), 96)) for _ in range(6)]
    for rule in ("nearest", "linspace"):
        found = match(rows(*(a for a, _ in crops)), rows(*(b for _, b in crops)), 16, rule=rule)
        assert (found.image.diff() >= 0).all()
        for i, (a, b) in enumerate(crops):
            of_image = [(x, y) for n, x, y in zip(*(values.tolist() for values in found), strict=True) if n == i]
            assert of_image[0] == (0, 0)
            assert set(of_image[1:]) == pairs_of(a, b, 16, rule=rule)


def test_points_of_a_view_in_the_image() -> None:
    crop = Crop(top=10, left=20, height=40, width=80, flip=False, size=32)
    assert crop.to_image(np.array([0.0, 0.0])).tolist() == [20, 10]
    assert crop.to_image(np.array([32.0, 16.0])).tolist() == [100, 30]
    mirrored = Crop(10, 20, 40, 80, True, 32)
    assert mirrored.to_image(np.array([0.0, 0.0])).tolist() == [100, 10]
    assert mirrored.patch_boxes(16).tolist() == [[60, 10, 100, 30], [20, 10, 60, 30], [60, 30, 100, 50], [20, 30, 60, 50]]
    assert Crop.of(mirrored.row()) == mirrored


@pytest.mark.parametrize("patch", [0, 15, 300])
def test_patches_that_do_not_divide_a_view(patch: int) -> None:
    with pytest.raises(UserError, match=f"patches of {patch} pixels do not divide views of 224"):
        grid_of(224, patch)
    crop = rows(Crop(0, 0, 100, 100, False, 224))
    with pytest.raises(UserError, match="do not divide"):
        match(crop, crop, patch)


def test_an_unknown_rule() -> None:
    crop = rows(Crop(0, 0, 100, 100, False, 96))
    with pytest.raises(ValueError, match="nearest, linspace"):
        match(crop, crop, 16, rule="best")  # type: ignore[arg-type]
