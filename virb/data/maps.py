"""Readers of target files: label maps, depth, optical flow. Values are those of the file, never resampled; BadImage names the file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.ImageFile import ImageFile

from virb.data.decode import opened
from virb.data.placement import IGNORED
from virb.errors import BadImage

_UNKNOWN = -1  # in a table of raw values: not one of the list
_FLO_MAGIC = np.float32(202021.25)
_FLO_UNKNOWN = 1e9  # pixels; a greater component says that the flow is not known
_KITTI_ZERO, _KITTI_STEPS = 2**15, 64.0  # the raw value of no motion, and raw values per pixel of motion


def label_lut(classes: Mapping[int, int]) -> np.ndarray:
    """int16 table for ``read_labels``: raw value -> class id 0..254, or 255 ignored. Other raw values are unknown: -1."""
    table = np.full(max(classes) + 1, _UNKNOWN, dtype=np.int16)
    for raw, label in classes.items():
        if raw < 0 or not 0 <= label <= IGNORED:
            raise ValueError(f"raw value {raw} as class {label}; expected raw values from 0 and classes 0..{IGNORED}")
        table[raw] = label
    return table


def read_grey(path: str | Path) -> np.ndarray:
    """(H, W) raw values of an image of one channel: uint8 (also for black and white, as 0 and 1), uint16, or int32 where the file has that.
    Palette images give their indices, not their colours."""
    with opened(path) as image:
        if image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode in ("P", "L", "I") or image.mode.startswith("I;16"):
            values = np.array(image)
            if image.mode == "I" and image.format == "PNG":  # 16 bits, in memory of 32 in older versions of Pillow
                return values.astype(np.uint16)
            return values.astype(values.dtype.newbyteorder("="), copy=False)
        mode = image.mode
    raise BadImage(f"{path}: has pixels of mode {mode}; expected one channel of whole numbers (grey or palette)")


def read_labels(path: str | Path, lut: np.ndarray | None = None) -> np.ndarray:
    """(H, W) class ids, uint8: ``lut[raw]`` of ``read_grey``; without a table the raw values, in their own type.

    BadImage, naming file and value, where a raw value has no entry or a negative one.
    """
    raw = read_grey(path)
    if lut is None:
        return raw
    if raw.dtype == np.uint8 and len(lut) < 256:  # long enough for any value; one look-up, and one look at the result
        lut = np.concatenate([lut, np.full(256 - len(lut), _UNKNOWN, dtype=np.int16)])
    known = raw.dtype == np.uint8 or (int(raw.max(initial=0)) < len(lut) and int(raw.min(initial=0)) >= 0)
    labels = lut[raw] if known else lut[np.clip(raw, 0, len(lut) - 1)]
    if not known or labels.min(initial=0) < 0:
        unknown = np.unique(raw[(raw < 0) | (raw >= len(lut)) | (labels < 0)])
        raise BadImage(f"{path}: has the value {_listed(unknown)}, which is none of the {int((lut >= 0).sum())} labels known here")
    return labels.astype(np.uint8)


def read_depth_png(path: str | Path, scale: float, invalid: Sequence[int] = (0,)) -> np.ndarray:
    """(H, W) float32 = raw value of ``read_grey`` times ``scale``, the unit per step (1 / 256 for KITTI); NaN where one of ``invalid``."""
    raw = read_grey(path)
    depth = (raw * np.float64(scale)).astype(np.float32)
    for value in invalid:
        depth[raw == value] = np.nan
    return depth


def read_float_tiff(path: str | Path) -> np.ndarray:
    """(H, W) float32 of a TIFF with one channel of 32-bit floats; what is not finite is NaN."""
    with opened(path) as image:
        if image.format != "TIFF" or image.mode != "F":
            raise BadImage(
                f"{path}: is a {image.format} with pixels of mode {image.mode}; expected a TIFF with one channel of 32-bit floats"
            )
        values = np.array(image, dtype=np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def read_kitti_flow(path: str | Path, noc_path: str | Path | None = None) -> np.ndarray:
    """(3, H, W) float32 of KITTI's 16-bit PNG: u to the right and v down in pixels, and 1 visible or 0 occluded; NaN where it is not valid.

    ``noc_path``: the file of the same image's non-occluded pixels (``flow_noc``), whose valid pixels are the visible ones; all without.
    """
    raw = _rgb16(path)
    flow = np.empty((3, *raw.shape[:2]), dtype=np.float32)
    np.divide(raw[..., 0].astype(np.float32) - _KITTI_ZERO, _KITTI_STEPS, out=flow[0])  # exact: 16 bits of whole numbers by a power of 2
    np.divide(raw[..., 1].astype(np.float32) - _KITTI_ZERO, _KITTI_STEPS, out=flow[1])
    flow[2] = 1
    if noc_path is not None:
        visible = _rgb16(noc_path)
        if visible.shape != raw.shape:
            (height, width), (h, w) = visible.shape[:2], raw.shape[:2]
            raise BadImage(f"{noc_path}: has {height} x {width} pixels (height x width), but {path} has {h} x {w}")
        flow[2] = visible[..., 2] > 0
    flow[:, raw[..., 2] == 0] = np.nan
    return flow


def read_flo(path: str | Path) -> np.ndarray:
    """(3, H, W) float32 of a Middlebury ``.flo`` file: u to the right and v down in pixels, and 1 (nothing is said of occlusion); NaN where
    the flow is unknown."""
    content = _bytes(path)
    if len(content) < 12 or np.frombuffer(content, "<f4", 1)[0] != _FLO_MAGIC:
        raise BadImage(f"{path}: is not a .flo file (it does not begin with {_FLO_MAGIC})")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, offset=4))
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise BadImage(f"{path}: has {len(content)} bytes, which do not fit the {height} x {width} pixels that it announces; get it again")
    flow = np.ones((3, height, width), dtype=np.float32)
    flow[:2] = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).transpose(2, 0, 1)
    known = (np.abs(flow[:2]) <= _FLO_UNKNOWN).all(0)  # NaN is not
    flow[:, ~known] = np.nan
    return flow


def check_same_size(image_size: tuple[int, int], target: Any, path: str | Path) -> None:
    """BadImage, with both sizes, where the last two sides of ``target`` (its file: ``path``) are not the (height, width) of its image."""
    height, width = target.shape[-2:]
    if (height, width) != tuple(image_size):
        raise BadImage(f"{path}: has {height} x {width} pixels (height x width), but its image has {image_size[0]} x {image_size[1]}")


def _rgb16(path: str | Path) -> np.ndarray:
    """uint16 (H, W, 3)."""
    high, low = _bytes_of_rgb16(path, "RGB;16B"), _bytes_of_rgb16(path, "RGB;16L")
    return high.astype(np.uint16) << 8 | low


def _bytes_of_rgb16(path: str | Path, layout: str) -> np.ndarray:
    """uint8 (H, W, 3): the high bytes of a PNG of 16 bits per channel ("RGB;16B"), or the low ones (as "RGB;16L"). Pillow has
    no image of 16-bit colours, but it unpacks either byte."""
    with opened(path) as image:
        if not isinstance(image, ImageFile) or image.format != "PNG" or [tile[3] for tile in image.tile] != ["RGB;16B"]:
            raise BadImage(f"{path}: is a {image.format} with pixels of mode {image.mode}; expected a PNG with three channels of 16 bits")
        image.tile = [image.tile[0]._replace(args=layout)]
        return np.array(image)


def _bytes(path: str | Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise BadImage(f"{path}: does not exist") from None
    except OSError as error:
        raise BadImage(f"{path}: cannot be read ({os.strerror(error.errno) if error.errno else error})") from None


def _listed(values: np.ndarray) -> str:
    return ", ".join(str(value) for value in values[:5].tolist()) + (" ..." if len(values) > 5 else "")
