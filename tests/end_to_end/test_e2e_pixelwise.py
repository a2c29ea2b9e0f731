"""Segmentation, depth and flow on built-in scenes for a ViT, a ResNet and pixels, from the command line: what is written, and that it does
not depend on how many workers share the work."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from e2e_support import Bench, assert_same_results, files_below
from PIL import Image

import virb
from virb.config import load_task_configs
from virb.encoders.load import encoder_names
from virb.results.schema import Job, validate
from virb.tasks.resolve import resolve_task
from virb.tasks.vocabulary import TaskVocabulary

ENCODERS = """
pixels: {arch: pixels}
vit: {arch: vit, weights: random, args: {width: 32, depth: 4, heads: 2, patch_size: 12, img_size: 60}}
resnet: {arch: resnet18, weights: random}
"""
# A patch of 12 goes five times into 64 pixels, and 4 are left.
TASKS = """
defaults: {data: {n_train: 26, n_test: 9}, num_epochs: 2, batch_size: 8}
segmentation: {task: shapes-segmentation, grid: {optimizer: adamw, lr: [0.001, 0.01]}}
multi: {task: shapes-segmentation, probe: dense-multi, training_configs: {a: {optimizer: sgd, lr: 0.1, dropout: 0.1}}, seeds: 2}
depth: {task: shapes-depth, training_configs: {bins: {optimizer: adamw, lr: 0.01}, direct: {optimizer: adamw, lr: 0.01, output: direct}}}
windows: {task: shapes-segmentation, windows: {size: 64, stride: 48, shorter: 96}, training_configs: {a: {optimizer: adamw, lr: 0.01}}}
"""
FLOW = "flow: {task: shapes-flow, data: {n_train: 6, n_test: 3}, num_epochs: 1, batch_size: 3, "
FLOW += "training_configs: {a: {optimizer: adamw, lr: 0.0003, fusion: correlation, radius: 2}}}\n"
PRIMARY = {"segmentation": "miou", "multi": "miou", "windows": "miou", "depth": "rmse", "flow": "epe"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All jobs, on one device."""
    import contextlib
    import io

    from virb.cli import main

    folder = tmp_path_factory.mktemp("pixelwise")
    (folder / "encoders.yaml").write_text(ENCODERS)
    (folder / "tasks.yaml").write_text(TASKS + FLOW)
    files = ["--experiment_list", str(folder / "encoders.yaml"), "--task_configs", str(folder / "tasks.yaml")]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = main(["run", *files, "--out", str(folder / "out"), "--devices", "cpu:1", "--cache_dir", str(folder / "cache")])
    assert code == 0, said.getvalue()
    return folder / "out"


def jobs(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path.parent.parent.name, path.parent.name): json.loads(path.read_text()) for path in sorted(out.glob("*/*/job.json"))}


def test_every_encoder_has_every_number(out: Path) -> None:
    found = jobs(out)
    assert set(found) == {(encoder, label) for encoder in ("pixels", "vit", "resnet") for label in PRIMARY}
    for (encoder, label), job in found.items():
        record = validate(out / encoder / label / "job.json")
        assert isinstance(record, Job)
        assert record.status == "done"
        primary = next(metric for metric in job["metrics"] if metric["primary"])
        assert primary["name"] == PRIMARY[label]
        for metric in job["metrics"]:
            assert math.isfinite(metric["value"])
            assert metric["ci_low"] <= metric["value"] <= metric["ci_high"]
            assert metric["n_samples"] == (3 if label == "flow" else 9)


def test_classes_have_numbers_of_their_own(out: Path) -> None:
    job = jobs(out)["vit", "segmentation"]
    per_class = {metric["name"]: metric["per_class"] for metric in job["metrics"]}
    assert list(per_class["miou"]) == ["background", *list(per_class["miou"])[1:]]
    assert len(per_class["miou"]) == 6
    known = [value for value in per_class["miou"].values() if value is not None]
    miou = next(metric["value"] for metric in job["metrics"] if metric["name"] == "miou")
    assert miou == pytest.approx(np.mean(known))
    assert per_class["pixel_accuracy"] is None
    assert all(metric["per_class"] is None for metric in jobs(out)["vit", "depth"]["metrics"])


def test_what_is_said_of_how_it_was_done(out: Path) -> None:
    found = jobs(out)
    card = found["vit", "windows"]["protocol"]["values"]
    assert card["windows"]["value"] == {"size": [64, 64], "stride": [48, 48], "shorter": 96}
    assert "score_size" not in card
    assert any(note.startswith("training loss at 24 x 24 cells of the input") for note in found["vit", "segmentation"]["notes"])
    assert card["geometry"]["value"]["size"] == [64, 64]


def test_pictures_show_a_handful(out: Path) -> None:
    for encoder, label in jobs(out):
        panel = np.asarray(Image.open(out / encoder / label / "pictures.png").convert("RGB"))
        assert min(panel.shape[:2]) > 200
        assert len(np.unique(panel[::3, ::3].astype(int) @ [65536, 256, 1])) > 50
        name = jobs(out)[encoder, label]["chosen"]
        assert images_of(out / encoder / f"{label}-{name}") == {"predictions": panel.shape}


def images_of(folder: Path) -> dict[str, tuple[int, ...]]:
    import io

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    found = {}
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        found[tag] = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB")).shape
    return found


def test_curves_tell_of_training_and_selection(out: Path) -> None:
    from e2e_support import curves

    found = curves(out / "vit" / "segmentation-lr0.01")
    assert [step for step, _ in found["loss/train"]] == [1, 2]
    assert {"loss/train", "loss/select", "miou/select", "pixel_accuracy/select", "lr"} <= set(found)
    row = next(row for row in jobs(out)["vit", "segmentation"]["surface"] if row["config"] == "lr0.01")
    assert dict(found["miou/select"])[row["epoch"]] == pytest.approx(row["select_metrics"]["miou"], rel=1e-6)


def test_a_second_run_does_nothing(out: Path, bench: Bench) -> None:
    before = {name: (out / name).stat().st_mtime_ns for name in files_below(out) if not name.startswith("runs/") and name != "results.csv"}
    bench.write(ENCODERS, TASKS + FLOW)
    answer = bench.run_well(out=out)
    assert "15 jobs are done" in answer.text
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def test_one_worker_and_two_write_the_same_files(bench: Bench) -> None:
    bench.write(ENCODERS, TASKS)
    for workers in (1, 2):
        bench.run_well("--only", "vit", out=bench.folder / f"out{workers}", devices=f"cpu:{workers}")
    assert (bench.folder / "out2/vit/windows/pictures.png").is_file()
    assert_same_results(bench.folder / "out1", bench.folder / "out2")


def test_results_load_as_tables(out: Path) -> None:
    table = virb.load_results(out)
    assert len(table) >= 15
    assert set(PRIMARY) <= set(table["label"])


def test_the_quick_file_is_what_the_issue_promises() -> None:
    path = Path(__file__).parents[2] / "configs/task_configs/quick_pixelwise.yaml"
    tasks = [resolve_task(config)[0] for config in load_task_configs(path, TaskVocabulary(encoder_names())).checked()]
    assert {task.task.id for task in tasks} == {"shapes-segmentation", "shapes-depth", "shapes-flow"}
    assert {"dense-linear", "siamese"} <= {task.probe for task in tasks}
