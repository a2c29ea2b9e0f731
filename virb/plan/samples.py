"""The data of a task: its dataset, read once, and the samples of each role, checked before anything is planned on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import load_dataset
from virb.data.images import Dataset, ImageList, Samples
from virb.errors import UserError, ViRBError
from virb.io import hash_record
from virb.plan.jobs import RolePlan
from virb.probes.base import FIT, REPORT_UNLABELLED, SELECT, is_labelled
from virb.tasks.resolve import ResolvedTask


@dataclass(frozen=True)
class TaskData:
    """``roles`` have no entries yet; ``ids`` say what a result depends on besides pixels, by role."""

    roles: Mapping[str, RolePlan]
    images: Mapping[str, ImageList]  # by image list id
    ids: Mapping[str, str]
    classes: tuple[str, ...] | None


@dataclass
class Datasets:
    """Reads each dataset once, with its options, whatever the number of tasks on it."""

    data_root: Path
    tell: Callable[[str], None] = lambda text: None
    _known: dict[str, Dataset] = field(default_factory=dict)

    def task_data(self, task: ResolvedTask) -> TaskData:
        """UserError when the dataset, a split or a target is not there."""
        dataset = self._dataset(task)
        roles: dict[str, RolePlan] = {}
        for role, split in task.task.roles.items():
            if role == SELECT and task.selection != "val":
                continue  # this protocol chooses on the reported split
            held_out = role == SELECT and split not in dataset.samples and FIT in task.task.roles
            roles[role] = _role(task, dataset, role, task.task.roles[FIT] if held_out else split, held_out)
        target = task.task.target
        return TaskData(
            roles=roles,
            images={plan.list_id: dataset.lists[plan.samples.images] for plan in roles.values()},
            ids={role: samples_id(plan.samples, target if _has_target(role) else None) for role, plan in roles.items()},
            classes=dataset.classes.get(target),
        )

    def _dataset(self, task: ResolvedTask) -> Dataset:
        options = dict(task.data)
        root = self._root(options.pop("root", None))
        name = task.task.dataset
        key = hash_record({"name": name, "root": str(root), "options": options})
        if key not in self._known:
            self.tell(f"reading dataset {name}")
            self._known[key] = _load(name, root, options)
        return self._known[key]

    def _root(self, given: str | None) -> Path | None:
        """A relative root lies below --data_root, or else below the current folder."""
        if given is None:
            return None
        root = Path(given).expanduser()
        if root.is_absolute():
            return root
        places = [self.data_root / root, root]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise UserError(f"root: there is neither {places[0]} (below --data_root) nor {places[1]}")
        return found


def _load(name: str, root: Path | None, options: Mapping[str, Any]) -> Dataset:
    try:
        dataset = load_dataset(name, root, **options)
    except ViRBError:
        raise
    except OSError as error:
        raise UserError(f"dataset {name}: {error.filename or root}: {error.strerror or error}") from error
    except Exception as error:
        if ":" not in name:
            raise
        raise UserError(f"dataset {name} failed: {type(error).__name__}: {error}") from error  # the user's own code
    if not isinstance(dataset, Dataset):
        raise UserError(f"dataset {name} gives a {type(dataset).__name__}; expected a virb.data.images.Dataset")
    return dataset


def _role(task: ResolvedTask, dataset: Dataset, role: str, split: str, held_out: bool) -> RolePlan:
    if split not in dataset.samples:
        raise UserError(f"the dataset {dataset.name} has no split {split!r} (it has: {', '.join(dataset.samples)})")
    samples = dataset.samples[split]
    if _has_target(role) and task.task.target not in samples.targets:
        has = ", ".join(samples.targets) or "none"
        raise UserError(f"split {split} of {dataset.name} has no target {task.task.target!r} (it has: {has})")
    if len(samples) == 0:
        raise UserError(f"split {split} of {dataset.name} (role {role}) has no samples")
    return RolePlan(split, samples, dataset.lists[samples.images].identity(), (), held_out)


def _has_target(role: str) -> bool:
    return is_labelled(role) or role == REPORT_UNLABELLED


def samples_id(samples: Samples, target: str | None) -> str:
    """What a result depends on besides pixels: which samples, their rows and units, and the targets as far as they are in memory."""
    digest = hashlib.sha256()
    for array in (samples.ids, samples.units):
        digest.update("\0".join(map(str, array)).encode() + b"\0\0")
    for rows in (samples.row_values, samples.row_offsets):
        digest.update(np.ascontiguousarray(rows).tobytes() + b"\0\0")
    if target is None:
        return digest.hexdigest()
    digest.update(target.encode())
    targets = samples.targets[target]
    for part in [targets] if isinstance(targets, np.ndarray) else targets if isinstance(targets, list | tuple) else []:
        array = np.asarray(part)
        content = repr(part).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()
        digest.update(f"{array.dtype.str}{array.shape}".encode() + content)
    return digest.hexdigest()
