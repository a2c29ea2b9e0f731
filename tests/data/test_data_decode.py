from __future__ import annotations

import builtins
import errno
import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from virb.data.decode import crop_box, read_rgb, read_size, read_target
from virb.errors import BadImage, UnreadImage

RANDOM = np.random.default_rng(3)
COLOURS = RANDOM.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return str(path)


def test_rgb_is_read_as_it_is(tmp_path):
    image = read_rgb(save(tmp_path / "a.png", Image.fromarray(COLOURS)))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), COLOURS)


def test_grey_is_repeated(tmp_path):
    grey = np.asarray(read_rgb(save(tmp_path / "a.png", Image.fromarray(COLOURS[..., 0]))))
    np.testing.assert_array_equal(grey, np.repeat(COLOURS[..., :1], 3, axis=2))


def test_black_and_white(tmp_path):
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS[..., 0] > 127))
    np.testing.assert_array_equal(np.asarray(read_rgb(path))[..., 1], (COLOURS[..., 0] > 127) * 255)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_grey_keeps_the_high_byte(tmp_path, name):
    values = RANDOM.integers(0, 65536, (6, 4)).astype(np.uint16)
    read = np.asarray(read_rgb(save(tmp_path / name, Image.fromarray(values))))
    np.testing.assert_array_equal(read, np.repeat((values // 256).astype(np.uint8)[..., None], 3, axis=2))


def test_32_bit_integers_count_as_16_bit_and_floats_are_refused(tmp_path):
    fine = np.array([[0, 255, 65535]], dtype=np.int32)
    assert np.asarray(read_rgb(save(tmp_path / "a.tif", Image.fromarray(fine))))[0, :, 0].tolist() == [0, 0, 255]
    too_big = save(tmp_path / "b.tif", Image.fromarray(np.array([[70000]], dtype=np.int32)))
    floats = save(tmp_path / "c.tif", Image.fromarray(np.array([[0.5]], dtype=np.float32)))
    for path in (too_big, floats):
        with pytest.raises(BadImage, match=re.escape(path)):
            read_rgb(path)


def test_cmyk(tmp_path):
    image = Image.fromarray(COLOURS).convert("CMYK")
    path = save(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(np.asarray(read_rgb(path)), np.asarray(image.convert("RGB")))
    assert read_rgb(save(tmp_path / "a.jpg", image, quality=95)).mode == "RGB"


def test_transparency_is_dropped_not_composited(tmp_path):
    alpha = np.dstack([COLOURS, RANDOM.integers(0, 256, (5, 7), dtype=np.uint8)])
    np.testing.assert_array_equal(np.asarray(read_rgb(save(tmp_path / "a.png", Image.fromarray(alpha)))), COLOURS)


def test_palette_with_transparency_has_its_colours_and_no_warning(tmp_path):
    image = Image.fromarray(COLOURS).quantize(16)
    path = save(tmp_path / "a.png", image, transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = read_rgb(path)
    np.testing.assert_array_equal(np.asarray(read), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_exif_orientation_equals_pillows_own(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / name, Image.fromarray(COLOURS), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    read = np.asarray(read_rgb(path))
    assert read.shape == ((5, 7, 3) if orientation < 5 else (7, 5, 3))
    np.testing.assert_array_equal(read, expected)


def test_one_pixel(tmp_path):
    assert read_rgb(save(tmp_path / "a.png", Image.new("L", (1, 1), 9))).getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.gif", "a.bmp", "a.webp", "a.tif"])
def test_truncated_files_are_named(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImage, match=name):
        read_rgb(str(path))


@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "odd.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=r"odd\.jpg: is not an image"):
        read_rgb(str(tmp_path / "odd.jpg"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadImage, match=r"gone\.jpg: does not exist"):
        read_rgb(str(tmp_path / "gone.jpg"))


@pytest.mark.parametrize(
    ("code", "message"), [(errno.EACCES, r"may not be read \(permission denied\)"), (errno.EIO, r"cannot be read \(Input/output error\)")]
)
def test_a_file_that_cannot_be_read_is_no_bad_image(tmp_path, monkeypatch, code, message):
    path = save(tmp_path / "a.png", Image.fromarray(COLOURS))

    def refuse(self, *_, **__):
        raise OSError(code, os.strerror(code), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(io, "open", refuse)  # root may read everything
        patch.setattr(Path, "read_bytes", refuse)
        patch.setattr(builtins, "open", refuse)
        for read in (read_rgb, read_size, read_target):
            with pytest.raises(UnreadImage, match=rf"a\.png: {message}$"):
                read(path)
    assert read_rgb(path).size == read_size(path)[::-1]


def test_a_broken_file_is_a_bad_image_also_where_the_system_objects(tmp_path):
    """An offset before the file's beginning, to which no system can seek."""
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\xff\xff\xff\xff" + bytes(20))
    for read in (read_rgb, read_size, read_target):
        with pytest.raises(BadImage) as caught:
            read(str(path))
        assert not isinstance(caught.value, UnreadImage)


def test_boxes_are_rounded_and_clipped():
    image = Image.fromarray(COLOURS)
    np.testing.assert_array_equal(np.asarray(crop_box(image, (1.4, -3, 4.6, 2.2))), COLOURS[0:2, 1:5])
    with pytest.raises(ValueError, match="no pixel"):
        crop_box(image, (7, 0, 9, 5))
