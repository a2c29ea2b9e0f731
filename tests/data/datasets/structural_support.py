"""Miniatures of THOR, Taskonomy, KITTI and COCO as they lie on disk, with planted answers."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def png16(values: np.ndarray) -> bytes:
    """A PNG of 16 bits per channel from uint16 (H, W, 3): signature, header, one block of rows without filters."""
    height, width, channels = values.shape
    assert values.dtype == np.uint16
    assert channels == 3

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def kitti_png(flow: np.ndarray, valid: np.ndarray) -> bytes:
    """KITTI's encoding of flow (2, H, W) in pixels: 64 steps a pixel around 2**15, third channel 1 where it is valid, all 0 elsewhere."""
    raw = np.zeros((*valid.shape, 3), dtype=np.uint16)
    raw[..., :2] = np.where(valid[..., None], np.round(flow.transpose(1, 2, 0) * 64) + 2**15, 0)
    raw[..., 2] = valid
    return png16(raw)


def picture(values: np.ndarray, kind: str = "PNG") -> bytes:
    """uint8 (H, W) or (H, W, 3), or uint16 (H, W), as an image file."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# KITTI


def kitti_pair(number: int, height: int = 6, width: int = 10) -> dict[str, np.ndarray]:
    """What is planted for a pair: flow, where it is measured, where it is seen in both frames, and its coloured picture."""
    random = np.random.default_rng(number)
    valid = random.random((height, width)) < 0.7
    valid[0, :2] = (True, False)
    visible = valid & (random.random((height, width)) < 0.5)
    visible[0, 0] = True
    flow = np.round(random.uniform(-80, 80, (2, height, width)) * 64).astype(np.float32) / 64
    flow[:, 0, 0] = (number, -number / 64)
    colours = noise(number, height, width, 3) | 1
    colours[~valid] = 0
    return {"flow": flow, "valid": valid, "visible": visible, "colours": colours}


def kitti_files(n: int, height: int = 6, width: int = 10) -> dict[str, bytes]:
    """Files below ``training/`` of the official archive."""
    files = {}
    for number in range(n):
        planted = kitti_pair(number, height, width)
        for frame in (10, 11):
            files[f"training/image_2/{number:06d}_{frame}.png"] = picture(np.full((height, width, 3), 8 * number + frame, np.uint8))
        files[f"training/flow_occ/{number:06d}_10.png"] = kitti_png(planted["flow"], planted["valid"])
        files[f"training/flow_noc/{number:06d}_10.png"] = kitti_png(planted["flow"], planted["visible"])
        files[f"training/viz_flow_occ/{number:06d}_10.png"] = picture(planted["colours"])
    return files


# Taskonomy


def taskonomy_view(seed: int, size: int = 12) -> dict[str, np.ndarray]:
    """An image (size, size, 3), depth in steps of 1/512 m with unscanned and far pixels, and edges of 16 bits."""
    random = np.random.default_rng(seed)
    depth = random.integers(100, 9000, (size, size)).astype(np.uint16)
    depth[0, :4] = (1024, 65535, 20 * 512, 20 * 512 + 1)
    edges = random.integers(300, 40_000, (size, size)).astype(np.uint16)
    edges[0, 0] = 13107  # a fifth of 65535
    return {"rgb": noise(seed, size, size, 3), "depth_zbuffer": depth, "edge_texture": edges}


# COCO


def panoptic(numbers: np.ndarray) -> np.ndarray:
    """Numbers of segments (H, W) as colours (H, W, 3)."""
    return np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)


def coco_scene(seed: int, height: int = 9, width: int = 11) -> tuple[np.ndarray, dict[int, int], np.ndarray]:
    """Colours of a panoptic picture, its segments with their category, and the map of categories that follows."""
    random = np.random.default_rng(seed)
    segments = {3226956: 1, 8345037: 51, 70_000 + seed: 1, 259: 200, 255: 92}
    numbers = random.choice([0, *segments], (height, width))
    numbers[0, 0] = 3226956
    categories = np.zeros((height, width), dtype=np.uint8)
    for number, category in segments.items():
        categories[numbers == number] = category
    return panoptic(numbers), segments, categories


def coco_list(scenes: dict[str, dict[int, int]]) -> dict[str, object]:
    """The official JSON, as far as anybody reads it."""
    return {
        "info": {},
        "images": [{"id": i, "file_name": name.replace(".png", ".jpg")} for i, name in enumerate(scenes)],
        "annotations": [
            {
                "image_id": i,
                "file_name": name,
                "segments_info": [
                    {"id": number, "category_id": category, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
                    for number, category in segments.items()
                ],
            }
            for i, (name, segments) in enumerate(scenes.items())
        ],
        "categories": [],
    }
