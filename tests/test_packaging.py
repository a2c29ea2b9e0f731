"""What a newcomer installs: tested versions and ranges agree, one faiss at most, and the shipped files are there."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RANGES = [Requirement(text) for text in PROJECT["dependencies"]]
PINS = [Requirement(line) for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
PLACES = [
    {"python_version": python, "sys_platform": system, "platform_machine": machine}
    for python in ("3.10", "3.11", "3.12", "3.13", "3.14")
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def _here(requirements: list[Requirement], place: dict[str, str]) -> dict[str, Requirement]:
    found = [r for r in requirements if r.marker is None or r.marker.evaluate(place)]
    names = [canonicalize_name(r.name) for r in found]
    assert len(set(names)) == len(names), f"named twice on {place}: {names}"
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place.values()))
def test_every_dependency_has_one_tested_version_within_its_range(place):
    pins, ranges = _here(PINS, place), _here(RANGES, place)
    assert pins.keys() == ranges.keys()
    for name, pin in pins.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert Version(specifier.version) in ranges[name].specifier, name


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place.values()))
def test_one_faiss_and_the_gpu_wheel_only_where_there_is_one(place):
    faiss = [name for name in _here(PINS, place) if name.startswith("faiss")]
    on_linux = place["sys_platform"] == "linux" and place["platform_machine"] == "x86_64"
    assert faiss == ["faiss-gpu" if on_linux else "faiss-cpu"]


def test_every_import_of_the_package_is_a_declared_dependency():
    """An import that works only because another package pulls it in breaks one day."""
    distribution = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "faiss": "faiss-gpu", "open_clip": "open-clip-torch"}
    distribution["huggingface_hub"] = "timm"  # only looked into to explain what timm does, which cannot be without it
    extras = {canonicalize_name(Requirement(text).name) for group in PROJECT["optional-dependencies"].values() for text in group}
    declared = {canonicalize_name(r.name) for r in RANGES} | extras
    pattern = re.compile(r"^\s*(?:from|import) ([A-Za-z_]\w*)", re.MULTILINE)
    imported = {name for file in (ROOT / "virb").rglob("*.py") for name in pattern.findall(_code(file.read_text()))}
    foreign = imported - set(sys.stdlib_module_names) - {"virb", "__future__"}
    assert {canonicalize_name(distribution.get(name, name)) for name in foreign} <= declared


def _code(text: str) -> str:
    return re.sub(r'"""(?:.|\n)*?"""', "", text)


def test_the_console_command_is_there():
    module, _, function = PROJECT["scripts"]["virb"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_importing_virb_is_light():
    code = "import sys, virb; assert virb.__version__; print(*(m for m in ('torch', 'numpy', 'pandas', 'pydantic') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_five_papers_are_cited():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    papers = {identifier["value"] for reference in citation["references"] for identifier in reference["identifiers"]}
    assert papers == {f"arXiv:{number}" for number in ("2103.14005", "2104.14294", "2310.18651", "2310.08584", "2308.11796")}
    assert citation["version"] == importlib.import_module("virb").__version__
