"""``samples.npz``: what became of every sample of the report split, unrounded, for paired tests and error analysis.

Arrays: ``sample_id`` and ``unit_id`` (N), ``target`` (N, ...), ``prediction`` (R, N, ...), and for each metric ``stat_<metric>`` (R, N, S);
a metric over classes also has ``group_<metric>`` (R, N) and ``n_groups_<metric>``. R counts the runs (seeds). Long index lists are
``index_<name>``. Equal content gives equal bytes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from virb.errors import ViRBError
from virb.io import write_atomic
from virb.metrics.base import Statistics


@dataclass(frozen=True)
class SampleArrays:
    """The chosen config on the report split; ``prediction`` is the arg max for classification. What has no array form is left out."""

    sample_id: np.ndarray
    unit_id: np.ndarray
    target: np.ndarray | None = None
    prediction: np.ndarray | None = None
    statistics: Mapping[str, Sequence[Statistics]] = field(default_factory=dict)  # by metric, one per run
    index_lists: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample_id)


def to_arrays(samples: SampleArrays) -> dict[str, np.ndarray]:
    """The named arrays of the file, checked: plain dtypes, and one entry per sample."""
    arrays = {"sample_id": np.asarray(samples.sample_id, dtype=str), "unit_id": np.asarray(samples.unit_id, dtype=str)}
    if samples.target is not None:
        arrays["target"] = np.asarray(samples.target)
    if samples.prediction is not None:
        arrays["prediction"] = np.asarray(samples.prediction)
    for name, runs in samples.statistics.items():
        arrays[f"stat_{name}"] = np.stack([run.values for run in runs])
        groups = [run.group for run in runs if run.group is not None]
        if groups:
            arrays[f"group_{name}"] = np.stack(groups)
            arrays[f"n_groups_{name}"] = np.asarray(runs[0].n_groups)
    for name, indices in samples.index_lists.items():
        arrays[f"index_{name}"] = np.asarray(indices, dtype=np.int64)
    _check(arrays, len(samples))
    return arrays


def _check(arrays: Mapping[str, np.ndarray], n_samples: int) -> None:
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise ValueError(f"Expected `{name}` to have a plain dtype, but got {array.dtype}: ragged values cannot be kept")
        if name.startswith(("index_", "n_groups_")):
            continue
        axis = 1 if name == "prediction" or name.startswith(("stat_", "group_")) else 0
        if array.ndim <= axis or array.shape[axis] != n_samples:
            raise ValueError(f"Expected `{name}` to have {n_samples} entries on axis {axis}, but got shape {array.shape}")


def write_samples(path: Path, samples: SampleArrays) -> None:
    """Atomic. Entries are in sorted order and carry no time, so that two runs that found the same write the same file."""
    arrays = to_arrays(samples)

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(arrays):
                entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                with archive.open(entry, "w", force_zip64=True) as part:
                    np.lib.format.write_array(part, np.asarray(arrays[name], order="C"), allow_pickle=False)

    write_atomic(path, write)


def read_samples(path: Path) -> SampleArrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        statistics = {name[5:]: _read_runs(arrays, name[5:]) for name in arrays if name.startswith("stat_")}
        indices = {name[6:]: array for name, array in arrays.items() if name.startswith("index_")}
        return SampleArrays(arrays["sample_id"], arrays["unit_id"], arrays.get("target"), arrays.get("prediction"), statistics, indices)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise ViRBError(f"cannot read {path}: {error}") from error


def _read_runs(arrays: Mapping[str, np.ndarray], metric: str) -> list[Statistics]:
    values, group = arrays[f"stat_{metric}"], arrays.get(f"group_{metric}")
    if group is None:
        return [Statistics(run) for run in values]
    n_groups = int(arrays[f"n_groups_{metric}"])
    return [Statistics(run, numbers, n_groups) for run, numbers in zip(values, group, strict=True)]
