"""Values as colours: class maps, depth, flow and plain maps become RGB pictures. Pure arrays in, uint8 (H, W, 3) out."""

from __future__ import annotations

import numpy as np

VOID = (128, 128, 128)  # pixels without a value
_GOLDEN = 0.61803398875  # successive hues far apart, whatever the number of classes
# Dark blue over green to yellow, equally spaced: lightness rises all the way, so that it also reads in grey.
_RAMP = np.array([(68, 1, 84), (65, 68, 135), (42, 120, 142), (34, 168, 132), (122, 209, 81), (253, 231, 37)], dtype=np.float64)


def class_colours(n_classes: int) -> np.ndarray:
    """A colour per class, uint8 (n_classes, 3). Class 0 is black, as backgrounds are drawn; the others stay what they are when there are
    more classes."""
    colours = np.zeros((max(n_classes, 1), 3), dtype=np.uint8)
    for number in range(1, n_classes):
        lightness = (1.0, 0.72, 0.86)[number % 3]
        colours[number] = _hsv((number - 1) * _GOLDEN % 1.0, 0.55 + 0.35 * (number % 2), lightness)
    return colours


def paint_labels(labels: np.ndarray, n_classes: int, ignored: int = 255) -> np.ndarray:
    """Class ids (H, W); what is ``ignored`` or beyond the classes is grey."""
    table = np.empty((max(256, n_classes), 3), dtype=np.uint8)
    table[:] = VOID
    table[:n_classes] = class_colours(n_classes)
    if ignored < len(table):
        table[ignored] = VOID
    return table[np.clip(labels, 0, len(table) - 1).astype(np.int64)]


def paint_values(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers (H, W) from ``low`` (dark) to ``high`` (light); NaN is grey."""
    known = np.isfinite(values)
    share = np.clip((np.where(known, values, low) - low) / max(high - low, 1e-12), 0.0, 1.0) * (len(_RAMP) - 1)
    before = np.minimum(share.astype(np.int64), len(_RAMP) - 2)
    weight = (share - before)[..., None]
    colours = _RAMP[before] * (1 - weight) + _RAMP[before + 1] * weight
    painted = colours.round().astype(np.uint8)
    painted[~known] = VOID
    return painted


def paint_flow(flow: np.ndarray, longest: float) -> np.ndarray:
    """Vectors (2, H, W): the hue is the direction (red to the right), the saturation the length up to ``longest``; NaN is grey."""
    u, v = np.asarray(flow[0], dtype=np.float64), np.asarray(flow[1], dtype=np.float64)
    known = np.isfinite(u) & np.isfinite(v)
    u, v = np.where(known, u, 0.0), np.where(known, v, 0.0)
    hue = (np.arctan2(v, u) / (2 * np.pi)) % 1.0
    saturation = np.clip(np.hypot(u, v) / max(longest, 1e-12), 0.0, 1.0)
    painted = _hsv_array(hue, saturation)
    painted[~known] = VOID
    return painted


def _hsv(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    import colorsys

    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue


def _hsv_array(hue: np.ndarray, saturation: np.ndarray) -> np.ndarray:
    """Full brightness: white where nothing moves."""
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = (offset + hue * 6.0) % 6.0
        channels.append(1.0 - saturation * np.clip(np.minimum(place, 4.0 - place), 0.0, 1.0))
    return (np.stack(channels, axis=-1) * 255).round().astype(np.uint8)
