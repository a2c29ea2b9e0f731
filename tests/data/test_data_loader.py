from __future__ import annotations

import threading
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data import loader
from virb.data.images import ImageList
from virb.data.loader import LoadedBatch, load_batches, on_device
from virb.data.transforms import Geometry, View
from virb.errors import BadImage, UnreadImage

SQUASH, VIEW, NATIVE = Geometry((6, 6), "squash"), Geometry((5, 5), view=View(0)), Geometry(None, "none", "none")


class Listed(ImageList):
    """Image i has height 4 + i % 3; reads are recorded, some fail, late ones come first."""

    def __init__(self, n, bad=(), slow=0.0):
        self.name, self.ids = "listed", [str(i) for i in range(n)]
        self.bad, self.slow, self.reads = set(bad), slow, []

    def read(self, i):
        self.reads.append(i)
        time.sleep(self.slow * ((i * 7) % 5))
        if i in self.bad:
            raise BadImage(f"folder/{i}.jpg: cannot be decoded")
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (4 + i % 3, 7, 3), dtype=np.uint8))

    def _describe(self):
        return {"kind": "listed"}

    def _contents(self):
        return ()


def decode_threads():
    return [t for t in threading.enumerate() if t.name.startswith("virb-decode")]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_order_pixels_and_one_decode_for_all_geometries(workers):
    images, counted = Listed(23, slow=0.002), []
    rows = np.random.default_rng(0).permutation(23)[:19]
    batches = list(load_batches(images, rows, [SQUASH, VIEW, NATIVE, SQUASH], 5, workers, count=counted.append))
    assert [len(batch.rows) for batch in batches] == [5, 5, 5, 4] == counted
    assert sorted(images.reads) == sorted(rows)  # each once
    assert np.concatenate([batch.rows for batch in batches]).tolist() == rows.tolist()
    for batch in batches:
        assert batch.pixels[SQUASH].shape == (len(batch.rows), 3, 6, 6)
        assert batch.pixels[SQUASH].dtype == torch.uint8
        assert batch.bad == {}
        assert set(batch.pixels) == {SQUASH, VIEW, NATIVE}
        for place, row in enumerate(batch.rows.tolist()):
            image = Listed(23).read(row)
            for geometry in (SQUASH, VIEW, NATIVE):
                assert torch.equal(batch.pixels[geometry][place], geometry.apply(image, row))
    assert isinstance(batches[0].pixels[NATIVE], list)


@pytest.mark.parametrize("workers", [0, 3])
def test_bad_images_stop_the_load_and_leave_no_thread(workers):
    images = Listed(200, bad=[31], slow=0.001)
    batches = load_batches(images, range(200), [SQUASH], 8, workers)
    assert [next(batches).rows.tolist()[0] for _ in range(3)] == [0, 8, 16]
    with pytest.raises(BadImage, match=r"folder/31\.jpg"):
        next(batches)
    assert decode_threads() == []
    assert len(images.reads) < 80


@pytest.mark.parametrize("workers", [1, 3, 50])
def test_the_first_bad_image_is_the_one_that_is_named(workers):
    for bad in ([9, 30, 31], range(3, 40), [39]):
        images = Listed(40, bad=bad, slow=0.0005)
        with pytest.raises(BadImage, match=rf"folder/{min(bad)}\.jpg"):
            list(load_batches(images, range(40), [SQUASH], 20, workers))
        assert decode_threads() == []


def test_closing_stops_in_the_middle_of_a_batch():
    images = Listed(300, slow=0.005)
    batches = load_batches(images, range(300), [SQUASH], 100, 2)
    next(batches)
    batches.close()
    assert decode_threads() == []
    assert len(images.reads) < 150


@pytest.mark.parametrize("workers", [0, 3])
def test_skipped_images_are_black_and_named(workers):
    batches = list(load_batches(Listed(10, bad=[1, 7]), range(10), [SQUASH, NATIVE], 4, workers, on_bad_image="skip"))
    assert {row: reason for batch in batches for row, reason in batch.bad.items()} == {
        1: "folder/1.jpg: cannot be decoded",
        7: "folder/7.jpg: cannot be decoded",
    }
    assert not batches[0].pixels[SQUASH][1].any()
    assert batches[0].pixels[SQUASH][0].any()
    assert batches[1].pixels[NATIVE][3].shape == (3, 1, 1)


def test_threads_work_ahead_but_not_far():
    images = Listed(400)
    batches = load_batches(images, range(400), [SQUASH], 10, 4)
    next(batches)
    time.sleep(0.2)  # the consumer is slow
    assert 10 < len(images.reads) <= 10 + 2 * 10
    for _ in range(5):
        next(batches)
    time.sleep(0.1)
    assert len(images.reads) <= 60 + 2 * 10
    batches.close()
    assert decode_threads() == []


