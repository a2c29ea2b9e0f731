from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from virb.data.decode import DECODED
from virb.data.images import ArrayImages, FileImages, Samples
from virb.data.loader import load_batches
from virb.data.transforms import Geometry
from virb.data.windows import WindowedImages, merge_windows, windowed_samples
from virb.errors import BadImage, UnreadImage, UserError

SHAPES = [(40, 60), (90, 45), (33, 33), (20, 100), (31, 32)]  # height, width


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        Image.fromarray(random.integers(1, 256, (*shape, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    return FileImages("val", tmp_path, [f"{number}.png" for number in range(len(SHAPES))])


class Counting(FileImages):
    decoded = 0

    def read(self, i):
        self.decoded += 1
        return super().read(i)


def slid(length, size, stride):
    """First pixels of windows, the way a loop over them goes: on by a step until the border is reached, the last moved back to it."""
    starts = [0]
    while starts[-1] + size < length:
        starts.append(min(starts[-1] + stride, length - size))
    return starts


@pytest.mark.parametrize("shorter", [None, 32, 50])
def test_windows_are_cut_from_the_resized_image(files, shorter):
    windows = WindowedImages(files, shorter, (32, 40), (21, 40), "bicubic")
    row = 0
    for number, (height, width) in enumerate(SHAPES):
        image = files.read(number)
        if shorter is not None:
            scale = shorter / min(height, width)
            height, width = int(height * scale + 0.5), int(width * scale + 0.5)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        boxes = [(top, left) for top in slid(height, 32, 21) for left in slid(width, 40, 40)]
        assert windows.rows_of(number).tolist() == list(range(row, row + len(boxes)))
        for top, left in boxes:
            shown = (min(32, height), min(40, width))
            assert windows.window_of(row) == (number, (height, width), (top, left, *shown))
            expected = np.zeros((32, 40, 3), dtype=np.uint8)
            expected[: shown[0], : shown[1]] = np.asarray(image)[top : top + 32, left : left + 40]
            np.testing.assert_array_equal(np.asarray(windows.read(row)), expected)
            assert windows.ids[row] == f"{number}.png@{top},{left}"
            row += 1
    assert len(windows) == len(windows.ids) == row
    assert len(set(windows.ids)) == row
    assert windows.window_of(-1) == windows.window_of(row - 1)
    assert windows.image_size(0) == (32, 40)
    with pytest.raises(IndexError):
        windows.window_of(row)


def test_the_usual_case_by_hand():
    windows = WindowedImages(ArrayImages("a", np.zeros((2, 128, 170, 3), dtype=np.uint8), ["x", "y"]), 512, (512, 512), (341, 341))
    assert windows.window_of(1) == (0, (512, 680), (0, 168, 512, 512))
    assert len(windows) == 4
    assert windows.rows_of(1).tolist() == [2, 3]


def test_identities_depend_on_images_and_parameters(files, tmp_path):
    base = WindowedImages(files, 64, (32, 32), (16, 16))
    same = WindowedImages(FileImages("other name", tmp_path, list(files.paths)), 64, (32, 32), (16, 16))
    others = [
        WindowedImages(FileImages("val", tmp_path, list(files.paths)[1:]), 64, (32, 32), (16, 16)),
        WindowedImages(files, None, (32, 32), (16, 16)),
        WindowedImages(files, 65, (32, 32), (16, 16)),
        WindowedImages(files, 64, (32, 33), (16, 16)),
        WindowedImages(files, 64, (32, 32), (16, 17)),
        WindowedImages(files, 64, (32, 32), (16, 16), "bicubic"),
    ]
    assert base.identity() == same.identity()
    assert len({base.identity(), files.identity(), *(other.identity() for other in others)}) == len(others) + 2
    assert base.record()["count"] == len(base)
    without = [WindowedImages(files, None, (32, 32), (16, 16), how).identity() for how in ("bilinear", "bicubic")]
    assert without[0] == without[1]  # nothing is resized


@pytest.mark.parametrize("workers", [0, 6])
def test_an_image_is_decoded_once_for_its_windows(files, workers):
    counting = Counting("val", files.root, list(files.paths))
    windows = WindowedImages(counting, 64, (32, 32), (8, 8))
    assert len(windows) > 100
    assert counting.decoded == 0  # headers say the sizes
    before = DECODED.value
    geometry = Geometry((32, 32), "squash")
    batches = list(load_batches(windows, np.arange(len(windows)), [geometry], 16, workers))
    assert counting.decoded == DECODED.value - before == len(SHAPES)
    pixels = torch.cat([batch.pixels[geometry] for batch in batches])
    for row in (0, 17, len(windows) - 1):
        np.testing.assert_array_equal(pixels[row].permute(1, 2, 0).numpy(), np.asarray(windows.read(row)))


def test_a_started_process_gets_the_sizes(files, monkeypatch):
    windows = WindowedImages(files, 64, (32, 32), (16, 16))
    ids, identity = list(windows.ids), windows.identity()
    copy = pickle.loads(pickle.dumps(windows))
    monkeypatch.setattr(FileImages, "image_size", lambda *args: pytest.fail("headers are read again"))
    assert list(copy.ids) == ids
    assert copy.identity() == identity
    np.testing.assert_array_equal(np.asarray(copy.read(3)), np.asarray(windows.read(3)))


def test_an_image_that_cannot_be_read_says_so_when_it_is_read(files, tmp_path):
    (tmp_path / "1.png").write_bytes(b"nothing")
    windows = WindowedImages(files, 64, (32, 32), (16, 16))
    rows = windows.rows_of(1)
    assert len(rows) == 1
    for _ in range(2):
        with pytest.raises(BadImage, match=r"1\.png: is not an image"):
            windows.read(int(rows[0]))
    with ThreadPoolExecutor(4) as pool:  # no thread waits for ever
        results = [pool.submit(windows.read, int(rows[0])) for _ in range(8)]
        assert all(isinstance(result.exception(timeout=10), BadImage) for result in results)
    batches = list(load_batches(windows, np.arange(len(windows)), [Geometry(None, "none", "none")], 8, 2, "skip"))
    assert {row for batch in batches for row in batch.bad} == set(rows.tolist())


def test_sizes_of_files_are_those_of_upright_images(tmp_path):
    picture = Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8))
    paths = []
    for ending in ("jpg", "png", "tif", "webp"):
        for orientation in (None, 3, 6, 8):
            exif = Image.Exif()
            if orientation is not None:
                exif[0x0112] = orientation
            paths.append(f"{orientation}.{ending}")
            picture.save(tmp_path / paths[-1], **({} if orientation is None else {"exif": exif}))
    files = FileImages("a", tmp_path, paths)
    sizes = [files.image_size(i) for i in range(len(paths))]
    assert sizes == [(image.height, image.width) for image in map(files.read, range(len(paths)))]
    assert {(20, 30), (30, 20)} == set(sizes)
    boxed = FileImages("b", tmp_path, paths[:2], np.array([[1, 2, 11, 8], [-5, 0, 7, 90]]))
    assert [boxed.image_size(i) for i in range(2)] == [(6, 10), (20, 7)]
    with pytest.raises(BadImage, match=r"None\.jpg: box .* no pixel"):
        FileImages("b", tmp_path, paths[:1], np.array([[40, 2, 50, 8]])).image_size(0)
    with pytest.raises(BadImage, match="does not exist"):
        FileImages("c", tmp_path, ["none.png"]).image_size(0)


def test_windows_are_not_placed_over_what_cannot_be_read_now(tmp_path, monkeypatch):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    files = FileImages("a", tmp_path, ["a.png", "none.png"])
    assert len(WindowedImages(files, None, (10, 10), (10, 10))) == 7  # six, and one for what was never there
    files.identity()
    (tmp_path / "a.png").rename(tmp_path / "away.png")
    with pytest.raises(UnreadImage, match="does not exist"):
        len(WindowedImages(files, None, (10, 10), (10, 10)))


def test_the_exif_of_a_png_counts_also_behind_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(content[start : start + 4], "big")
    last = content.index(b"IEND") - 4
    (tmp_path / "b.png").write_bytes(content[:start] + content[end:last] + content[start:end] + content[last:])
    files = FileImages("a", tmp_path, ["b.png"])
    assert files.image_size(0) == (30, 20) == files.read(0).size[::-1]


def test_samples_have_the_windows_of_their_images(files):
    windows = WindowedImages(files, 64, (64, 64), (43, 43))
    samples = Samples.from_rows(["a", "b", "c"], "val", [[3], [0, 4], [3]], {"mask": ["x", "y", "z"]}, ["u", "u", "v"])
    found = windowed_samples(samples, windows)
    assert found.images == windows.name
    assert (found.ids.tolist(), found.units.tolist(), found.targets) == (["a", "b", "c"], ["u", "u", "v"], samples.targets)
    for i in range(3):
        expected = [row for image in samples.rows(i) for row in windows.rows_of(image)]
        assert found.rows(i).tolist() == expected
    with pytest.raises(ValueError, match="'val'"):
        windowed_samples(Samples.from_rows(["a"], "train", [[0]]), windows)


def test_windows_of_a_map_merge_to_the_map():
    for scaled in ((70, 45), (32, 100), (20, 33)):
        size, stride = (32, 40), (21, 13)
        whole = torch.randn((3, *scaled), generator=torch.Generator().manual_seed(0))
        boxes = [
            (top, left, min(size[0], scaled[0]), min(size[1], scaled[1]))
            for top in slid(scaled[0], size[0], stride[0])
            for left in slid(scaled[1], size[1], stride[1])
        ]
        parts = []
        for top, left, height, width in boxes:
            part = torch.full((3, *size), 1e6)  # padding, which must not show
            part[:, :height, :width] = whole[:, top : top + height, left : left + width]
            parts.append(part)
        assert torch.allclose(merge_windows(parts, boxes, scaled), whole, atol=1e-6)


def test_where_windows_overlap_is_their_mean():
    parts = [torch.full((1, 1, 3), value) for value in (1.0, 2.0, 6.0)]
    merged = merge_windows(parts, [(0, 0, 1, 3), (0, 1, 1, 3), (0, 2, 1, 3)], (1, 5))
    assert merged.flatten().tolist() == [1.0, 1.5, 3.0, 4.0, 6.0]


def test_windows_that_do_not_fit_are_refused(files):
    with pytest.raises(ValueError, match="leave 2 pixels"):
        merge_windows([torch.zeros(1, 1, 3)], [(0, 0, 1, 3)], (1, 5))
    with pytest.raises(ValueError, match="a part of"):
        merge_windows([torch.zeros(1, 1, 2)], [(0, 0, 1, 3)], (1, 3))
    for arguments, message in (
        ((None, (32, 32), (33, 32)), "steps of 33 x 32"),
        ((None, (32, 32), (0, 32)), "steps"),
        ((0, (32, 32), (16, 32)), "shorter side is 0"),
        ((None, (32, 32), (16, 32), "nearest"), "interpolation"),
    ):
        with pytest.raises(UserError, match=message):
            WindowedImages(files, *arguments)
