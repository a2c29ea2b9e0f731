"""Which geometry a job sees images in, and why; which augmented views of them."""

from __future__ import annotations

from dataclasses import replace

from virb.config import EncoderConfig
from virb.data.transforms import Geometry, View
from virb.encoders.base import EncoderSpec
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
    if set(asked) - {"mean", "std"}:
        source = "the experiment list's input:"
    elif task.geometry is not None:
        geometry, source = task.geometry, _fixed_by(task)
    if settings.input_size:
        size = (settings.input_size, settings.input_size)
        if geometry.size is None:  # native size says nothing of how to resize
            return Geometry(size, "squash", "none", 1.0, spec.input.interpolation, None), "--input_size"
        geometry, source = replace(geometry, size=size), "--input_size"
    return geometry, source


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
    fixed = PROTOCOLS[task.protocol].geometry
    if fixed is None or geometry == fixed:
        return task
    return replace(task, changed={**task.changed, "geometry": f"{geometry_text(geometry)} ({source})"})


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
    return [View(number, "crop-flip", settings.seed) for number in range(count)]


def geometry_text(geometry: Geometry) -> str:
    """``224px bilinear, shorter side and centre crop``, for people."""
    how = {"squash": "squashed", "shorter": "centre crop", "none": "cropped"}[geometry.resize]
    return f"{size_in_pixels(geometry.size)} {geometry.interpolation} {how}" if geometry.size else "native size"


def size_in_pixels(size: tuple[int, int] | None) -> str:
    if size is None:
        return "native size"
    return f"{size[0]}px" if size[0] == size[1] else f"{size[0]}x{size[1]}px"


def _fixed_by(task: ResolvedTask) -> str:
    fixed_by_protocol = PROTOCOLS[task.protocol].geometry is not None
    return f"protocol {task.protocol}" if fixed_by_protocol else f"task {task.task.id}"
