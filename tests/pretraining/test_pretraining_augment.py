"""Augmentation: draws have torchvision's distributions and depend on nothing but (seed, epoch, sample, view); both paths make the same
views; views show the place that their geometry says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from scipy import stats
from torchvision.transforms import v2

from virb.errors import UserError
from virb.pretraining import augment_tensors as tensors
from virb.pretraining.augment import Draws, augment_pil, check_views, draw, normalize, squash
from virb.pretraining.augment_tensors import augment_tensors, crops_by_products, gaussian_blur, squash_tensor
from virb.pretraining.geometry import Crop
from virb.pretraining.methods import CropRecipe, ViewSpec

DINO = ViewSpec(
    (
        CropRecipe(64, (0.4, 1.0), 1, blur=1.0),
        CropRecipe(64, (0.4, 1.0), 1, blur=0.1, solarize=0.2),
        CropRecipe(32, (0.05, 0.4), 4, blur=0.5),
    ),
    2,
)
PLAIN = ViewSpec((CropRecipe(96, (0.4, 1.0), 4, jitter=0, grayscale=0), CropRecipe(48, (0.1, 0.4), 8, jitter=0, grayscale=0)), 4)
FIELDS = ("boxes", "flip", "jitter", "factors", "order", "gray", "blur", "solarize")


def picture(seed: int, height: int, width: int) -> Image.Image:
    """Smooth and colourful, as photographs are."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse).astype(int) + random.integers(-12, 13, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def same(a: Draws, b: Draws) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


@pytest.fixture(scope="module")
def many() -> Draws:
    return draw(DINO, 0, 0, range(4000), [(200, 300)] * 4000)


@pytest.mark.parametrize(("view", "scale"), [(0, (0.4, 1.0)), (4, (0.05, 0.4))])
def test_boxes_are_those_of_torchvision(many: Draws, view: int, scale: tuple[float, float]) -> None:
    image = torch.zeros(3, 200, 300)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(64, scale=scale)
    theirs = np.array([[p[k] for k in ("top", "left", "height", "width")] for p in (crop.make_params([image]) for _ in range(4000))])
    ours = many.boxes[:, view]
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= [200, 300]).all()
    for measure in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: np.log(b[:, 3] / b[:, 2])):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3


def test_where_no_box_fits_the_centre_is_taken() -> None:
    spec = ViewSpec((CropRecipe(32, (0.9, 1.0), 1),), 1)
    boxes = draw(spec, 0, 0, range(3), [(20, 300), (300, 20), (1, 1)]).boxes[:, 0]
    assert boxes.tolist() == [[0, 136, 20, 27], [136, 0, 27, 20], [0, 0, 1, 1]]


