"""DINO (Caron et al., 2021): self-distillation with no labels.

A student and a teacher of one architecture see several views of an image. The student learns, by cross-entropy over K prototypes, to give
for every view what the teacher gives for the other global views. The teacher learns nothing: it is the moving average of the student.
Two forces hold each other so that the output does not collapse: centring the teacher's logits (no prototype takes all) and sharpening them
by a low temperature (they do not become all alike).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from virb.pretraining import networks as nets
from virb.pretraining.dino_options import DINOOptions
from virb.pretraining.heads import DINOHead, MultiCrop
from virb.pretraining.losses import DINOLoss
from virb.pretraining.methods import CropRecipe, LossOut, Method, Networks, Progress, Views, ViewSpec, register_method
from virb.pretraining.optim import freeze_last_layer, move_teacher
from virb.pretraining.schedules import cosine, ramp


@register_method("dino")
class DINO(Method):
    Options: ClassVar[type[DINOOptions]] = DINOOptions
    options: DINOOptions
    tokens: ClassVar[bool] = False  # whether the networks give logits for all tokens, or one per image

    def views(self) -> ViewSpec:
        o = self.options
        colour: dict[str, Any] = dict(flip=o.flip_p, jitter=o.jitter_p, grayscale=o.grayscale_p)
        first, second, local = o.blur_p
        recipes = (
            CropRecipe(o.global_crops_size, o.global_crops_scale, blur=first, **colour),
            CropRecipe(o.global_crops_size, o.global_crops_scale, blur=second, solarize=o.solarize_p, **colour),
            CropRecipe(o.local_crops_size, o.local_crops_scale, count=o.local_crops_number, blur=local, **colour),
        )
        return ViewSpec(tuple(recipe for recipe in recipes if recipe.count), n_global=2)

    def build(self) -> Networks:
        backbone = nets.find_backbone(self._backbone_config(), self.tokens)
        student = self._network(backbone, self.options.drop_path_rate)
        teacher = self._network(backbone, 0.0)
        nets.copy_weights(teacher, student)
        rate, usual = self.options.drop_path_rate, type(self.options).model_fields["drop_path_rate"].default
        is_asked = rate not in (0.0, usual) and not backbone.drop_path
        return Networks(student, teacher, (f"drop_path_rate {rate:g} is not used: {self.options.arch} takes none",) if is_asked else ())

    def state(self) -> nn.Module:
        return DINOLoss(self.options.out_dim, self.options.student_temp, self.options.center_momentum)

    def loss(self, networks: Networks, views: Views, state: nn.Module, progress: Progress) -> LossOut:
        with torch.no_grad():
            teacher = networks.teacher(views.crops[: views.n_global])
        student = networks.student(views.crops, self._noise(views, progress))
        return state(student, teacher, self._teacher_temp(progress))

    def before_step(self, student: nn.Module, progress: Progress) -> None:
        if progress.epoch < self.options.freeze_last_layer:
            freeze_last_layer(student)

    def after_step(self, networks: Networks, state: nn.Module, statistics: Mapping[str, Tensor], progress: Progress) -> None:
        state.move_center(statistics)  # type: ignore[operator]
        move_teacher(networks.teacher, networks.student, self._momentum(progress))

    def values(self, progress: Progress) -> dict[str, float]:
        return {"momentum": self._momentum(progress), "teacher_temp": self._teacher_temp(progress)}

    @property
    def n_outputs(self) -> int:
        return self.options.out_dim

    def _momentum(self, progress: Progress) -> float:
        return cosine(progress.step, progress.total_steps, self.options.momentum_teacher, 1.0)

    def _teacher_temp(self, progress: Progress) -> float:
        o = self.options
        return ramp(progress.epoch, o.warmup_teacher_temp, o.teacher_temp, o.warmup_teacher_temp_epochs)

    def _backbone_config(self) -> nets.BackboneConfig:
        o = self.options
        sizes = (o.global_crops_size, o.local_crops_size)[: 2 if o.local_crops_number else 1]
        return nets.BackboneConfig(o.arch, o.patch_size, sizes, o.embed_dim, o.depth, o.num_heads, o.position_mode)

    def _network(self, backbone: nets.Backbone, drop_path_rate: float) -> MultiCrop:
        return MultiCrop(backbone.build(drop_path_rate), self._head(backbone.width), backbone.extract)

    def _head(self, width: int) -> DINOHead:
        o = self.options
        return DINOHead(width, o.out_dim, o.use_bn_in_head, o.norm_last_layer, o.head_layers, o.head_hidden_dim, o.head_bottleneck_dim)

    def _noise(self, views: Views, progress: Progress) -> Tensor | None:
        width = nets.noise_width(self._backbone_config()) if self.options.drop_path_rate else 0
        numbers = nets.noise(progress.seed, progress.step, views.samples, len(views.crops), width)
        return None if numbers is None else numbers.to(views.crops[0].device, non_blocking=True)
