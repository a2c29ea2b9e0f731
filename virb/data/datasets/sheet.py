"""What is known of one public dataset before anybody has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Count = int | tuple[int, ...]  # several: published versions of different size


@dataclass(frozen=True)
class Facts:
    """``places``: folders below the data root that are tried, in order. ``splits``: official numbers of samples. ``size``: to download."""

    places: tuple[str, ...]
    splits: Mapping[str, Count]
    n_classes: int | None
    size: str
    source: str
    licence: str
    total: int | None = None  # of all splits, where the split is not official
    by_note: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)  # how a reader's note begins -> the numbers of that split


VIRB = "https://prior-datasets.s3.us-east-2.amazonaws.com/ViRB/"  # what ViRB 2021 published of its own
