"""Which geometry a job sees images in, and why; which augmented views of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from virb.config import EncoderConfig
from virb.data.transforms import Geometry, View
from virb.encoders.base import EncoderSpec
from virb.errors import UserError
from virb.plan.jobs import InMemory, RunSettings
from virb.probes.base import FIT
from virb.tasks.protocols import PROTOCOLS
from virb.tasks.resolve import ResolvedTask


def own_geometry(spec: EncoderSpec) -> Geometry:
    """What the encoder asks for, overrides of the experiment list included; UserError when they are impossible together."""
    own = spec.input
    return Geometry(own.size, own.resize, own.crop, own.crop_pct, own.interpolation, None)


def choose_geometry(settings: RunSettings, config: EncoderConfig | InMemory, spec: EncoderSpec, task: ResolvedTask) -> tuple[Geometry, str]:
    """First of: --input_size, the experiment list's input:, what the protocol or task fixes, the encoder's own default."""
    geometry, source = own_geometry(spec), "the encoder's default"
    asked = config.input.model_dump(exclude_none=True) if config.input else {}
    asked = {key: value for key, value in asked.items() if key not in ("mean", "std", "channels")}
    if task.task.dense is not None and task.geometry is not None:
        return _dense_geometry(settings, asked, task, task.geometry)
    if asked:
        source = "the experiment list's input:"
    elif task.geometry is not None:
        geometry, source = task.geometry, _fixed_by(task)
    if settings.input_size:
        size = (settings.input_size, settings.input_size)
        if geometry.size is None:  # native size says nothing of how to resize
            return Geometry(size, "squash", "none", 1.0, spec.input.interpolation, None), "--input_size"
        geometry, source = replace(geometry, size=size), "--input_size"
    return geometry, source


def _dense_geometry(settings: RunSettings, asked: Mapping[str, Any], task: ResolvedTask, geometry: Geometry) -> tuple[Geometry, str]:
    """A pixelwise task's own geometry, in which an encoder's ``input:`` changes what it names and nothing else: images that are scored
    pixel by pixel are seen whole, whatever an encoder's crop is elsewhere. --input_size is the shorter side, the aspect stays."""
    source = _fixed_by(task)
    if asked:
        geometry, source = replace(geometry, **asked), f"{source}, with the experiment list's input:"
    if settings.input_size and geometry.size is not None:
        shorter = settings.input_size / min(geometry.size)
        height, width = (round(side * shorter) for side in geometry.size)
        geometry, source = replace(geometry, size=(height, width)), "--input_size"
    return geometry, source


def check_dense(geometry: Geometry, task: ResolvedTask, samples: int | None) -> None:
    """UserError where predictions could not be brought back to the pixels of the target. ``samples``: images of each, None where they
    differ in it; an image that is seen through windows is one."""
    if geometry.size is None:
        raise UserError(f"{task.task.id} needs images of one size; give input: {{size: ...}}")
    if geometry.resize != "squash":
        how = "cut from their centre" if geometry.crop == "center" else "not resized"
        what = "whole images" if task.windows is None else "whole windows"
        raise UserError(f"{task.task.id} is scored on {what}, but they are {how} (input:); write resize: squash")
    if samples != 1 and task.augment != "none":
        raise UserError(
            f"{task.task.id}: samples of several images cannot be augmented, each image would be cut differently; augment: none"
        )
    if task.windows is not None and (samples != 1 or task.task.dense is None or task.task.dense.kind == "flow"):
        raise UserError(f"{task.task.id}: windows are for samples of one image")
    if task.windows is not None and task.score_size is not None:
        raise UserError(
            f"{task.task.id}: windows are scored at the target's native size, so score_size says nothing; leave one of them out"
        )
    if task.task.dense is not None and task.task.dense.at == "view":
        if task.windows is not None:
            raise UserError(f"{task.task.id} is scored at the size of its input, as published; leave out windows")
        if task.augment != "none":
            raise UserError(f"{task.task.id} has targets that are resized with whole images, as published; write augment: none")


def geometry_of_score(
    settings: RunSettings, config: EncoderConfig | InMemory, spec: EncoderSpec, task: ResolvedTask, known: Geometry | None, heads: str
) -> tuple[Geometry, str]:
    """Of an eval-only job: as its heads ``known`` their features. Where such a task fixes the geometry, its images were published cut to
    that size, and stay whole: for heads of another size they are resized, not cut again."""
    fixed = task.task.geometry if task.task.heads_from else None
    asked = replace(task, geometry=known or (PROTOCOLS[task.protocol].geometry if fixed else task.geometry))
    if known is None or settings.input_size:
        geometry, origin = choose_geometry(settings, config, spec, asked)
    else:
        geometry, origin = replace(known, view=None), f"heads of {heads}"
    if fixed is None:
        return geometry, origin
    if geometry.size not in (None, fixed.size):
        fixed = Geometry(geometry.size, "squash", "none", 1.0, geometry.interpolation, None)
    return fixed, f"task {task.task.id}"


def with_geometry(task: ResolvedTask, geometry: Geometry, source: str) -> ResolvedTask:
    """The task, with the geometry among its changes where its protocol fixes another one."""
    if PROTOCOLS[task.protocol].geometry is None or geometry == task.geometry:
        return task
    return replace(task, changed={**task.changed, "geometry": f"{geometry_text(geometry)} ({source})"})


def with_decoder(settings: RunSettings, task: ResolvedTask, geometry: Geometry) -> tuple[ResolvedTask, Geometry]:
    """How the run decodes and resizes, which also heads of other runs are scored by. It is a change of any protocol but for Pillow, by
    which reference numbers were made."""
    if settings.decoder != "pillow":
        task = replace(task, changed={**task.changed, "decoder": settings.decoder})
    return task, replace(geometry, decoder=settings.decoder)


def seen_as(task: ResolvedTask, role: str, geometry: Geometry, settings: RunSettings) -> list[Geometry]:
    """The geometry of each view of a role's images; a protocol may resize augmented views in another way."""
    protocol = PROTOCOLS.get(task.protocol)  # heads may come from a protocol that is no longer there
    interpolation = (protocol.view_interpolation if protocol else None) or geometry.interpolation
    return [geometry if view is None else replace(geometry, view=view, interpolation=interpolation) for view in views(task, role, settings)]


def views(task: ResolvedTask, role: str, settings: RunSettings) -> list[View | None]:
    """Only training data is augmented; view v of an image is the same crop for every encoder and run."""
    if role != FIT or task.augment == "none":
        return [None]
    count = task.num_epochs if task.views == "fresh" else int(task.views)
    return [View(number, task.augment, settings.seed) for number in range(count)]  # type: ignore[arg-type]  # checked by the schema


def geometry_text(geometry: Geometry) -> str:
    """``224px bilinear, shorter side and centre crop``, for people."""
    how = {"squash": "squashed", "shorter": "centre crop", "none": "cropped"}[geometry.resize]
    return f"{size_in_pixels(geometry.size)} {geometry.interpolation} {how}" if geometry.size else "native size"


def size_in_pixels(size: tuple[int, int] | None) -> str:
    if size is None:
        return "native size"
    return f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"


def _fixed_by(task: ResolvedTask) -> str:
    fixed_by_protocol = task.geometry is not None and task.geometry == PROTOCOLS[task.protocol].geometry
    return f"protocol {task.protocol}" if fixed_by_protocol else f"task {task.task.id}"
