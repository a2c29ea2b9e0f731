"""Every flag of every command is given once, and something shows it. A new flag fails until it has a case."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from virb.cli import main
from virb.cli.parser import COMMANDS, make_parser
from virb.cli.run import make_draft
from virb.errors import ConfigError, ViRBError
from virb.plan.jobs import Plan
from virb.plan.units import assemble
from virb.runner.worker import _Doer

FILES = ["--experiment_list", "e.yaml", "--task_configs", "t.yaml"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text("px: {arch: pixels}\nvit: {arch: vit_tiny, weights: random, args: {patch_size: 8, img_size: 32}}\n")
    (tmp_path / "t.yaml").write_text("a: {task: digits, num_epochs: 2, grid: {optimizer: adam, lr: [1e-2, 1e-1]}}\nb: {task: digits}\n")
    (tmp_path / "more.yaml").write_text("c: {task: digits}\n")
    for split in ("train", "test"):
        for name, value in (("cat", 10), ("dog", 200)):
            folder = tmp_path / "mine" / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(2):  # one to train on, one to choose by
                Image.new("RGB", (8, 8), (value,) * 3).save(folder / f"{number}.png")
    (tmp_path / "pets.yaml").write_text("pets: {task: folder, data: {root: pets}}\n")
    return tmp_path


class _NoTerminal:
    is_terminal = False


def plan(*arguments: str) -> Plan:
    options = make_parser().parse_args(["run", *arguments])
    options.command_line = arguments
    return assemble(make_draft(options, _NoTerminal())[0])


def ids(found: Plan) -> list[str]:
    return [job.id for job in found.jobs]


def keys(*arguments: str) -> list[str]:
    return [job.key for job in plan(*FILES, *arguments).jobs]


def experiment_list() -> None:
    assert ids(plan("--experiment_list", "e.yaml", "--task_configs", "more.yaml")) == ["px/c", "vit/c"]


def task_configs() -> None:
    assert ids(plan(*FILES, "more.yaml", "--only", "px")) == ["px/a", "px/b", "px/c"]
    assert ids(plan("--experiment_list", "e.yaml", "--virb_configs", "t.yaml", "more.yaml", "--only", "px")) == ["px/a", "px/b", "px/c"]


def name() -> None:
    with pytest.raises(ConfigError, match=r"gone\.pth does not exist"):
        plan("--name", "solo", "--encoder_weights", "gone.pth", "--task_configs", "t.yaml")


def encoder_weights() -> None:
    import torch

    from virb.encoders.load import load_encoder

    state = load_encoder({"arch": "resnet18", "weights": "random"}).network.state_dict()
    torch.save(state, "net.pth")
    found = plan("--name", "solo", "--encoder_weights", "net.pth", "--task_configs", "t.yaml")
    assert ids(found) == ["solo/a", "solo/b"]
    assert "net.pth" in found.context.encoders["solo"].spec.source


def suffix() -> None:
    assert ids(plan(*FILES, "--suffix", "_2")) == ["px_2/a", "px_2/b", "vit_2/a", "vit_2/b"]
    with pytest.raises(ConfigError, match="px/x"):
        plan(*FILES, "--suffix", "/x")


def only() -> None:
    assert ids(plan(*FILES, "--only", "p*")) == ["px/a", "px/b"]
    assert ids(plan(*FILES, "--only", "px,vit")) == ids(plan(*FILES, "--only", "px", "vit")) == ids(plan(*FILES))


def tasks() -> None:
    assert ids(plan(*FILES, "--tasks", "b")) == ["px/b", "vit/b"]


def protocol() -> None:
    few = ["--only", "px"]
    assert {job.task.protocol for job in plan(*FILES, *few, "--protocol", "virb2021").jobs} == {"virb2021"}
    assert not set(keys(*few)) & set(keys(*few, "--protocol", "virb2021"))


def input_size() -> None:
    assert {job.geometry.size for job in plan(*FILES, "--input_size", "16").jobs} == {(16, 16)}
    assert not set(keys()) & set(keys("--input_size", "16"))


def precision() -> None:
    assert not set(keys("--devices", "cpu:1")) & set(keys("--devices", "cpu:1", "--precision", "bf16"))


def compile() -> None:
    assert not set(keys()) & set(keys("--compile"))


def decoder() -> None:
    if find_spec("simplejpeg") is None:
        with pytest.raises(ConfigError, match=r"fast needs simplejpeg: pip install 'virb\[fast\]'"):
            plan(*FILES, "--decoder", "fast")
        return
    assert not set(keys()) & set(keys("--decoder", "fast"))
    assert keys() == keys("--decoder", "pillow")


def seed() -> None:
    before, after = plan(*FILES), plan(*FILES, "--seed", "3")
    assert {job.task.seeds for job in after.jobs} == {(3,)}
    ids_ = [found.context.encoders["vit"].spec.encoder_id for found in (before, after)]
    assert ids_[0] != ids_[1]  # random weights are drawn from it


def out() -> None:
    assert plan(*FILES, "--out", "there").settings.out == Path("there")
    assert plan(*FILES, "--out", "there").context.cache_folder == Path("there/.virb_cache")


def data_root() -> None:
    pets = ["--experiment_list", "e.yaml", "--task_configs", "pets.yaml"]
    assert ids(plan(*pets, "--data_root", "mine")) == ["px/pets", "vit/pets"]
    with pytest.raises(ConfigError, match="below --data_root"):
        plan(*pets)


def devices() -> None:
    assert plan(*FILES, "--devices", "cpu:3").settings.devices == ("cpu",) * 3


def num_workers() -> None:
    import torch

    found = plan(*FILES, "--num_workers", "3", "--devices", "cpu:1")
    assert _Doer(found.context, torch.device("cpu")).options.loader_threads == 3


def cache_dir() -> None:
    assert plan(*FILES, "--cache_dir", "kept").context.cache_folder == Path("kept")


def local_cache() -> None:
    assert plan(*FILES, "--local_cache", "here").settings.local_cache == Path("here")


def cache_budget() -> None:
    assert {unit.kind for unit in plan(*FILES, "--cache_budget", "0").units} == {"stream"}


def no_cache() -> None:
    assert plan(*FILES, "--no_cache").context.cache_folder == Path("out/.scratch")


def keep_heads() -> None:
    few = [*FILES, "--only", "px", "--tasks", "a", "--devices", "cpu:1"]
    heads = {}
    for which in ("chosen", "all", "none"):
        assert main([*few, "--keep_heads", which, "--out", which]) == 0
        heads[which] = len(list(Path(which).rglob("model_head.pt")))
    assert heads == {"chosen": 1, "all": 2, "none": 0}


def force() -> None:
    few = [*FILES, "--only", "px", "--tasks", "a", "--devices", "cpu:1"]
    assert main(few) == 0
    assert ([job.id for job in plan(*few).to_do], [job.id for job in plan(*few, "--force").to_do]) == ([], ["px/a"])


def profile() -> None:
    assert main([*FILES, "--only", "px", "--tasks", "a", "--devices", "cpu:1", "--profile"]) == 0


def debug() -> None:
    assert main(["check", *FILES, "--protocol", "x"]) == 2
    with pytest.raises(ConfigError):
        main(["check", *FILES, "--protocol", "x", "--debug"])
    with pytest.raises(ViRBError):
        main(["show", "nothing", "--debug"])


def dry_run() -> None:
    before = set(Path().rglob("*"))
    assert main(["run", *FILES, "--dry_run"]) == 0
    assert set(Path().rglob("*")) == before


RUN: dict[str, Callable[[], None]] = {
    case.__name__: case
    for case in (
        *(experiment_list, task_configs, name, encoder_weights, suffix, only, tasks, protocol, input_size, precision, compile, decoder),
        *(seed, out, data_root),
        *(devices, num_workers, cache_dir, local_cache, cache_budget, no_cache, keep_heads, force, profile, debug, dry_run),
    )
}
OTHER = {("list", "what"), ("show", "task"), ("show", "task_configs"), ("show", "protocol"), ("show", "seed"), ("show", "debug")}


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for command in COMMANDS:
        few = {"list": ["tasks"], "show": ["x"], "convert": ["a", "b"], "data": ["list"], "cache": ["list"]}.get(command, [])
        few = ["match", "x"] if command == "visualize" else few
        yield command, make_parser().parse_args([command, *few]).parser


def flags(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions if action.dest != "help"}


def test_every_flag_has_a_case() -> None:
    found = {command: flags(parser) for command, parser in parsers()}
    assert found["run"] == set(RUN)
    assert found["check"] == set(RUN) - {"dry_run"}
    assert found["convert"] == {"source", "destination", "checkpoint_key", "debug"}  # tests/encoders/test_encoders_convert.py
    rest = {(command, flag) for command in ("list", "show") for flag in found[command]}
    assert rest == OTHER | {("list", "debug")}


@pytest.mark.parametrize("flag", RUN)
def test_flags_of_run(flag: str) -> None:
    RUN[flag]()


def test_convert_writes_the_network_it_is_asked_for(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    from virb.encoders.load import load_encoder

    states = {name: load_encoder({"arch": "vit_tiny", "weights": "random"}, seed=i).network.state_dict() for i, name in enumerate("ab")}
    torch.save({"student": states["a"], "teacher": states["b"]}, here / "full.pth")
    for key, expected in (((), states["b"]), (("--checkpoint_key", "student"), states["a"])):
        assert main(["convert", "full.pth", "net.safetensors", *key]) == 0
        assert "vit" in capsys.readouterr().out
        found = load_encoder("net.safetensors").network.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert main(["convert", "gone.pth", "x.pt"]) == 2
    assert "gone.pth" in capsys.readouterr().err


def test_flags_of_show_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        assert main(arguments) == 0
        return capsys.readouterr().out

    plain = shown("show", "digits")
    assert shown("show", "shapes-count") != plain
    assert shown("show", "digits", "--protocol", "virb2021") != plain
    assert shown("show", "digits", "--seed", "2") != plain
    assert "num_epochs        2" in shown("show", "a", "--task_configs", "t.yaml")
    lists: dict[str, Any] = {what: shown("list", what) for what in ("tasks", "encoders", "datasets", "probes")}
    assert len(set(lists.values())) == 4
