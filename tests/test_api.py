"""ViRB from Python: encode, run, results, and messages for what cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import virb
from virb.errors import ConfigError, UserError, ViRBError

SHORT = {"task": "digits", "num_epochs": 2, "grid": {"optimizer": "adam", "lr": [1e-2, 1e-1]}}


class Net(torch.nn.Module):
    """A small network of the user's own."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(3, width, 4, 4)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = torch.relu(self.layer(images))
        return {"tokens": tokens, "embedding": tokens.mean(dim=(2, 3))}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def photos() -> np.ndarray:
    """37 images: more than a batch of 32."""
    return np.random.default_rng(0).integers(0, 256, (37, 32, 32, 3), dtype=np.uint8)


# encode


def test_encode_is_the_encoder_on_prepared_pixels(photos: np.ndarray) -> None:
    encoder = virb.load_encoder({"arch": "vit_tiny", "weights": "random", "args": {"patch_size": 8, "img_size": 32}})
    found = virb.encode(encoder, photos, want=("embedding", "tokens[-1]", "tokens[-1].mean"), size=32)
    # Images of the right size are not resized: crop_pct enlarges and crops, so it is taken away for the comparison.
    plain = virb.load_encoder(
        {"arch": "vit_tiny", "weights": "random", "args": {"patch_size": 8, "img_size": 32}, "input": {"resize": "squash", "size": 32}}
    )
    pixels = torch.from_numpy(photos).permute(0, 3, 1, 2)
    mean, std = torch.tensor(plain.spec.input.mean).view(3, 1, 1), torch.tensor(plain.spec.input.std).view(3, 1, 1)
    expected = plain((pixels / 255 - mean) / std, ("embedding", "tokens[-1]"))
    mine = virb.encode(plain, photos, want=("embedding", "tokens[-1]", "tokens[-1].mean"))
    assert {key: tuple(value.shape) for key, value in mine.items()} == {key: tuple(value.shape) for key, value in found.items()}
    torch.testing.assert_close(mine["embedding"], expected["embedding"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["tokens[-1]"], expected["tokens[-1]"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine["tokens[-1].mean"], mine["tokens[-1]"].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
    assert all(value.dtype == torch.float32 and value.device.type == "cpu" for value in mine.values())
    assert not list(Path().iterdir())


def test_encode_takes_lists_names_and_networks(photos: np.ndarray) -> None:
    images = virb.dataset("digits").images("test")
    assert virb.encode({"arch": "pixels"}, images)["embedding"].shape == (359, 768)
    network = Net()
    found = virb.encode(network, photos, want="embedding", size=(32, 40))
    assert list(found) == ["embedding"]
    assert found["embedding"].shape == (37, 8)
    assert network.training  # the user's own is as it was
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_encode_does_not_depend_on_neighbours(photos: np.ndarray) -> None:
    encoder = virb.load_encoder(Net())
    whole = virb.encode(encoder, photos)["embedding"]
    assert torch.equal(virb.encode(encoder, photos[:5])["embedding"], whole[:5])
    assert torch.equal(virb.encode(encoder, photos[33:])["embedding"], whole[33:])


def test_encode_names_outputs_as_they_were_asked_for(photos: np.ndarray) -> None:
    found = virb.encode(Net(), photos[:2], want=("tokens", "tokens[-1]"), size=32)
    assert list(found) == ["tokens", "tokens[-1]"]
    assert torch.equal(found["tokens"], found["tokens[-1]"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((2, 8, 8, 3), np.float32)}, "images: expected uint8 images N x H x W x 3"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "there are no images to encode"),
        ({"want": ("cls[-1]",)}, "no output 'cls'"),
        ({"want": ("tokens[-1].meen",)}, "meen"),
        ({"encoder": "nowhere.pth"}, r"nowhere\.pth"),
        ({"encoder": {"arhc": "pixels"}}, "unknown key 'arhc' of an encoder; did you mean arch"),
        ({"device": "gpu"}, "'gpu' is no device"),
        ({"precision": "fp64"}, "use auto, fp32, bf16 or fp16"),
        ({"size": 0}, "expected at least 1 x 1"),
    ],
)
def test_what_encode_refuses(changes: dict, message: str) -> None:
    given = {"encoder": {"arch": "pixels"}, "images": np.zeros((2, 8, 8, 3), np.uint8), **changes}
    with pytest.raises(ViRBError, match=message):
        virb.encode(**given)


# run


def test_run_with_a_network_and_a_mapping() -> None:
    results = virb.run({"net": Net(), "px": {"arch": "pixels"}}, {"short": SHORT}, out="mine", devices="cpu:2", progress=False)
    assert (sorted(results.done), results.skipped, results.failed) == (["net/short", "px/short"], (), {})
    table = results.table()
    assert list(zip(table["encoder"], table["label"], strict=True)) == [("net", "short"), ("px", "short")]
    assert table["value"].between(0, 1).all()
    every = results.table(all_configs=True)
    assert len(every) == 4
    assert every["chosen"].sum() == 2
    assert "short" in str(results)
    assert len(virb.load_results("mine")) == 2

    again = virb.run({"net": Net()}, {"short": SHORT}, out="mine", devices="cpu:1", progress=False)
    assert (again.done, again.skipped) == ((), ("net/short",))
    assert list(again.table()["encoder"]) == ["net"]  # of this run alone
    changed = virb.run({"net": Net(9)}, {"short": SHORT}, out="mine", devices="cpu:1", progress=False, seed=1)
    assert changed.done == ("net/short",)


def test_run_with_files_and_with_ids(capsys: pytest.CaptureFixture[str]) -> None:
    Path("e.yaml").write_text("px: {arch: pixels}\n")
    Path("t.yaml").write_text("a: {task: digits, num_epochs: 1, grid: {optimizer: adam, lr: 0.1}}\n")
    results = virb.run("e.yaml", Path("t.yaml"), devices="cpu:1", progress=False)
    assert (results.done, results.out) == (("px/a",), Path("out"))
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError) as failure:  # ids become labels
        virb.run("e.yaml", ["digits", "NYUDepth"], devices="cpu:1")
    assert [problem.key for problem in failure.value.problems] == ["NYUDepth"]


