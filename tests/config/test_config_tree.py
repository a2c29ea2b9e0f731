"""YAML to plain data with places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from virb.config.tree import Report, Tree, dotted, from_python, parse


def read(text: str) -> Tree:
    report = Report()
    tree = parse(text, "x.yaml", report)
    assert tree is not None
    assert list(report) == []
    return tree


def problems(text: str) -> list[str]:
    report = Report()
    parse(text, "x.yaml", report)
    return [str(problem) for problem in report]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        ("-.5e3", -500.0),
        ("1.", 1.0),
        ("0.0001", 1e-4),
        ("1_000", 1000),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("-7", -7),
        ("yes", True),
        ("Off", False),
        ("~", None),
        ("null", None),
        ("none", "none"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("'1e-4'", "1e-4"),
        ("1e-4x", "1e-4x"),
        ("!!str 5", "5"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("[1, [a, {b: 2}]]", [1, ["a", {"b": 2}]]),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    data = read(f"key: {text}").data["key"]
    assert data == value
    assert type(data) is type(value)


def test_agrees_with_pyyaml_on_every_yaml_file_of_the_tests() -> None:
    files = sorted((Path(__file__).parent / "virb2021").rglob("*.yaml"))
    assert len(files) == 7
    for file in files:
        text = file.read_text()
        assert read(text).data == yaml.safe_load(text)


def test_every_key_knows_its_line() -> None:
    tree = read("# comment\na:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n'0.10': 3\n")
    lines = {dotted(path): line for path, line in tree.lines.items()}
    assert lines == {"": 2, "a": 2, "a.b": 3, "a.c": 4, "a.c[0]": 5, "a.c[1]": 6, "a.c[1].d": 6, "0.10": 7}
    assert str(tree.where(("a", "c", 1))) == "x.yaml:6"
    assert tree.where(("a", "nothing", "here")).key == "a"
    assert tree.where(("a", "nothing"), missing=True).key == "a.nothing"


def test_keys_are_the_text_as_written() -> None:
    assert list(read("0.0001: 1\n1e-4: 2\non: 3\n100: 4\n").data) == ["0.0001", "1e-4", "on", "100"]


def test_anchors_and_merges() -> None:
    tree = read("base: &base {a: 1, b: 2}\nother: &other\n  b: 3\n  c: 4\nx:\n  <<: [*base, *other]\n  a: 9\ny: *base\n")
    assert tree.data["x"] == {"a": 9, "b": 2, "c": 4}
    assert tree.data["y"] == {"a": 1, "b": 2}
    assert tree.where(("x", "c")).line == 4
    assert tree.where(("x", "a")).line == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3  a  given twice; first in x.yaml:1"),
        ("t:\n  lr: 1\n  lr: 2\n", "x.yaml:3  t.lr  given twice; first in x.yaml:2"),
        ("a: 1\nb: [1\n", "x.yaml:3  is not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a:\n\t- 1\n", "x.yaml:2  is not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2  is not valid YAML: but found another document"),
        ("a: 1\nb: \x00\n", "x.yaml:2  is not valid YAML: special characters are not allowed"),
        ("a: *nothing\n", "x.yaml:1  is not valid YAML: found undefined alias 'nothing'"),
        ("", "x.yaml  is empty"),
        ("# only a comment\n", "x.yaml  is empty"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", "x.yaml:2  b  the tag !!python/object/apply:os.system is not supported"),
        ("a: !mine 3\n", "x.yaml:1  a  the tag !mine is not supported"),
        ("a: !!int three\n", "x.yaml:1  a  'three' is not of the type its tag says (int)"),
        ("? [a, b]\n: 1\n", "x.yaml:1  a key must be text, not a list or a mapping"),
        ("a: &a [1, *a]\n", "x.yaml:1  a[1]  contains itself"),
        ("x:\n  <<: 3\n", "x.yaml:2  x.<<  expected a mapping to merge"),
    ],
)
def test_mistakes_are_located(text: str, expected: str) -> None:
    assert problems(text) == [expected]


def test_files_that_explode_are_refused() -> None:
    levels = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert problems("l0: &l0 [1]\n" + levels) == ["x.yaml  describes more than 200000 values"]
    assert problems("[" * 100_000) == ["x.yaml  is nested too deeply"]
    chain = "".join(f"l{i}: &l{i} [*l{i - 1}]\n" for i in range(1, 600))
    assert problems("l0: &l0 [1]\n" + chain) == ["x.yaml  is nested too deeply"]


def test_python_values_become_the_same_trees(tmp_path: Path) -> None:
    report = Report()
    tree = from_python({"a": (1, 2.5), "w": tmp_path, 3: {"x": None, "y": True}}, ("name",), "<python>", report)
    assert tree.data == {"name": {"a": [1, 2.5], "w": str(tmp_path), "3": {"x": None, "y": True}}}
    assert tree.where(("name", "a", 1)).line == 0
    assert tree.where(("name", "a", 1)).key == "name.a[1]"
    assert not len(report)
    from_python({"a": object()}, ("name",), "<python>", report)
    assert [str(problem) for problem in report] == ["<python>  name.a  expected plain data, got object"]
