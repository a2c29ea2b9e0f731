"""Options that were given and do nothing, because of others: told, with their places, before the training starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from virb.pretraining.dino_options import DINOOptions, PatchwiseOptions
from virb.pretraining.options import EngineOptions, Given, describe_keys


@dataclass(frozen=True)
class Rule:
    """``keys`` do nothing where ``idle`` says so of the options; ``of``: the record whose keys they are."""

    of: type
    keys: tuple[str, ...]
    idle: Callable[[Any], bool]
    why: str


def _is_timm(o: Any) -> bool:
    return bool(o.arch.startswith("timm:"))


def _is_torchvision(o: Any) -> bool:
    return not _is_timm(o) and o.arch.replace("deit", "vit") not in _OWN


def _has_own_patches(o: Any) -> bool:
    return _is_torchvision(o) or (_is_timm(o) and not isinstance(o, PatchwiseOptions))


_OWN = ("vit", "vit_tiny", "vit_small", "vit_base", "vit_large")  # as virb.encoders.vit has them
_SLURM = tuple(item.name for item in describe_keys(EngineOptions, "") if item.group == "slurm" and item.name != "launcher")
_INIT = ("init_head", "init_center", "init_optimizer", "init_schedule")

RULES = (
    Rule(DINOOptions, ("patch_size",), _has_own_patches, "the network has its own"),
    Rule(DINOOptions, ("position_mode",), lambda o: _is_torchvision(o) or _is_timm(o), "it is for ViRB's own ViTs"),
    Rule(DINOOptions, ("local_crops_scale", "local_crops_size"), lambda o: not o.local_crops_number, "local_crops_number is 0"),
    Rule(DINOOptions, ("warmup_teacher_temp",), lambda o: not o.warmup_teacher_temp_epochs, "warmup_teacher_temp_epochs is 0"),
    Rule(DINOOptions, ("head_hidden_dim",), lambda o: o.head_layers == 1, "head_layers is 1"),
    Rule(PatchwiseOptions, ("min_overlap",), lambda o: o.matching != "nearest", "it is for matching: nearest"),
    Rule(EngineOptions, ("use_fp16",), lambda o: o.precision != "auto", "precision says it"),
    Rule(EngineOptions, ("clip_mode",), lambda o: not o.clip_grad, "clip_grad is 0"),
    Rule(EngineOptions, _INIT, lambda o: o.init_from is None, "there is no init_from"),
    Rule(EngineOptions, ("keep",), lambda o: not o.saveckp_freq, "saveckp_freq is 0"),
    Rule(EngineOptions, ("every",), lambda o: o.probe is None, "there is no probe"),
    Rule(EngineOptions, ("knn_data", "knn_k"), lambda o: not o.knn_every, "knn_every is 0"),
    Rule(EngineOptions, _SLURM, lambda o: o.launcher == "none", "launcher is not slurm"),
)


def unused(options: EngineOptions, *sources: Mapping[str, Given], aliases: Mapping[str, str]) -> list[str]:
    """A line for every given key that does nothing. The original's files hold all keys, whether or not they were given: none for those. Nor
    for values that are the defaults, which is how recipes spell out what they do not change."""
    found = []
    for source in sources:
        for name, given in source.items():
            target = aliases.get(name, name)
            rule = next((rule for rule in RULES if target in rule.keys and isinstance(options, rule.of) and rule.idle(options)), None)
            if rule is None or given.original or getattr(options, target) == type(options).model_fields[target].default:
                continue
            place = f"{given.where}   " if given.where.line else ""
            found.append(f"{place}{given.where.key or name}: not used, for {rule.why}")
    return found
