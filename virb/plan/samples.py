"""The data of a task: its dataset, read once, and the samples of each role, checked before anything is planned on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from virb.data.datasets import dataset_names, load_dataset, needs_root
from virb.data.images import Dataset, ImageList, Samples
from virb.data.windows import WindowedImages, windowed_samples
from virb.errors import ConfigError, Problem, UserError, ViRBError
from virb.io import hash_record
from virb.plan.jobs import RolePlan
from virb.plan.limit import Limited, limit_split
from virb.probes.base import FIT, REPORT_UNLABELLED, SELECT, Listed, class_targets_only, is_labelled, probe_names
from virb.probes.selection import hold_out
from virb.tasks.resolve import ResolvedTask, canonical, get_probe


@dataclass(frozen=True)
class TaskData:
    """``roles`` have no entries yet; ``ids`` say what a result depends on besides pixels, by role."""

    roles: Mapping[str, RolePlan]
    images: Mapping[str, ImageList]  # by image list id
    ids: Mapping[str, str]
    classes: tuple[str, ...] | None
    limit: Mapping[str, int] = field(default_factory=dict)  # the task's, as far as the dataset has the splits
    note: str = ""  # the dataset's
    listed: Listed | None = None  # fit samples that a file names


@dataclass
class Datasets:
    """Reads each dataset once, with its options, whatever the number of tasks on it."""

    data_root: Path
    tell: Callable[[str], None] = lambda text: None
    _known: dict[str, Dataset] = field(default_factory=dict)
    _windows: dict[str, WindowedImages] = field(default_factory=dict)
    _held_out: set[tuple[int, str]] = field(default_factory=set)  # (samples, target), known to be possible; samples live as long as _known

    def task_data(self, task: ResolvedTask) -> TaskData:
        """UserError when the dataset, a split or a target is not there."""
        dataset = self._dataset(task)
        splits = {split for role, split in task.task.roles.items() if not (role == SELECT and task.selection != "val")}
        limit = {split: count for split, count in task.limit.items() if split in dataset.samples or not task.limit_by_defaults}
        unknown = sorted(set(limit) - set(dataset.samples))
        if unknown:
            raise UserError(f"limit: the dataset {dataset.name} has no split {unknown[0]!r} (it has: {', '.join(dataset.samples)})")
        unused = sorted(set(limit) - splits)
        if unused:
            raise UserError(f"limit: this task makes no use of the split {unused[0]!r}, only of {', '.join(sorted(splits))}")
        roles: dict[str, RolePlan] = {}
        images: dict[str, ImageList] = {}
        limited = {split: limit_split(dataset, split, count, task.task.target) for split, count in limit.items()}
        for role, split in task.task.roles.items():
            if role == SELECT and task.selection != "val":
                continue  # this protocol chooses on the reported split
            held_out = role == SELECT and split not in dataset.samples and FIT in task.task.roles
            plan = _role(task, dataset, role, task.task.roles[FIT] if held_out else split, held_out, limited)
            roles[role] = plan
            part = limited.get(plan.split)
            source = dataset.lists[plan.samples.images] if part is None else part.images
            if task.windows is not None and role != FIT:
                plan, source = self._windowed(task, plan, source)
                roles[role] = plan
            images[plan.list_id] = source
        target = task.task.target
        probe = get_probe(task.probe)
        _check_targets(task, probe, roles, dataset.classes.get(target))
        listed = self._listed(task, probe, roles, images)
        if SELECT in roles and roles[SELECT].held_out:
            self._check_hold_out(roles[SELECT].samples, target, listed)
        return TaskData(
            listed=listed,
            roles=roles,
            images=images,
            ids={role: samples_id(plan.samples, target if _has_target(role) else None) for role, plan in roles.items()},
            classes=dataset.classes.get(target),
            limit=limit,
            note=dataset.note,
        )

    def _windowed(self, task: ResolvedTask, plan: RolePlan, images: ImageList) -> tuple[RolePlan, ImageList]:
        """The same samples, seen through sliding windows: their rows are those of a list of windows."""
        keys = task.windows
        if keys is None:
            return plan, images
        if (np.diff(plan.samples.row_offsets) != 1).any():
            raise UserError(f"{task.task.id}: windows are for samples of one image")
        name = hash_record({"list": images.identity(), "windows": canonical(keys)})
        if name not in self._windows:
            self.tell(f"placing windows over {len(images):,} images of {images.name}")
            self._windows[name] = WindowedImages(images, keys.shorter, keys.size, keys.stride)
        windows = self._windows[name]
        return replace(plan, samples=windowed_samples(plan.samples, windows), list_id=windows.identity()), windows

    def _check_hold_out(self, samples: Samples, target: str, listed: Listed | None) -> None:
        """What cannot be held out is known before anything runs. Once for all tasks on these samples: ImageNet's take seconds."""
        if listed is None and (id(samples), target) in self._held_out:
            return
        try:
            hold_out(class_numbers(samples.targets[target]), samples.units, seed=0, keep=listed.positions if listed else ())
        except ViRBError as error:
            raise UserError(str(error)) from None
        if listed is None:
            self._held_out.add((id(samples), target))

    def _listed(self, task: ResolvedTask, probe: Any, roles: Mapping[str, RolePlan], images: Mapping[str, ImageList]) -> Listed | None:
        """What the files say that training configs name, or that belong to the dataset. A limited split has none of the latter."""
        if FIT not in roles or not hasattr(probe, "listed"):
            return None
        fit = roles[FIT]
        root = getattr(images[fit.list_id], "root", None) if fit.limited is None else None
        try:
            folder = None if root is None else Path(root)
            return probe.listed(task.configs, fit.samples.ids, task.task.dataset, folder, [self.data_root])
        except UserError as error:
            raise _problem(task, "training_configs" if "training_configs" in task.places else "grid", str(error)) from None

    def _dataset(self, task: ResolvedTask) -> Dataset:
        options = dict(task.data)
        name = task.task.dataset
        root = self._root(name, options.pop("root", None))
        key = hash_record({"name": name, "root": str(root), "options": options})
        if key not in self._known:
            self.tell(f"reading dataset {name}")
            self._known[key] = _load(name, root, options)
        return self._known[key]

    def _root(self, name: str, given: str | None) -> Path | None:
        """A relative root lies below --data_root, or else below the current folder; what lies in files is sought below --data_root."""
        if given is None:
            return self.data_root if name in dataset_names() and needs_root(name) else None
        root = Path(given).expanduser()
        if root.is_absolute():
            return root
        places = [self.data_root / root, root]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise UserError(f"root: there is neither {places[0]} (below --data_root) nor {places[1]}")
        return found


