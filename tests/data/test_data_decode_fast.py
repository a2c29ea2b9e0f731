"""The decoder ``fast`` gives Pillow's pixels, or leaves a file to Pillow and counts it."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from virb.data.decode import DECODED, DECODERS, REFUSED, decode_fast, decode_rgb
from virb.data.images import FileImages
from virb.data.loader import load_batches
from virb.data.subsets import SubsetImages
from virb.data.transforms import Geometry
from virb.errors import BadImage, UnreadImage

simplejpeg = pytest.importorskip("simplejpeg")
COARSE = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COARSE).resize((301, 199), Image.Resampling.BICUBIC)  # sides that end within blocks of 8 and 16


def jpeg(image: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(exif=exif.tobytes())


def with_xmp(orientation: int) -> bytes:
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'
    packet = b"http://ns.adobe.com/xap/1.0/\0" + text.encode()
    data = jpeg()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet + data[2:]


def of_many_pictures() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "MPO", save_all=True, append_images=[PICTURE.rotate(180)])
    return file.getvalue()


TAKEN = {
    **{f"4:{s}, {q}, progressive {p}": jpeg(subsampling=n, quality=q, progressive=p)
       for s, n in (("4:4", 0), ("2:2", 1), ("2:0", 2)) for q in (30, 92) for p in (False, True)},
    "4:4:0": simplejpeg.encode_jpeg(np.ascontiguousarray(PICTURE), 90, "RGB", "440"),
    "grey": jpeg(PICTURE.convert("L")),
    "stored as RGB": jpeg(keep_rgb=True),
    "one pixel": jpeg(PICTURE.resize((1, 1))),
    **{f"EXIF orientation {o}": turned(o) for o in range(10)},
    "orientation in XMP": with_xmp(6),
    "broken EXIF": jpeg(exif=b"Exif\0\0MM\0*\0\0"),
    "more bytes behind it": jpeg() + b"more" * 9,
    "MPO": of_many_pictures(),
}  # fmt: skip


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


LEFT_TO_PILLOW = {
    "PNG": png(),
    "CMYK": jpeg(PICTURE.convert("CMYK")),
    "stray bytes between segments": (lambda data: data[:-2] + b"stray" * 20 + data[-2:])(jpeg()),
}


def refused(data: bytes) -> tuple[Any, int, int]:
    decoded, before = DECODED.value, REFUSED.value
    found = decode_fast(data, "x.jpg")
    return found, DECODED.value - decoded, REFUSED.value - before


@pytest.mark.parametrize("kind", TAKEN)
def test_pillows_pixels_and_their_place(kind: str) -> None:
    found, decoded, n_refused = refused(TAKEN[kind])
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.asarray(decode_rgb(TAKEN[kind], "x.jpg")))
    assert (decoded, n_refused) == (1, 0)


@pytest.mark.parametrize("kind", LEFT_TO_PILLOW)
def test_what_it_refuses_is_pillows_and_counted(kind: str) -> None:
    found, decoded, n_refused = refused(LEFT_TO_PILLOW[kind])
    np.testing.assert_array_equal(np.asarray(found), np.asarray(decode_rgb(LEFT_TO_PILLOW[kind], "x.jpg")))
    assert (decoded, n_refused) == (1, 1)


@pytest.mark.parametrize("data", [jpeg()[:-300], jpeg()[:-2], jpeg()[:200], jpeg()[:20], b"", b"no image"], ids=len)
def test_what_pillow_calls_bad_is_bad_in_the_same_words(data: bytes) -> None:
    with pytest.raises(BadImage) as expected:
        decode_rgb(data, "x.jpg")
    before = DECODED.value
    with pytest.raises(BadImage) as found:
        decode_fast(data, "x.jpg")
    assert str(found.value) == str(expected.value)
    assert DECODED.value == before + 1


def test_an_image_larger_than_pillow_allows_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImage, match="exceeds limit"):
        decode_fast(jpeg(), "x.jpg")


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    contents = {"a.jpg": jpeg(), "b.jpg": turned(6), "c.png": png(), "d.jpg": jpeg()[:-300]}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    boxes = np.array([[10, 20, 110.4, 90], [0, 0, 50, 60], [5, 5, 300, 190], [0, 0, 9, 9]], dtype=float)
    return FileImages("files", tmp_path, list(contents), boxes)


def test_boxes_parts_of_lists_and_missing_files(files: FileImages) -> None:
    part = SubsetImages(files, np.array([1, 2]))
    for images, rows in ((files, (0, 1, 2)), (part, (0, 1)), (pickle.loads(pickle.dumps(files)), (1,))):
        for row in rows:
            expected = np.asarray(images.read(row))
            for decoder in DECODERS:
                np.testing.assert_array_equal(np.asarray(images.pixels(row, decoder)), expected)
    assert isinstance(files.pixels(0, "fast"), np.ndarray)
    files.identity()
    (Path(files.root) / "a.jpg").unlink()
    with pytest.raises(UnreadImage, match=r"a\.jpg: does not exist"):
        files.pixels(0, "fast")


@pytest.mark.parametrize("workers", [0, 3])
def test_the_loader_decodes_once_and_gives_the_pixels_of_one_image_alone(files: FileImages, workers: int) -> None:
    geometries = [Geometry((20, 30), resize, interpolation="bicubic", decoder="fast") for resize in ("squash", "shorter")]
    decoded, before = DECODED.value, REFUSED.value
    (batch,) = load_batches(files, range(4), geometries, 4, workers, on_bad_image="skip")
    assert (DECODED.value - decoded, REFUSED.value - before) == (4, 2)  # the PNG file, and the one that is cut off
    assert list(batch.bad) == [3]
    for geometry in geometries:
        for row in range(3):
            assert np.array_equal(batch.pixels[geometry][row], geometry.apply(files.read(row), row))
