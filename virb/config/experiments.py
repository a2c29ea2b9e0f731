"""Experiment lists: which encoders."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virb.config.check import Locate, check, describe
from virb.config.files import COMMAND_LINE, Loaded, near_file, read_trees
from virb.config.names import UniqueNames, check_encoder_name
from virb.config.records import NETWORKS, WEIGHT_WORDS, EncoderConfig, EncoderKeys, is_url
from virb.config.tree import KeyPath, Report, Tree, Where, from_python
from virb.config.vocabulary import Vocabulary
from virb.errors import ConfigError, UserError, did_you_mean, nearest

_OWN_WEIGHTS = tuple(key for key in NETWORKS if key not in ("arch", "module"))  # networks that bring their weights
_PREFIXES = tuple(f"{key}:" for key in _OWN_WEIGHTS)  # timm:NAME, hub:..., in place of a path
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SUPERVISED = {"arch": "resnet50", "weights": "supervised"}  # ViRB 2021: an empty path is torchvision's supervised ResNet-50


def load_experiment_list(
    paths: Sequence[Path | str] | Path | str, vocabulary: Vocabulary, *, check_paths: bool = True
) -> Loaded[EncoderConfig]:
    """The encoders of files and folders. ``check_paths`` looks whether weight files exist (relative to the current folder)."""
    problems, warnings = Report(), Report()
    trees, texts = read_trees(paths, problems, warnings)
    encoders: list[EncoderConfig] = []
    names = UniqueNames()
    for tree in trees:
        if not isinstance(tree.data, Mapping):
            problems.add(tree.where(), f"expected a mapping of encoder names to weights, got {describe(tree.data)}")
            continue
        for name in tree.data:
            encoders += _encoders(name, tree, vocabulary, check_paths, problems, names)
    return Loaded(tuple(encoders), tuple(problems), tuple(warnings), texts)


def encoder_from_arguments(
    name: str | None, weights: str | None, vocabulary: Vocabulary, *, check_paths: bool = True
) -> Loaded[EncoderConfig]:
    """The encoder of ``--name`` and ``--encoder_weights`` (several, where that is a glob); no or empty weights are the supervised
    ResNet-50, as in ViRB 2021."""
    report = Report()
    if not name:
        report.add(Where(COMMAND_LINE, 0, "--name"), "is missing: give an experiment list, or a name for the encoder")
        return Loaded((), tuple(report))
    encoders = _encoders(name, from_python(weights, (name,), COMMAND_LINE, report), vocabulary, check_paths, report, UniqueNames())
    return Loaded(tuple(encoders) if not len(report) else (), tuple(report))


def encoder_config_from_mapping(name: str, value: Any, vocabulary: Vocabulary, *, check_paths: bool = True) -> EncoderConfig:
    """An encoder given in Python as in an experiment list (a path, a mapping, None); ConfigError names all mistakes."""
    found = encoder_configs_from_mapping(name, value, vocabulary, check_paths=check_paths)
    if len(found) > 1:
        raise UserError(f"{name}: {len(found)} files match; name one of them")
    return found[0]


def encoder_configs_from_mapping(
    name: str, value: Any, vocabulary: Vocabulary, *, check_paths: bool = True, names: UniqueNames | None = None
) -> tuple[EncoderConfig, ...]:
    """The same where ``weights`` may be a glob: one encoder per file. ``names``: those that other entries have."""
    report = Report()
    tree = from_python(value, (name,), "<python>", report)
    found = _encoders(name, tree, vocabulary, check_paths, report, names or UniqueNames())
    if len(report):
        raise ConfigError(tuple(report))
    return tuple(found)


def _encoders(
    name: str, tree: Tree, vocabulary: Vocabulary, check_paths: bool, problems: Report, names: UniqueNames
) -> list[EncoderConfig]:
    """Of one entry: those without mistakes."""
    found = []
    for one in _each_file(name, tree, check_paths, problems):
        encoder = _encoder(name, tree, vocabulary, check_paths, problems, one)
        names.add(one.name if one else name, tree.where((name,)), problems)
        if encoder is not None:
            found.append(encoder)
    return found


@dataclass(frozen=True)
class _OneFile:
    """One of the files of a glob: the name of its encoder, its path, and what the glob's ``*`` stood for."""

    name: str
    path: str
    part: str


def _each_file(name: str, tree: Tree, check_paths: bool, problems: Report) -> list[_OneFile | None]:
    """One per file where ``weights`` is a glob (``runs/7/checkpoint*.pth``), in the order of their numbers; else a single None."""
    value = tree.data[name]
    weights = value.get("weights") if isinstance(value, Mapping) else value
    if not isinstance(weights, str) or not re.search(r"[*?\[]", weights) or is_url(weights) or os.path.exists(os.path.expanduser(weights)):
        return [None]
    pattern = os.path.expanduser(weights)
    found = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)), key=_by_number)
    if not found and not check_paths:
        return [None]
    if not found:
        key = (name, "weights") if isinstance(value, Mapping) else (name,)
        problems.add(tree.where(key), f"no file matches {weights}{near_file(Path(pattern)) if not Path(pattern).parent.is_dir() else ''}")
    stem = [re.escape(piece) for piece in re.split(r"\*\*/|\*+|\?|\[[^]]*\]", pattern)]
    parts = re.compile("(.*?)".join(stem), re.DOTALL)
    files: list[_OneFile | None] = []
    for path in found:
        match = parts.fullmatch(path)
        spans = [_whole_number(path, *match.span(number + 1)) for number in range(len(stem) - 1)] if match else []
        part = "-".join(filter(None, (re.sub(r"[^A-Za-z0-9.+]+", "-", text).strip("-") for text in spans)))
        files.append(_OneFile(f"{name}@{part or 'last'}", path, part))
    return files