def test_nothing_to_load_and_wrong_batch_size():
    assert list(load_batches(Listed(3), [], [SQUASH], 4, 2)) == []
    with pytest.raises(ValueError, match="batch_size"):
        next(load_batches(Listed(3), [0], [SQUASH], 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_now_is_never_skipped(workers):
    broken = Listed(9, bad=[1])
    read = broken.read

    def read_or_fail(i):
        if i == 5:
            raise UnreadImage("folder/5.jpg: cannot be read (Input/output error)")
        return read(i)

    broken.read = read_or_fail
    with pytest.raises(UnreadImage, match=r"folder/5\.jpg"):
        list(load_batches(broken, range(9), [SQUASH], 4, workers, on_bad_image="skip"))
    assert decode_threads() == []


def test_other_errors_are_not_taken_for_bad_images():
    broken = Listed(3)
    broken.read = lambda i: [][0]
    with pytest.raises(IndexError):
        list(load_batches(broken, [0], [SQUASH], 2, 2, on_bad_image="skip"))
    assert decode_threads() == []


class FakeCuda:
    """Streams and events of a GPU that is not there: notes who waits for what, in order."""

    def __init__(self, monkeypatch):
        self.log = []
        monkeypatch.setattr(loader, "side_stream", lambda device, purpose: "side")
        monkeypatch.setattr(loader.torch.cuda, "stream", lambda stream: nullcontext())
        monkeypatch.setattr(loader.torch.cuda, "current_stream", lambda device: self)
        monkeypatch.setattr(loader.torch.cuda, "Event", lambda **_: self.Event(self))
        monkeypatch.setattr(loader, "_moved", self.moved)

    class Event:
        def __init__(self, cuda):
            self.cuda = cuda

        def record(self, stream):
            self.batch = self.cuda.log[-1][1] if self.cuda.log else None

    class Moved:
        def __init__(self, cuda, number):
            self.cuda, self.number = cuda, number

        def record_stream(self, stream):
            assert stream is self.cuda
            self.cuda.log.append(("guarded", self.number))

    def moved(self, pixels, device):
        self.log.append(("copied", int(pixels[0, 0, 0, 0])))
        return self.Moved(self, int(pixels[0, 0, 0, 0]))

    def wait_event(self, event):
        self.log.append(("waited", event.batch))


def test_the_next_batch_is_on_its_way_before_one_is_handed_over_and_each_is_waited_for(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    batches = [LoadedBatch(np.array([i]), {SQUASH: torch.full((1, 3, 2, 2), i, dtype=torch.uint8)}) for i in range(3)]
    for batch in on_device(iter(batches), torch.device("cuda:0")):
        cuda.log.append(("encoded", int(batch.rows[0])))
    steps = ["copied", "waited", "guarded", "encoded"]
    for number in range(3):
        places = [cuda.log.index((step, number)) for step in steps]
        assert places == sorted(places)
        if number < 2:
            assert cuda.log.index(("copied", number + 1)) < places[1]
    assert len(cuda.log) == 12


@pytest.mark.parametrize("short", [0, 1, 2])
def test_a_batch_that_finds_no_room_is_copied_when_the_one_before_is_done(monkeypatch, short):
    cuda, spared = FakeCuda(monkeypatch), []
    moved = cuda.moved

    def full(pixels, device):
        if int(pixels[0, 0, 0, 0]) == short and not spared:
            cuda.log.append(("no room", short))
            raise torch.OutOfMemoryError("no room")
        return moved(pixels, device)

    monkeypatch.setattr(loader, "_moved", full)
    batches = [LoadedBatch(np.array([i]), {SQUASH: torch.full((1, 3, 2, 2), i, dtype=torch.uint8)}) for i in range(3)]
    for batch in on_device(iter(batches), torch.device("cuda:0"), lambda: spared.append(len(cuda.log)) or True):
        cuda.log.append(("encoded", int(batch.rows[0])))
    assert [number for step, number in cuda.log if step == "encoded"] == [0, 1, 2]
    assert [number for step, number in cuda.log if step == "copied"] == [0, 1, 2]
    assert len(spared) == 1
    if short:
        places = [cuda.log.index(what) for what in (("no room", short), ("encoded", short - 1), ("copied", short))]
        assert places == sorted(places)
        assert spared[0] > places[1]


def test_a_batch_that_finds_no_room_twice_is_an_error(monkeypatch):
    FakeCuda(monkeypatch)
    monkeypatch.setattr(loader, "_moved", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    batch = LoadedBatch(np.array([0]), {SQUASH: torch.zeros((1, 3, 2, 2), dtype=torch.uint8)})
    with pytest.raises(torch.OutOfMemoryError):
        list(on_device(iter([batch]), torch.device("cuda:0")))


def test_an_image_that_cannot_be_read_leaves_the_batch_before_it(monkeypatch):
    FakeCuda(monkeypatch)

    def batches():
        yield from (LoadedBatch(np.array([i]), {SQUASH: torch.full((1, 3, 2, 2), i, dtype=torch.uint8)}) for i in range(2))
        raise UnreadImage("shard: it is cut off")

    arriving = on_device(batches(), torch.device("cuda:0"))
    assert [int(next(arriving).rows[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(UnreadImage, match="it is cut off"):
        next(arriving)


def test_batches_stay_as_they_are_on_a_cpu():
    (batch,) = on_device(load_batches(Listed(2), range(2), [SQUASH], 2), torch.device("cpu"))
    assert batch.pixels[SQUASH].device.type == "cpu"


def test_batches_are_one_block_that_threads_wrote_into():
    for batch in load_batches(Listed(7, bad=[3, 5]), range(7), [SQUASH, VIEW], 4, 3, on_bad_image="skip"):
        assert batch.pixels[SQUASH].is_contiguous()
        assert list(batch.bad) == sorted(batch.bad)


def test_one_load_has_one_decoder():
    with pytest.raises(ValueError, match="one decoder"):
        next(load_batches(Listed(2), range(2), [SQUASH, Geometry((6, 6), "squash", decoder="fast")], 2))


def test_lists_without_files_are_resized_by_the_decoder_all_the_same():
    fast = Geometry((6, 6), "squash", decoder="fast")
    (batch,) = load_batches(Listed(5), range(5), [fast], 5)
    for row in range(5):
        assert torch.equal(batch.pixels[fast][row], fast.apply(Listed(5).read(row), row))
