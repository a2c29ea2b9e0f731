"""Files and folders named on the command line, read as trees."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from virb.config.records import EncoderConfig, TaskConfig
from virb.config.tree import Report, Tree, Where, parse
from virb.errors import ConfigError, Problem, did_you_mean, nearest

T = TypeVar("T")
Item = TypeVar("Item", EncoderConfig, TaskConfig)
COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """What the files say: the items without mistakes, all problems, warnings, and each file's text as read (for the record of the run)."""

    items: tuple[T, ...]
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    def checked(self) -> tuple[T, ...]:
        """The items; ConfigError with all problems when there is any."""
        if self.problems:
            raise ConfigError(self.problems)
        return self.items


def as_paths(paths: Sequence[Path | str] | Path | str) -> list[Path]:
    return [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]


def read_trees(paths: Sequence[Path | str] | Path | str, problems: Report, warnings: Report) -> tuple[list[Tree], dict[str, str]]:
    """Every file once, in the order given (folders in the order of their file names)."""
    trees: list[Tree] = []
    texts: dict[str, str] = {}
    seen: set[Path] = set()
    for path in as_paths(paths):
        for file in _files(path, problems, warnings):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            text = _read(file, problems)
            if text is None:
                continue
            texts[str(file)] = text
            tree = parse(text, str(file), problems)
            if tree is not None:
                trees.append(tree)
    return trees, texts


def _files(path: Path, problems: Report, warnings: Report) -> Iterator[Path]:
    if not path.exists():
        renamed = _renamed(path)
        if renamed is None:
            problems.add(Where(str(path), 0), f"does not exist{near_file(path)}")
            return
        warnings.add(Where(str(path), 0), f"does not exist; {renamed} is read instead")
        path = renamed
    if not path.is_dir():
        yield path
        return
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".yaml", ".yml") and file.is_file() and file.name[0] != ".")
    if not files:
        problems.add(Where(str(path), 0), "has no .yaml files")
    yield from files


def _renamed(path: Path) -> Path | None:
    """ViRB 2021 kept its task configs in configs/virb_configs."""
    parts = list(path.parts)
    for index in range(len(parts) - 1, 0, -1):
        if parts[index] == "virb_configs" and parts[index - 1] == "configs":
            parts[index] = "task_configs"
            renamed = Path(*parts)
            return renamed if renamed.exists() else None
    return None


def near_file(path: Path) -> str:
    """What to say after "does not exist": the nearest name in the same folder, or that there is no such folder."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    found = nearest(path.name, [other.name for other in path.parent.iterdir()])
    return f"; did you mean {path.parent / found}?" if found else ""


def _read(file: Path, problems: Report) -> str | None:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.add(Where(str(file), error.object.count(b"\n", 0, error.start) + 1), "is not UTF-8 text")
    except OSError as error:
        problems.add(Where(str(file), 0), f"cannot be read: {error.strerror}")
    return None


def only(items: Iterable[Item], patterns: Sequence[str] | str, *, option: str = "--only") -> tuple[tuple[Item, ...], tuple[Problem, ...]]:
    """The encoders or tasks whose name or label matches any glob (``DINO*``; several by comma), in their order, and a problem for
    each glob without a match. No glob: all of them. ``option`` is the flag that a problem names."""
    items = tuple(items)
    names = [item.name if isinstance(item, EncoderConfig) else item.label for item in items]
    globs = [glob.strip() for text in ([patterns] if isinstance(patterns, str) else patterns) for glob in text.split(",") if glob.strip()]
    report = Report()
    for glob in globs:
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            report.add(Where(COMMAND_LINE, 0, option), f"{glob} matches no name{did_you_mean(glob, names)}")
    if not globs:
        return items, ()
    kept = tuple(item for item, name in zip(items, names, strict=True) if any(fnmatch.fnmatchcase(name, glob) for glob in globs))
    return kept, tuple(report)
