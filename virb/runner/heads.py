"""Reads the heads that an eval-only job scores, when they are there."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from virb.errors import ViRBError
from virb.plan.heads import FoundHead, HeadSource, heads_of
from virb.plan.jobs import Job
from virb.probes.head_files import file_hash, read_head
from virb.probes.heads import head_shape
from virb.probes.score import GivenHead


class HeadSettings(BaseModel):
    """The hyper-parameters a head was trained with, as its record says; nothing for a file without one."""

    model_config = ConfigDict(extra="allow", frozen=True)


def given_heads(job: Job) -> tuple[list[GivenHead], Job, list[dict[str, Any]]]:
    """The heads; the job with one training config per head, named as in training; and what the card says of the files."""
    pairs = [(source, head) for source in job.heads for head in heads_of(source)]
    names = _names([head for _, head in pairs])
    heads, facts = [], []
    for (source, found), name in zip(pairs, names, strict=True):
        state = read_head(found.path, job.request, source.layout)
        _check_outputs(state, source, job, found)
        heads.append(GivenHead(name, state, source.columns, found.chosen))
        facts.append(
            {
                "config": name,
                "file": str(found.path),
                "sha256": file_hash(found.path),
                "label": found.label or None,
                "task": source.task_id or None,
                "job": found.key or None,
                "layout": source.layout,
            }
        )
    configs: dict[str, BaseModel] = {name: HeadSettings(**found.settings) for (_, found), name in zip(pairs, names, strict=True)}
    seeds = next((found.seeds[:1] for _, found in pairs if found.seeds), job.task.seeds[:1])  # the head that is kept is the first seed's
    return heads, replace(job, task=replace(job.task, configs=configs, seeds=seeds)), facts


def _names(heads: list[FoundHead]) -> list[str]:
    """The configs' names; with the label in front where two heads of several labels share one."""
    counts = Counter(head.config for head in heads)
    names = [head.config if counts[head.config] == 1 else f"{head.label or head.path.parent.name}-{head.config}" for head in heads]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise ViRBError(f"two heads are named {twice}; a narrower task_head_weights_path tells them apart")
    return names


def _check_outputs(state: Any, source: HeadSource, job: Job, found: FoundHead) -> None:
    n_outputs = head_shape(state).n_outputs
    known = source.classes or job.classes
    if known is not None and n_outputs != len(known):
        whose = "its task has" if source.classes else f"{job.label} has"
        raise ViRBError(f"the head {found.path} has {n_outputs} outputs, but {whose} {len(known)} classes")
