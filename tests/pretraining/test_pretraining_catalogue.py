"""Methods of a user's own, by the name that they are registered under or by their place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_support import ROOT, environment, flags

from virb.cli import main
from virb.errors import UserError
from virb.pretraining import methods
from virb.pretraining.catalogue import load_method, option_names, option_sources
from virb.pretraining.methods import find_method, method_names

MINE = """
from pydantic import Field
from virb.pretraining.dino import DINO
from virb.pretraining.dino_options import DINOOptions
from virb.pretraining.methods import register_method

class Keys(DINOOptions):
    sharpness: float = Field(1.0, description="of mine")

@register_method("mine")
class Own(DINO):
    Options = Keys
    aliases = {"sharp": "sharpness"}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    return "my_methods"


def test_a_registered_method_is_found_by_its_name(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "mine", "--lr", "1"]) == 2  # nobody has imported it
    assert "no pretraining method 'mine' (methods: dino, patchwise)" in capsys.readouterr().err
    __import__(module)
    assert option_names() == method_names() == ["dino", "mine", "patchwise"]
    assert main(flags(tmp_path / "run", "mine", sharp=2.0, epochs=1)) == 0
    saved = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=True)
    assert saved["virb"]["method"] == "mine"
    assert saved["args"]["sharpness"] == 2.0
    # A Slurm task is a process that has imported nothing: it gets the place.
    assert option_sources("mine").name == "my_methods:Own"
    with pytest.raises(UserError, match="no pretraining method 'minee'; did you mean mine"):
        option_sources("minee")


@pytest.mark.parametrize("name", ["mine", "Own"])
def test_a_method_is_found_by_its_module(module: str, name: str) -> None:
    found = option_sources(f"{module}:{name}")
    assert found.name == "my_methods:Own"
    assert "sharpness" in found.Options.model_fields
    assert load_method(f"{module}:{name}") is find_method("mine")
    with pytest.raises(UserError, match="has no 'Owm'"):
        load_method(f"{module}:Owm")
    with pytest.raises(UserError, match="is not a class that extends"):
        load_method(f"{module}:Keys")


def test_the_command_imports_a_module_that_is_named(module: str, tmp_path: Path) -> None:
    call = [sys.executable, str(ROOT / "main.py"), "pretrain", f"{module}:mine", "--help"]
    found = subprocess.run(call, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True).stdout
    assert "--sharpness" in found
