"""The words a config may use. They belong to higher floors (tasks, probes, encoders), so the caller passes them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pydantic import BaseModel


class Vocabulary(Protocol):
    """Names that are valid now. ``package.module:name`` words are resolved here too; a UserError raised by any method is reported
    at the place of the word."""

    def task_ids(self) -> Sequence[str]: ...

    def has_task(self, task_id: str, /) -> bool:
        """True for an id (with any ``@variant``) or a ``module:attribute`` that is a task."""
        ...

    def default_probe(self, task_id: str, protocol: str | None, /) -> str:
        """The probe of a task under a protocol (None: the default one)."""
        ...

    def probe_names(self) -> Sequence[str]: ...

    def probe_config(self, name: str, /) -> type[BaseModel]:
        """The record that checks a probe's training configs; KeyError for an unknown name."""
        ...

    def protocol_names(self) -> Sequence[str]: ...

    def arch_names(self) -> Sequence[str]: ...

    def weight_names(self) -> Sequence[str]:
        """Short names that stand for weights and their address."""
        ...
