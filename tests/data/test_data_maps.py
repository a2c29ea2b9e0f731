from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from virb.data.maps import (
    check_same_size,
    label_lut,
    read_depth_png,
    read_flo,
    read_float_tiff,
    read_grey,
    read_kitti_flow,
    read_labels,
)
from virb.errors import BadImage

needs_torchvision_png = pytest.mark.skipif(not hasattr(torchvision.io, "decode_png"), reason="torchvision no longer decodes images")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_rgb16(values):
    """A PNG of uint16 (H, W, 3), its lines filtered in all five ways of the format in turn."""
    height, width, _ = values.shape
    lines = np.frombuffer(values.astype(">u2").tobytes(), dtype=np.uint8).reshape(height, width * 6).astype(int)
    content = b""
    for y, line in enumerate(lines):
        up = lines[y - 1] if y else np.zeros_like(line)
        left, corner = (np.concatenate([np.zeros(6, dtype=int), of[:-6]]) for of in (line, up))
        linear = left + up - corner
        off = np.abs(np.stack([linear - left, linear - up, linear - corner]))
        nearest = np.choose(off.argmin(0), [left, up, corner])
        predicted = [np.zeros_like(line), left, up, (left + up) // 2, nearest][y % 5]
        content += bytes([y % 5]) + ((line - predicted) % 256).astype(np.uint8).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def write_kitti_flow(path, u, v, valid):
    raw = np.stack([np.round(u * 64) + 2**15, np.round(v * 64) + 2**15, valid], axis=-1)
    path.write_bytes(png_rgb16(np.where(valid[..., None] > 0, raw, 0).astype(np.uint16)))


def write_flo(path, u, v):
    height, width = u.shape
    path.write_bytes(b"PIEH" + struct.pack("<ii", width, height) + np.stack([u, v], axis=-1).astype("<f4").tobytes())


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 20, (13, 17), dtype=np.uint8)


def test_grey_images_keep_their_raw_values(tmp_path, labels):
    Image.fromarray(labels).save(tmp_path / "l.png")
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tolist())
    palette.putdata(labels.flatten().tolist())
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "few.png", bits=8, optimize=True)
    deep = labels.astype(np.uint16) * 3000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    Image.fromarray(labels.astype(np.int32) * 100000).save(tmp_path / "i.tif")
    Image.fromarray(labels > 9).save(tmp_path / "one.png")
    Image.fromarray(labels).save(tmp_path / "l.bmp")
    expected = {
        **dict.fromkeys(("l.png", "p.png", "few.png", "l.bmp"), labels),
        **dict.fromkeys(("deep.png", "deep.tif"), deep),
        "i.tif": labels.astype(np.int32) * 100000,
        "one.png": (labels > 9).astype(np.uint8),
    }
    for name, values in expected.items():
        found = read_grey(tmp_path / name)
        assert found.dtype == values.dtype, name
        np.testing.assert_array_equal(found, values, err_msg=name)
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), labels)


def test_big_endian_grey_is_of_the_machines_order(tmp_path):
    values = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    content = b"MM\0*"
    entries = [
        (256, 4, 10),
        (257, 4, 6),
        (258, 3, 16 << 16),
        (259, 3, 1 << 16),
        (262, 3, 1 << 16),
        (273, 4, 8),
        (277, 3, 1 << 16),
        (279, 4, 120),
    ]
    content += struct.pack(">I", 128) + values.astype(">u2").tobytes() + struct.pack(">H", len(entries))
    content += b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)
    (tmp_path / "a.tif").write_bytes(content)
    found = read_grey(tmp_path / "a.tif")
    assert found.dtype == np.uint16
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("deep", [False, True])
def test_a_table_turns_raw_values_into_classes(tmp_path, labels, deep):
    raw = labels.astype(np.uint16) + 300 if deep else labels
    offset = 300 if deep else 0
    Image.fromarray(raw).save(tmp_path / "a.png")
    meaning = {offset + value: (255 if value % 3 == 0 else value // 2) for value in range(20)}
    found = read_labels(tmp_path / "a.png", label_lut(meaning))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.vectorize(meaning.__getitem__)(raw))
    for missing, message in (({7}, "7,"), ({19}, "19,"), ({0, 1, 2, 3, 4, 5}, "")):
        lut = label_lut({value: label for value, label in meaning.items() if value - offset not in missing})
        with pytest.raises(BadImage, match=r"a\.png: has the value " + ("" if deep else message)) as caught:
            read_labels(tmp_path / "a.png", lut)
        assert ", ".join(str(offset + value) for value in sorted(missing)[:5]) in str(caught.value)


def test_tables_are_checked():
    assert label_lut({1: 0, 3: 255}).tolist() == [-1, 0, -1, 255]
    for wrong in ({-1: 0}, {0: 256}, {0: -1}):
        with pytest.raises(ValueError, match="expected raw values"):
            label_lut(wrong)


def test_depth_is_scaled_and_missing_values_are_nan(tmp_path):
    raw = np.array([[0, 1, 1000], [65535, 256, 777]], dtype=np.uint16)
    Image.fromarray(raw).save(tmp_path / "a.png")
    depth = read_depth_png(tmp_path / "a.png", 1 / 1000, (0, 65535))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.array([[np.nan, 0.001, 1.0], [np.nan, 0.256, 0.777]], dtype=np.float32))
    np.testing.assert_array_equal(read_depth_png(tmp_path / "a.png", 1 / 256)[1], np.float32([65535 / 256, 1, 777 / 256]))
    assert read_depth_png(tmp_path / "a.png", 1.0, ())[0, 0] == 0


