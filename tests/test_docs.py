"""The docs say what the code does: generated tables are current, links lead somewhere, examples load and run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from virb.config import load_experiment_list, load_task_configs
from virb.encoders.load import encoder_names
from virb.tasks.vocabulary import TaskVocabulary

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [page for page in PAGES if page.name != "CONTRIBUTING.md"]  # tests/test_contributing.py runs that one's
FENCED = re.compile(r"^```(yaml|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:^    .*\n|^[ ]*\n(?=    ))+", re.MULTILINE)
LOADERS = {"# experiment list": load_experiment_list, "# task config": load_task_configs}


@pytest.fixture(scope="module")
def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks: fenced ones that name the language, and indented ones that begin like it."""
    text = page.read_text(encoding="utf-8")
    indented = [textwrap.dedent(found).strip() + "\n" for found in INDENTED.findall(FENCED.sub("", text))]
    begins = ("import virb",) if language == "python" else tuple(LOADERS)
    return [block for kind, block in FENCED.findall(text) if kind == language] + [b for b in indented if b.startswith(begins)]


def load(text: str, folder: Path) -> None:
    """ConfigError when the block is not what its first line says."""
    kind = text.split("\n", 1)[0].strip()
    assert kind in LOADERS, f"the block begins with {kind!r}; say what it is: {' or '.join(LOADERS)}"
    file = folder / "block.yaml"
    file.write_text(text, encoding="utf-8")
    words = TaskVocabulary(encoder_names())
    found = load_experiment_list([file], words, check_paths=False) if kind == "# experiment list" else load_task_configs([file], words)
    assert found.checked()
    assert not found.warnings


def test_generated_tables_are_current(make_docs: ModuleType) -> None:
    used = [name for page in PAGES for _, name, _, _ in make_docs.BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(used) == sorted(make_docs.BLOCKS), "every block stands on one page"
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text == make_docs.rewrite(text), f"{page.name} is out of date: python scripts/make_docs.py"


def test_rewriting_changes_blocks_alone(make_docs: ModuleType) -> None:
    page = "before\n<!-- generated: metrics -->\nold\n<!-- end -->\nafter\n"
    written = make_docs.rewrite(page)
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    assert "| `top1` | top-1 | higher | % |" in written
    assert make_docs.rewrite(written) == written


def test_a_key_without_words_is_an_error(make_docs: ModuleType) -> None:
    with pytest.raises(SystemExit, match="no words for \\['lr'\\], no key for \\['rate'\\]"):
        make_docs.matched(["lr"], {"rate": ""}, "HERE")


def test_examples_of_keys_load(make_docs: ModuleType, tmp_path: Path) -> None:
    files = {key: f"# experiment list\nx: {example}\n" for key, (_, example) in make_docs.ENCODER.items()}
    files |= {
        f"input.{key}": f"# experiment list\nx: {{arch: pixels, input: {{{example}}}}}\n" for key, (_, example) in make_docs.INPUT.items()
    }
    for key, (_, example) in make_docs.TASK.items():
        files[f"task.{key}"] = f"# task config\nx: {{{'' if key == 'task' else 'task: digits, '}{example}}}\n"
    for key, (_, example) in make_docs.GRADIENT.items():
        rest = ", ".join(f"{name}: {value}" for name, value in (("optimizer", "adam"), ("lr", 0.1)) if f"{name}:" not in example)
        flow = f"{{{example}, {rest}}}".replace(", }", "}")
        files[f"training.{key}"] = f"# task config\nx: {{task: digits, probe: mlp, training_configs: {{a: {flow}}}}}\n"
    for key, text in files.items():
        assert re.search(rf"\b{key.rpartition('.')[2]}:", text), f"the example of {key} does not show it"
        load(text, tmp_path)


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_yaml_examples_load(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "yaml"):
        load(text, tmp_path)


def test_the_grid_names_of_the_docs(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(\{.*?\})` \| (`.*`) \|$", (ROOT / "docs" / "configs.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 4
    for grid, names in rows:
        file = tmp_path / "grid.yaml"
        file.write_text(f"x: {{task: digits, grid: {grid}}}\n", encoding="utf-8")
        (task,) = load_task_configs([file], TaskVocabulary(encoder_names())).checked()
        assert list(task.training_configs or ()) == re.findall(r"`([^`]+)`", names)


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```|^    .*$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}, a heading that is not there"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page.name == "README.md" else []) for page in EXAMPLES],
    ids=lambda page: page.name,
)
def test_python_examples_run(page: Path, tmp_path: Path) -> None:
    for text in blocks(page, "python"):
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert done.returncode == 0, done.stderr


def test_the_readme_has_examples_to_check() -> None:
    assert blocks(ROOT / "README.md", "python")
    assert {text.split("\n", 1)[0] for text in blocks(ROOT / "README.md", "yaml")} == set(LOADERS)
