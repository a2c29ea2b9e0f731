"""Encoders and tasks that plans in tests are made of."""

from __future__ import annotations

from collections.abc import Callable

from virb.plan.jobs import Plan

PIXELS = {"arch": "pixels"}
DIGITS = {"task": "digits"}
TINY_VIT = {"arch": "vit_tiny", "weights": "random", "args": {"patch_size": 8, "img_size": 32}}

MakePlan = Callable[..., Plan]
