"""What probes read: the right samples, in order, and the same numbers whether features were cached or are encoded on the way."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from virb.data.images import ArrayImages, Dataset, ImageList, Samples
from virb.data.loader import load_batches
from virb.data.sequences import LazySequence
from virb.data.transforms import Geometry
from virb.encoders.load import load_encoder
from virb.errors import BadImage, ViRBError
from virb.features.ahead import expecting
from virb.features.cache import FeatureCache
from virb.features.counted import PassReport
from virb.features.encoding import Numerics, PassOptions
from virb.features.feature_set import MappedRows, SampleFeatures
from virb.features.passes import Wanted, run_slices
from virb.plan.limit import limit_split
from virb.probes.inputs import (
    ImageBatches,
    encoded_rows,
    find_bad_images,
    online_sample,
    pick,
    role_data,
    stream_batch,
    usable_samples,
)

CPU = torch.device("cpu")
OPTIONS = PassOptions(Numerics("float32", "cpu"), 4, 0)
SQUASH, NATIVE = Geometry((16, 16), "squash"), Geometry(None, "none", "none")


class WithBad(ArrayImages):
    bad: tuple[int, ...] = ()

    def read(self, i):
        if i in self.bad:
            raise BadImage(f"folder/{i}.jpg: cannot be decoded")
        return super().read(i)


class Sized(ImageList):
    """Image i has height 8 (i % 3 + 1)."""

    def __init__(self, source: ArrayImages) -> None:
        self.name, self.ids, self.source = "sized", source.ids, source

    def read(self, i):
        return self.source.read(i).crop((0, 0, 20, 8 * (i % 3 + 1)))

    def _describe(self):
        return {}

    def _contents(self):
        return ()


@pytest.fixture
def images() -> WithBad:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 24, 20, 3), dtype=np.uint8)
    return WithBad("noise", pixels, [f"image-{i}" for i in range(12)])


@pytest.fixture(scope="module")
def vit():
    return load_encoder(
        {"arch": "vit", "weights": "random", "args": {"width": 32, "depth": 1, "heads": 2, "patch_size": 8, "img_size": 16}}, name="vit"
    )


def several_rows() -> Samples:
    rows = [[0, 1], [2], [3, 4, 5], [1], [6, 0]]
    targets = {"class": np.array([5, 6, 7, 8, 9]), "lazy": LazySequence(lambda i: f"target {i}", 5)}
    return Samples.from_rows(["a", "b", "c", "d", "e"], "noise", rows, targets, units=["u", "u", "v", "w", "w"])


# Which samples take part


def test_all_are_usable_when_nothing_is_bad(images):
    assert usable_samples(several_rows(), {}, images, "error").tolist() == [0, 1, 2, 3, 4]
    assert usable_samples(several_rows(), {9: "of no sample"}, images, "error").tolist() == [0, 1, 2, 3, 4]


def test_a_sample_is_left_out_for_any_of_its_images(images):
    samples = several_rows()
    assert usable_samples(samples, {1: "x"}, images, "skip").tolist() == [1, 2, 4]
    assert usable_samples(samples, {5: "x", 2: "y"}, images, "skip").tolist() == [0, 3, 4]
    assert usable_samples(samples, {6: "x"}, images, "skip").tolist() == [0, 1, 2, 3]
    assert usable_samples(samples, dict.fromkeys(range(12), "x"), images, "skip").tolist() == []


def test_error_names_the_first_and_counts_the_others(images):
    with pytest.raises(BadImage, match=r"^four \(and 1 more\); repair or remove it, or set on_bad_image: skip$"):
        usable_samples(several_rows(), {4: "four", 6: "six", 9: "of no sample"}, images, "error")
    with pytest.raises(BadImage, match=r"^zero; repair"):  # in two samples, but one image
        usable_samples(several_rows(), {0: "zero"}, images, "error")


def test_pick():
    values, offsets, targets = pick(several_rows(), "class", np.array([4, 1, 2]))
    assert values.tolist() == [6, 0, 2, 3, 4, 5]
    assert offsets.tolist() == [0, 2, 3, 6]
    assert targets.tolist() == [9, 6, 7]
    values, offsets, targets = pick(several_rows(), "lazy", np.array([3, 0]))
    assert list(targets) == ["target 3", "target 0"]
    assert len(targets) == 2
    assert targets[-1] == "target 0"
    assert list(targets[1:]) == ["target 0"]
    values, offsets, targets = pick(several_rows(), "class", np.array([], dtype=np.int64))
    assert (values.tolist(), offsets.tolist(), targets.tolist()) == ([], [0], [])


def test_samples_are_picked_all_at_once(monkeypatch):
    """A million of them one by one take a second, in every role of every job."""
    monkeypatch.setattr(Samples, "rows", lambda *_: pytest.fail("one by one"))
    ragged, pairs = several_rows(), Samples.from_rows(list("abc"), "train", np.array([[5, 1], [0, 2], [7, 7]]), {"class": np.arange(3)})
    assert pick(ragged, "class", np.array([4, 1, 2]))[0].tolist() == [6, 0, 2, 3, 4, 5]
    assert pick(pairs, None, np.array([2, 0]))[0].tolist() == [7, 7, 5, 1]
    images = ArrayImages("train", np.zeros((8, 2, 2), dtype=np.uint8), [f"i{i}" for i in range(8)])
    limited = limit_split(Dataset("d", {"train": images}, {"train": pairs}), "train", 2, "class")
    assert limited is not None
    assert len(limited.samples) == 2


def test_find_bad_images(images):
    images.bad = (3, 7, 11)
    assert find_bad_images(images, np.array([0, 3, 7, 8]), 2) == {row: f"folder/{row}.jpg: cannot be decoded" for row in (3, 7)}


# Features


def cached(tmp_path, images, geometry, request, encoder) -> MappedRows:
    cache = FeatureCache(tmp_path)
    report = run_slices(images, [(0, len(images))], [Wanted("it", geometry, request, "key")], {"it": encoder}, cache, CPU, OPTIONS)
    assert not report.failed
    return MappedRows(cache.slices("key", len(images)))


def test_role_data(tmp_path, images, vit):
    rows = cached(tmp_path, images, SQUASH, "embedding", vit)
    data = role_data(several_rows(), "class", np.array([3, 1]), [[rows]], CPU, "host")
    assert data.sample_ids.tolist() == ["d", "b"]
    assert data.units.tolist() == ["w", "u"]
    assert data.targets.tolist() == [8, 6]
    assert torch.equal(data.features.gather(np.arange(2)), rows.read(np.array([1, 2])).float())
    unlabelled = role_data(several_rows(), None, np.array([3]), [[rows]], CPU, "host")
    assert unlabelled.targets is None
    assert unlabelled.seen is None


def test_role_data_of_several_maps_with_views(tmp_path, images, vit):
    """Each tensor of the request keeps its own views, and all turn to an epoch together where the probe asks them to."""
    mirrored = WithBad("mirrored", images.array[:, :, ::-1].copy(), images.ids)
    maps = [
        [cached(tmp_path / f"{name}{i}", source, SQUASH, name, vit) for i, source in enumerate((images, mirrored))]
        for name in ("tokens[-1]", "embedding")
    ]
    told = []

    def seen(values, offsets):
        told.append((values.tolist(), offsets.tolist()))
        return "seen"

    data = role_data(several_rows(), "class", np.array([2, 0]), maps, CPU, "mapped", seen)
    assert told == [([3, 4, 5, 0, 1], [0, 3, 5])]
    assert data.seen == "seen"
    assert data.features is data.maps[0]
    for epoch in range(3):
        for features, views in zip(data.maps, maps, strict=True):
            features.set_epoch(epoch)
            assert torch.equal(features.gather_rows(np.array([1, 0])), views[epoch % 2].read(np.array([0, 1, 3, 4, 5])).float())


@pytest.mark.parametrize("tier", ["host", "mapped"])
def test_all_rows_of_samples_of_different_lengths(tmp_path, images, vit, tier):
    rows = cached(tmp_path, images, SQUASH, "tokens[-1]", vit)
    features = role_data(several_rows(), None, np.array([4, 2, 1]), [[rows]], CPU, tier).features
    assert features.shape is None
    for asked, expected in (([0, 1, 2], [6, 0, 3, 4, 5, 2]), ([2, 2], [2, 2]), ([1], [3, 4, 5])):
        found = features.gather_rows(np.array(asked))
        assert found.dtype == torch.float32
        assert torch.equal(found, rows.read(np.array(expected)).float())


@pytest.mark.parametrize("request_text", ["embedding", "tokens[-1]"])
def test_a_stream_gives_the_cached_numbers(tmp_path, images, vit, request_text):
    rows = cached(tmp_path, images, SQUASH, request_text, vit)
    (stream,) = encoded_rows(images, SQUASH, {request_text: rows.shape}, vit, CPU, OPTIONS)
    assert len(stream) == 12
    assert stream.shape == rows.shape
    for asked in (np.arange(12), np.array([7, 7, 0, 11, 3]), np.array([5])):
        read = stream.read(asked)
        assert read.dtype == torch.float16
        assert torch.equal(read, rows.read(asked))
    assert torch.equal(stream.read_one(9), rows.read_one(9))


class Counted:
    """An encoder that counts its forwards."""

    def __init__(self, encoder):
        self.encoder, self.spec, self.calls = encoder, encoder.spec, 0

    def prepare(self, pixels):
        return self.encoder.prepare(pixels)

    def __call__(self, images, requests):
        self.calls += 1
        return self.encoder(images, requests)


@pytest.mark.parametrize("geometry", [SQUASH, Geometry((8, 8), "squash")])
def test_all_maps_of_a_stream_read_images_that_are_decoded_already(tmp_path, images, vit, geometry):
    names = ["tokens[-1]", "embedding"]
    rows = {name: cached(tmp_path / str(i), images, geometry, name, vit) for i, name in enumerate(names)}
    pixels = np.concatenate([batch.pixels[geometry].numpy() for batch in load_batches(images, np.arange(12), (geometry,), 5)])
    asked = []
    kept = {geometry: SimpleNamespace(find=lambda row: asked.append(row) or (None if row == 3 else pixels[row]))}
    counted = Counted(vit)
    shapes = {name: rows[name].shape for name in names}
    streams = encoded_rows(images, geometry, shapes, counted, CPU, OPTIONS, kept=kept)
    wanted = np.array([7, 3, 0])
    images.bad = tuple(row for row in range(12) if row != 3)  # these cannot be decoded any more
    for stream, name in zip(streams, names, strict=True):
        assert torch.equal(stream.read(wanted), rows[name].read(wanted))
    assert (asked, counted.calls) == ([7, 3, 0], 1)
    with pytest.raises(BadImage, match="folder/5"):
        encoded_rows(images, NATIVE, shapes, counted, CPU, OPTIONS, kept=kept)[0].read(np.array([5]))


def test_one_forward_serves_all_maps(tmp_path, images, vit):
    names = ["embedding", "tokens[-1]", "tokens[-1].mean"]
    rows = {name: cached(tmp_path / str(i), images, SQUASH, name, vit) for i, name in enumerate(names)}
    counted = Counted(vit)
    streams = encoded_rows(images, SQUASH, {name: rows[name].shape for name in names}, counted, CPU, OPTIONS)
    assert [stream.shape for stream in streams] == [rows[name].shape for name in names]
    for calls, asked in enumerate((np.array([3, 0, 3]), np.array([1, 2]), np.array([1, 2]), np.array([0])), 1):
        for stream, name in zip(streams, names, strict=True):
            assert torch.equal(stream.read(asked), rows[name].read(asked))
        assert counted.calls == calls  # at most four rows: one batch
    assert torch.equal(streams[2].read_one(9), rows["tokens[-1].mean"].read_one(9))  # in any order, and not all of them
    assert torch.equal(streams[2].read(np.array([9])), rows["tokens[-1].mean"].read(np.array([9])))
    assert torch.equal(streams[0].read_one(9), rows["embedding"].read_one(9))


def test_a_ragged_stream_gives_the_cached_numbers(tmp_path, images, vit):
    sized = Sized(images)
    rows = cached(tmp_path, sized, NATIVE, "tokens[-1]", vit)
    (stream,) = encoded_rows(sized, NATIVE, {"tokens[-1]": None}, vit, CPU, OPTIONS)
    assert rows.shape is None
    for row in range(12):
        assert torch.equal(stream.read_one(row), rows.read_one(row))
    with pytest.raises(TypeError, match="one by one"):
        stream.read(np.array([0, 1]))


class Shapes(Counted):
    """One that notes how many images it is given."""

    def __call__(self, images, requests):
        self.sizes = [*getattr(self, "sizes", []), len(images)]
        return super().__call__(images, requests)


def test_a_stream_encodes_as_many_images_as_a_step_has(tmp_path, images, vit):
    assert [stream_batch(rows, 32) for rows in (1, 2, 5, 16, 17, 1000)] == [1, 2, 8, 16, 32, 32]
    rows = cached(tmp_path, images, SQUASH, "embedding", vit)
    shapes = Shapes(vit)
    (stream,) = encoded_rows(images, SQUASH, {"embedding": rows.shape}, shapes, CPU, replace(OPTIONS, batch_size=stream_batch(2, 32)))
    for asked in (np.array([7, 0]), np.array([3, 1, 4, 1, 5]), np.array([9])):
        torch.testing.assert_close(stream.read(asked), rows.read(asked), rtol=1e-3, atol=1e-3)
    assert torch.equal(stream.read_one(9), stream.read(np.array([9, 2]))[0])
    assert set(shapes.sizes) == {2}  # one shape for all, and a single image does not pay for 32


class Announced(ArrayImages):
    """Notes when images are read."""

    def read(self, i):
        self.asked.append(i)
        return super().read(i)


@pytest.mark.parametrize("threads", [0, 2])
def test_what_a_stream_expects_is_decoded_while_others_are_at_work(vit, threads):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 24, 20, 3), dtype=np.uint8)
    images = Announced("noise", pixels, [f"image-{i}" for i in range(12)])
    images.asked = []
    alone = encoded_rows(images, SQUASH, {"embedding": (32,)}, vit, CPU, OPTIONS)[0]
    reads = [np.array(rows) for rows in ([7, 3], [0, 1, 2, 3, 4], [5], [11, 10])]
    expected = [alone.read(rows) for rows in reads]
    streams = encoded_rows(
        images, SQUASH, {"embedding": (32,), "tokens[-1].mean": (32,)}, vit, CPU, replace(OPTIONS, loader_threads=threads)
    )

    def decoders():
        return [thread for thread in threading.enumerate() if thread.name.startswith("virb-decode")]

    images.asked.clear()
    with expecting((stream_features(stream), reads) for stream in streams):
        assert images.asked == []
        for number, rows in enumerate(reads):
            assert torch.equal(streams[0].read(rows), expected[number])
            assert streams[1].read(rows).shape == (len(rows), 32)
            if number == 0 and threads:
                deadline = time.monotonic() + 5
                while len(images.asked) < 7 and time.monotonic() < deadline:
                    time.sleep(0.002)
                assert sorted(images.asked) == [0, 1, 2, 3, 3, 4, 7]  # two batches of at most four ahead
            if number == 1:
                assert torch.equal(streams[0].read(np.array([8])), alone.read(np.array([8])))  # not what was expected
    assert sorted(images.asked) == sorted([*np.concatenate(reads), 8, 8])
    assert decoders() == []
    with expecting([(stream_features(streams[0]), reads)]):
        streams[0].read(reads[0])
    assert decoders() == []  # an early end
    assert torch.equal(streams[0].read(reads[3]), expected[3])


def stream_features(stream):
    n = len(stream)
    return SimpleNamespace(decodes_ahead=True, expect=SampleFeatures([stream], np.arange(n), np.arange(n + 1), CPU, "streamed").expect)


def test_a_stream_whose_decoding_fails_ahead_can_be_read_again(images, vit):
    images.bad = (5,)
    (stream,) = encoded_rows(images, SQUASH, {"embedding": (32,)}, vit, CPU, replace(OPTIONS, loader_threads=2))
    reads = [np.array([0, 1]), np.array([5]), np.array([6])]
    with expecting([(stream_features(stream), reads)]):
        stream.read(reads[0])
        with pytest.raises(BadImage, match=r"folder/5\.jpg: cannot be decoded"):
            stream.read(reads[1])
        assert stream.read(reads[2]).shape == (1, 32)


class Overflows:
    """Row values follow the mean colour, and pass 65504 for bright images."""

    spec = SimpleNamespace(name="overflows")

    def prepare(self, pixels):
        return pixels.float() / 255

    def __call__(self, images, requests):
        brightest = images.amax((1, 2, 3), keepdim=False) == 1
        return {request: images.mean((2, 3)) * torch.where(brightest, 4e5, 1.0)[:, None] for request in requests}


@pytest.mark.parametrize("geometry", [SQUASH, NATIVE])
def test_a_stream_rounds_as_the_cache_does_where_values_overflow(tmp_path, geometry):
    pixels = np.random.default_rng(0).integers(0, 200, (9, 16, 16, 3), dtype=np.uint8)
    pixels[4, :, :] = 255
    images = ArrayImages("bright", pixels, [str(i) for i in range(9)])
    rows = cached(tmp_path, images, geometry, "embedding", Overflows())
    (stream,) = encoded_rows(images, geometry, {"embedding": rows.shape}, Overflows(), CPU, OPTIONS)
    assert rows.read_one(4)[0] == 4e5
    for asked in (np.arange(9), np.array([3]), np.array([4]), np.array([5, 4])):
        assert torch.equal(stream.read(asked).float(), rows.read(asked).float())
    head = torch.nn.Linear(3, 1)
    head(stream.read_one(4).float()).sum().backward()  # what is left of inference mode would refuse


def test_a_stream_stops_at_a_bad_image_and_at_nan(images, vit):
    images.bad = (5,)
    (stream,) = encoded_rows(images, SQUASH, {"embedding": (32,)}, vit, CPU, OPTIONS)
    assert stream.read(np.array([4, 6])).shape == (2, 32)
    with pytest.raises(BadImage, match=r"folder/5\.jpg: cannot be decoded; repair or remove it, or set on_bad_image: skip"):
        stream.read(np.array([4, 5]))

    class NaN(Overflows):
        spec = SimpleNamespace(name="nan")

        def __call__(self, images, requests):
            values = images.mean((2, 3))
            values[2] = float("nan")
            return dict.fromkeys(requests, values)

    (stream,) = encoded_rows(images, SQUASH, {"embedding": (3,)}, NaN(), CPU, OPTIONS)
    with pytest.raises(ViRBError, match="nan gave NaN or infinite values of embedding for image image-9;"):
        stream.read(np.array([7, 8, 9, 10]))


# Images


def batches_of(images, samples, chosen, encoder, target="class"):
    return ImageBatches(images, samples, target, np.asarray(chosen), SQUASH, encoder, CPU, 2)


def prepared(images, encoder, rows) -> torch.Tensor:
    return torch.cat([encoder.prepare(SQUASH.apply(images.read(int(row)), int(row))[None]) for row in rows])


def test_batches_in_order(images, vit):
    samples = Samples.one_per_image(images, {"class": np.arange(12) * 10})
    loader = batches_of(images, samples, [11, 2, 7, 4, 0], vit)
    assert len(loader) == 5
    assert loader.sample_ids.tolist() == loader.units.tolist() == ["image-11", "image-2", "image-7", "image-4", "image-0"]
    assert list(loader.targets) == [110, 20, 70, 40, 0]
    found = list(loader.batches(2))
    assert [batch.samples.tolist() for batch in found] == [[0, 1], [2, 3], [4]]
    assert [batch.targets for batch in found] == [[110, 20], [70, 40], [0]]
    assert torch.equal(torch.cat([batch.images for batch in found]), prepared(images, vit, [11, 2, 7, 4, 0]))
    found = list(loader.batches(3, order=np.array([4, 4, 1, 0])))
    assert [batch.samples.tolist() for batch in found] == [[4, 4, 1], [0]]
    assert [batch.targets for batch in found] == [[0, 0, 20], [110]]
    assert torch.equal(torch.cat([batch.images for batch in found]), prepared(images, vit, [0, 0, 2, 11]))


def test_batches_of_several_images(images, vit):
    rows = np.array([[0, 1, 2], [5, 4, 3], [6, 6, 7], [9, 10, 11]])
    samples = Samples.from_rows(["a", "b", "c", "d"], "noise", rows, {"class": LazySequence(lambda i: {"box": i}, 4)})
    loader = batches_of(images, samples, [3, 0, 1], vit)
    found = list(loader.batches(2, order=np.array([2, 0, 1])))
    assert [batch.images.shape for batch in found] == [(2, 3, 3, 16, 16), (1, 3, 3, 16, 16)]
    assert [batch.targets for batch in found] == [[{"box": 1}, {"box": 3}], [{"box": 0}]]
    got = torch.cat([batch.images for batch in found])
    assert torch.equal(got.flatten(0, 1), prepared(images, vit, rows[[1, 3, 0]].reshape(-1)))


def test_batches_without_targets(images, vit):
    loader = batches_of(images, Samples.one_per_image(images), [1], vit, target=None)
    assert loader.targets is None
    assert [batch.targets for batch in loader.batches(2)] == [[]]


def test_samples_of_different_lengths_do_not_fit_a_batch(images, vit):
    with pytest.raises(ViRBError, match="samples of 1 to 3 images"):
        batches_of(images, several_rows(), [0, 1, 2], vit)
    assert next(batches_of(images, several_rows(), [4, 0], vit).batches(2)).images.shape == (2, 2, 3, 16, 16)


def test_batches_stop_at_a_bad_image(images, vit):
    images.bad = (3,)
    loader = batches_of(images, Samples.one_per_image(images, {"class": np.arange(12)}), range(5), vit)
    found = loader.batches(2)
    assert next(found).samples.tolist() == [0, 1]
    with pytest.raises(BadImage, match=r"folder/3\.jpg"):
        next(found)


def test_a_stream_says_what_decoding_and_encoding_cost(images, vit, monkeypatch):
    read = type(images).read
    monkeypatch.setattr(type(images), "read", lambda self, i: time.sleep(0.02) or read(self, i))
    report = PassReport()
    (stream,) = encoded_rows(images, SQUASH, {"embedding": (32,)}, vit, CPU, OPTIONS, report=report)
    stream.read(np.arange(6))
    stream.read(np.array([2, 3]))
    assert report.rows == 8
    assert min(report.seconds["decode"], report.seconds["load"]) >= 8 * 0.02
    assert report.seconds["encode"] == report.seconds["compute"] > 0
    before = dict(report.seconds)
    stream.read_one(2)
    assert report.seconds["encode"] > before["encode"]


def test_online_samples_decode_on_demand(images):
    images.bad = (4,)
    sample = online_sample(images, several_rows(), 2, {"box": 1})
    assert (sample.id, sample.n_images, sample.given) == ("c", 3, {"box": 1})
    assert torch.equal(sample.image(2), torch.from_numpy(images.array[5]).permute(2, 0, 1))
    assert sample.image(0).dtype == torch.uint8
    with pytest.raises(BadImage):
        sample.image(1)
    with pytest.raises(IndexError):
        sample.image(3)
