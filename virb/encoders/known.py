"""Weights with a short name: ``weights: dino_vits16``, or the name alone. The names are those of DINO's own hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from virb.encoders.base import IMAGENET_MEAN, IMAGENET_STD

_DINO = "https://dl.fbaipublicfiles.com/dino"
_XCIT = ("small_12_p16", "small_12_p8", "medium_24_p16", "medium_24_p8")
# how DINO's own evaluations prepare images: 256, then 224; mean and std too, for a network named beside the short name has its own
_DINO_INPUT = {"interpolation": "bicubic", "crop_pct": 0.875, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


@dataclass(frozen=True)
class Known:
    """What an entry of an experiment list would say. One of ``arch`` and ``timm``; all of it gives way to what the user says."""

    url: str
    arch: str | None = None
    timm: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)


def _dino(folder: str) -> str:
    return f"{_DINO}/{folder}_pretrain/{folder}_pretrain.pth"


def _vit(folder: str, arch: str, patch_size: int) -> Known:
    return Known(_dino(folder), arch=arch, args={"patch_size": patch_size}, input=_DINO_INPUT)


KNOWN: dict[str, Known] = {
    "dino_vits16": _vit("dino_deitsmall16", "vit_small", 16),  # "deitsmall" is ViT-S
    "dino_vits8": _vit("dino_deitsmall8", "vit_small", 8),
    "dino_vitb16": _vit("dino_vitbase16", "vit_base", 16),
    "dino_vitb8": _vit("dino_vitbase8", "vit_base", 8),
    "dino_resnet50": Known(_dino("dino_resnet50"), arch="resnet50", input=_DINO_INPUT),
    "dino_vits16_gldv2": _vit("dino_vitsmall16_googlelandmark", "vit_small", 16),  # Google Landmarks v2: DINO's retrieval model
    "dino_vits8_300ep": _vit("dino_deitsmall8_300ep", "vit_small", 8),  # DINO's attention maps
    **{
        f"dino_xcit_{size}": Known(_dino(f"dino_xcit_{size}"), timm=f"xcit_{size}_224", input=_DINO_INPUT)  # no ViT of ours
        for size in _XCIT
    },
}
KNOWN |= {old: KNOWN[new] for old, new in (("dino_deits16", "dino_vits16"), ("dino_deits8", "dino_vits8"))}


def known_names() -> tuple[str, ...]:
    return tuple(KNOWN)