def _check_targets(task: ResolvedTask, probe: Any, roles: Mapping[str, RolePlan], classes: tuple[str, ...] | None) -> None:
    """A probe that answers with a class needs a class of every sample, one that answers pixel by pixel a target of every pixel."""
    if task.task.dense is not None and FIT in roles:
        if not getattr(probe, "reads_maps", False) and ":" not in task.probe:
            dense = ", ".join(name for name in probe_names() if getattr(get_probe(name), "reads_maps", False))
            message = f"the probe {task.probe} answers once per image, but {task.task.id} has a target for every pixel; there is {dense}"
            raise _problem(task, "probe", message)
        if hasattr(probe, "check_targets"):
            try:
                probe.check_targets(task.task.dense, len(classes) if classes else None, task.configs, task.task.loss)
            except UserError as error:
                raise _problem(task, "training_configs" if "training_configs" in task.places else "grid", str(error)) from None
    if FIT not in roles or not class_targets_only(probe):
        return
    if class_numbers(roles[FIT].samples.targets[task.task.target]) is None:
        message = f"the probe {task.probe} needs one class per sample, which {task.task.id} has not (its loss is {task.task.loss})"
        raise _problem(task, "probe", f"{message}; take linear or mlp")


def _problem(task: ResolvedTask, key: str, message: str) -> ConfigError:
    where = task.place(key)
    return ConfigError([Problem(where.file, where.line, where.key or task.label, message)])


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


