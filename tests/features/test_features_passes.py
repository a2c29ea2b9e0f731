"""A pass decodes each image once for everybody; what it stores is what a plain loop over the encoder gives."""

from __future__ import annotations

import re
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.images import ImageList
from virb.data.transforms import Geometry, View
from virb.encoders.load import load_encoder
from virb.errors import BadImage, UnreadImage, ViRBError
from virb.features.cache import FeatureCache
from virb.features.decoded import Pixels
from virb.features.encoding import Numerics, PassOptions, encode, forward
from virb.features.feature_set import MappedRows
from virb.features.passes import Wanted, run_slices

CPU = torch.device("cpu")
FLOAT32 = Numerics("float32", "cpu")
SMALL, LARGE, NATIVE = Geometry((16, 16), "squash"), Geometry((24, 16), "shorter", "center", 0.9), Geometry(None, "none", "none")
CROPPED = Geometry((16, 16), view=View(1))


class Counting(ImageList):
    """Noise of different heights; counts how often each image is read."""

    def __init__(self, n: int, bad: tuple[int, ...] = (), heights: tuple[int, ...] = (20, 24, 31)) -> None:
        self.name, self.ids, self.bad, self.heights = "noise", [f"image-{i}" for i in range(n)], bad, heights
        self.reads = [0] * n
        self._lock = threading.Lock()

    def read(self, i: int) -> Image.Image:
        with self._lock:
            self.reads[i] += 1
        if i in self.bad:
            raise BadImage(f"folder/{i}.jpg: cannot be decoded")
        height = self.heights[i % len(self.heights)]
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, 28, 3), dtype=np.uint8))

    def _describe(self):
        return {"kind": "noise"}

    def _contents(self):
        return ()


class Fake:
    """An encoder whose outputs are what ``function`` makes of a batch of images in [0, 1]; keeps the batch shapes it saw."""

    def __init__(self, name: str, function) -> None:
        self.spec = SimpleNamespace(name=name, expand=lambda request: (request,))
        self.function, self.seen = function, []

    def prepare(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float() / 255

    def __call__(self, images: torch.Tensor, requests):
        self.seen.append(tuple(images.shape))
        return {request: self.function(images) for request in requests}


def means(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))


def options(batch_size: int = 4, threads: int = 0) -> PassOptions:
    return PassOptions(FLOAT32, batch_size, threads)


def want(encoder: str, geometry: Geometry = SMALL, request: str = "embedding") -> Wanted:
    return Wanted(encoder, geometry, request, f"{encoder} {request} {hash(geometry)}".encode().hex())


def read(cache: FeatureCache, item: Wanted, n: int) -> torch.Tensor:
    return MappedRows(cache.slices(item.key, n)).read(np.arange(n)).float()


def mean_colour(images: ImageList, geometry: Geometry, row: int) -> torch.Tensor:
    """What ``means`` gives, by numpy."""
    pixels = geometry.apply(images.read(row), row).numpy()
    return torch.from_numpy((pixels.reshape(3, -1).astype(np.float64).mean(1) / 255).astype(np.float16)).float()


@pytest.fixture
def cache(tmp_path) -> FeatureCache:
    return FeatureCache(tmp_path)


@pytest.fixture(scope="module")
def encoders():
    vit = {"arch": "vit", "weights": "random", "args": {"width": 32, "depth": 2, "heads": 2, "patch_size": 8, "img_size": 16}}
    return {
        "vit": load_encoder(vit, name="vit"),
        "pixels": load_encoder({"arch": "pixels", "args": {"side": 4}}, name="pixels"),
    }


@pytest.mark.parametrize("threads", [0, 3])
def test_one_decode_for_all_encoders_and_geometries(cache, encoders, threads):
    images = Counting(11)
    wanted = [
        want("vit", SMALL),
        want("vit", SMALL, "tokens[-1]"),
        want("vit", LARGE, "cls[-2:]"),
        want("vit", CROPPED, "tokens[0](norm=false).mean+cls[-1]"),
        want("pixels", SMALL),
        want("pixels", LARGE),
    ]
    told = []
    report = run_slices(images, [(0, 11)], wanted, encoders, cache, CPU, options(4, threads), told.append)
    assert images.reads == [1] * 11
    assert (report.decoded, report.rows, report.failed, report.notes) == (11, 11, {}, [])
    assert told == [4, 8, 11]
    assert set(report.seconds) == {"decode", "load", "transfer", "encode", "compute", "write"}
    assert report.seconds["load"] > 0
    for item in wanted:
        stored = read(cache, item, 11)
        for row in range(11):
            pixels = item.geometry.apply(images.read(row), row)[None]
            encoder = encoders[item.encoder]
            with torch.no_grad():
                alone = encoder(encoder.prepare(pixels), [item.request])[item.request][0]
            torch.testing.assert_close(stored[row], alone, rtol=1e-3, atol=1e-4)
    assert not torch.equal(stored[0], stored[3])


