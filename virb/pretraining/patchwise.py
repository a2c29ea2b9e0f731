"""Patch-Wise DINO (PW-Self; Javidani et al., 2023): DINO for [CLS] and for every patch.

Two views of an image overlap. Where they do, a patch of one shows the same place as a patch of the other, and the student learns to give
for its patch what the teacher gives for that one. The views' boxes and flips say which patches match, image by image; views that do not
overlap are compared by [CLS] alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from virb.pretraining import networks as nets
from virb.pretraining.dino import DINO
from virb.pretraining.dino_options import PATCHWISE_NAMES, PatchwiseOptions
from virb.pretraining.geometry import match
from virb.pretraining.heads import MultiCrop
from virb.pretraining.losses import PatchLoss
from virb.pretraining.methods import LossOut, Matches, Networks, Progress, Views, ViewSpec, register_method


@register_method("patchwise")
class PatchwiseDINO(DINO):
    Options = PatchwiseOptions
    options: PatchwiseOptions
    aliases: ClassVar = PATCHWISE_NAMES
    tokens = True

    def views(self) -> ViewSpec:
        spec, side = super().views(), self.options.squash
        return ViewSpec(spec.recipes, spec.n_global, (side, side) if side else None)

    def state(self) -> nn.Module:
        o = self.options
        weights = None if o.cls_weight is None or o.patch_weight is None else (o.cls_weight, o.patch_weight)
        n_tokens = 1 + (o.global_crops_size // o.patch_size) ** 2
        return PatchLoss(o.out_dim, n_tokens, weights, o.center, o.student_temp, o.center_momentum)

    def loss(self, networks: Networks, views: Views, state: nn.Module, progress: Progress) -> LossOut:
        with torch.no_grad():
            teacher = networks.teacher(views.crops[: views.n_global])
        student = networks.student(views.crops, self._noise(views, progress))
        pairs = ((g, v) for g in range(len(teacher)) for v in range(len(student)) if v != g)
        matches = {(g, v): self._match(views.geometry[:, g], views.geometry[:, v]) for g, v in pairs}
        return state(student, teacher, matches, self._teacher_temp(progress))

    def _match(self, first: Tensor, second: Tensor) -> Matches:
        o = self.options
        return match(first, second, o.patch_size, rule=o.matching, min_overlap=o.min_overlap)

    def _network(self, backbone: nets.Backbone, drop_path_rate: float) -> MultiCrop:
        patch_head = self._head(backbone.width) if self.options.separate_patch_head else None
        return MultiCrop(backbone.build(drop_path_rate), self._head(backbone.width), backbone.extract, patch_head)
