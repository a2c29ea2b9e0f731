"""Experiment lists: every way to name an encoder, and every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from virb.config import EncoderConfig, encoder_config_from_mapping, encoder_from_arguments, load_experiment_list
from virb.errors import ConfigError

Write = Callable[[str, str], str]


def load(write: Write, words, text: str, **options: Any) -> tuple[dict[str, EncoderConfig], list[str]]:
    write("weights/a.pt", "")
    loaded = load_experiment_list([write("e.yaml", text)], words, **options)
    return {encoder.name: encoder for encoder in loaded.items}, [str(problem) for problem in loaded.problems]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("weights/a.pt", {"weights": "weights/a.pt"}),
        ("'weights/a.pt'", {"weights": "weights/a.pt"}),
        ("", {"arch": "resnet50", "weights": "supervised"}),
        ("''", {"arch": "resnet50", "weights": "supervised"}),
        ("None", None),
        ("null", {"arch": "resnet50", "weights": "supervised"}),
        ("supervised", {"arch": "resnet50", "weights": "supervised"}),
        ("{weights: }", {"arch": "resnet50", "weights": "supervised"}),
        ("{weights: ''}", {"arch": "resnet50", "weights": "supervised"}),
        ("timm:vit_small_patch14_dinov2.lvd142m", {"timm": "vit_small_patch14_dinov2.lvd142m"}),
        ("{timm: resnet50, weights: random}", {"timm": "resnet50", "weights": "random"}),
        ("{arch: pixels}", {"arch": "pixels"}),
        ("{arch: pixels, weights: }", {"arch": "pixels"}),
        ("{arch: vit_tiny, weights: random, args: {patch_size: 8}}", {"arch": "vit_tiny", "weights": "random", "args": {"patch_size": 8}}),
        ("{weights: weights/a.pt, checkpoint_key: teacher}", {"weights": "weights/a.pt", "checkpoint_key": "teacher"}),
        ("{module: 'mylab.models:MyNet', weights: weights/a.pt}", {"module": "mylab.models:MyNet", "weights": "weights/a.pt"}),
    ],
)
def test_ways_to_name_an_encoder(write: Write, words, value: str, expected: dict[str, Any] | None) -> None:
    found, problems = load(write, words, f"# list\nX: {value}\n")
    if expected is None:  # "None" is text in YAML, and no file
        assert problems == ["e.yaml:2  X  None does not exist"]
        return
    assert problems == []
    assert found["X"].model_dump(exclude_defaults=True) == {"name": "X", **expected}
    assert (found["X"].where.file, found["X"].where.line, found["X"].where.key) == ("e.yaml", 2, "X")


def test_input_override(write: Write, words) -> None:
    text = "x: {arch: pixels, input: {size: 256, mean: [0.5, 0.5, 0.5], std: [1, 1, 1]}}\ny: {arch: pixels, input: {size: [96, 128]}}\n"
    found, problems = load(write, words, text)
    assert problems == []
    assert found["x"].input is not None
    assert found["x"].input.model_dump(exclude_none=True) == {"size": (256, 256), "mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0)}
    assert found["y"].input is not None
    assert found["y"].input.size == (96, 128)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("weights/b.pt", "X  weights/b.pt does not exist; did you mean weights/a.pt?"),
        ("pretrained_weights/moco.pt", "X  pretrained_weights/moco.pt does not exist: there is no folder pretrained_weights"),
        ("{weights: runs/*.pt}", "X.weights  no file matches runs/*.pt: there is no folder runs"),
        ("pixels", "X  pixels does not exist; for the architecture write {arch: pixels, ...}"),
        ("pretrained", "X  pretrained weights are those of timm, hub, hf and open_clip networks"),
        ("{arch: vit_tiny, weights: pretrained}", "X.weights  pretrained weights are those of timm, hub, hf and open_clip networks"),
        ("random", "X  random weights need an architecture: {arch: ..., weights: random}"),
        ("{weights: random}", "X.weights  random weights need an architecture: {arch: ..., weights: random}"),
        ("5", "X  expected a path or a mapping, got 5"),
        ("[a, b]", 'X  expected a path or a mapping, got ["a", "b"]'),
        ("{}", "X  says nothing to load; give weights, arch, timm, module, hub, hf or open_clip"),
        ("{checkpoint_ky: a, weights: weights/a.pt}", "X.checkpoint_ky  unknown key; did you mean checkpoint_key?"),
        ("{checkpoint_ky: , weights: weights/a.pt}", "X.checkpoint_ky  unknown key; did you mean checkpoint_key?"),
        ("{name: a, weights: weights/a.pt}", "X.name  unknown key"),
        ("{arch: vit_smal}", 'X.arch  no architecture "vit_smal"; did you mean vit_small?'),
        ("{arch: zzz}", 'X.arch  no architecture "zzz"'),
        ("{arch: 5}", "X.arch  expected text, got 5"),
        ("{arch: pixels, timm: resnet50}", "X.timm  arch is given too; give one of arch, timm, module, hub, hf and open_clip"),
        ("{timm: resnet50, module: 'a:B'}", "X.module  timm is given too; give one of arch, timm, module, hub, hf and open_clip"),
        ("{module: mylab.MyNet}", 'X.module  expected package.module:Class, got "mylab.MyNet"'),
        ("'timm:'", 'X  expected text, got ""'),
        ("{arch: pixels, checkpoint_key: a}", "X.checkpoint_key  names a part of a weights file, but no file is given in weights"),
        ("{arch: pixels, args: 5}", "X.args  expected a mapping, got 5"),
        ("{arch: pixels, args: {a: [.nan]}}", "X.args  expected finite numbers, got NaN"),
        ("{arch: pixels, meta: []}", "X.meta  expected a mapping, got []"),
        ("{arch: pixels, input: 256}", "X.input  expected a mapping, got 256"),
        ("{arch: pixels, input: {sise: 256}}", "X.input.sise  unknown key; did you mean size?"),
        ("{arch: pixels, input: {size: 0}}", "X.input.size  expected a size in pixels or [height, width], got 0"),
        ("{arch: pixels, input: {size: [1, 2, 3]}}", "X.input.size  expected a size in pixels or [height, width], got [1, 2, 3]"),
        ("{arch: pixels, input: {resize: squish}}", 'X.input.resize  "squish" is none of squash, shorter; did you mean squash?'),
        ("{arch: pixels, input: {crop: centre}}", 'X.input.crop  "centre" is none of center, none; did you mean center?'),
        ("{arch: pixels, input: {crop_pct: 1.5}}", "X.input.crop_pct  expected at most 1, got 1.5"),
        ("{arch: pixels, input: {interpolation: lanczos}}", 'X.input.interpolation  "lanczos" is none of nearest, bilinear, bicubic'),
        ("{arch: pixels, input: {mean: [1, 2]}}", "X.input.mean  expected three numbers (red, green, blue), got [1, 2]"),
        ("{arch: pixels, input: {std: [1, 0, 1]}}", "X.input.std  expected three numbers above 0, got [1.0, 0.0, 1.0]"),
    ],
)
def test_mistakes(write: Write, words, value: str, expected: str) -> None:
    found, problems = load(write, words, f"ok: {{arch: pixels}}\nX: {value}\n")
    assert problems == [f"e.yaml:2  {expected}"]
    assert list(found) == ["ok"]


def test_a_mistake_knows_its_own_line(write: Write, words) -> None:
    text = "X:\n  arch: pixels\n  input:\n    size: 3\n    std: a\n  args: 3\n"
    assert load(write, words, text)[1] == [
        "e.yaml:6  X.args  expected a mapping, got 3",
        'e.yaml:5  X.input.std  expected three numbers (red, green, blue), got "a"',
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b", 'the name "a b" may only have letters, digits and . _ @ + -'),
        ("a/b", 'the name "a/b" may only have letters, digits and . _ @ + -'),
        ("été", 'the name "été" may only have letters, digits and . _ @ + -'),
        ("..", 'the name ".." may not start with a dot'),
        ("Runs", 'the name "Runs" is taken by the results store'),
    ],
)
def test_names_that_cannot_be_folders(write: Write, words, name: str, expected: str) -> None:
    assert load(write, words, f"'{name}': {{arch: pixels}}\n")[1] == [f"e.yaml:1  {name}  {expected}"]


def test_good_names(write: Write, words) -> None:
    assert load(write, words, "A.b_c@d+e-9: {arch: pixels}\n100: {arch: pixels}\n1e-4: {arch: pixels}\n")[1] == []


def test_duplicates_in_and_across_files(write: Write, words) -> None:
    write("a.yaml", "x: {arch: pixels}\ny: {arch: pixels}\ny: {arch: pixels}\n")
    write("b.yaml", "z: {arch: pixels}\nx: {arch: nonsense}\nZ: {arch: pixels}\n")
    problems = [str(problem) for problem in load_experiment_list(["a.yaml", "b.yaml"], words).problems]
    assert problems == [
        "a.yaml:3  y  given twice; first in a.yaml:2",
        'b.yaml:2  x.arch  no architecture "nonsense"',
        "b.yaml:2  x  given twice; first in a.yaml:1",
        "b.yaml:3  Z  Z and z (b.yaml:1) differ in case only and would share one folder on some disks",
    ]


def test_paths_need_not_exist_when_not_checked(write: Write, words) -> None:
    found, problems = load(write, words, "x: nowhere.pt\ny: ~/x.pt\n", check_paths=False)
    assert problems == []
    assert found["x"].weights == "nowhere.pt"
    assert found["y"].weights == str(Path.home() / "x.pt")


def test_place_is_no_part_of_equality(write: Write, words) -> None:
    first = load(write, words, "x: {arch: pixels}\n")[0]["x"]
    second = load(write, words, "\n\nx: {arch: pixels}\n")[0]["x"]
    assert first.where != second.where
    assert first == second
    assert hash(first) == hash(second)
    assert first != load(write, words, "x: {arch: pixels, meta: {a: 1}}\n")[0]["x"]
    assert "where" not in first.model_dump()


def test_encoder_from_the_command_line(write: Write, words) -> None:
    write("a.pt", "")
    (encoder,) = encoder_from_arguments("mine", "a.pt", words).checked()
    assert (encoder.name, encoder.weights, str(encoder.where)) == ("mine", "a.pt", "command line")
    for absent in (None, ""):
        (encoder,) = encoder_from_arguments("mine", absent, words).checked()
        assert (encoder.arch, encoder.weights) == ("resnet50", "supervised")
    assert [str(p) for p in encoder_from_arguments(None, "a.pt", words).problems] == [
        "command line  --name  is missing: give an experiment list, or a name for the encoder"
    ]
    assert [str(p) for p in encoder_from_arguments("a/b", "c.pt", words).problems] == [
        'command line  a/b  the name "a/b" may only have letters, digits and . _ @ + -',
        "command line  a/b  c.pt does not exist; did you mean a.pt?",
    ]


def test_encoder_from_python(write: Write, words, tmp_path: Path) -> None:
    write("a.pt", "")
    assert encoder_config_from_mapping("x", tmp_path / "a.pt", words).weights == str(tmp_path / "a.pt")
    encoder = encoder_config_from_mapping("x", {"arch": "vit_tiny", "input": {"size": (32, 48)}}, words)
    assert encoder.input is not None
    assert encoder.input.size == (32, 48)
    assert encoder == load(write, words, "x: {arch: vit_tiny, input: {size: [32, 48]}}\n")[0]["x"]
    with pytest.raises(ConfigError) as failure:
        encoder_config_from_mapping("x", {"archh": "vit_tiny", "weights": "no.pt"}, words)
    assert [str(problem) for problem in failure.value.problems] == [
        "<python>  x.archh  unknown key; did you mean arch?",
        "<python>  x.weights  no.pt does not exist; did you mean a.pt?",
    ]
    with pytest.raises(ConfigError, match="expected plain data, got object"):
        encoder_config_from_mapping("x", {"arch": "pixels", "args": {"a": object()}}, words)
