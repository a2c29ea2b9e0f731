"""Addresses, short names and hubs in experiment lists: what is accepted, what it becomes, and what each mistake says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from virb.config import encoder_from_arguments, load_experiment_list

Write = Callable[[str, str], str]
SHA = "0123456789abcdef" * 4


def load(write: Write, words, value: str) -> tuple[dict[str, Any] | None, list[str]]:
    write("weights/a.pt", "")
    loaded = load_experiment_list([write("e.yaml", f"X: {value}\n")], words)
    entry = next((encoder.model_dump(exclude_defaults=True, exclude_none=True) for encoder in loaded.items), None)
    return entry, [str(problem).removeprefix("e.yaml:1  ") for problem in loaded.problems]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://a.org/b.pth", {"weights": "https://a.org/b.pth"}),
        ("HTTP://a.org/b.pth?x=1#y", {"weights": "HTTP://a.org/b.pth?x=1#y"}),
        (f"{{weights: 'https://a.org/b.pth', sha256: {SHA}}}", {"weights": "https://a.org/b.pth", "sha256": SHA}),
        (
            "{weights: 'https://a.org/b.pth', checkpoint_key: student, arch: vit_tiny}",
            {"weights": "https://a.org/b.pth", "checkpoint_key": "student", "arch": "vit_tiny"},
        ),
        ("{weights: new/b.pt, url: 'https://a.org/c'}", {"weights": "new/b.pt", "url": "https://a.org/c"}),
        (f"{{weights: weights/a.pt, sha256: '{SHA.upper()}'}}", {"weights": "weights/a.pt", "sha256": SHA.upper()}),
        ("dino_vits16", {"weights": "dino_vits16"}),
        ("{weights: dino_vits16, args: {position_mode: dino}}", {"weights": "dino_vits16", "args": {"position_mode": "dino"}}),
        ("hub:facebookresearch/dinov2:dinov2_vits14", {"hub": "facebookresearch/dinov2:dinov2_vits14"}),
        ("{hub: 'facebookresearch/dinov2:v1/x:dinov2_vits14'}", {"hub": "facebookresearch/dinov2:v1/x:dinov2_vits14"}),
        ("{hub: './my_repo:net', weights: weights/a.pt}", {"hub": "./my_repo:net", "weights": "weights/a.pt"}),
        ("{hf: facebook/dinov2-small}", {"hf": "facebook/dinov2-small"}),
        ("{hf: facebook/dinov2-small@main, weights: pretrained}", {"hf": "facebook/dinov2-small@main", "weights": "pretrained"}),
        ("hf:./folder", {"hf": "./folder"}),
        ("{open_clip: ViT-B-32/laion2b_s34b_b79k}", {"open_clip": "ViT-B-32/laion2b_s34b_b79k"}),
        ("open_clip:hf-hub:a/b", {"open_clip": "hf-hub:a/b"}),
        ("{timm: resnet18, weights: pretrained}", {"timm": "resnet18", "weights": "pretrained"}),
        ("{arch: pixels, input: {channels: bgr}}", {"arch": "pixels", "input": {"channels": "bgr"}}),
    ],
)
def test_ways_to_name_an_encoder(write: Write, words, value: str, expected: dict[str, Any]) -> None:
    assert load(write, words, value) == ({"name": "X", **expected}, [])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("dino_vit16", "X  dino_vit16 does not exist; did you mean dino_vits16?"),
        ("ftp://a.org/b.pt", "X  ftp://a.org/b.pt is not read; addresses start with https:// or http://"),
        ("{weights: 's3://a/b.pt'}", "X.weights  s3://a/b.pt is not read; addresses start with https:// or http://"),
        ("{weights: b.pt, url: a.org/b.pt}", 'X.url  expected an address that starts with https://, got "a.org/b.pt"'),
        ("{weights: b.pt, url: 5}", "X.url  expected text, got 5"),
        ("{arch: pixels, url: 'https://a.org'}", "X.url  is where a file is from, but no file is given in weights"),
        ("{arch: vit_tiny, weights: random, url: 'https://a.org'}", "X.url  is where a file is from, but no file is given in weights"),
        ("{weights: 'https://a.org/b', url: 'https://a.org/b'}", "X.url  weights is an address too; give a file name there"),
        ("{weights: weights/a.pt, sha256: abc}", 'X.sha256  expected 64 hexadecimal digits, got "abc"'),
        (f"{{timm: resnet18, sha256: {SHA}}}", "X.sha256  is of a weights file, but no file is given in weights"),
        ("{hub: dinov2_vits14}", 'X.hub  expected owner/repo:entry, owner/repo:ref:entry or ./folder:entry, got "dinov2_vits14"'),
        ("{hf: dinov2}", 'X.hf  expected owner/name, owner/name@revision or ./folder, got "dinov2"'),
        ("{open_clip: 'a b'}", 'X.open_clip  expected MODEL/WEIGHTS such as ViT-B-32/laion2b_s34b_b79k, got "a b"'),
        ("{hub: 'a/b:c', hf: a/b}", "X.hf  hub is given too; give one of arch, timm, module, hub, hf and open_clip"),
        ("{timm: resnet18, open_clip: RN50/a}", "X.open_clip  timm is given too; give one of arch, timm, module, hub, hf and open_clip"),
        ("{weights: pretrained}", "X.weights  pretrained weights are those of timm, hub, hf and open_clip networks"),
        ("{arch: pixels, input: {channels: brg}}", 'X.input.channels  "brg" is none of rgb, bgr; did you mean rgb?'),
    ],
)
def test_mistakes(write: Write, words, value: str, expected: str) -> None:
    assert load(write, words, value) == (None, [expected])


def test_on_the_command_line(write: Write, words) -> None:
    for weights in ("https://a.org/b.pt", "dino_vits16"):
        (encoder,) = encoder_from_arguments("mine", weights, words).checked()
        assert encoder.weights == weights