def test_a_slice_in_the_middle(cache):
    images = Counting(9)
    item = want("fake")
    run_slices(images, [(3, 8)], [item], {"fake": Fake("fake", means)}, cache, CPU, options())
    assert images.reads == [0, 0, 0, 1, 1, 1, 1, 1, 0]
    assert cache.has_slice(item.key, 3)
    content = np.fromfile(next(cache.folder.glob("*/*/*.bin")), dtype=np.float16).reshape(5, 3)
    for row in range(3, 8):
        torch.testing.assert_close(torch.from_numpy(content[row - 3]).float(), mean_colour(images, SMALL, row), rtol=0, atol=1e-3)


def test_every_batch_has_one_shape():
    fake = Fake("fake", means)
    pixels = torch.stack([SMALL.apply(Counting(7).read(i), i) for i in range(7)])
    outputs = encode(fake, pixels, ["embedding"], CPU, options(3))["embedding"]
    assert fake.seen == [(3, 3, 16, 16)] * 3
    assert len(outputs) == 7
    torch.testing.assert_close(torch.stack(outputs), pixels.double().mean((2, 3)).float() / 255)
    assert all(value.dtype == torch.float32 for value in outputs)


def test_values_do_not_depend_on_neighbours(encoders):
    images = Counting(9)
    pixels = torch.stack([SMALL.apply(images.read(i), i) for i in range(9)])
    native = [NATIVE.apply(images.read(i), i) for i in (0, 3, 1, 4, 4, 2)]  # runs of equal shape, and not
    for encoder in encoders.values():
        together = encode(encoder, pixels, ["embedding"], CPU, options(4))["embedding"]
        for begin, end in [(0, 1), (8, 9), (2, 5)]:
            for place, value in enumerate(encode(encoder, pixels[begin:end], ["embedding"], CPU, options(4))["embedding"]):
                assert torch.equal(value, together[begin + place])
        for place, value in enumerate(encode(encoder, native, ["embedding"], CPU, options(4))["embedding"]):
            assert torch.equal(value, encode(encoder, [native[place]], ["embedding"], CPU, options(4))["embedding"][0])


def nan_for(colour_of_row: int, images: ImageList):
    marked = SMALL.apply(images.read(colour_of_row), colour_of_row).float() / 255

    def function(batch: torch.Tensor) -> torch.Tensor:
        values = means(batch)
        values[(batch == marked).flatten(1).all(1), 1] = float("nan")
        return values

    return function


def test_nan_fails_alone_and_names_the_image(cache):
    images = Counting(10)
    fakes = {"broken": Fake("broken", nan_for(6, images)), "fine": Fake("fine", means)}
    wanted = [want("broken"), want("fine"), want("fine", LARGE)]
    images.reads = [0] * 10
    report = run_slices(images, [(0, 10)], wanted, fakes, cache, CPU, options())
    assert list(report.failed) == [wanted[0].key]
    assert "broken gave NaN or infinite values of embedding for image image-6;" in report.failed[wanted[0].key]
    assert not cache.has_slice(wanted[0].key, 0)
    torch.testing.assert_close(read(cache, wanted[1], 10)[6], mean_colour(images, SMALL, 6), rtol=0, atol=1e-3)
    assert read(cache, wanted[2], 10).shape == (10, 3)
    assert len(fakes["broken"].seen) == 2  # not asked again


def test_one_output_with_nan_leaves_the_others_of_its_encoder(cache):
    class Two(Fake):
        def __call__(self, images, requests):
            both = {"embedding": means(images), "tokens[-1].mean": means(images) / 0 * float("inf")}
            return {request: both[request] for request in requests}

    wanted = [want("two"), want("two", SMALL, "tokens[-1].mean")]
    report = run_slices(Counting(5), [(0, 5)], wanted, {"two": Two("two", None)}, cache, CPU, options())
    assert list(report.failed) == [wanted[1].key]
    assert cache.has_slice(wanted[0].key, 0)


