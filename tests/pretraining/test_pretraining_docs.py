"""docs/pretraining.md says what the program does: its commands parse, its example of a method trains, its table of log keys is whole."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from virb.cli import main
from virb.cli.parser import make_parser
from virb.cli.pretrain import method_parser
from virb.config import load_task_configs
from virb.encoders.load import encoder_names, load_encoder
from virb.pretraining.catalogue import option_names
from virb.tasks.vocabulary import TaskVocabulary

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if re.match(r"    (virb|python main.py|torchrun) ", line)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:40])
def test_commands_have_flags_that_there_are(command: str) -> None:
    words = shlex.split(command.partition(" main.py ")[2] or command.partition("virb ")[2])
    if words[0] != "pretrain":
        make_parser().parse_args(words if not words[0].startswith("-") else ["run", *words])
        return
    method = words[1] if words[1] in option_names() else "dino"  # one's own has the engine's keys, too
    options = vars(method_parser(method).parse_args(words[2:]))
    config = options.get("config")
    assert config is None or (ROOT / config).exists() or config == Path("mine.yaml")
    if "probe" in options:
        assert load_task_configs([ROOT / options["probe"]], TaskVocabulary(encoder_names())).checked()


def test_keys_that_the_text_names_are_keys() -> None:
    known = set().union(*(vars(action).get("option_strings", []) for name in option_names() for action in method_parser(name)._actions))
    named = set(re.findall(r"`(--\w+)", PAGE)) - {"--help", "--pretrained_weights", "--checkpoint_key"}
    named -= {flag for line in PAGE.splitlines() if line.startswith("| `--") for flag in re.findall(r"`(--\w+)`", line)}
    assert len(named) > 15
    assert named <= known


def test_the_method_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = re.findall(r"^```python\n(# contrast\.py\n.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "contrast.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (command,) = [command for command in COMMANDS if "contrast:Contrast" in command]
    words = [*shlex.split(command)[1:], "--device", "cpu", "--num_workers", "0", "--tensorboard", "false"]
    assert main(words) == 0
    lines = [json.loads(line) for line in Path("runs/contrast/log.txt").read_text().splitlines()]
    assert lines[-1]["train_found"] > 0.1, "1 / 64 where nothing is learned"
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert lines[-1]["knn_top1"] > 60
    encoder = load_encoder("runs/contrast/checkpoint.pth")
    assert encoder.spec.embed_dim == 64
    assert dict(encoder.spec.training)["method"] == "contrast:Contrast"
    capsys.readouterr()
    assert main([*words, "--epochs", "7", "--momentum", "0.9"]) == 0
    assert "momentum: 0.98 -> 0.9" in capsys.readouterr().out
    assert main([*words, "--momentum", "2"]) == 2
    assert "--momentum  expected at most 1, got 2" in capsys.readouterr().err