def test_a_glob_is_an_encoder_per_file() -> None:
    small = {"arch": "vit_tiny", "args": {"depth": 1, "patch_size": 8, "img_size": 16}}
    network = virb.load_encoder({**small, "weights": "random"}).network
    for step in (0, 20):
        torch.save(network.state_dict(), f"checkpoint{step:04}.pth")
    results = virb.run(
        {"mine": {**small, "weights": "checkpoint*.pth"}}, {"a": {"task": "digits", "probe": "knn"}}, devices="cpu:1", progress=False
    )
    assert results.done == ("mine@0000/a", "mine@0020/a")


def test_every_mistake_of_run_at_once() -> None:
    with pytest.raises(ConfigError) as failure:
        virb.run(
            {"runs": Net(), "a": {"arch": "pixls"}, "b": {"weights": "gone.pth"}},
            {"x": {"task": "digits", "num_epoch": 3}, "y": {"task": "digitz"}, "z": 3},
            devices="tpu",
            seed=-1,
            precision="half",
            protocol="best",
            cache_budget="lots",
            keep_heads="some",
            force="yes",
        )
    found = {problem.key for problem in failure.value.problems}
    options = {"devices", "seed", "precision", "protocol", "cache_budget", "keep_heads", "force"}
    assert found == {"runs", "a.arch", "b", "x.num_epoch", "y.task", "z", *options} or found == {
        "runs",
        "a.arch",
        "b.weights",
        "x.num_epoch",
        "y.task",
        "z",
        *options,
    }
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("experiments", "tasks", "options", "message"),
    [
        ({}, ["digits"], {}, "there are no encoders to run"),
        ({"a": {"arch": "pixels"}}, [], {}, "there are no tasks to run"),
        ({"a": {"arch": "pixels"}}, ["digits"], {"sed": 3}, "virb.run has no option 'sed'; did you mean seed"),
        ([Net()], ["digits"], {}, "experiments: expected a mapping of names to encoders, or a file, but got list"),
        ("gone.yaml", ["digits"], {}, r"gone\.yaml +does not exist"),
    ],
)
def test_what_run_refuses(experiments: object, tasks: object, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.compile(message)):
        virb.run(experiments, tasks, **options)  # type: ignore[arg-type]
    assert not list(Path().iterdir())


def test_a_failed_job_is_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoilt(Net):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            found = super().forward(images)
            return {key: value / 0 if len(images) == 32 else value for key, value in found.items()}  # real batches alone

    results = virb.run({"bad": Spoilt(), "px": {"arch": "pixels"}}, {"short": SHORT}, devices="cpu:1", progress=False)
    assert results.done == ("px/short",)
    assert "NaN or infinite" in results.failed["bad/short"]
    assert "bad/short failed: " in str(results)
    assert list(results.table()["encoder"]) == ["px"]


def test_the_package_lists_what_it_offers() -> None:
    assert set(virb.__all__) <= set(dir(virb))
    assert all(callable(getattr(virb, name)) for name in virb.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = virb.nothing