def crash(images: torch.Tensor) -> torch.Tensor:
    return images.reshape(7, -1, 11)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda images: means(images)[:-1], r"bad gave embedding of shape \(3, 3\) for a batch of 4 images; expected 4 rows"),
        (lambda images: means(images).mean(1), r"bad gave embedding of shape \(4,\) for a batch of 4"),
        (lambda images: means(images).mean(), r"bad gave embedding of shape \(\) for a batch of 4"),
        (lambda images: (means(images), means(images)), r"embedding of bad is several maps; ask for one of them"),
        (crash, r"^bad: RuntimeError: shape.*\(test_features_passes\.py:\d+\)\nTraceback"),
    ],
)
def test_what_a_wrong_encoder_does_is_said_and_stays_its_own(cache, function, words):
    wanted = [want("bad"), want("fine")]
    fakes = {"bad": Fake("bad", function), "fine": Fake("fine", means)}
    report = run_slices(Counting(6), [(0, 6)], wanted, fakes, cache, CPU, options())
    assert list(report.failed) == [wanted[0].key]
    assert re.search(words, report.failed[wanted[0].key])
    assert read(cache, wanted[1], 6).shape == (6, 3)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("tokens[3,5].mean", r"vit is several vectors; write tokens\[3\]\.mean\+tokens\[5\]\.mean, or a list of 2 requests$"),
        ("tokens[-2:].mean", r"vit is several vectors; write tokens\[10\]\.mean\+tokens\[11\]\.mean, or a list of 2 requests$"),
        ("tokens[3,5]", r"vit is several maps; ask for one of them \(or reduce each and join with \+\)$"),
    ],
)
def test_several_tensors_where_one_is_needed(request_, words):
    from virb.encoders.load import load_encoder

    vit = load_encoder({"arch": "vit_tiny", "weights": "random", "args": {"patch_size": 8, "img_size": 32}}, name="vit")
    with pytest.raises(ViRBError, match=words):
        forward(vit, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [request_], CPU, FLOAT32, 1)


def test_nothing_more_is_decoded_when_all_have_failed(cache):
    images = Counting(40)
    threads = threading.active_count()
    report = run_slices(images, [(0, 40)], [want("bad")], {"bad": Fake("bad", crash)}, cache, CPU, options(4, 2))
    assert len(report.failed) == 1
    assert sum(images.reads) < 20
    assert threading.active_count() == threads


def test_no_thread_is_left_when_the_disk_is_full(cache, monkeypatch):
    monkeypatch.setattr(FeatureCache, "write_slice", lambda *_: (_ for _ in ()).throw(ViRBError("the disk is full")))
    threads = threading.active_count()
    item = want("fine")
    report = run_slices(Counting(9), [(0, 9)], [item], {"fine": Fake("fine", means)}, cache, CPU, options(4, 2))
    assert report.failed == {item.key: "the disk is full"}
    assert threading.active_count() == threads


class Greedy(Fake):
    """Runs out of memory for more than ``most`` images; what its failed forward held must be free before it is tried again."""

    def __init__(self, most: int) -> None:
        super().__init__("greedy", means)
        self.most, self.held, self.still_held = most, [], 0

    def __call__(self, images, requests):
        self.still_held += sum(reference() is not None for reference in self.held)
        self.held.clear()
        if len(images) > self.most:
            self.seen.append(tuple(images.shape))
            activations = images * 2
            self.held += [weakref.ref(images), weakref.ref(activations)]
            raise torch.OutOfMemoryError(f"no room for {activations.shape}")
        return super().__call__(images, requests)


