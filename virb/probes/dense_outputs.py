"""What the outputs of a dense head mean: from raw numbers to what is up-sampled and compared, and from there to predictions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from virb.config.dense import DenseConfig, DepthOutput
from virb.data.placement import DenseTarget
from virb.errors import UserError

LEAST_DEPTH = 1e-3  # where a task names no range
_BIN_FLOOR = 0.1  # added to every bin's weight, so that a pixel without any positive output has a depth, and a slope
# Pixels per unit of raw output. Flow is tens of pixels where outputs of a fresh head are below one; FlowNet divides its targets by as much.
FLOW_UNIT = 20.0


def n_outputs(target: DenseTarget, n_classes: int | None, config: DenseConfig) -> int:
    """How many channels the head gives for this target; UserError when target and config do not go together."""
    if config.output is not None and target.kind != "depth":
        raise UserError(f"output: {config.output} belongs to depth, but this task's target is of kind {target.kind}; leave it out")
    if target.kind == "labels":
        if n_classes is None or n_classes < 2:
            raise UserError(f"at least two classes are needed, but the task has {n_classes or 'none'}")
        return n_classes
    if target.kind == "depth":
        if config.output == "bins" and target.range is None:
            raise UserError("output: bins needs a range of depths to divide, and this task has none; use output: direct")
        return config.n_bins if depth_output(target, config) == "bins" else 1
    return {"mask": 1, "flow": 2, "map": target.channels}[target.kind]


def depth_output(target: DenseTarget, config: DenseConfig) -> DepthOutput:
    """In what form depth leaves the head: as configured, else the probe's habit, which is never bins for a task without a range."""
    return config.output or (config.depth_by_default if target.range is not None else "direct")


def values(raw: Tensor, target: DenseTarget, config: DenseConfig) -> Tensor:
    """Raw outputs (B, n_outputs, h, w) to float32 values of the same grid: what the loss compares and what is brought to native size.

    ``labels`` (B, C, h, w) and ``mask`` (B, 1, h, w): logits | ``depth`` (B, 1, h, w): above 0, in the target's unit |
    ``flow`` (B, 2, h, w): u, v in pixels of the geometry | ``map`` (B, C, h, w): as they are.

    Bins of depth are combined here, at the resolution of the head and before any up-sampling (DINOv2 brings its features to a finer grid
    first): their centres lie evenly from the least to the greatest depth, their weights are max(output, 0) + 0.1, normalised to 1. Direct
    depth is the least depth + softplus.
    """
    raw = raw.float()
    if target.kind == "flow":
        return raw * FLOW_UNIT
    if target.kind != "depth":
        return raw
    if depth_output(target, config) == "direct":
        # softplus rather than a cut at zero: a head that starts below zero everywhere still learns
        return F.softplus(raw) + (target.range[0] if target.range else LEAST_DEPTH)
    least, greatest = target.range or (LEAST_DEPTH, LEAST_DEPTH)
    centres = torch.linspace(least, greatest, raw.shape[1], device=raw.device)
    weights = F.relu(raw) + _BIN_FLOOR
    return torch.einsum("bnhw,n->bhw", weights, centres)[:, None] / weights.sum(1, keepdim=True)


def prediction(values_native: Tensor, target: DenseTarget) -> Tensor:
    """Values (..., C, H, W) at native size to what metrics see.

    ``labels`` (..., H, W) int64 class ids, the first of equal ones | ``mask`` (..., H, W) int64: 1 where the logit is above 0 |
    ``depth`` (..., H, W), within the range | ``flow`` (..., 2, H, W) and ``map`` (..., C, H, W): as they are.
    """
    if target.kind == "labels":
        return values_native.argmax(-3)
    if target.kind == "mask":
        return (values_native[..., 0, :, :] > 0).long()
    if target.kind == "depth":
        depth = values_native[..., 0, :, :]
        return depth if target.range is None else depth.clamp(*target.range)
    return values_native
