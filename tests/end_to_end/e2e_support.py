"""What the end-to-end tests share: a folder of tiny images, a bench that runs ViRB on it in this process, and comparisons of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from virb.cli import main
from virb.results.schema import VOLATILE

PIXELS = "pixels: {arch: pixels, args: {side: 4}, input: {size: 16}}\n"
TASK = (
    "colours: {{task: folder, data: {{root: '{root}'}}, num_epochs: 5, batch_size: 16, "
    "training_configs: {{slow: {{optimizer: adamw, lr: 0.001}}, fast: {{optimizer: adamw, lr: 0.1}}}}{more}}}\n"
)
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


def save_images(
    root: Path, counts: Mapping[str, int], classes: tuple[str, ...] = tuple(COLOURS), size: int = 16, noise: float = 80.0, seed: int = 0
) -> Path:
    """``root/<split>/<class>/000.png``: a colour in so much noise that classes overlap. ``counts``: images per split and class."""
    random = np.random.default_rng(seed)
    for split, count in counts.items():
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                tint = np.array(COLOURS[name]) + random.normal(0, noise, 3)
                pixels = tint + random.normal(0, 40, (size, size, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    return root


@dataclass(frozen=True)
class Answer:
    """What a call of the command line gave."""

    code: int
    text: str
    errors: str

    @property
    def last_lines(self) -> list[str]:
        return self.text.rstrip("\n").splitlines()


class Bench:
    """Runs ``virb run`` in this process on files in a temporary folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.out = folder / "out"
        self.images = folder / "images"

    def write(self, encoders: str = PIXELS, tasks: str = "") -> None:
        (self.folder / "encoders.yaml").write_text(encoders)
        (self.folder / "tasks.yaml").write_text(tasks or self.task())

    def task(self, more: str = "", root: Path | None = None) -> str:
        return TASK.format(root=root or self.images, more=f", {more}" if more else "")

    def arguments(self, *flags: str, out: Path | None = None, devices: str = "cpu:1", command: str = "run") -> list[str]:
        files = ["--experiment_list", str(self.folder / "encoders.yaml"), "--task_configs", str(self.folder / "tasks.yaml")]
        cache = [] if {"--cache_dir", "--no_cache"} & set(flags) else ["--cache_dir", str(self.folder / "cache")]
        return [command, *files, "--out", str(out or self.out), "--devices", devices, "--data_root", str(self.folder), *cache, *flags]

    def run(self, *flags: str, out: Path | None = None, devices: str = "cpu:1", command: str = "run") -> Answer:
        self._capsys.readouterr()
        code = main(self.arguments(*flags, out=out, devices=devices, command=command))
        captured = self._capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    def run_well(self, *flags: str, out: Path | None = None, devices: str = "cpu:1") -> Answer:
        answer = self.run(*flags, out=out, devices=devices)
        assert answer.code == 0, answer.text + answer.errors
        return answer

    def job(self, encoder: str = "pixels", label: str = "colours", out: Path | None = None) -> dict[str, Any]:
        return json.loads(((out or self.out) / encoder / label / "job.json").read_text())


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def result_files(out: Path) -> list[str]:
    """All files of a results store but those that tell of a run, with the host and time in the names of TensorBoard files cut off."""
    names = [name for name in files_below(out) if name.split("/")[0] not in ("runs", ".virb_cache")]
    return sorted(name.partition("events.out.tfevents")[0] + "events" if "events.out" in name else name for name in names)


def stable(record: dict[str, Any]) -> dict[str, Any]:
    """A JSON record without what differs between runs that found the same."""
    return {key: value for key, value in record.items() if key not in VOLATILE}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same_results(one: Path, other: Path) -> None:
    """Every file of two stores says the same: JSON but for volatile fields; arrays, heads, curves and tables value by value."""
    import torch

    assert result_files(one) == result_files(other)
    for name in result_files(one):
        a, b = one / name, other / name
        if name.endswith(".json"):
            assert stable(json.loads(a.read_text())) == stable(json.loads(b.read_text())), name
        elif name.endswith(".npz"):
            with np.load(a) as left, np.load(b) as right:
                assert left.files == right.files
                for key in left.files:
                    np.testing.assert_array_equal(left[key], right[key], err_msg=f"{name} {key}", strict=True)
        elif name.endswith(".pt"):
            left, right = (torch.load(path, weights_only=True) for path in (a, b))
            assert list(left) == list(right)
            assert all(torch.equal(left[key], right[key]) for key in left), name
        elif name.endswith(".png"):
            assert a.read_bytes() == b.read_bytes(), name
        elif name.endswith("/events"):
            assert curves(a.parent) == curves(b.parent), name
        elif name == "results.csv":
            assert table_text(a) == table_text(b)
        else:
            raise AssertionError(f"no comparison for {name}")


def table_text(path: Path) -> str:
    import pandas as pd

    return pd.read_csv(path).drop(columns="finished").to_csv()
