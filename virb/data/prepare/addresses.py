"""Plain addresses of archives and lists, beside those that torchvision knows. md5 sums where their makers publish them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Address:
    url: str
    md5: str | None = None


_VIRB = "https://prior-datasets.s3.us-east-2.amazonaws.com/ViRB/"
_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks/"
_ZENODO = "https://zenodo.org/records/2235448/files/"

# Everything that a recipe of virb.data.prepare needs.
ARCHIVES: Mapping[str, tuple[Address, ...]] = {
    "thor-num-steps": (Address(f"{_VIRB}thor_num_steps.zip"),),
    "thor-actions": (Address(f"{_VIRB}thor_egomotion.zip"),),
    "imagenetv2": (Address("https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz"),),
    "imagenet-a": (Address(f"{_HENDRYCKS}imagenet-a.tar", "c3e55429088dc681f30d81f4726b6595"),),
    "imagenet-r": (Address(f"{_HENDRYCKS}imagenet-r.tar", "a61312130a589d0ca1a8fca1f2bd3337"),),
    "imagenet-c": (
        Address(f"{_ZENODO}noise.tar", "e80562d7f6c3f8834afb1ecf27252745"),
        Address(f"{_ZENODO}blur.tar", "2d8e81fdd8e07fef67b9334fa635e45c"),
        Address(f"{_ZENODO}weather.tar", "33ffea4db4d93fe4a428c40a6ce0c25d"),
        Address(f"{_ZENODO}digital.tar", "89157860d7b10d5797849337ca2e5c03"),
    ),
}
# ViRB 2021's splits, whose images come from elsewhere.
LISTS: Mapping[str, tuple[Address, ...]] = {
    "caltech101": tuple(Address(f"{_VIRB}caltech101_{split}.json") for split in ("train", "test")),
    "nuscenes-actions": tuple(Address(f"{_VIRB}nuScenes_{split}.json") for split in ("train", "test")),
}