def _whole_number(text: str, start: int, end: int) -> str:
    """``text[start:end]`` with the digits before and behind it: ``checkpoint0*.pth`` means 0020 of checkpoint0020.pth, not 020."""
    while start and text[start - 1].isdigit():
        start -= 1
    while end < len(text) and text[end].isdigit():
        end += 1
    return text[start:end]


def _by_number(path: str) -> list[tuple[bool, int, str]]:
    """checkpoint2 before checkpoint10; a name without a number (checkpoint.pth, the last one) after those with one."""
    pieces = re.split(r"(\d+)", path)
    return [(not piece.isdigit(), int(piece) if piece.isdigit() else 0, piece) for piece in pieces if piece]


def _encoder(
    name: str, tree: Tree, vocabulary: Vocabulary, check_paths: bool, problems: Report, one: _OneFile | None = None
) -> EncoderConfig | None:
    """``one``: which of the files, where the entry's weights are a glob."""
    report = Report()
    check_encoder_name(one.name if one else name, tree.where((name,)), report)

    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        return tree.where((name, *path), missing=missing)

    value = tree.data[name]
    if one is not None:
        value = {**value, "weights": one.path} if isinstance(value, Mapping) else one.path
    if value is None or isinstance(value, str):
        keys: dict[str, Any] | None = _from_text(value or "")
    elif isinstance(value, Mapping):
        keys = _from_mapping(value, locate, report)
    else:
        report.add(locate(()), f"expected a path or a mapping, got {describe(value)}")
        keys = None
    if keys is not None:
        _check_words(keys, isinstance(value, Mapping), vocabulary, check_paths, locate, report)
        record = check(EncoderKeys, keys, locate, report)
    problems.extend(report)
    if keys is None or len(report) or record is None:
        return None
    found = {**dict(record), "name": name, "where": tree.where((name,))}
    if one is not None:
        found |= {"name": one.name, "meta": {"series": name, "checkpoint": one.part or "last", **record.meta}}
    return EncoderConfig(**found)


def _from_text(text: str) -> dict[str, Any]:
    text = text.strip()
    if text in ("", "supervised"):
        return dict(_SUPERVISED)
    prefix = next((prefix for prefix in _PREFIXES if text.startswith(prefix)), None)
    if prefix is not None:
        return {prefix[:-1]: text.removeprefix(prefix).strip()}
    return {"weights": os.path.expanduser(text)}


def _from_mapping(value: Mapping[str, Any], locate: Locate, report: Report) -> dict[str, Any] | None:
    """Known keys with nothing behind them are as good as absent; but empty weights alone keep ViRB 2021's meaning."""
    known = {key: item for key, item in value.items() if item is not None or key not in EncoderKeys.model_fields}
    named = any(known.get(key) for key in NETWORKS)
    if "weights" in value and value["weights"] in (None, "", "supervised") and not named:
        known |= _SUPERVISED
    elif known.get("weights") == "":
        del known["weights"]
    if not named and "weights" not in known:
        report.add(locate(()), f"says nothing to load; give weights, {', '.join(NETWORKS[:-1])} or {NETWORKS[-1]}")
    if isinstance(known.get("weights"), str):
        known["weights"] = os.path.expanduser(known["weights"])
    return known


def _check_words(
    keys: Mapping[str, Any], is_mapping: bool, vocabulary: Vocabulary, check_paths: bool, locate: Locate, report: Report
) -> None:
    arch, weights = keys.get("arch"), keys.get("weights")
    named = any(keys.get(key) for key in NETWORKS)
    if isinstance(arch, str) and arch and arch not in vocabulary.arch_names():
        report.add(locate(("arch",)), f"no architecture {describe(arch)}{did_you_mean(arch, vocabulary.arch_names())}")
    if not isinstance(weights, str) or not weights:
        return
    where = locate(("weights",) if is_mapping else ())
    if weights == "random" and not named:
        report.add(where, "random weights need an architecture: {arch: ..., weights: random}")
    elif weights == "pretrained" and not any(keys.get(key) for key in _OWN_WEIGHTS):
        report.add(where, f"pretrained weights are those of {', '.join(_OWN_WEIGHTS[:-1])} and {_OWN_WEIGHTS[-1]} networks")
    elif weights in WEIGHT_WORDS or weights in vocabulary.weight_names() or is_url(weights):
        return
    elif _SCHEME.match(weights):
        report.add(where, f"{weights} is not read; addresses start with https:// or http://")
    elif check_paths and not keys.get("url") and not os.path.exists(weights):
        report.add(where, f"{weights} does not exist{_hint(weights, named, vocabulary)}")


def _hint(weights: str, named: bool, vocabulary: Vocabulary) -> str:
    if weights in vocabulary.arch_names() and not named:
        return f"; for the architecture write {{arch: {weights}, ...}}"
    if os.path.basename(weights) == weights and (near := nearest(weights, vocabulary.weight_names())):
        return f"; did you mean {near}?"
    return near_file(Path(weights))
