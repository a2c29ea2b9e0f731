"""Experiment lists: which encoders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from virb.config.check import Locate, check, describe
from virb.config.files import COMMAND_LINE, Loaded, near_file, read_trees
from virb.config.names import UniqueNames, check_encoder_name
from virb.config.records import NETWORKS, WEIGHT_WORDS, EncoderConfig, EncoderKeys, is_url
from virb.config.tree import KeyPath, Report, Tree, Where, from_python
from virb.config.vocabulary import Vocabulary
from virb.errors import ConfigError, did_you_mean, nearest

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
            encoder = _encoder(name, tree, vocabulary, check_paths, problems)
            names.add(name, tree.where((name,)), problems)
            if encoder is not None:
                encoders.append(encoder)
    return Loaded(tuple(encoders), tuple(problems), tuple(warnings), texts)


def encoder_from_arguments(
    name: str | None, weights: str | None, vocabulary: Vocabulary, *, check_paths: bool = True
) -> Loaded[EncoderConfig]:
    """The one encoder of ``--name`` and ``--encoder_weights``; no or empty weights are the supervised ResNet-50, as in ViRB 2021."""
    report = Report()
    if not name:
        report.add(Where(COMMAND_LINE, 0, "--name"), "is missing: give an experiment list, or a name for the encoder")
        return Loaded((), tuple(report))
    encoder = _encoder(name, from_python(weights, (name,), COMMAND_LINE, report), vocabulary, check_paths, report)
    return Loaded((encoder,) if encoder is not None and not len(report) else (), tuple(report))


def encoder_config_from_mapping(name: str, value: Any, vocabulary: Vocabulary, *, check_paths: bool = True) -> EncoderConfig:
    """An encoder given in Python as in an experiment list (a path, a mapping, None); ConfigError names all mistakes."""
    report = Report()
    encoder = _encoder(name, from_python(value, (name,), "<python>", report), vocabulary, check_paths, report)
    if encoder is None or len(report):
        raise ConfigError(tuple(report))
    return encoder


def _encoder(name: str, tree: Tree, vocabulary: Vocabulary, check_paths: bool, problems: Report) -> EncoderConfig | None:
    report = Report()
    check_encoder_name(name, tree.where((name,)), report)

    def locate(path: KeyPath, *, missing: bool = False) -> Where:
        return tree.where((name, *path), missing=missing)

    value = tree.data[name]
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
    return EncoderConfig(**{**dict(record), "name": name, "where": tree.where((name,))})


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