def test_colours_are_drawn_as_dinos(many: Draws) -> None:
    n = 4000

    def is_chance(events: np.ndarray, p: float) -> bool:
        return stats.binomtest(int(events.sum()), events.size, p).pvalue > 1e-3

    assert is_chance(many.flip, 0.5)
    assert is_chance(many.jitter, 0.8)
    assert is_chance(many.gray, 0.2)
    for view, (blur, solarize) in enumerate([(1.0, 0.0), (0.1, 0.2), *[(0.5, 0.0)] * 4]):
        assert is_chance(many.blur[:, view] > 0, blur)
        assert is_chance(many.solarize[:, view], solarize)
    for i, (low, high) in enumerate([(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]):
        assert stats.kstest(many.factors[..., i].ravel(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    assert stats.kstest(many.blur[:, 0], stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3
    assert stats.chisquare(np.bincount(many.order[:, 0], minlength=24)).pvalue > 1e-3
    # Independent of each other, from view to view and from image to image.
    numbers = np.concatenate(
        [many.factors[:, 0], many.factors[:, 1], many.blur[:, :1], many.boxes[:, 0, :1], many.boxes[:, 1, 1:2]], axis=1
    )
    correlation = np.corrcoef(numbers.T) - np.eye(numbers.shape[1])
    assert abs(correlation).max() < 4 / np.sqrt(n)
    assert abs(np.corrcoef(many.factors[1:, 0, 0], many.factors[:-1, 0, 0])[0, 1]) < 4 / np.sqrt(n)


def test_draws_depend_on_seed_epoch_sample_and_view_alone() -> None:
    sizes = [(100, 80), (64, 64), (50, 70)]
    joint = draw(DINO, 5, 2, [7, 9, 1000], sizes)
    assert same(joint, draw(DINO, 5, 2, [7, 9, 1000], sizes))
    alone = draw(DINO, 5, 2, [9], [(64, 64)])
    assert all(np.array_equal(getattr(alone, name)[0], getattr(joint, name)[1]) for name in FIELDS)
    fewer = draw(ViewSpec(DINO.recipes[:2], 2), 5, 2, [7, 9, 1000], sizes)
    assert all(np.array_equal(getattr(fewer, name), getattr(joint, name)[:, :2]) for name in FIELDS)
    assert not same(joint, draw(DINO, 6, 2, [7, 9, 1000], sizes))
    assert not same(joint, draw(DINO, 5, 3, [7, 9, 1000], sizes))
    assert len(np.unique(joint.factors[..., 0])) == joint.factors[..., 0].size  # views and images differ


def test_both_paths_make_the_same_views() -> None:
    images = [picture(i, 120 + 7 * i, 150 - 9 * i) for i in range(8)]
    draws = draw(DINO, 1, 0, range(8), [(image.height, image.width) for image in images])
    assert draws.gray.any()
    assert draws.solarize.any()
    theirs, ours = augment_pil(images, draws, DINO), augment_tensors([as_tensor(image) for image in images], draws, DINO)
    for one, two, recipe in zip(theirs, ours, DINO.views, strict=True):
        assert one.dtype == two.dtype == torch.uint8
        assert one.shape == two.shape == (8, 3, recipe.size, recipe.size)
        difference = (one.int() - two.int()).abs().float()
        assert difference.mean() < 0.5
        # a level of difference before solarisation can be the other side of the threshold
        assert (difference[torch.from_numpy(~draws.solarize[:, 0])] > 3).float().mean() < 0.003


def test_many_views_are_alike_in_the_mean() -> None:
    """Over many draws, pixels of the two paths have the same distribution."""
    spec = ViewSpec((CropRecipe(16, (0.2, 1.0), 1, blur=0.5, solarize=0.2),), 1)
    images = [picture(i, 24, 24) for i in range(300)]
    sizes = [(24, 24)] * 300
    (one,) = augment_pil(images, draw(spec, 1, 0, range(300), sizes), spec)
    (two,) = augment_tensors([as_tensor(image) for image in images], draw(spec, 2, 0, range(300), sizes), spec)
    for measure in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: x[:, 0, 3, 5],
        lambda x: (x[:, 0] - x[:, 2]).mean((1, 2)),
    ):
        assert stats.ks_2samp(measure(one.float()).numpy(), measure(two.float()).numpy()).pvalue > 1e-3


def test_a_view_is_the_same_in_any_batch_and_on_any_number_of_threads() -> None:
    images = [as_tensor(picture(i, 90, 110)) for i in range(12)]
    joint = augment_tensors(images, draw(DINO, 0, 0, range(12), [(90, 110)] * 12), DINO)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        twice = augment_tensors(images, draw(DINO, 0, 0, range(12), [(90, 110)] * 12), DINO)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(joint, twice, strict=True))
    for part in ([3], [11, 0, 5, 6, 2]):
        some = augment_tensors([images[i] for i in part], draw(DINO, 0, 0, part, [(90, 110)] * len(part)), DINO)
        assert all(torch.equal(a, b[part]) for a, b in zip(some, joint, strict=True))


def test_batches_larger_than_the_cache_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [as_tensor(picture(i, 40, 40)) for i in range(5)]
    draws = draw(DINO, 0, 0, range(5), [(40, 40)] * 5)
    whole = augment_tensors(images, draws, DINO)
    monkeypatch.setitem(tensors._AT_ONCE, "cpu", 3 * 64 * 64)
    assert all(torch.equal(a, b) for a, b in zip(whole, augment_tensors(images, draws, DINO), strict=True))


def test_products_resize_as_pillow_does() -> None:
    images = [picture(i, 130, 90) for i in range(2)]
    boxes = np.array([[[0, 0, 130, 90], [10, 20, 33, 41]], [[5, 3, 17, 9], [100, 60, 30, 30]]])
    for size in (32, 96):
        found = crops_by_products(torch.stack([as_tensor(image) for image in images]), boxes, size)
        for i, image in enumerate(images):
            for v, (top, left, height, width) in enumerate(boxes[i]):
                box = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BICUBIC)
                assert (found[v, i].int() - as_tensor(box).int()).abs().max() <= 2


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.4, 1.42, 2.0])
@pytest.mark.parametrize("size", [1, 3, 32])
def test_blur_is_pillows(radius: float, size: int) -> None:
    image = picture(0, size, size)
    theirs = as_tensor(image.filter(ImageFilter.GaussianBlur(radius)))
    ours = gaussian_blur(as_tensor(image)[None].float(), torch.tensor([radius]))[0]
    assert (theirs - ours).abs().max() <= 3
    assert (theirs - ours).mean().abs() < 0.6


