"""The honest floor: pixels averaged over a small raster. What an encoder does not improve on, it does not know."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from virb.encoders.base import Encoder, EncoderSpec, InputSpec, Single, Stage
from virb.encoders.registry import register_encoder


class PixelsEncoder(Encoder):
    """``tokens[-1]``: N x 3 x side x side means of the normalised input; ``embedding``: the same as N x 3·side² in the order channel, row,
    column. An input smaller than the raster repeats pixels."""

    family = "pixels"

    def __init__(self, side: int) -> None:
        draft = EncoderSpec(
            name="",
            embed_dim=3 * side * side,
            patch_size=None,
            stages=(),
            n_heads=None,
            input=InputSpec(),
            n_params=0,
            encoder_id="",
            source="",
            family=self.family,
            format=self.format,
            outputs=("embedding", "tokens", "pyramid"),
            architecture=f"pixels {side}x{side}",
        )
        super().__init__(nn.Identity(), draft, {"side": side})
        self.side = side
        self.set_input(self.spec.input)

    def set_input(self, spec: InputSpec) -> None:
        stage = Stage("tokens[-1]", 3, max(1, round(spec.size[0] / self.side)))  # the raster is fixed, so its stride follows the input
        self.spec = replace(self.spec, input=spec, stages=(stage,))

    def _outputs(self, images: Tensor, wanted: Collection[Single]) -> dict[Single, Tensor]:
        raster = F.adaptive_avg_pool2d(images, self.side)
        return {single: raster.flatten(1) if single.name == "embedding" else raster for single in wanted}


@register_encoder("pixels")
def pixels(*, side: int = 16) -> PixelsEncoder:
    """``side``: rows and columns of the raster."""
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise ValueError(f"side is {side!r}; expected a whole number of at least 1")
    return PixelsEncoder(side)
