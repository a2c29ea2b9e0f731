"""Requests: which outputs of an encoder are wanted, and how they are reduced before anything is stored.

A request is terms joined by ``+``; a term is ``output[blocks](norm=false).reduction(argument)...``:

    embedding    cls[-4:]    tokens[3,5]    tokens[-1](norm=false)    block4.pool(2)    cls[-1]+tokens[-1].gem(4)

``str(request)`` is the canonical text, which names the output everywhere (dictionaries, cache keys, results).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from virb.errors import ViRBError, did_you_mean

Kind = Literal["vector", "map", "other"]
Value = Tensor | tuple[Tensor, ...]
Blocks = tuple[int | tuple[int | None, int | None], ...]

KINDS: dict[str, Kind] = {
    "embedding": "vector",  # N x D
    "cls": "vector",  # N x D, or N x blocks x D when several blocks are named
    "tokens": "map",  # N x D x h x w, through the final norm unless norm=false
    "pyramid": "map",  # several maps
    "conv": "map",
    "block1": "map",
    "block2": "map",
    "block3": "map",
    "block4": "map",
    "attention": "map",  # N x heads x h x w: the [CLS] row
    "queries": "other",  # N x heads x tokens x d, prefix tokens first
    "keys": "other",
    "values": "other",
}
OUTPUTS = tuple(KINDS)
REDUCTIONS = ("mean", "max", "gem", "pool", "flatten")
_BY_BLOCK = ("cls", "tokens", "attention", "queries", "keys", "values")  # one block must be meant: the last by default
_WITH_NORM = ("cls", "tokens", "pyramid")
_GEM_FLOOR = 1e-6  # values below are raised to it, as in DINO's copy detection


@dataclass(frozen=True)
class Single:
    """One tensor of an encoder. ``block`` counts from 0; None where the output has no blocks."""

    name: str
    block: int | None = None
    norm: bool = True


@dataclass(frozen=True)
class Output:
    """An output as it is asked for: ``blocks`` may be negative or slices; None means no blocks, or all levels of a pyramid."""

    name: str
    blocks: Blocks | None = None
    norm: bool = True

    def __str__(self) -> str:
        blocks = "" if self.blocks is None else f"[{','.join(map(_block_text, self.blocks))}]"
        return f"{self.name}{blocks}{'' if self.norm else '(norm=false)'}"

    @property
    def several(self) -> bool:
        """Whether more than one tensor may be meant."""
        if self.blocks is None:
            return self.name == "pyramid"
        return len(self.blocks) > 1 or not isinstance(self.blocks[0], int)

    def indices(self, count: int) -> tuple[int, ...]:
        """The blocks meant, counted from 0, in an encoder that has ``count`` of them. ValueError when one does not exist."""
        found: list[int] = []
        for block in ((None, None),) if self.blocks is None else self.blocks:
            if isinstance(block, int):
                if not -count <= block < count:
                    raise ValueError(f"{self} names block {block} of {count} (0 to {count - 1}, or -{count} to -1)")
                found.append(block % count)
            else:
                found.extend(range(*slice(*block).indices(count)))
        if not found:
            raise ValueError(f"{self} names no block of {count}")
        return tuple(found)


@dataclass(frozen=True)
class Reduction:
    """A pure function of one output: see ``reduce``."""

    name: str
    argument: float | int | None = None

    def __str__(self) -> str:
        if self.argument is None:
            return f".{self.name}"
        whole = int(self.argument) == self.argument
        return f".{self.name}({int(self.argument) if whole else self.argument!r})"


@dataclass(frozen=True)
class Term:
    output: Output
    reductions: tuple[Reduction, ...] = ()

    def __str__(self) -> str:
        return f"{self.output}{''.join(map(str, self.reductions))}"

    @property
    def kind(self) -> Kind:
        """What the term gives after its reductions. ValueError when one of them cannot be applied."""
        stacked = self.output.name == "cls" and self.output.several
        kind: Kind = "other" if stacked else KINDS[self.output.name]
        for reduction in self.reductions:
            if reduction.name == "flatten":
                kind = "vector"
            elif kind != "map":
                what = {"vector": "is a vector", "other": "is not a map"}[kind]
                raise ValueError(f"{reduction.name} reduces a map, but {self.output} {what} there" + (" (try .flatten)" if stacked else ""))
            elif reduction.name != "pool":
                kind = "vector"
        return kind

    @property
    def several(self) -> bool:
        return self.output.several and self.output.name != "cls"


@dataclass(frozen=True)
class Request:
    """What is wanted of an encoder; made by ``Request.parse``."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        return "+".join(map(str, self.terms))

    @staticmethod
    def parse(text: str) -> Request:
        """ValueError says what is wrong with the text, and what may have been meant."""
        if not isinstance(text, str):
            raise ValueError(f"expected a request such as tokens[-1].mean, but got {text!r}")
        return _parse(text)

    @property
    def kind(self) -> Kind:
        """``vector`` (N x D), ``map`` (N x D x h x w) or ``other``; of each tensor when there are several."""
        return self.terms[0].kind

    @property
    def several(self) -> bool:
        """Whether the value is a tuple of tensors rather than one."""
        return len(self.terms) == 1 and self.terms[0].several

    def value(self, outputs: Mapping[Output, Value]) -> Value:
        """Reduces the raw outputs and joins the terms along the channel axis, in the order written."""
        reduced = [_reduce_all(outputs[term.output], term.reductions) for term in self.terms]
        if len(reduced) == 1:
            return reduced[0]
        parts = [part for value in reduced for part in (value if isinstance(value, tuple) else (value,))]
        if len({part.shape[2:] for part in parts}) > 1:
            raise ViRBError(f"{self} joins maps of different sizes: {', '.join('x'.join(map(str, part.shape[2:])) for part in parts)}")
        return torch.cat(parts, dim=1)


