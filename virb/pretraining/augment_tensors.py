"""The multi-crop augmentation of ``virb.pretraining.augment`` on tensors: all views of a batch together, on any device.

Crops of many images and views go through each operation at once, so the time goes into pixels, not into calls; and on CPUs torch's resize
of 8-bit images is several times faster than Pillow's. Every operation rounds as Pillow's does, colours to whole levels, so that a view is
that of the reference path up to a level or two, and is the same in any batch, on any rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from virb.pretraining.augment import BRIGHTNESS, CONTRAST, HUE, ORDERS, SATURATION, SOLARIZE_FROM, Draws
from virb.pretraining.methods import ViewSpec

_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}  # values in one go: temporary tensors are some ten times that, and should stay in a CPU's cache


def squash_tensor(image: Tensor, spec: ViewSpec) -> Tensor:
    """The image (uint8 3 x H x W, on the CPU) as it is cropped."""
    return image if spec.squash is None else F.interpolate(image[None], spec.squash, mode="bicubic", antialias=True)[0]


def augment_tensors(images: Sequence[Tensor], draws: Draws, spec: ViewSpec) -> tuple[Tensor, ...]:
    """``images``: B uint8 3 x H x W, of any sizes, on one device (squashed already). V uint8 tensors B x 3 x size x size on that device."""
    crops: list[Tensor] = [torch.empty(0)] * len(spec.views)
    for size in dict.fromkeys(view.size for view in spec.views):
        views = [v for v, view in enumerate(spec.views) if view.size == size]
        stacked = _crops(images, draws.boxes[:, views], size)  # views x B x 3 x size x size
        flat, chosen = stacked.flatten(0, 1), draws.of_views(views)
        step = max(1, _AT_ONCE.get(flat.device.type, 2**20) // (3 * size * size))
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            flat[part] = _colours(flat[part], Draws(*(getattr(chosen, name)[part] for name in Draws.__dataclass_fields__)))
        for view, crop in zip(views, stacked, strict=True):
            crops[view] = crop
    return tuple(crops)


# Geometry


def _crops(images: Sequence[Tensor], boxes: np.ndarray, size: int) -> Tensor:
    """Boxes (B, n, 4) of the images, resized: uint8 n x B x 3 x size x size."""
    device = images[0].device
    out = torch.empty((boxes.shape[1], len(images), 3, size, size), dtype=torch.uint8, device=device)
    if device.type != "cpu":
        for members in _of_equal_size(images):
            out[:, members] = crops_by_products(torch.stack([images[i] for i in members]), boxes[members], size)
        return out
    for i, image in enumerate(images):
        for v, (top, left, height, width) in enumerate(boxes[i].tolist()):
            box = image[None, :, top : top + height, left : left + width]
            out[v, i] = F.interpolate(box, (size, size), mode="bicubic", antialias=True)[0]
    return out


def _of_equal_size(images: Sequence[Tensor]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(i)
    return list(groups.values())


def crops_by_products(images: Tensor, boxes: np.ndarray, size: int) -> Tensor:
    """The same resize as two matrix products for all boxes together, for devices on which a call costs more than arithmetic. ``images``:
    uint8 B x 3 x H x W; ``boxes``: (B, n, 4). Returns uint8 n x B x 3 x size x size."""
    b, _, height, width = images.shape
    n = boxes.shape[1]
    where = torch.from_numpy(boxes).to(images.device, torch.float32)
    down = _bicubic_weights(where[..., 0], where[..., 2], height, size)  # B x n x size x H
    across = _bicubic_weights(where[..., 1], where[..., 3], width, size)
    pixels = images.float()
    rows = torch.matmul(pixels[:, None], across.transpose(-1, -2)[:, :, None])  # B x n x 3 x H x size
    rows = rows.round_().clamp_(0, 255)  # Pillow keeps 8 bits between the two passes
    out = torch.matmul(down[:, :, None], rows).round_().clamp_(0, 255)
    return out.to(torch.uint8).view(b, n, 3, size, size).transpose(0, 1)


def _bicubic_weights(start: Tensor, length: Tensor, full: int, size: int) -> Tensor:
    """Which pixels of a line of ``full`` make each of ``size`` pixels of the box [start, start + length): (..., size, full), rows sum to 1.
    Keys' kernel with a = -1/2, as wide as the scale where the box is larger than the view."""
    scale = (length / size)[..., None, None]
    begin, end = start[..., None, None], (start + length)[..., None, None]
    centre = begin + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(full, device=start.device) + 0.5
    t = ((pixel - centre) / scale.clamp(min=1.0)).abs_()
    near, far = ((1.5 * t - 2.5) * t) * t + 1.0, ((2.5 - 0.5 * t) * t - 4.0) * t + 2.0
    weights = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    weights = torch.where((pixel > begin) & (pixel < end), weights, 0.0)
    return weights / weights.sum(-1, keepdim=True)


# Colours: x is float N x 3 x h x w with whole levels 0 to 255


