"""A run on the command line, from YAML to every file it leaves, and what a second run does."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from e2e_support import PIXELS, Answer, Bench, curves, files_below, save_images

import virb
from virb.data.images import FileImages
from virb.errors import ViRBError
from virb.metrics.base import find_metric
from virb.plan.jobs import RunSettings
from virb.probes.base import Context, Outcome
from virb.probes.linear import GradientProbe
from virb.results.samples import read_samples
from virb.results.schema import json_schema, validate
from virb.results.statistics import estimate

EPOCHS = 5
TWO = PIXELS + "finer: {arch: pixels, args: {side: 8}, input: {size: 16}}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """One finished run of two encoders on one task with two training configs, only read by the tests."""
    folder = tmp_path_factory.mktemp("finished")
    bench = Bench(folder, _NoCapture())  # type: ignore[arg-type]
    save_images(bench.images, {"train": 10, "test": 4})
    bench.write(TWO)
    bench.run_well()
    return bench


class _NoCapture:
    class _Nothing:
        out = err = ""

    def readouterr(self) -> _Nothing:
        return self._Nothing()


def job_mtimes(out: Path) -> dict[str, int]:
    return {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("job.json")}


def test_a_finished_run_leaves_exactly_the_documented_files(finished: Bench) -> None:
    names = [name.partition("events.out.tfevents")[0] + "events" if "events.out" in name else name for name in files_below(finished.out)]
    (run,) = [name for name in names if name.startswith("runs/")]
    expected = {run, "results.csv"}
    for encoder in ("pixels", "finer"):
        expected |= {f"{encoder}/colours/{name}" for name in ("job.json", "samples.npz")}
        chosen = finished.job(encoder)["chosen"]
        for config in ("slow", "fast"):
            expected |= {f"{encoder}/colours-{config}/{name}" for name in ("results.json", "events")}
        expected.add(f"{encoder}/colours-{chosen}/model_head.pt")
    assert sorted(names) == sorted(expected)
    assert not [path for path in finished.out.iterdir() if path.is_dir() and path.name not in ("pixels", "finer", "runs")]


def test_every_json_validates_against_its_published_schema(finished: Bench) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    kinds = []
    for path in finished.out.rglob("*.json"):
        record = json.loads(path.read_text(), parse_constant=refuse)
        jsonschema.Draft202012Validator(json_schema(record["kind"])).validate(record)
        assert validate(path).kind == record["kind"]
        kinds.append(record["kind"])
    assert {kind: kinds.count(kind) for kind in kinds} == {"job": 2, "training_config": 4, "run": 1}


def test_only_the_chosen_config_is_scored_on_the_test_split(finished: Bench) -> None:
    job = finished.job()
    rows = {row["config"]: row for row in job["surface"]}
    for config in ("slow", "fast"):
        record = json.loads((finished.out / f"pixels/colours-{config}/results.json").read_text())
        chosen = config == job["chosen"]
        assert record["chosen"] is chosen
        assert (record["test_loss"] is not None) is chosen
        assert (record["test_accuracy"] is not None) is chosen
        assert isinstance(record["train_loss"], float)
        assert 0 <= record["train_accuracy"] <= 1
        assert record["settings"]["lr"] == {"slow": 0.001, "fast": 0.1}[config]
        assert (record["select_loss"], record["epoch"]) == (rows[config]["select_loss"], rows[config]["epoch"])
    assert rows["fast"]["select_metrics"]["top1"] >= rows["slow"]["select_metrics"]["top1"]
    assert job["chosen"] == "fast"


def test_the_statistics_of_the_samples_add_up_to_the_reported_numbers(finished: Bench) -> None:
    job = finished.job()
    samples = read_samples(finished.out / "pixels/colours/samples.npz")
    assert len(samples) == 12
    assert [m["name"] for m in job["metrics"]] == ["top1", "top5", "mean_class_accuracy"]
    assert [m["name"] for m in job["metrics"] if m["primary"]] == ["top1"]
    for metric in job["metrics"]:
        found = estimate(find_metric(metric["name"]), list(samples.statistics[metric["name"]]), samples.unit_id)
        assert (found.value, found.ci_low, found.ci_high) == (metric["value"], metric["ci_low"], metric["ci_high"])
    assert samples.target is not None
    assert samples.prediction is not None
    hits = samples.prediction[0] == samples.target
    assert hits.mean() == job["metrics"][0]["value"]
    np.testing.assert_array_equal(samples.statistics["top1"][0].values, np.stack([hits, np.ones(12)], 1))
    assert [name.split("/")[1] for name in samples.sample_id] == [("blue", "green", "red")[t] for t in samples.target]


def test_curves_have_losses_metrics_and_learning_rate_of_each_config(finished: Bench) -> None:
    for config, lr in (("slow", 0.001), ("fast", 0.1)):
        found = curves(finished.out / f"pixels/colours-{config}")
        assert {"loss/train", "top1/train", "loss/select", "top1/select", "mean_class_accuracy/select", "lr"} <= set(found)
        assert all([step for step, _ in values] == list(range(1, EPOCHS + 1)) for values in found.values())
        assert [value for _, value in found["lr"]] == pytest.approx([lr] * EPOCHS)
        record = json.loads((finished.out / f"pixels/colours-{config}/results.json").read_text())
        assert dict(found["loss/select"])[record["epoch"]] == pytest.approx(record["select_loss"])
        assert dict(found["loss/train"])[record["epoch"]] == pytest.approx(record["train_loss"])


def test_the_table_and_load_results_say_the_same(finished: Bench) -> None:
    table = virb.load_results(finished.out, all_configs=True)
    assert len(table) == 4
    assert not table.duplicated(["encoder", "label", "config"]).any()
    assert table["chosen"].sum() == 2
    scored = table[table["chosen"].astype(bool)]
    assert scored["value"].notna().all()
    assert table[~table["chosen"].astype(bool)]["value"].isna().all()
    assert dict(zip(scored["encoder"], scored["value"], strict=True)) == {
        name: finished.job(name)["metrics"][0]["value"] for name in ("pixels", "finer")
    }
    with open(finished.out / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3  # metrics
    in_file = {(row["encoder"], row["config"]): row["value"] for row in rows if row["metric"] == "top1"}
    for row in table.itertuples():
        value = in_file[row.encoder, row.config]
        assert (value == "") == (row.value != row.value)
        assert value == "" or float(value) == row.value


def test_the_saved_head_scores_the_reported_accuracy_by_hand(finished: Bench) -> None:
    """Nothing of the run is used but the head: images are encoded by the Python API, the head is a matrix product."""
    classes = ("blue", "green", "red")
    paths = [f"test/{name}/{i:03}.png" for name in classes for i in range(4)]
    images = FileImages("test", finished.images, paths)
    encoder = virb.load_encoder({"arch": "pixels", "args": {"side": 4}, "input": {"size": 16}})
    features = virb.encode(encoder, images)["embedding"]
    head = torch.load(finished.out / "pixels/colours-fast/model_head.pt", weights_only=True)
    assert {name: tuple(t.shape) for name, t in head.items()} == {"head.weight": (3, 48), "head.bias": (3,)}
    scores = features.half().float() @ head["head.weight"].T + head["head.bias"]
    truth = torch.arange(3).repeat_interleave(4)
    job = finished.job()
    assert (scores.argmax(1) == truth).float().mean().item() == pytest.approx(job["metrics"][0]["value"], abs=1e-7)
    loss = torch.nn.functional.cross_entropy(scores, truth).item()
    assert loss == pytest.approx(json.loads((finished.out / "pixels/colours-fast/results.json").read_text())["test_loss"], abs=1e-5)
    assert 0.4 < job["metrics"][0]["value"] < 1  # hard enough for a wrong pipeline to show


def test_what_a_run_says_of_itself(finished: Bench) -> None:
    (path,) = (finished.out / "runs").glob("*.json")
    record = json.loads(path.read_text())
    assert record["exit_code"] == 0
    assert record["done"] == ["pixels/colours", "finer/colours"]
    assert record["skipped"] == []
    assert record["failed"] == {}
    assert record["plan"]["decoded_images"] == record["plan"]["images_to_decode"] == 42
    assert sorted(Path(name).name for name in record["files"]) == ["encoders.yaml", "tasks.yaml"]
    assert any("colours" in text for text in record["files"].values())
    job = finished.job()
    assert job["protocol"]["name"] == "default"
    assert job["protocol"]["values"]["num_epochs"]["value"] == EPOCHS
    assert job["protocol"]["values"]["num_epochs"]["origin"].endswith("tasks.yaml:1")
    assert job["task"]["roles"]["report"] == {"split": "test", "n_samples": 12, "n_units": 12, "images": "test"}
    assert job["provenance"]["seeds"] == [0]
    assert job["task"]["data"] == {"root": str(finished.images)}
    assert set(record["options"]) == {item.name for item in fields(RunSettings)} - {"command"}
    assert record["options"]["devices"] == ["cpu"]
    assert (record["options"]["no_cache"], record["options"]["num_workers"], record["options"]["seed"]) == (False, None, 0)
    assert record["options"]["cache_dir"] == str(finished.folder / "cache")
    assert record["plan"]["geometries"] == ["16px"]
    assert job["provenance"]["finished"] >= job["provenance"]["started"]
    assert {timing["stage"] for timing in job["timings"]} >= {"read features", "probe", "metrics"}


def test_a_second_run_does_nothing_and_says_so(bench: Bench) -> None:
    bench.write()
    first = bench.run_well()
    assert "results.csv" in first.text
    before = {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()}
    again = bench.run_well()
    assert "done" in again.text
    assert "--force" in again.text
    assert {path: path.stat().st_mtime_ns for path in bench.out.rglob("*") if path.is_file()} == before


def test_a_changed_config_redoes_that_job_alone(bench: Bench) -> None:
    second = bench.task("seeds: 1").replace("colours:", "again:")
    bench.write(tasks=bench.task() + second)
    bench.run_well()
    before = job_mtimes(bench.out)
    bench.write(tasks=bench.task() + second.replace("fast: {optimizer: adamw, lr: 0.1}", "faster: {optimizer: adamw, lr: 0.3}"))
    answer = bench.run_well()
    after = job_mtimes(bench.out)
    assert [name for name in before if before[name] != after[name]] == ["pixels/again/job.json"]
    assert {row["config"] for row in bench.job(label="again")["surface"]} == {"slow", "faster"}
    assert not (bench.out / "pixels/again-fast").exists()  # what no longer exists does not linger
    assert "1 job already" in answer.text
    record = json.loads(max((bench.out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime).read_text())
    assert record["skipped"] == ["pixels/colours"]
    assert record["plan"]["decoded_images"] == 0  # its features were cached


def test_a_changed_config_that_fails_loses_nothing_of_the_finished_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write()
    bench.run_well()
    before = {path: path.read_bytes() for path in (bench.out / "pixels").rglob("*") if path.is_file()}
    bench.write(tasks=bench.task("on_bad_image: skip"))
    with monkeypatch.context() as patch:
        patch.setattr(GradientProbe, "from_features", _fail_after_a_curve)
        answer = bench.run()
    assert answer.code == 1
    assert "(old)" in answer.text
    assert "the newer attempt failed" in answer.text
    assert {path: path.read_bytes() for path in before} == before  # results, head, samples and curves
    failure = json.loads((bench.out / "pixels/colours/failed.json").read_text())
    assert (failure["status"], failure["error"]["message"]) == ("failed", "no luck")
    assert virb.load_results(bench.out)["newer_failed"].tolist() == ["no luck"]
    again = bench.run_well()  # it is not done, so it runs again
    assert "(old)" not in again.text
    assert not (bench.out / "pixels/colours/failed.json").exists()
    assert bench.job()["key"] == failure["key"]
    assert virb.load_results(bench.out)["newer_failed"].isna().all()
    assert len(list(bench.out.glob("pixels/colours-fast/events*"))) == 1  # the new curves, not both
    assert set(before) & set(bench.out.glob("pixels/*/events*")) == set()


def _fail_after_a_curve(self: GradientProbe, roles: object, settings: object, context: Context) -> Outcome:
    context.scalars("fast", "loss/train", 1.0, 1)
    raise ViRBError("no luck")


def test_curves_of_a_running_job_lie_in_its_own_folder_below_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = GradientProbe.from_features, []

    def look(self: GradientProbe, roles: object, settings: object, context: Context) -> Outcome:
        outcome = real(self, roles, settings, context)  # type: ignore[arg-type]
        seen.extend(path.parent.relative_to(bench.out).as_posix() for path in bench.out.rglob("events.out*"))
        return outcome

    monkeypatch.setattr(GradientProbe, "from_features", look)
    bench.write()
    bench.run_well()
    assert sorted(seen) == [".jobs/pixels/colours/curves/fast", ".jobs/pixels/colours/curves/slow"]


def test_the_defaults_of_a_file_are_in_the_text_of_its_jobs(bench: Bench) -> None:
    task = bench.task()
    bench.write(tasks=f"# mine\ndefaults:\n  seeds: [3]\n\nother: {{task: digits}}\n{task}")
    bench.run_well("--tasks", "colours")
    assert bench.job()["provenance"]["config_text"] == f"defaults:\n  seeds: [3]\n{task.rstrip()}"
    bench.write(tasks=f"{task}defaults: {{seeds: [4]}}\n")
    bench.run_well()
    assert bench.job()["provenance"]["config_text"] == f"{task}defaults: {{seeds: [4]}}"


def test_heads_that_a_finished_job_did_not_keep_are_mentioned(bench: Bench) -> None:
    bench.write(tasks=bench.task() + bench.task("seeds: [1]").replace("colours:", "again:"))
    bench.run_well("--tasks", "colours")
    assert "heads of 1 finished job were not kept; --force trains them" in bench.run_well("--keep_heads", "all").text  # beside a job to do
    assert bench.run_well("--keep_heads", "all").text.splitlines()[-1] == "heads of 1 finished job were not kept; --force trains them"
    assert "heads of" not in bench.run_well().text
    bench.run_well("--keep_heads", "none", "--force", "--tasks", "again")
    assert "heads of 2 finished jobs were not kept" in bench.run_well("--keep_heads", "all").text
    bench.run_well("--keep_heads", "all", "--force")
    assert "heads of" not in bench.run_well("--keep_heads", "all").text


@pytest.mark.parametrize("to_do", [True, False])
def test_the_scratch_folder_of_a_killed_run_goes(bench: Bench, to_do: bool) -> None:
    bench.write()
    if not to_do:
        bench.run_well()
    (bench.out / ".scratch/ab/slices").mkdir(parents=True)
    bench.run_well()
    assert not (bench.out / ".scratch").exists()


def test_columns_name_their_selection_and_the_footer_holds_for_all(bench: Bench) -> None:
    bench.write(tasks=bench.task() + bench.task("selection: test-best").replace("colours:", "best:"))
    lines = bench.run_well().text.splitlines()
    assert "choices made on validation unless the column says otherwise; test-best: choices made on test" in lines[-1]
    assert lines[-3].rstrip().endswith("top-1 % ↑, test-best")
    assert lines[-3].count("test-") == 1


def test_force_runs_again_and_finds_the_same(bench: Bench) -> None:
    bench.write()
    bench.run_well()
    before, first = job_mtimes(bench.out), bench.job()
    bench.run_well("--force")
    assert job_mtimes(bench.out) != before
    second = bench.job()
    assert (second["metrics"], second["surface"]) == (first["metrics"], first["surface"])


@pytest.mark.parametrize("keep", ["all", "none"])
def test_keep_heads(bench: Bench, keep: str) -> None:
    bench.write()
    bench.run_well("--keep_heads", keep)
    heads = [path.parent.name for path in bench.out.rglob("model_head.pt")]
    assert sorted(heads) == (["colours-fast", "colours-slow"] if keep == "all" else [])


def test_many_configs_share_one_curve_folder(bench: Bench) -> None:
    configs = "{" + ", ".join(f"c{i}: {{optimizer: sgd, lr: 0.{i + 1:02}}}" for i in range(17)) + "}"
    task = f"many: {{task: folder, data: {{root: '{bench.images}'}}, num_epochs: 2, batch_size: 16, training_configs: {configs}}}\n"
    bench.write(tasks=task)
    bench.run_well()
    found = curves(bench.out / "pixels/many")
    assert {f"c{i}/lr" for i in range(17)} <= set(found)
    assert not list(bench.out.glob("pixels/many-*/events*"))


def test_a_table_lost_to_a_crash_is_written_when_nothing_is_left_to_do(bench: Bench) -> None:
    bench.write()
    bench.run_well()
    table = (bench.out / "results.csv").read_text()
    (bench.out / "results.csv").unlink()
    (bench.out / ".jobs/pixels/colours").mkdir(parents=True)
    bench.run_well()
    assert (bench.out / "results.csv").read_text() == table
    assert not (bench.out / ".jobs").exists()
    (bench.out / "results.csv").unlink()
    answer = virb.run(bench.folder / "encoders.yaml", bench.folder / "tasks.yaml", bench.out, devices="cpu:1", progress=False)
    assert (answer.done, answer.skipped) == ((), ("pixels/colours",))
    assert (bench.out / "results.csv").read_text() == table


def test_what_killed_runs_left_half_written_goes(bench: Bench) -> None:
    bench.write()
    bench.run_well()
    halves = [bench.out / place / ".tmp-0123456789ab-x.json" for place in ("runs", "pixels/colours", "pixels/colours-fast")]
    for path in halves:
        path.write_text('{"kind": "jo')
    assert len(virb.load_results(bench.out)) == 1
    bench.run_well("--force")
    assert not [path for path in halves if path.exists()]


def test_digits_with_pixels(bench: Bench) -> None:
    """The quickstart's first row, on real data: a linear head on raw pixels is known to reach the nineties."""
    grid = "grid: {optimizer: [adamw], lr: [0.01, 0.1]}"
    bench.write("pixels: {arch: pixels}\n", f"digits: {{task: digits, num_epochs: 30, batch_size: 128, {grid}}}\n")
    answer: Answer = bench.run_well()
    job = bench.job(label="digits")
    assert 0.9 < job["metrics"][0]["value"] < 1
    assert job["metrics"][0]["ci_low"] < job["metrics"][0]["value"] < job["metrics"][0]["ci_high"]
    assert {row["config"] for row in job["surface"]} == {"lr0.01", "lr0.1"}
    assert f"{100 * job['metrics'][0]['value']:.1f} ±" in answer.text