def reduce(tensor: Tensor, reduction: Reduction) -> Tensor:
    """One reduction of one tensor; sums are taken in float32 when the tensor has half precision, and stay so.

    ``mean``, ``max``, ``gem(p)`` N x D x h x w -> N x D; gem is (mean of max(x, 1e-6)^p)^(1/p)
    ``pool(n)``                   N x D x h x w -> N x D x n x n, average over an adaptive grid
    ``flatten``                   N x ... -> N x all, the last axis running fastest: maps as channel, row, column; cls as block, channel
    """
    if reduction.name == "flatten":
        return tensor.flatten(1)
    if tensor.ndim != 4:
        raise ViRBError(f"{reduction.name} reduces N x D x h x w maps, but got a tensor of shape {tuple(tensor.shape)}")
    if reduction.name == "max":
        return tensor.amax(dim=(2, 3))
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    if reduction.name == "mean":
        return tensor.mean(dim=(2, 3))
    argument = reduction.argument
    if reduction.name == "gem" and argument is not None:
        return tensor.clamp(min=_GEM_FLOOR).pow(argument).mean(dim=(2, 3)).pow(1 / argument)
    if reduction.name == "pool" and argument is not None:
        return F.adaptive_avg_pool2d(tensor, int(argument))
    raise ValueError(f"unknown reduction {reduction}")


def _reduce_all(value: Value, reductions: Sequence[Reduction]) -> Value:
    if isinstance(value, tuple):
        return tuple(_reduce_one(part, reductions) for part in value)
    return _reduce_one(value, reductions)


def _reduce_one(tensor: Tensor, reductions: Sequence[Reduction]) -> Tensor:
    for reduction in reductions:
        tensor = reduce(tensor, reduction)
    return tensor


# Reading the text

_TERM = re.compile(r"(?P<name>[A-Za-z_]\w*)\s*(?:\[(?P<blocks>[^\[\]]*)\])?\s*(?:\((?P<options>[^()]*)\))?\s*(?P<rest>.*)", re.DOTALL)
_REDUCTION = re.compile(r"\s*\.\s*(?P<name>\w+)\s*(?:\((?P<argument>[^()]*)\))?\s*")


