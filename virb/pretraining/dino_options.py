"""The keys of DINO and Patch-Wise DINO, apart from their code: ``--help`` needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from virb.config.check import Strict
from virb.pretraining.options import Count, NotNegative, Positive

Share = Annotated[float, Field(ge=0, le=1)]


def _rising(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"expected two shares of an image's area, the lower first, got {scale[0]:g} {scale[1]:g}")
    return scale


Scale = Annotated[
    tuple[Share, Share], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value), AfterValidator(_rising)
]
Shares = Annotated[tuple[Share, Share, Share], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
PositionMode = Literal["exact", "dino", "antialias"]  # as virb.encoders.vit has it
CenterMode = Literal["position", "shared"]  # as virb.pretraining.losses has it
PATCHWISE_NAMES = {"global_scale": "global_crops_size", "local_scale": "local_crops_size"}  # the original's, and ours


class DINOOptions(Strict):
    """The original's arguments with their names and defaults; below them, what was fixed in its code."""

    arch: str = Field("vit_small", description="vit_{tiny,small,base,large}, vit (of any size), a torchvision network, or timm:NAME")
    patch_size: Count = Field(16, description="side of a ViT's patches in pixels; smaller is better and slower")
    out_dim: Count = Field(65536, description="K, the number of prototypes")
    norm_last_layer: bool = Field(True, description="keep the prototypes' lengths at 1: stable; false may be better for ViT-S")
    momentum_teacher: Share = Field(0.996, description="the teacher's momentum, rising to 1; 0.9995 for a batch of 256")
    use_bn_in_head: bool = Field(False, description="batch norm in the projection head")
    warmup_teacher_temp: Positive = Field(0.04, description="the teacher's temperature at the start; lower when the loss does not fall")
    teacher_temp: Positive = Field(0.04, description="the teacher's temperature after its warm-up; above 0.07 mostly unstable")
    warmup_teacher_temp_epochs: int = Field(0, ge=0, description="epochs of that warm-up (30 in the long recipes)")
    freeze_last_layer: int = Field(1, ge=0, description="epochs in which the prototypes do not move; more when the loss does not fall")
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="drop path of the student's last block, 0 in the first")
    global_crops_scale: Scale = Field((0.4, 1.0), description="share of the image's area in global views; 0.14 1 without local views")
    local_crops_number: int = Field(8, ge=0, description="how many local views")
    local_crops_scale: Scale = Field((0.05, 0.4), description="share of the image's area in local views")

    global_crops_size: Count = Field(224, description="side of global views in pixels")
    local_crops_size: Count = Field(96, description="side of local views in pixels")
    flip_p: Share = Field(0.5, description="probability of a horizontal flip")
    jitter_p: Share = Field(0.8, description="probability of colour jitter")
    grayscale_p: Share = Field(0.2, description="probability of grayscale")
    blur_p: Shares = Field((1.0, 0.1, 0.5), description="probability of blur in the first and second global view, and in local views")
    solarize_p: Share = Field(0.2, description="probability of solarisation in the second global view")
    student_temp: Positive = Field(0.1, description="the student's temperature")
    center_momentum: Share = Field(0.9, description="momentum of the centre of the teacher's logits")
    embed_dim: Count | None = Field(None, description="width of a ViT, in place of that of arch")
    depth: Count | None = Field(None, description="number of blocks of a ViT, in place of that of arch")
    num_heads: Count | None = Field(None, description="number of heads of a ViT, in place of that of arch")
    position_mode: PositionMode = Field("exact", description="how a ViT's positions are resized to local views; dino is the original's way")
    head_layers: Count = Field(3, description="linear layers of the projection head before the prototypes")
    head_hidden_dim: Count = Field(2048, description="width of the projection head")
    head_bottleneck_dim: Count = Field(256, description="width of the projection head before the prototypes")


class PatchwiseOptions(DINOOptions):
    """DINO's options with the original's other defaults, and what the patches need."""

    arch: str = Field("vit_base", description="vit_tiny, vit_small, vit_base, vit_large, vit with a size of its own, or a ViT of timm:NAME")
    patch_size: int = Field(8, ge=1, description="side of the patches in pixels")
    out_dim: int = Field(10000, ge=1, description="K, the number of prototypes; every token has K logits, so this decides the memory")
    batch_size_per_gpu: int = Field(6, ge=1, description="images per device and micro-batch")
    num_workers: int = Field(8, ge=0, description="data loading processes per device")
    global_crops_number: Literal[2] = Field(2, description="how many global views; 2, as in the original")

    matching: Literal["nearest", "linspace"] = Field("nearest", description="which patches match: nearest centres, or the original's rule")
    min_overlap: Annotated[float, Field(ge=0, le=1)] = Field(0.0, description="least share of the smaller patch that nearest patches share")
    cls_weight: NotNegative | None = Field(None, description="weight of the [CLS] loss; without the two all matched tokens count alike")
    patch_weight: NotNegative | None = Field(None, description="weight of the patch loss, the mean over an image's matched patches")
    separate_patch_head: bool = Field(False, description="a second projection head for patches")
    center: CenterMode = Field("position", description="a centre for each token position, or shared: one for [CLS], one for all patches")
    squash: int | None = Field(None, ge=1, description="side of the square that images are first resized to; 256 in the original")

    @model_validator(mode="after")
    def _both_weights(self) -> PatchwiseOptions:
        if (self.cls_weight is None) != (self.patch_weight is None):
            raise ValueError("cls_weight and patch_weight: give both or neither")
        if self.cls_weight == 0 and self.patch_weight == 0:
            raise ValueError("cls_weight and patch_weight: one of them has to be above 0")
        return self