def _colours(crops: Tensor, draws: Draws) -> Tensor:
    """All that follows the crop, for N crops of one size (uint8)."""
    device = crops.device
    x = crops.float()
    flip = _where(draws.flip, device)
    x[flip] = x[flip].flip(-1)
    factors = torch.from_numpy(draws.factors).to(device)
    orders = np.array(ORDERS)[draws.order]
    for turn in range(4):
        for change in (BRIGHTNESS, CONTRAST, SATURATION, HUE):
            chosen = _where(draws.jitter & (orders[:, turn] == change), device)
            if len(chosen):
                x[chosen] = _CHANGES[change](x[chosen], factors[chosen, change].view(-1, 1, 1, 1))
    gray = _where(draws.gray, device)
    x[gray] = _luma(x[gray]).expand(-1, 3, -1, -1)
    blurred = _where(draws.blur > 0, device)
    if len(blurred):
        x[blurred] = gaussian_blur(x[blurred], torch.from_numpy(draws.blur).to(device)[blurred])
    solarized = _where(draws.solarize, device)
    bright = x[solarized]
    x[solarized] = torch.where(bright >= SOLARIZE_FROM, 255 - bright, bright)
    return x.to(torch.uint8)


def _where(chosen: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(chosen)).to(device)


def _blend(base: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """From ``base`` (factor 0) over ``x`` (factor 1) and beyond."""
    return torch.addcmul(base, x - base, factor).clamp_(0, 255).floor_()


def _luma(x: Tensor) -> Tensor:
    """ITU-R 601 in 16-bit fixed point, N x 1 x h x w: float32 holds all of these numbers exactly."""
    red, green, blue = x.split(1, dim=1)
    return (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).mul_(2**-16).floor_()


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 255).floor_()


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    n = x.shape[-1] * x.shape[-2]
    # Sums of whole numbers below 2**24 are exact in float32, in any order.
    mean = _luma(x).flatten(1).sum(1, dtype=torch.float32 if n <= 2**16 else torch.float64) / n
    return _blend((mean + 0.5).floor_().float().view(-1, 1, 1, 1), x, factor)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return _blend(_luma(x), x, factor)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Hue and saturation have 8 bits in between, as in Pillow's HSV images; ``shift`` in turns."""
    red, green, blue = x.unbind(1)
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    per_chroma = chroma.clamp(min=1).reciprocal_()
    hue = torch.where(green == high, (blue - red).mul_(per_chroma).add_(2), (red - green).mul_(per_chroma).add_(4))
    hue = torch.where(red == high, (green - blue).mul_(per_chroma), hue).mul_(1 / 6)
    hue.add_(hue < 0).mul_(255).floor_().add_((shift[:, 0] * 255).trunc_())
    hue.sub_(torch.mul(hue, 1 / 256).floor_().mul_(256)).mul_(6 / 255)  # 8 bits wrap around; then 0 to 6
    saturation = chroma.mul_(255).div_(high.clamp(min=1)).floor_().mul_(1 / 255).mul_(high)
    away = torch.empty_like(x)  # how far each channel is from its own colour, 0 to 1
    torch.sub(hue, 3, out=away[:, 0]).abs_().neg_().add_(2)
    torch.sub(hue, 2, out=away[:, 1]).abs_().sub_(1)
    torch.sub(hue, 4, out=away[:, 2]).abs_().sub_(1)
    return torch.addcmul(high[:, None], away.clamp_(0, 1), saturation[:, None], value=-1).round_()


_CHANGES = {BRIGHTNESS: _brightness, CONTRAST: _contrast, SATURATION: _saturation, HUE: _hue}


# Blur

_PASSES = 3
_WIDE = math.sqrt(2.0)  # from this radius on, a box reaches two pixels to either side; up to 2, never three


def gaussian_blur(x: Tensor, radius: Tensor) -> Tensor:
    """Blur of N x 3 x h x w by ``radius`` (N,), at most 2 pixels, as Pillow's: three box blurs in each direction, whose ends count in part
    so that together they have this standard deviation (Gwosdek et al., 2011). The image goes on beyond its edges as it ends there."""
    out = torch.empty_like(x)
    for reach, chosen in ((1, radius < _WIDE), (2, radius >= _WIDE)):
        members = chosen.nonzero()[:, 0]
        if len(members):
            out[members] = _three_boxes(x[members], radius[members].double(), reach)
    return out


def _three_boxes(x: Tensor, radius: Tensor, reach: int) -> Tensor:
    variance, whole = radius**2 / _PASSES, reach - 1
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    taps = [(value / (2 * (whole + part) + 1)).float().view(-1, 1, 1, 1) for value in [*[torch.ones_like(part)] * reach, part]]
    for axis in (-1, -2):
        n, shape = x.shape[axis], list(x.shape)
        shape[axis] += 2 * reach
        now, then, both = x.new_empty(shape), x.new_empty(shape), torch.empty_like(x)
        now.narrow(axis, reach, n).copy_(x)
        for _ in range(_PASSES):
            now.narrow(axis, 0, reach).copy_(now.narrow(axis, reach, 1))
            now.narrow(axis, reach + n, reach).copy_(now.narrow(axis, reach + n - 1, 1))
            inner = torch.mul(now.narrow(axis, reach, n), taps[0], out=then.narrow(axis, reach, n))
            for d in range(1, reach + 1):
                torch.add(now.narrow(axis, reach - d, n), now.narrow(axis, reach + d, n), out=both)
                inner.addcmul_(both, taps[d])
            now, then = then, now
        x = now.narrow(axis, reach, n)
    return (x + 0.5).floor_().clamp_(0, 255)
