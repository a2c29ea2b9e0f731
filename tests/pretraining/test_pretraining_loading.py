"""Views for the training: the same from any process, rank and starting point; images decoded once; nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.images import ArrayImages, ImageList
from virb.errors import BadImage, UnreadImage, UserError, ViRBError
from virb.pretraining import data, loading
from virb.pretraining.augment import augment_pil, draw, normalize
from virb.pretraining.data import JoinedImages
from virb.pretraining.loading import Store, ViewSource
from virb.pretraining.methods import CropRecipe, Views, ViewSpec
from virb.pretraining.plan import BatchPlan

SPEC = ViewSpec((CropRecipe(16, (0.4, 1.0), 2, blur=0.5, solarize=0.2), CropRecipe(8, (0.1, 0.4), 3)), 2)


class Pictures(ImageList):
    """Random images of two sizes, that count how often each is read."""

    def __init__(self, n: int = 40, bad: Sequence[int] = ()) -> None:
        self.name, self.ids, self.bad = "pictures", [f"{i}.png" for i in range(n)], set(bad)
        self.reads: Counter[int] = Counter()

    def read(self, i: int) -> Image.Image:
        self.reads[i] += 1
        if i in self.bad:
            raise BadImage(f"{self.ids[i]}: is broken")
        height = 20 + 4 * (i % 2)
        return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, 24, 3), dtype=np.uint8))

    def _describe(self) -> dict[str, Any]:
        return {}

    def _contents(self) -> list[bytes]:
        return []


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "available_cores", lambda: 2)


def plan(batch: int = 4, micro: int = 1, rank: int = 0, world: int = 1, n: int = 40, epochs: int = 2) -> BatchPlan:
    steps = n // (batch * micro * world)
    return BatchPlan(batch, micro, rank, world, steps, steps * epochs)


def equal(a: Views, b: Views) -> bool:
    return all(torch.equal(x, y) for x, y in zip([*a.crops, a.geometry, a.samples], [*b.crops, b.geometry, b.samples], strict=True))


def test_views_are_what_the_method_is_promised() -> None:
    batches = list(ViewSource(Pictures(), SPEC).batches(plan()))
    assert len(batches) == 20
    views = batches[3]
    assert [tuple(crop.shape) for crop in views.crops] == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)] * 3
    assert all(crop.dtype == torch.float32 for crop in views.crops)
    assert views.n_global == 2
    assert views.geometry.shape == (4, 5, 6)
    assert views.geometry.dtype == torch.float32
    assert views.samples.dtype == torch.int64
    assert sorted(torch.cat([b.samples for b in batches[:10]]).tolist()) == list(range(40))


def test_the_reference_path_gives_the_references_views() -> None:
    images = Pictures()
    views = next(ViewSource(images, SPEC, seed=3, path="pil").batches(plan()))
    pictures = [images.read(int(i)) for i in views.samples]
    draws = draw(SPEC, 3, 0, views.samples.tolist(), [(p.height, p.width) for p in pictures])
    for crop, expected in zip(views.crops, augment_pil(pictures, draws, SPEC), strict=True):
        assert torch.equal(crop, normalize(expected))
    assert torch.equal(views.geometry, draws.geometry(SPEC))
    faster = next(ViewSource(images, SPEC, seed=3).batches(plan()))
    assert torch.equal(views.geometry, faster.geometry)
    # In units of the standard deviation, a level is about 0.017; solarisation may turn a pixel at the threshold.
    assert all((a - b).abs().mean() < 0.03 for a, b in zip(views.crops, faster.crops, strict=True))


@pytest.mark.parametrize("path", ["tensors", "pil"])
def test_processes_make_the_same_views(path: Any) -> None:
    inline = list(ViewSource(Pictures(), SPEC, path=path).batches(plan()))
    ahead = list(ViewSource(Pictures(), SPEC, workers=2, path=path).batches(plan()))
    assert len(inline) == len(ahead)
    assert all(map(equal, inline, ahead))


def test_views_made_on_the_device_are_those_made_by_workers() -> None:
    source = ViewSource(Pictures(), SPEC)
    source._on_device, source._crop = True, ""  # as where the device is a GPU
    assert all(map(equal, source.batches(plan()), ViewSource(Pictures(), SPEC).batches(plan())))


def test_starting_at_any_step_goes_on_as_if_never_stopped() -> None:
    p = plan(micro=2)
    whole = list(ViewSource(Pictures(), SPEC, seed=1).batches(p))
    for step in (1, 4, 7):
        assert all(map(equal, whole[2 * step :], ViewSource(Pictures(), SPEC, seed=1, workers=1).batches(p, step)))


def test_any_number_of_ranks_gives_the_same_crops() -> None:
    whole = list(ViewSource(Pictures(), SPEC).batches(plan(batch=8)))
    halves = [list(ViewSource(Pictures(), SPEC).batches(plan(batch=4, rank=rank, world=2))) for rank in (0, 1)]
    for joint, first, second in zip(whole, *halves, strict=True):
        assert torch.equal(joint.samples, torch.cat([first.samples, second.samples]))
        assert torch.equal(joint.geometry, torch.cat([first.geometry, second.geometry]))
        for v, crop in enumerate(joint.crops):
            assert torch.equal(crop, torch.cat([first.crops[v], second.crops[v]]))


def test_epochs_differ() -> None:
    batches = list(ViewSource(Pictures(), SPEC).batches(plan()))
    first = {int(i): row for b in batches[:10] for i, row in zip(b.samples, b.geometry, strict=True)}
    second = {int(i): row for b in batches[10:] for i, row in zip(b.samples, b.geometry, strict=True)}
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[i], second[i]) for i in first)


def test_an_image_is_decoded_once_for_all_its_crops() -> None:
    images = Pictures()
    source = ViewSource(images, SPEC)
    source._store = None
    images.reads.clear()
    list(source.batches(plan(epochs=2)))
    assert set(images.reads.values()) == {2}  # once in each of two epochs


def test_small_images_are_kept_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOOKS", 1)  # at a small one
    images = Pictures()
    source = ViewSource(images, SPEC)
    images.reads.clear()
    kept = list(source.batches(plan(epochs=3)))
    assert {images.reads[i] for i in range(0, 40, 2)} == {1}
    assert {images.reads[i] for i in range(1, 40, 2)} == {3}  # larger than the first image
    source._store = None
    assert all(map(equal, kept, source.batches(plan(epochs=3))))
    assert Store.of(images, budget=40 * 20 * 24 * 3 - 1) is None


def test_processes_share_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOOKS", 1)
    images = Pictures()
    source = ViewSource(images, SPEC, workers=2)
    assert source._store is not None
    list(source.batches(plan(epochs=1)))
    assert [source._store.get(row) is not None for row in range(40)] == [True, False] * 20
    assert np.array_equal(source._store.get(4), np.array(images.read(4)))


def test_images_of_joined_lists_are_kept_in_their_own_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOOKS", 1)
    small = ArrayImages("small", np.arange(2 * 8 * 6, dtype=np.uint8).reshape(2, 8, 6), ["a", "b"])
    joined = JoinedImages("both", [small, Pictures(n=4)])
    store = Store.of(joined)
    assert store is not None
    for row in range(6):
        assert store.get(row) is None
        store.put(row, np.array(joined.read(row)))
    kept = [store.get(row) for row in range(6)]
    assert [None if pixels is None else pixels.shape for pixels in kept] == [(8, 6, 3)] * 2 + [(20, 24, 3), None] * 2
    for row in (0, 1, 2, 4):
        assert np.array_equal(kept[row], np.array(joined.read(row)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(workers: int) -> None:
    with pytest.raises(BadImage, match=r"^17\.png: is broken; repair it, or set on_bad_image: skip$"):
        list(ViewSource(Pictures(bad=[17]), SPEC, workers=workers).batches(plan()))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("bad", [[17], list(range(0, 40, 2))])
def test_others_stand_in_for_bad_images(bad: list[int]) -> None:
    """The same ones for any number of processes and ranks, and from any step; each batch keeps its size, and all else its crops."""
    whole = list(ViewSource(Pictures(), SPEC, seed=2).batches(plan()))
    source = ViewSource(Pictures(bad=bad), SPEC, seed=2, skip_bad=True)
    found = list(source.batches(plan()))
    assert source.skipped == dict.fromkeys(bad, 2)  # once in each of two epochs
    for views, expected in zip(found, whole, strict=True):
        assert torch.equal(views.samples, expected.samples)
        for i, sample in enumerate(views.samples.tolist()):
            same = all(torch.equal(a[i], b[i]) for a, b in zip(views.crops, expected.crops, strict=True))
            assert same == (sample not in bad)
    ahead = ViewSource(Pictures(bad=bad), SPEC, seed=2, workers=2, skip_bad=True)
    assert all(map(equal, found[10:], ahead.batches(plan(), 10)))
    assert ahead.skipped == dict.fromkeys(bad, 1)
    halves = [list(ViewSource(Pictures(bad=bad), SPEC, 2, skip_bad=True).batches(plan(batch=2, rank=r, world=2))) for r in (0, 1)]
    for joint, first, second in zip(found, *halves, strict=True):
        assert all(torch.equal(crop, torch.cat(parts)) for crop, *parts in zip(joint.crops, first.crops, second.crops, strict=True))


def test_stand_ins_are_others_in_each_epoch() -> None:
    batches = list(ViewSource(Pictures(bad=[17]), SPEC, skip_bad=True).batches(plan(epochs=4)))
    crops = [crop for b in batches for sample, crop in zip(b.samples, b.crops[0], strict=True) if sample == 17]
    assert len(crops) == 4
    assert len({crop.mean().item() for crop in crops}) == 4


def test_nothing_but_bad_images_is_an_error_after_all() -> None:
    with pytest.raises(BadImage, match=r"is broken; nor could 19 others, drawn to stand in for \d+\.png"):
        list(ViewSource(Pictures(bad=range(40)), SPEC, skip_bad=True).batches(plan()))


class Away(Pictures):
    """The disk is away for some tries."""

    def __init__(self, tries: int) -> None:
        super().__init__()
        self.tries = tries

    def read(self, i: int) -> Image.Image:
        if i == 17 and self.tries:
            self.tries -= 1
            raise UnreadImage("17.png: cannot be read (Input/output error)")
        return super().read(i)


@pytest.mark.parametrize("skip", [False, True])
def test_what_cannot_be_read_is_tried_again(skip: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_PAUSE", 0.0)
    monkeypatch.setattr(data, "_LOOKS", 1)
    images = Away(1)
    source = ViewSource(images, SPEC, skip_bad=skip)
    assert all(map(equal, source.batches(plan(epochs=1)), ViewSource(Pictures(), SPEC).batches(plan(epochs=1))))
    assert not source.skipped
    with pytest.raises(BadImage, match=r"^17\.png: cannot be read \(Input/output error\)$"):  # that says nothing of the image
        list(ViewSource(Away(2), SPEC, skip_bad=skip).batches(plan(epochs=1)))


def test_memory_is_that_of_the_larger_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images go to a GPU as they are, the first one being the smallest."""

    class Growing(Pictures):
        def read(self, i: int) -> Image.Image:
            return Image.fromarray(np.zeros((10 + i, 10, 3), np.uint8))

    source = ViewSource(Growing(n=64), SPEC, workers=2)
    source._on_device = True
    assert data.largest_size(source.images) == (73, 10)
    per_batch = 4 * 3 * 73 * 10
    for batches, expected in ((3, 0), (4, 1), (7, 2)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=batches: SimpleNamespace(free=n * per_batch))
        assert source._fitting(plan()) == expected
    assert data.largest_size(Pictures(bad=[0])) == (24, 24)


