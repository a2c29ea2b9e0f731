"""What ``virb check`` says of an encoder: what it is, and that a forward on noise gives every output it claims. Reads no image."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from virb.encoders.attention import INSIDE
from virb.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder, EncoderSpec, InputSpec, Stage, Value, check_outputs
from virb.errors import ViRBError

_N = 2  # images of noise
_FILLED = re.compile(r"(?P<part>[\d.]+)\s?%")
_COUNTS = re.compile(r":?\s*\d+ of \d+ [\w ]*filled\s*\([\d.]+\s?%\)")
_COLOURS = {
    (IMAGENET_MEAN, IMAGENET_STD): "ImageNet",
    ((0.5,) * 3, (0.5,) * 3): "0.5 / 0.5",
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)): "CLIP",
}


@dataclass(frozen=True)
class Verified:
    """One encoder that works. ``shapes``: of each output at the input size, without the batch axis; a pyramid has one per level."""

    name: str
    recognised: str  # what was loaded, in the words of its source line
    architecture: str
    n_params: int
    filled: str  # how much of the network the weights file filled, such as "100 %"; empty where no file was read
    input: InputSpec
    shapes: Mapping[str, tuple[int, ...] | tuple[tuple[int, ...], ...]]
    seconds: float  # of the forward


@dataclass(frozen=True)
class Failed:
    """One encoder that does not load or does not work; ``problem`` may have several lines, of which a table shows the first."""

    name: str
    problem: str
    state: str = "FAILED"  # or "missing": not downloaded yet


def verify_encoder(encoder: Encoder) -> Verified:
    """One forward on two images of noise at the encoder's input size, on its own device, for all its outputs. ViRBError when one fails, has
    another shape than the spec says, or is not finite, and when the forward changed the encoder."""
    spec = encoder.spec
    tensor = next((t for t in (*encoder.network.parameters(), *encoder.network.buffers()) if t.is_floating_point()), torch.empty(0))
    noise = torch.randint(0, 256, (_N, 3, *spec.input.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    want = [request for name in spec.outputs for request in _requests(name, spec.depth)]
    before = _marks(encoder)
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            found = encoder(encoder.prepare(noise.to(tensor.device)).to(tensor.dtype), want)
    except (RuntimeError, AssertionError, TypeError, ValueError, LookupError) as error:  # what a network raises; users' networks too
        if isinstance(error, ViRBError):
            raise
        size = "x".join(map(str, spec.input.size))
        raise ViRBError(f'encoder "{spec.name}": the forward fails on {size} noise: {type(error).__name__}: {error}') from error
    shapes = {request: _shape(value) for request, value in found.items()}
    check_outputs(encoder, found, _N)  # reads values: waits for the device
    seconds = time.perf_counter() - began
    for request, value in found.items():
        _check(spec, request, value, shapes)
    changed = [name for name, mark in _marks(encoder).items() if before.get(name) != mark]
    if changed:
        raise ViRBError(f'encoder "{spec.name}": its forward changes {", ".join(changed[:3])}; a frozen encoder stays as it was loaded')
    listed = {name: shapes[next(key for key in reversed(shapes) if key.partition("[")[0] == name)] for name in spec.outputs}
    recognised, filled = _read_source(spec)
    return Verified(spec.name, recognised, spec.architecture, spec.n_params, filled, spec.input, listed, seconds)


def encoder_table(rows: Sequence[Verified | Failed]) -> list[str]:
    """Aligned lines: a header, then one per encoder; a failed one has its problem in place of the facts."""
    header = ("encoder", "recognised as", "architecture", "parameters", "filled", "input", "normalisation", "seconds", "outputs")
    cells = [header, *(_cells(row) for row in rows if isinstance(row, Verified))]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    widths[0] = max(widths[0], *(len(row.name) for row in rows), 0) if rows else widths[0]
    lines = [_line(header, widths)]
    for row in rows:
        if isinstance(row, Verified):
            lines.append(_line(_cells(row), widths))
        else:
            lines.append(f"{row.name:<{widths[0]}}  {row.state}  {(row.problem.strip().splitlines() or ['no reason given'])[0]}")
    return lines


# The forward


def _requests(name: str, depth: int) -> list[str]:
    """The last block of outputs that have blocks, and the first of those that every block gives (some towers show only their last
    attention)."""
    if name in ("cls", "tokens") and depth > 1:
        return [f"{name}[0]", f"{name}[-1]"]
    return [f"{name}[-1]"] if name in ("cls", "tokens", *INSIDE) else [name]


def _shape(value: Value) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
    return tuple(value.shape[1:]) if isinstance(value, Tensor) else tuple(tuple(part.shape[1:]) for part in value)


def _check(spec: EncoderSpec, request: str, value: Value, shapes: Mapping[str, object]) -> None:
    name = request.partition("[")[0]
    where = f'encoder "{spec.name}": output {request}'
    if isinstance(value, tuple):
        if [level.shape[1] for level in value] != [stage.channels for stage in spec.stages]:
            found, promised = [level.shape[1] for level in value], [stage.channels for stage in spec.stages]
            raise ViRBError(f"{where} has maps of {found} channels; the spec says {promised}")
        for stage, level in zip(spec.stages, value, strict=True):
            _check_stride(where, stage, level, spec.input.size)
        return
    axes = {"embedding": 2, "cls": 2}.get(name, 4)
    if value.ndim != axes or 0 in value.shape:
        raise ViRBError(f"{where} has shape {tuple(value.shape)}; expected {axes} axes, none empty")
    if name in INSIDE and spec.n_heads is not None and value.shape[1] != spec.n_heads:
        raise ViRBError(f"{where} has {value.shape[1]} heads; the spec says {spec.n_heads}")
    grid = shapes.get("tokens[-1]")
    if name == "attention" and isinstance(grid, tuple) and tuple(value.shape[2:]) != grid[1:]:
        raise ViRBError(f"{where} is over {'x'.join(map(str, value.shape[2:]))} patches, but tokens[-1] has {'x'.join(map(str, grid[1:]))}")


def _check_stride(where: str, stage: Stage, level: Tensor, size: tuple[int, int]) -> None:
    """Within a third: convolutions without padding lose a few rows and columns."""
    for here, whole in zip(level.shape[2:], size, strict=True):
        expected = max(1.0, whole / stage.stride)
        if not 0.66 * expected - 1 <= here <= 1.34 * expected + 1:
            grid = "x".join(map(str, level.shape[2:]))
            raise ViRBError(f"{where}: {stage.name} is a {grid} map; the spec says one value per {stage.stride} pixels of {size}")


def _marks(encoder: Encoder) -> dict[str, tuple[object, ...]]:
    """What changes when a tensor is replaced or written to, or a flag is set; costs no copy. Buffers that are never saved are left out:
    some networks keep index tables for the last input size in them."""
    marks: dict[str, tuple[object, ...]] = {}
    for name, tensor in encoder.state_dict(keep_vars=True).items():
        marks[name] = (id(tensor), 0 if tensor.is_inference() else tensor._version, tensor.requires_grad)
    for name, module in encoder.named_modules():
        marks[f"{name or 'encoder'}.training"] = (module.training,)
    return marks


# The table


def _read_source(spec: EncoderSpec) -> tuple[str, str]:
    """What was recognised, with the file's name instead of its path, and the share that was filled."""
    filled = _FILLED.search(spec.source)
    text = _COUNTS.sub("", spec.source).removeprefix(spec.architecture).removeprefix(" from ").lstrip(", ")
    text = re.sub(r"(?:\S*/)+(\S+\.\w+)", lambda match: Path(match[0]).name, text) if "://" not in text else text
    return text or spec.architecture, f"{filled['part']} %" if filled else ""


def _cells(row: Verified) -> tuple[str, ...]:
    return (
        row.name,
        row.recognised,
        row.architecture,
        _millions(row.n_params),
        row.filled or "-",
        "x".join(map(str, row.input.size)),
        _colours(row.input),
        f"{row.seconds:.2f}",
        _outputs(row.shapes),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f} M" if count >= 100_000 else f"{count:,}"


def _colours(spec: InputSpec) -> str:
    text = _COLOURS.get((spec.mean, spec.std))
    if text is None:
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (spec.mean, spec.std))
        text = f"{mean} / {std}"
    return text + (" BGR" if spec.channels == "bgr" else "")


def _outputs(shapes: Mapping[str, tuple[int, ...] | tuple[tuple[int, ...], ...]]) -> str:
    texts = []
    for name, shape in shapes.items():
        size = (
            "x".join(map(str, shape)) if name in ("embedding", "tokens", "attention") else f"of {len(shape)}" if name == "pyramid" else ""
        )
        texts.append(f"{name} {size}".strip())
    return ", ".join(texts)