@pytest.mark.parametrize("most", [1, 3, 5, 8])
def test_out_of_memory_halves_the_batch_and_not_the_numbers(cache, most):
    images = Counting(21)
    greedy, calm = Greedy(most), Fake("calm", means)
    wanted = [want("greedy"), want("calm")]
    report = run_slices(images, [(0, 21)], wanted, {"greedy": greedy, "calm": calm}, cache, CPU, options(8))
    assert report.failed == {}
    assert torch.equal(read(cache, wanted[0], 21), read(cache, wanted[1], 21))
    fits = {1: 1, 3: 2, 5: 4, 8: 8}[most]
    sizes = [shape[0] for shape in greedy.seen]
    tried = [size for size in (8, 4, 2) if size > fits]
    assert sizes[: len(tried)] == tried  # learned once, not in every batch
    assert set(sizes[len(tried) :]) == {fits}
    assert [note.partition("(batch")[2] for note in report.notes] == [f" {size}): going on with {size // 2}" for size in tried]
    assert all("greedy" in note for note in report.notes)
    assert {shape[0] for shape in calm.seen} == {8}
    assert greedy.still_held == 0


def test_out_of_memory_with_one_image(cache):
    wanted = [want("greedy"), want("calm")]
    fakes = {"greedy": Greedy(0), "calm": Fake("calm", means)}
    report = run_slices(Counting(5), [(0, 5)], wanted, fakes, cache, CPU, options(4))
    assert report.failed == {wanted[0].key: "greedy ran out of memory on cpu with a single image of (16, 16)"}
    assert cache.has_slice(wanted[1].key, 0)


def test_bad_images_are_noted_and_hold_nothing(cache):
    images = Counting(7, bad=(2, 6))
    wanted = [want("log"), want("log", NATIVE)]
    # A black image would give -inf, and one of 1 x 1 a crash: the encoder of a good image must not suffer for it.
    fake = Fake("log", lambda batch: torch.nn.functional.avg_pool2d(batch, 8).log().mean((2, 3)))
    report = run_slices(images, [(0, 7)], wanted, {"log": fake}, cache, CPU, options(4))
    assert report.failed == {}
    assert report.decoded == 7
    for item in wanted:
        rows = MappedRows(cache.slices(item.key, 7))
        assert rows.bad == {2: "folder/2.jpg: cannot be decoded", 6: "folder/6.jpg: cannot be decoded"}
        for row in (0, 1, 3, 4, 5):
            assert torch.isfinite(rows.read_one(row)).all()
            assert rows.read_one(row).shape == (3,)
        assert not rows.read_one(2).any()
        assert rows.dtype == torch.float16


def test_nothing_is_written_of_a_slice_with_an_image_that_cannot_be_read_now(cache):
    images, item = Counting(7, bad=(2,)), want("mean")
    read_well = images.read

    def read_or_fail(i: int) -> Image.Image:
        if i == 6:
            raise UnreadImage("shard: the shard is cut off")
        return read_well(i)

    images.read = read_or_fail  # type: ignore[method-assign]
    with pytest.raises(UnreadImage, match="the shard is cut off"):
        run_slices(images, [(0, 7)], [item], {"mean": Fake("mean", means)}, cache, CPU, options(4), pixels=Pixels(keep={SMALL: "pixels"}))
    assert not cache.has_slice(item.key, 0)
    assert not cache.has_slice("pixels", 0)
    images.read = read_well  # type: ignore[method-assign]
    assert run_slices(images, [(0, 7)], [item], {"mean": Fake("mean", means)}, cache, CPU, options(4)).failed == {}
    assert sorted(MappedRows(cache.slices(item.key, 7)).bad) == [2]


def test_native_sizes_make_ragged_rows(cache, encoders):
    images = Counting(8, heights=(16, 24, 24, 32))
    item = want("vit", NATIVE, "tokens[-1]")
    vit = encoders["vit"]
    report = run_slices(images, [(0, 8)], [item], encoders, cache, CPU, options(4))
    assert report.failed == {}
    rows = MappedRows(cache.slices(item.key, 8))
    assert rows.shape is None
    for row in range(8):
        pixels = torch.from_numpy(np.asarray(images.read(row)).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            alone = vit(vit.prepare(pixels), ["tokens[-1]"])["tokens[-1]"][0]
        assert alone.shape == (32, images.read(row).height // 8, 4)
        torch.testing.assert_close(rows.read_one(row).float(), alone, rtol=1e-3, atol=1e-3)


def test_lower_precision_computes_in_it():
    product = Fake("product", lambda images: means(images) @ torch.eye(3))
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    exact = forward(product, pixels, ["embedding"], CPU, FLOAT32, 2)["embedding"]
    rounded = forward(product, pixels, ["embedding"], CPU, Numerics("bfloat16", "cpu"), 2)["embedding"]
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, exact.bfloat16().float())
    assert not torch.equal(rounded, exact)
