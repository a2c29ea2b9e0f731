"""YAML text to plain data in which every key knows its file and line.

The text is composed to nodes by PyYAML and the data is built from the nodes here: no tag can run code, duplicate keys are seen, keys are
the text as written (``0.0001:`` stays that), and numbers follow YAML 1.2, so that ``1e-4`` is a number and ``1:30`` is not 90.
"""

from __future__ import annotations

import numbers
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from virb.errors import Problem

KeyPath = tuple[str | int, ...]
MAX_NODES = 200_000  # aliases of aliases can describe more data than fits in memory


@dataclass(frozen=True)
class Where:
    """Where a value was written: ``line`` is 1-based, 0 when it has no line (Python, the command line); ``key`` is the dotted path."""

    file: str
    line: int
    key: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


def dotted(path: KeyPath) -> str:
    """``("Pets", "grid", "lr", 1)`` as ``Pets.grid.lr[1]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class Report:
    """Collects problems in the order they are found, each once."""

    def __init__(self) -> None:
        self._problems: dict[Problem, None] = {}

    def add(self, where: Where, message: str) -> None:
        self._problems.setdefault(Problem(where.file, where.line, where.key, message))

    def extend(self, other: Report) -> None:
        for problem in other:
            self._problems.setdefault(problem)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._problems)

    def __len__(self) -> int:
        return len(self._problems)


@dataclass(frozen=True)
class Tree:
    """Plain data (dicts with text keys, lists, text, numbers, booleans, None) and the line of every key and list item by path."""

    file: str
    data: Any
    lines: Mapping[KeyPath, int]

    def where(self, path: KeyPath = (), *, missing: bool = False) -> Where:
        """Place of ``path``, or of its nearest parent that was written; ``missing`` keeps the name of the absent key."""
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        return Where(self.file, self.lines.get(known, 0), dotted(path if missing else known))


def parse(text: str, file: str, report: Report) -> Tree | None:
    """The one YAML document in ``text``; None when it could not be read at all (the problem is in ``report``)."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        report.add(Where(file, mark.line + 1 if mark else 0), f"is not valid YAML: {error.problem or error.context}")
        return None
    except yaml.reader.ReaderError as error:
        report.add(Where(file, text.count("\n", 0, error.position) + 1), f"is not valid YAML: {error.reason}")
        return None
    except RecursionError:
        report.add(Where(file, 0), "is nested too deeply")
        return None
    if node is None:
        report.add(Where(file, 0), "is empty")
        return None
    builder = _Builder(file, report)
    try:
        data = builder.build(node, (), node.start_mark.line + 1)
    except _TooLarge:
        report.add(Where(file, 0), f"describes more than {MAX_NODES} values")
        return None
    except RecursionError:
        report.add(Where(file, 0), "is nested too deeply")
        return None
    return Tree(file, data, builder.lines)


def from_python(value: Any, path: KeyPath, file: str, report: Report) -> Tree:
    """The same for values given in Python: mappings, sequences, text, paths and numbers; no lines."""
    lines: dict[KeyPath, int] = {}

    def plain(value: Any, path: KeyPath) -> Any:
        lines[path] = 0
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, os.PathLike):
            return os.fspath(value)
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real):
            return float(value)
        if isinstance(value, Mapping):
            return {str(key): plain(item, (*path, str(key))) for key, item in value.items()}
        if isinstance(value, (list, tuple, range)):
            return [plain(item, (*path, index)) for index, item in enumerate(value)]
        report.add(Where(file, 0, dotted(path)), f"expected plain data, got {type(value).__name__}")
        return None

    data = plain(value, path)
    for length in range(len(path)):
        lines[path[:length]] = 0
    for part in reversed(path):
        data = {part: data}
    return Tree(file, data, lines)


class _TooLarge(Exception):
    pass


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars: YAML 1.2's numbers, YAML 1.1's booleans (yes, on), no dates."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own interface; a fresh table instead of the inherited one


_TAG = "tag:yaml.org,2002:"
for _kind, _pattern, _first in (
    ("bool", r"^(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$", "yYnNtTfFoO"),
    ("int", r"^(?:[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF|nan|NaN|NAN))$", "-+.0123456789"),
    ("merge", r"^(?:<<)$", "<"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), list(_first))


class _Builder:
    def __init__(self, file: str, report: Report) -> None:
        self.file = file
        self.report = report
        self.lines: dict[KeyPath, int] = {}
        self._count = 0
        self._open: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath, line: int) -> Any:
        self._count += 1
        if self._count > MAX_NODES:
            raise _TooLarge
        self.lines[path] = line
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path, line)
        if node in self._open:
            self._problem(path, line, "contains itself")
            return None
        if node.tag not in (_TAG + "map", _TAG + "seq"):
            self._problem(path, line, f"the tag {_short(node.tag)} is not supported")
            return None
        self._open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return [self.build(item, (*path, index), item.start_mark.line + 1) for index, item in enumerate(node.value)]
        finally:
            self._open.pop()

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath, line: int) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            if kind in ("str", "merge"):
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}[text.lower()]
            if kind == "int":
                return int(text.replace("_", ""), 0 if text[:2] in ("0x", "0o") else 10)
            if kind == "float":
                text = text.lower().replace("_", "")
                return float(text.replace(".", "") if text.endswith(("inf", "nan")) else text)
        except (ValueError, KeyError):
            self._problem(path, line, f"{text[:40]!r} is not of the type its tag says ({kind})")
            return None
        self._problem(path, line, f"the tag {_short(node.tag)} is not supported")
        return None

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        first: dict[str, int] = {}
        merges: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(path, line, "a key must be text, not a list or a mapping")
            elif key_node.tag == _TAG + "merge":
                merges += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif (key := str(key_node.value)) in first:
                self._problem((*path, key), line, f"given twice; first in {self.file}:{first[key]}")
            else:
                first[key] = line
                data[key] = self.build(value_node, (*path, key), line)
        for merged in merges:  # `<<: *anchor`: what the mapping says itself wins, then the first anchor named
            self._merge(merged, path, data)
        return data

    def _merge(self, node: yaml.Node, path: KeyPath, data: dict[str, Any]) -> None:
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            self._problem((*path, "<<"), line, "expected a mapping to merge")
            return
        lines, self.lines = self.lines, {}
        content = self.build(node, path, line)
        added, self.lines = self.lines, lines
        for key, value in (content or {}).items():
            if key not in data:
                data[key] = value
                prefix = (*path, key)
                self.lines.update({where: at for where, at in added.items() if where[: len(prefix)] == prefix})

    def _problem(self, path: KeyPath, line: int, message: str) -> None:
        self.report.add(Where(self.file, line, dotted(path)), message)


def _short(tag: str) -> str:
    return "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
