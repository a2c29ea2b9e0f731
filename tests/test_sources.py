"""A user's own code: what its hash is made of, and what is said of names that name nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import virb
from virb.errors import UserError
from virb.sources import import_attribute, source_hash, sources

FILES = {
    "lab_top.py": "import os\nimport numpy\nimport lab_near\nfrom lab_pack.inner import thing\nimport virb.errors\nVALUE = 1\n",
    "lab_near.py": "def f():\n    import lab_far\n    return lab_far\n",
    "lab_far.py": "import lab_top\n",  # a circle
    "lab_apart.py": "VALUE = 2\n",
    "lab_pack/__init__.py": "",
    "lab_pack/inner.py": "thing = 1\n",
    "lab_pack/deep/other.py": "number = 1\n",
    "lab_pack/broken.py": "def f(:\n",
    "lab_pack/.hidden/x.py": "number = 1\n",
}


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("lab_")]:
        del sys.modules[name]


def elsewhere(folder: Path, code: str) -> str:
    """What ``code`` prints in a new process in ``folder``."""
    environment = {"PYTHONPATH": f"{Path(virb.__file__).parents[1]}:{folder}", "PYTHONHASHSEED": "5", "PATH": ""}
    command = [sys.executable, "-c", f"from virb.sources import *\n{code}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_a_module_and_all_that_it_imports_of_the_users_own(lab: Path) -> None:
    assert import_attribute("lab_apart:VALUE", "task") == 2  # makes the folder importable
    assert list(sources(["lab_top"])) == ["lab_far", "lab_near", "lab_pack", "lab_top"]
    assert list(sources(["lab_pack.deep.other"])) == ["lab_pack"]
    assert list(sources(["lab_apart", "lab_pack.inner"])) == ["lab_apart", "lab_pack"]


@pytest.mark.parametrize("name", FILES)
def test_an_edit_of_any_of_these_files_changes_the_hash(lab: Path, name: str) -> None:
    code = "print(source_hash(['lab_top:VALUE']))"
    before = elsewhere(lab, code)
    (lab / name).write_text(FILES[name] + "# edited\n")
    assert (elsewhere(lab, code) == before) == (name in ("lab_apart.py", "lab_pack/.hidden/x.py"))


def test_what_is_imported_so_far_and_where_it_lies_do_not_count(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import_attribute("lab_top:VALUE", "task")
    here = source_hash(["lab_top:VALUE"])
    assert elsewhere(lab, "print(source_hash(['lab_top:VALUE']))") == here
    moved = tmp_path_factory.mktemp("other") / "place"
    lab.rename(moved)
    assert elsewhere(moved, "import lab_far; print(source_hash(['lab_top:VALUE']))") == here
    moved.rename(lab)


def test_a_module_imported_again_is_read_again(lab: Path) -> None:
    import_attribute("lab_apart:VALUE", "task")
    before = source_hash(["lab_apart:VALUE"])
    (lab / "lab_apart.py").write_text("VALUE = 333\n")
    assert source_hash(["lab_apart:VALUE"]) == before  # what was imported is what runs
    del sys.modules["lab_apart"]
    assert import_attribute("lab_apart:VALUE", "task") == 333
    assert source_hash(["lab_apart:VALUE"]) != before


def test_names_of_virb_itself_have_no_source() -> None:
    assert source_hash(["digits", "linear", "top1"]) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lab_apart:VALEU", "the module lab_apart has no 'VALEU' .asked for by the probe lab_apart:VALEU.; did you mean VALUE"),
        ("lab_nowhere:X", "the probe lab_nowhere:X cannot be imported: ModuleNotFoundError"),
        ("lab_pack.broken:X", "the probe lab_pack.broken:X cannot be imported: SyntaxError"),
        ("lab_apart", "the probe 'lab_apart' should be written package.module:Name"),
        (":VALUE", "should be written package.module:Name"),
    ],
)
def test_wrong_names(lab: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        import_attribute(name, "probe")