def test_floats_of_a_tiff(tmp_path):
    values = np.array([[1.5, -2.25, np.nan], [np.inf, 1e-8, 3e7]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_float_tiff(tmp_path / "a.tif"), np.where(np.isfinite(values), values, np.nan))


def kitti_flow():
    random = np.random.default_rng(0)
    u, v = random.integers(-(2**15) + 1, 2**15, (2, 11, 14)) / 64
    valid = random.integers(0, 2, (11, 14))
    return u, v, valid


def test_kittis_flow(tmp_path):
    u, v, valid = kitti_flow()
    write_kitti_flow(tmp_path / "occ.png", u, v, valid)
    noc = valid * np.random.default_rng(1).integers(0, 2, valid.shape)
    write_kitti_flow(tmp_path / "noc.png", u, v, noc)
    flow = read_kitti_flow(tmp_path / "occ.png", tmp_path / "noc.png")
    assert flow.dtype == np.float32
    np.testing.assert_array_equal(flow, np.where(valid > 0, np.stack([u, v, noc > 0]), np.nan).astype(np.float32))
    alone = read_kitti_flow(tmp_path / "occ.png")
    np.testing.assert_array_equal(alone[:2], flow[:2])
    np.testing.assert_array_equal(alone[2], np.where(valid > 0, 1, np.nan))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@needs_torchvision_png
def test_sixteen_bits_of_colour_against_torchvision(tmp_path):
    u, v, _ = kitti_flow()
    write_kitti_flow(tmp_path / "a.png", u, v, np.ones(u.shape, dtype=int))
    reference = torchvision.io.decode_png(torchvision.io.read_file(str(tmp_path / "a.png")), torchvision.io.ImageReadMode.UNCHANGED)
    reference = reference.to(torch.float32).numpy()
    np.testing.assert_array_equal(read_kitti_flow(tmp_path / "a.png")[:2], (reference[:2] - 32768) / 64)


def test_middleburys_flow(tmp_path):
    u, v = np.random.default_rng(0).normal(size=(2, 5, 9)).astype(np.float32) * 30
    u[1, 2], v[3, 3], u[4, 8] = 1.5e9, -2e9, np.nan
    write_flo(tmp_path / "a.flo", u, v)
    flow = read_flo(tmp_path / "a.flo")
    unknown = np.zeros(u.shape, dtype=bool)
    unknown[1, 2] = unknown[3, 3] = unknown[4, 8] = True
    np.testing.assert_array_equal(flow, np.where(unknown, np.nan, np.stack([u, v, np.ones_like(u)])))
    assert flow.dtype == np.float32


def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path):
    grey, colour = Image.new("L", (8, 6)), Image.new("RGB", (8, 6))
    grey.save(tmp_path / "grey.png")
    colour.save(tmp_path / "colour.png")
    colour.save(tmp_path / "colour.jpg")
    grey.save(tmp_path / "grey.tif")
    (tmp_path / "text.png").write_text("nothing")
    noise = np.random.default_rng(0).integers(0, 65536, (40, 40, 3)).astype(np.uint16)
    (tmp_path / "half.png").write_bytes(png_rgb16(noise)[:5000])
    (tmp_path / "deep.png").write_bytes(png_rgb16(noise))
    (tmp_path / "small.png").write_bytes(png_rgb16(noise[:5]))
    u = np.zeros((4, 5), dtype=np.float32)
    write_flo(tmp_path / "a.flo", u, u)
    good = (tmp_path / "a.flo").read_bytes()
    (tmp_path / "short.flo").write_bytes(good[:-1])
    (tmp_path / "long.flo").write_bytes(good + b"\0")
    (tmp_path / "magic.flo").write_bytes(b"HEIP" + good[4:])
    (tmp_path / "none.flo").write_bytes(b"PI")
    (tmp_path / "negative.flo").write_bytes(good[:4] + struct.pack("<ii", -4, -5) + good[12:])
    for read, name, message in (
        (read_labels, "colour.png", "mode RGB; expected one channel"),
        (read_labels, "text.png", "is not an image"),
        (read_labels, "none.png", "does not exist"),
        (lambda path: read_depth_png(path, 1), "colour.jpg", "expected one channel"),
        (read_float_tiff, "grey.tif", "mode L; expected a TIFF"),
        (read_float_tiff, "grey.png", "is a PNG"),
        (read_kitti_flow, "half.png", "cannot be decoded"),
        (read_kitti_flow, "colour.png", "three channels of 16 bits"),
        (read_kitti_flow, "grey.png", "three channels of 16 bits"),
        (read_kitti_flow, "colour.jpg", "is a JPEG"),
        (read_kitti_flow, "none.png", "does not exist"),
        (lambda path: read_kitti_flow(tmp_path / "deep.png", path), "small.png", r"has 5 x 40 pixels"),
        (read_flo, "short.flo", "171 bytes"),
        (read_flo, "long.flo", "4 x 5 pixels"),
        (read_flo, "negative.flo", "do not fit"),
        (read_flo, "magic.flo", "is not a .flo file"),
        (read_flo, "none.flo", "is not a .flo file"),
        (read_flo, "missing.flo", "does not exist"),
    ):
        with pytest.raises(BadImage, match=message) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)


def test_sizes_of_image_and_target_are_compared():
    check_same_size((4, 5), np.zeros((4, 5)), "a.png")
    check_same_size((4, 5), np.zeros((3, 4, 5)), "a.png")
    with pytest.raises(BadImage, match=r"a\.png: has 5 x 4 pixels .* but its image has 4 x 5"):
        check_same_size((4, 5), np.zeros((5, 4)), "a.png")