def test_no_process_is_left_when_the_training_stops() -> None:
    batches = ViewSource(Pictures(), SPEC, workers=2).batches(plan())
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert not multiprocessing.active_children()


def test_a_process_that_was_killed_is_told() -> None:
    batches = ViewSource(Pictures(n=400), SPEC, workers=2).batches(plan(n=400, epochs=50))
    next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(ViRBError, match="process that loads images has died"):
        list(batches)


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the system cannot wait without asking")
def test_a_death_is_told_to_who_waits_for_a_batch_and_to_nobody_else() -> None:
    batches = ViewSource(Pictures(n=400), SPEC, workers=2).batches(plan(n=400, epochs=50))
    for _ in range(3):  # every loader has its own
        next(batches)
        children = multiprocessing.active_children()
        for child in children:
            os.kill(child.pid or 0, signal.SIGKILL)
        for child in children:
            os.waitid(os.P_PID, child.pid or 0, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody has asked what of
        assert sum(range(10**5)) == 4999950000  # the training is at work meanwhile
        with pytest.raises(ViRBError, match="process that loads images has died"):
            next(batches)
        batches = ViewSource(Pictures(n=400), SPEC, workers=2).batches(plan(n=400, epochs=50))
    batches.close()


class Unreadable(Pictures):
    error: type[Exception] = OSError

    def read(self, i: int) -> Image.Image:
        if i == 17:
            raise self.error("the disk is gone")
        return super().read(i)


@pytest.mark.parametrize("error", [OSError, RuntimeError, EOFError])
def test_what_goes_wrong_in_a_process_is_no_death(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOOKS", 1)  # at another image
    images = Unreadable()
    images.error = error
    with pytest.raises(error, match=r"(?s)Caught .*the disk is gone") as told:
        list(ViewSource(images, SPEC, workers=2).batches(plan(epochs=1)))
    assert not multiprocessing.active_children()
    del told  # an error that somebody still looks at keeps no process


@pytest.mark.parametrize("error", [ConnectionResetError, ConnectionRefusedError, EOFError])
def test_an_end_in_the_middle_of_sending_is_a_death(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Loading

    def broken(self: Any, *args: Any) -> None:
        raise error

    monkeypatch.setattr(Loading, "_try_get_data", broken)
    with pytest.raises(ViRBError, match="process that loads images has died"):
        list(ViewSource(Pictures(), SPEC, workers=1).batches(plan(epochs=1)))


ENDLESS = """
import multiprocessing, sys, time
sys.path.insert(0, sys.argv[1])
from test_pretraining_loading import SPEC, Pictures, loading, plan
loading.available_cores = lambda: 2
batches = loading.ViewSource(Pictures(n=300), SPEC, workers=2).batches(plan(batch=300, n=300, epochs=1000))  # more than a pipe holds
for _ in range(3):
    next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not listed here")
def test_no_process_and_no_file_is_left_when_the_training_is_killed(tmp_path: Path) -> None:
    """Workers that wait for ever to hand on a batch find out by themselves."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", ENDLESS, str(Path(__file__).parent)]
    training = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert training.stdout is not None
    workers = [Path("/proc") / pid for pid in training.stdout.readline().split()]
    time.sleep(1)
    assert len(workers) == 2
    assert all(path.exists() for path in workers)
    training.kill()
    training.wait()
    deadline = time.monotonic() + 5
    while (any(path.exists() for path in workers) or any(tmp_path.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [int(path.name) for path in workers if path.exists()]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    assert not list(tmp_path.iterdir())


def test_wishes_to_stop_are_not_for_the_workers() -> None:
    batches = ViewSource(Pictures(n=400), SPEC, workers=1).batches(plan(n=400, epochs=5))
    next(batches)
    (child,) = multiprocessing.active_children()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(child.pid or 0, name)
    assert len(list(batches)) == 499


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(ViewSource(Pictures(), SPEC, workers=1).batches(plan(epochs=1)))
    assert torch.equal(torch.rand(3), expected)


def test_never_more_processes_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ViewSource(Pictures(), SPEC, workers=10).workers == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert ViewSource(Pictures(), SPEC, workers=10).workers == 1


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory as a folder here")
def test_little_shared_memory_means_fewer_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    per_batch = 4 * 3 * (2 * 16**2 + 3 * 8**2)
    for batches, expected in ((3, 0), (4, 1), (6, 1), (7, 2), (1000, 2)):
        free = SimpleNamespace(free=batches * per_batch)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: free)
        assert ViewSource(Pictures(), SPEC, workers=2)._fitting(plan()) == expected
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two ranks share it
    monkeypatch.setattr(loading, "available_cores", lambda: 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=8 * per_batch))
    assert ViewSource(Pictures(), SPEC, workers=2)._fitting(plan()) == 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert len(list(ViewSource(Pictures(), SPEC, workers=2).batches(plan(epochs=1)))) == 10


def test_views_that_cannot_be_made_are_told_at_once() -> None:
    with pytest.raises(UserError, match="scale"):
        ViewSource(Pictures(), ViewSpec((CropRecipe(8, (0.9, 0.1), 2),), 2))