@pytest.mark.parametrize("radius", [0.7, 1.0, 1.4, 1.45, 1.9])
def test_blur_has_the_radius_as_standard_deviation(radius: float) -> None:
    x = torch.zeros(1, 3, 41, 41)
    x[..., 20, :] = 255  # a line
    spread = gaussian_blur(x, torch.tensor([radius]))[0, 0, :, 20]
    variance = (spread / spread.sum()) @ (torch.arange(41) - 20.0) ** 2
    assert float(variance) == pytest.approx(radius**2, rel=0.05)


@pytest.mark.parametrize("path", ["pil", "tensors", "products"])
def test_views_show_the_place_that_their_geometry_says(path: str) -> None:
    """An image whose colours are its coordinates: every patch of every view has those of its own place, to half a patch."""
    x, y = np.meshgrid(np.arange(256), np.arange(256))
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))
    draws = draw(PLAIN, 3, 0, range(10), [(256, 256)] * 10)
    geometry = draws.geometry(PLAIN)
    assert geometry.shape == (10, 12, 6)
    assert geometry.dtype == torch.float32
    if path == "pil":
        crops = augment_pil([image] * 10, draws, PLAIN)
    elif path == "tensors":
        crops = augment_tensors([as_tensor(image)] * 10, draws, PLAIN)
    else:
        groups = [
            crops_by_products(torch.stack([as_tensor(image)] * 10), draws.boxes[:, part], size)
            for part, size in ((range(4), 96), (range(4, 12), 48))
        ]
        flips = torch.from_numpy(draws.flip.T)[..., None, None, None]
        crops = tuple(torch.where(f, c.flip(-1), c) for c, f in zip([*groups[0], *groups[1]], flips, strict=True))
    assert draws.flip.any()
    assert not draws.flip.all()
    for v, view in enumerate(crops):
        for i in range(10):
            crop = Crop.of(geometry[i, v])
            patches = view[i, :2].float().unfold(1, 8, 8).unfold(2, 8, 8).mean((-1, -2)).flatten(1).T.numpy()
            boxes = crop.patch_boxes(8)
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2 - 0.5  # pixel 0 has its centre at 0.5
            half = (boxes[:, 2:] - boxes[:, :2]) / 2
            assert (abs(patches - centres) < half.clip(min=1.0)).all()
            assert abs(patches - centres).max() < 1.5


def test_images_are_squashed_before_they_are_cropped() -> None:
    spec = ViewSpec((CropRecipe(16, (0.5, 1.0), 2),), 2, squash=(64, 48))
    image = picture(0, 100, 30)
    assert squash(image, spec).size == (48, 64)
    assert squash_tensor(as_tensor(image), spec).shape == (3, 64, 48)
    assert (squash_tensor(as_tensor(image), spec).int() - as_tensor(squash(image, spec)).int()).abs().max() <= 2


def test_normalization() -> None:
    x = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = v2.functional.normalize(x / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ViewSpec((CropRecipe(32, (0.5, 0.4), 1),), 1), "0.5 to 0.4"),
        (ViewSpec((CropRecipe(32, (0.0, 0.4), 1),), 1), "0.0 to 0.4"),
        (ViewSpec((CropRecipe(0, (0.1, 0.4), 1),), 1), "0 pixels"),
        (ViewSpec((CropRecipe(32, (0.1, 0.4), 1),), 2), "2 global views of 1"),
        (ViewSpec((CropRecipe(32, (0.1, 0.4), 1),), 1, squash=(0, 0)), "0 x 0"),
    ],
)
def test_views_that_cannot_be_made(spec: ViewSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_views(spec)