@lru_cache(maxsize=1024)
def _parse(text: str) -> Request:
    terms = tuple(_parse_term(part.strip(), text) for part in text.split("+"))
    kinds = {term.kind for term in terms}
    if len(terms) > 1 and (len(kinds) > 1 or "other" in kinds):
        raise ValueError(f"{text!r}: + joins vectors with vectors or maps with maps; reduce the others (.mean, .gem(4), .flatten)")
    return Request(terms)


def _parse_term(part: str, text: str) -> Term:
    match = _TERM.fullmatch(part)
    if match is None:
        raise ValueError(f"{text!r}: expected an output such as embedding or tokens[-1], but got {part!r}")
    name = match["name"]
    if name not in KINDS:
        raise ValueError(f"{text!r}: no output {name!r}{did_you_mean(name, OUTPUTS)} (outputs: {', '.join(OUTPUTS)})")
    reductions: list[Reduction] = []
    rest = match["rest"]
    while rest:
        found = _REDUCTION.match(rest)
        if found is None:
            raise ValueError(f"{text!r}: cannot read {rest!r}; the order is output[blocks](norm=false).reduction(argument)")
        reductions.append(_parse_reduction(found["name"], found["argument"], text))
        rest = rest[found.end() :]
    output = Output(name, _parse_blocks(name, match["blocks"], text), _parse_norm(name, match["options"], text))
    term = Term(output, tuple(reductions))
    try:
        _ = term.kind
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return term


def _parse_blocks(name: str, inside: str | None, text: str) -> Blocks | None:
    if inside is None:
        return (-1,) if name in _BY_BLOCK else None
    if name not in (*_BY_BLOCK, "pyramid"):
        raise ValueError(f"{text!r}: {name} has no blocks to choose from")
    blocks: list[int | tuple[int | None, int | None]] = []
    for item in inside.split(","):
        number = re.fullmatch(r"\s*(-?\d+)\s*", item)
        ends = re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", item)
        if number:
            blocks.append(int(number[1]))
        elif ends:
            blocks.append((None if ends[1] is None else int(ends[1]), None if ends[2] is None else int(ends[2])))
        else:
            raise ValueError(f"{text!r}: blocks are numbers or start:stop, such as [-1], [3,5] or [-4:], but got [{inside}]")
    return tuple(blocks)


def _parse_norm(name: str, options: str | None, text: str) -> bool:
    if options is None:
        return True
    match = re.fullmatch(r"\s*norm\s*=\s*(true|false)\s*", options, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r}: the only option is norm=true or norm=false, but got ({options})")
    if name not in _WITH_NORM:
        raise ValueError(f"{text!r}: norm applies to {', '.join(_WITH_NORM)}, not to {name}")
    return match[1].lower() == "true"


def _parse_reduction(name: str, argument: str | None, text: str) -> Reduction:
    if name == "sample":
        raise ValueError(f"{text!r}: .sample(n) is not available yet; use .pool(n) for fewer tokens")
    if name not in REDUCTIONS:
        raise ValueError(f"{text!r}: no reduction {name!r}{did_you_mean(name, REDUCTIONS)} (reductions: {', '.join(REDUCTIONS)})")
    if name not in ("gem", "pool"):
        if argument is not None:
            raise ValueError(f"{text!r}: {name} takes no argument")
        return Reduction(name)
    example = {"gem": "a power above 0, such as gem(4)", "pool": "a side of at least 1, such as pool(7)"}[name]
    try:
        value: float | int = float(argument or "") if name == "gem" else int(argument or "")
    except ValueError:
        raise ValueError(f"{text!r}: {name} needs {example}") from None
    if not 0 < value < float("inf"):
        raise ValueError(f"{text!r}: {name} needs {example}")
    return Reduction(name, value)


def _block_text(block: int | tuple[int | None, int | None]) -> str:
    return str(block) if isinstance(block, int) else ":".join("" if end is None else str(end) for end in block)
