"""Benchmarks have one frame, and docs/performance.md has a place for each; what they measure is measured by `make bench`."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)

    def module(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, found)
        spec.loader.exec_module(found)
        return found

    yield module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__ or "").parent == FOLDER:
            del sys.modules[name]


def test_every_benchmark_has_a_place_on_the_page(load) -> None:
    run = load("run")
    page = run.PAGE.read_text(encoding="utf-8")
    assert set(run.names()) <= {found[1] for found in run.BLOCK.finditer(page)}
    assert {"cache", "encode", "fanout", "grid", "knn", "scaling", "spine"} <= set(run.names())


def test_every_benchmark_imports_and_says_what_it_does(load) -> None:
    for name in load("run").names():
        module = load(name)
        assert module.__doc__, name
        assert f"python benchmarks/{name}.py" in module.__doc__
        assert callable(module.table)


def test_tables_as_text_and_markdown(load) -> None:
    frame = load("frame")
    table = frame.Table("A title", ("what", "time"), (("one | two", "1.5 s"), ("three", "10 s")), ("a note",), gpu="python benchmarks/x.py")
    assert table.text().splitlines() == [
        "A title",
        "",
        "what        time",
        "one | two  1.5 s",
        "three       10 s",
        "",
        "- a note",
        "- GPU rows: not measured (no GPU here); with one: `python benchmarks/x.py`",
    ]
    assert table.markdown().splitlines()[2:6] == ["| what | time |", "| --- | ---: |", "| one / two | 1.5 s |", "| three | 10 s |"]
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        frame.Table("x", ("a", "b"), (("only one",),))


def test_pairs_are_ratios_of_ours_to_the_baseline(load, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = load("frame")
    took = {"ours": iter((2.0, 9.0, 4.0)), "baseline": iter((1.0, 3.0, 4.0))}
    monkeypatch.setattr(frame, "timed", lambda call, clock: next(took[call()]))
    assert frame.paired(lambda: "ours", lambda: "baseline") == (4.0, 3.0, 2.0)


def test_the_page_is_rewritten_block_by_block(load) -> None:
    run, frame = load("run"), load("frame")
    table = frame.Table("New", ("a",), (("1",),))
    page = "before\n<!-- benchmark: one -->\nold\n<!-- end -->\nbetween\n"
    page += "<!-- benchmark: two -->\nkept\n<!-- end -->\nafter\n"
    written = run.rewrite(page, {"one": run.block("one", table, "a machine", "2026-01-01"), "three": "new block"})
    assert written.startswith("before\n<!-- benchmark: one -->\n\n**New**\n")
    assert "`python benchmarks/one.py` on a machine; 2026-01-01\n\n<!-- end -->\nbetween\n" in written
    assert "old" not in written
    assert "<!-- benchmark: two -->\nkept\n<!-- end -->\nafter\n" in written
    assert written.endswith("\n## three\n\nnew block\n")
    assert run.rewrite(written, {}) == written


def test_a_benchmark_runs_in_a_process_of_its_own(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = load("run")
    for name in ("run", "frame"):
        (tmp_path / f"{name}.py").write_text((FOLDER / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "tiny.py").write_text(
        "from frame import Table\n\n\ndef table(quick=False):\n    print(1)\n    return Table('T', ('a',), ((str(quick),),), gpu='x')\n"
    )
    (tmp_path / "broken.py").write_text("def table(quick=False):\n    raise ValueError('no')\n")
    monkeypatch.setattr(run, "__file__", str(tmp_path / "run.py"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    table, where = run.measure("tiny", True)
    assert (table.title, table.rows, table.gpu) == ("T", (("True",),), "x")
    assert "torch" in where
    assert json.dumps(where)
    with pytest.raises(SystemExit, match="broken"):
        run.measure("broken", False)


def test_photos_are_as_large_as_imagenets(load, tmp_path: Path) -> None:
    jpegs = load("jpegs")
    jpegs.make_folder(tmp_path, 3, classes=2)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.jpg")]
    assert len(sizes) == 3
    assert all(60_000 < size < 160_000 for size in sizes)


def test_both_loops_of_the_pretraining_benchmark_load_by_as_many_processes(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than there are cores: a plain loop with ten processes on two cores would be no fair comparison."""
    pretrain = load("pretrain")
    from virb.pretraining import data, loading

    asked: list[int] = []

    class Loader:
        def __init__(self, *_: object, num_workers: int, **__: object) -> None:
            asked.append(num_workers)
            raise SystemExit

    monkeypatch.setattr(pretrain, "available_cores", lambda: 3)
    monkeypatch.setattr(loading, "available_cores", lambda: 3)
    monkeypatch.setattr(pretrain.torch.utils.data, "DataLoader", Loader)
    for given, expected in (([], 3), (["--num_workers", "2"], 2), (["--num_workers", "0"], 0)):
        method, record = pretrain.prepared(pretrain.arguments(["--data_path", "digits", *given]))
        with pytest.raises(SystemExit):
            pretrain.plain_training(method, record, 1, "cpu")
        ours = data.open_source(record, method.views(), pretrain.torch.device("cpu"))
        assert asked.pop() == ours.workers == record.num_workers == expected