def _role(task: ResolvedTask, dataset: Dataset, role: str, split: str, held_out: bool, limited: Mapping[str, Limited | None]) -> RolePlan:
    if split not in dataset.samples:
        raise UserError(f"the dataset {dataset.name} has no split {split!r} (it has: {', '.join(dataset.samples)})")
    samples = dataset.samples[split]
    if _has_target(role) and task.task.target not in samples.targets:
        has = ", ".join(samples.targets) or "none"
        raise UserError(f"split {split} of {dataset.name} has no target {task.task.target!r} (it has: {has})")
    if len(samples) == 0:
        raise UserError(f"split {split} of {dataset.name} (role {role}) has no samples")
    part = limited.get(split)
    if part is not None:
        return RolePlan(split, part.samples, part.images.identity(), (), held_out, part.indices)
    return RolePlan(split, samples, dataset.lists[samples.images].identity(), (), held_out)


def _has_target(role: str) -> bool:
    return is_labelled(role) or role == REPORT_UNLABELLED


def class_numbers(targets: Any) -> np.ndarray | None:
    """Class numbers (N,), or None for targets of any other kind."""
    return targets if isinstance(targets, np.ndarray) and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer) else None


def samples_id(samples: Samples, target: str | None) -> str:
    """What a result depends on besides pixels: which samples, their rows and units, and the targets. UserError for targets that do not say
    what they are."""
    digest = hashlib.sha256()
    for array in (samples.ids, samples.units):  # file names need not be valid UTF-8
        digest.update("\0".join(map(str, array)).encode("utf-8", "surrogateescape") + b"\0\0")
    for rows in (samples.row_values, samples.row_offsets):
        digest.update(np.ascontiguousarray(rows).tobytes() + b"\0\0")
    if target is None:
        return digest.hexdigest()
    digest.update(target.encode())
    targets = samples.targets[target]
    identity = targets.identity() if hasattr(targets, "identity") else None
    if identity is not None:
        digest.update(str(identity).encode())
    else:
        try:
            for piece in _content(targets):
                digest.update(piece)
        except TypeError as error:
            raise UserError(
                f"the targets {target!r} of {samples.images!r} do not say what they are ({error}), so an old result could not be told from "
                "a new one: hold them in an array or list, or use FileSequence, or LazySequence with record= (see virb.data.sequences)"
            ) from None
    return digest.hexdigest()


_PLAIN = (bool, int, float, str, bytes, type(None))  # their repr says all


def _content(value: Any) -> Iterator[bytes]:
    """Everything that a target in memory holds, unambiguously; TypeError names the type that is not known."""
    if isinstance(value, list | tuple) and all(type(item) in _PLAIN for item in value):
        yield f"list {list(value)!r}\n".encode()
    elif isinstance(value, list | tuple):
        yield f"items {len(value)}\n".encode()
        for item in value:
            yield from _content(item)
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}\n".encode()
        for key in sorted(value, key=repr):
            yield from _content(key)
            yield from _content(value[key])
    elif isinstance(value, _PLAIN):
        yield f"plain {value!r}\n".encode()
    elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # NumPy's, and tensors, series, images
        array = np.asarray(value)
        yield f"array {array.dtype.str}{array.shape}\n".encode()
        if array.dtype.hasobject:
            yield from _content(array.tolist())
        else:
            yield np.ascontiguousarray(array).tobytes()
    elif is_dataclass(value) and not isinstance(value, type):
        yield f"record {type(value).__qualname__}\n".encode()
        yield from _content({field.name: getattr(value, field.name) for field in fields(value)})
    else:
        raise TypeError(f"a {type(value).__name__}")
