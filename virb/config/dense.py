"""Training configs of dense heads: one record per probe over maps. What is common to all of them is the optimizer and the form of depth."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from virb.config.training import Fraction, OptimizerConfig, word

DepthOutput = Literal["direct", "bins"]


class DenseConfig(OptimizerConfig):
    """One training config of a dense head.

    ``output`` and ``n_bins`` say how depth leaves the head: as one number per pixel, or as weights of bins over the task's range. They
    belong to depth alone; None is the probe's habit. ``loss_size`` is the longer side of the grid on which the training loss compares
    output and target; None is 4x the grid of the features, at most 128.
    """

    depth_by_default: ClassVar[DepthOutput] = "bins"
    at_image_size: ClassVar[bool] = False  # the head brings its outputs to the image's size by itself
    every_output: ClassVar[bool] = True  # the loss has to see every output, for each is made by weights that others do not share

    output: Annotated[DepthOutput | None, BeforeValidator(word("direct", "bins"))] = None
    n_bins: Annotated[int, Field(ge=2, le=4096)] = 256
    loss_size: Annotated[int, Field(ge=1)] | None = None


class DenseLinearConfig(DenseConfig):
    """``dense-linear``: one 1x1 convolution on the last map, after a normalisation of its channels and dropout of whole channels."""

    every_output: ClassVar[bool] = False

    norm: Literal["batch", "none"] = "batch"
    dropout: Fraction = 0.0


class DenseMultiConfig(DenseLinearConfig):
    """``dense-multi``: the same on all maps of the request, brought to the finest grid and concatenated."""


class PixelShuffleConfig(DenseConfig):
    """``pixelshuffle``: ViRB 2021's decoder over all maps of the request, finest first."""

    depth_by_default: ClassVar[DepthOutput] = "direct"  # as in 2021; bins would be 256 outputs at the resolution of the image


class DeepLabConfig(DenseConfig):
    """``deeplab``: pyramid pooling of the last map, refined with an early one (DeepLabv3+), on frozen features."""


class DeepLab2021Config(DenseConfig):
    """``deeplab@virb2021``: the same as ViRB 2021 built it, with a dilated copy of the encoder's ``layer4`` that is trained."""

    at_image_size: ClassVar[bool] = True


class SiameseConfig(DenseConfig):
    """``siamese``: the maps of two images are fused level by level and go through the decoder of ``pixelshuffle``.

    ``fusion: concat`` is ViRB 2021's (channels of both, 1x1 convolution); ``correlation`` compares the two coarsest levels explicitly, each
    place of image 1 with those of image 2 at most ``radius`` places away, and uses image 1 alone elsewhere.
    """

    depth_by_default: ClassVar[DepthOutput] = "direct"

    fusion: Literal["concat", "correlation"] = "concat"
    radius: Annotated[int, Field(ge=1, le=16)] = 4
