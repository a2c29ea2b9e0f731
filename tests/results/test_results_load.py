"""One tidy table from a store, from ViRB 2021's folders, and from what a crash left."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest

from virb.errors import UserError
from virb.results.load import COLUMNS, load_jobs, load_results
from virb.results.schema import ProtocolValue
from virb.results.store import write_failure


def test_one_row_per_encoder_and_task_by_default(store):
    table = load_results(store)
    assert list(zip(table["encoder"], table["label"], strict=True)) == [
        ("pixels", "digits"),
        ("pixels", "digits_mlp"),
        ("random_vit", "digits"),
        ("random_vit", "digits_mlp"),
    ]
    assert table["chosen"].all()
    assert set(table["metric"]) == {"top1"}
    assert (table["ci_low"] <= table["value"]).all()
    assert (table["value"] <= table["ci_high"]).all()
    row = table.iloc[0]
    assert (row["task"], row["n_params"], row["embed_dim"], row["unit"], row["epoch"], row["n_samples"]) == ("digits", 1234, 64, "%", 3, 60)
    job = json.loads((store / "pixels/digits/job.json").read_text())
    assert row["value"] == job["metrics"][0]["value"]


def test_all_configs_has_one_row_per_config_and_marks_the_chosen(store):
    table = load_results(store, all_configs=True)
    assert not table.duplicated(["encoder", "label", "config"]).any()
    assert len(table) == 12
    assert set(table[table["chosen"]]["config"]) == {"sgd-lr0.1"}
    assert table["value"].notna().tolist() == table["chosen"].tolist()  # the protocol scores no other
    assert table["select_value"].notna().all()
    first = table.query("encoder == 'pixels' and label == 'digits'").set_index("config").loc["sgd-lr0.1"]
    assert (first["settings.lr"], first["settings.scheduler.type"], first["settings.scheduler.step_size"]) == (0.1, "StepLR", 2)
    diverged = table[table["config"] == "sgd-lr1e30"]
    assert diverged["diverged"].all()
    assert diverged["train_loss"].isna().all()


def test_all_metrics(store):
    table = load_results(store, metrics="all")
    assert len(table) == 8
    assert table[table["primary"]]["metric"].unique().tolist() == ["top1"]


def test_the_table_can_be_queried_and_plotted(store):
    best = load_results(store).query("task == 'digits' and chosen").sort_values("value")
    assert best["value"].is_monotonic_increasing
    assert best["value"].to_numpy().dtype == np.float64
    assert best["epoch"].dtype == "Int64"


def test_seeds_are_averaged_and_an_unknown_seed_is_not_glossed_over(tmp_path, make):
    made = make(seeds=(0, 1))
    made.job.surface[0].select_loss, made.job.surface[1].select_loss = 1.0, 2.0
    made.job.surface[0].epoch = 7
    made.job.surface[2].select_loss = None
    made.write(tmp_path)
    table = load_results(tmp_path, all_configs=True).set_index("config")
    assert table.loc["adamw-lr0.001", "select_loss"] == 1.5
    assert pd.isna(table.loc["adamw-lr0.001", "epoch"])
    assert table.loc["adamw-lr0.001", "seeds"] == "0 1"
    assert len(table.groupby("seeds")) == 1
    assert np.isnan(table.loc["sgd-lr0.1", "select_loss"])


def test_all_scored_configs_show_their_value(tmp_path, make):
    made = make(seeds=(0, 1))
    for row, value in zip(made.job.surface[:2], (0.25, 0.5), strict=True):
        row.report_metrics = {"top1": value}
    made.write(tmp_path)
    table = load_results(tmp_path, all_configs=True).set_index("config")
    assert table.loc["adamw-lr0.001", "value"] == 0.375
    assert np.isnan(table.loc["adamw-lr0.001", "ci_low"])


def test_a_changed_protocol_is_not_shown_as_that_protocol(tmp_path, make):
    made = make()
    made.job.protocol.changed = {"lr": 0.3}
    made.write(tmp_path)
    assert load_results(tmp_path)["protocol"].tolist() == ["default, changed: {lr: 0.3}"]


def test_what_a_sweep_varies_has_columns(tmp_path, make):
    sizes = {"a": [224, 224], "b": [192, 256], "c": None}
    for (label, size), views, features in zip(sizes.items(), (1, 4, "fresh"), ("embedding", "cls[-4]", "tokens[-1].mean"), strict=True):
        made = make(label=label)
        made.job.task.features = [features]
        made.job.provenance.precision = "bfloat16"
        made.job.protocol.values["geometry"] = ProtocolValue(value={"size": size}, origin="")
        made.job.protocol.values["views"] = ProtocolValue(value=views, origin="")
        made.write(tmp_path)
    make(label="d").write(tmp_path)
    table = load_results(tmp_path)
    found = table[["features", "geometry", "views", "precision"]].to_numpy().tolist()
    assert found[:3] == [
        ["embedding", "224px", "1", "bfloat16"],
        ["cls[-4]", "192x256px", "4", "bfloat16"],
        ["tokens[-1].mean", "native size", "fresh", "bfloat16"],
    ]
    assert table.loc[3, ["geometry", "views"]].isna().all()  # the card does not say


def test_a_refitted_head_is_marked(tmp_path, make):
    made = make()
    for row in made.job.surface:
        row.refit = row.config == made.job.chosen
    made.write(tmp_path)
    table = load_results(tmp_path, all_configs=True)
    assert table["refit"].tolist() == table["chosen"].tolist()


def test_the_finished_job_stands_when_a_newer_attempt_failed(store, failure):
    before = load_results(store)
    assert before["newer_failed"].isna().all()
    write_failure(store, failure(key="new"))
    after = load_results(store)
    assert after.drop(columns="newer_failed").equals(before.drop(columns="newer_failed"))
    row = after[after["newer_failed"].notna()]
    assert row[["encoder", "label", "newer_failed"]].to_numpy().tolist() == [["pixels", "digits", "depth/0412.tiff is truncated"]]
    assert [(job.key, job.status) for job in load_jobs(store, None)][:2] == [("new", "failed"), ("k1", "done")]


def test_items(tmp_path, make):
    made = make(seeds=(0, 1))
    made.write(tmp_path)
    table = load_results(tmp_path, items=True)
    assert len(table) == 120
    assert set(table["run"]) == {0, 1}
    np.testing.assert_array_equal(table["prediction"], made.samples.prediction.ravel())
    np.testing.assert_array_equal(table["top1"], (table["prediction"] == table["target"]).astype(float))
    assert table.groupby("run")["top1"].mean().mean() == pytest.approx(made.job.primary().value)


def test_virb_2021_folders_are_read(tmp_path):
    def write(folder, text):
        (tmp_path / "SWAV_800" / folder).mkdir(parents=True)
        (tmp_path / "SWAV_800" / folder / "results.json").write_text(text)

    write("CIFAR-100-adam-0.0001", '{"train_loss": 1.5, "train_accuracy": 0.75, "test_loss": 2.0, "test_accuracy": 0.5}')
    write("Imagenet-sgd-0.01-StepLR", '{"train_loss": NaN, "train_accuracy": 0.0, "test_loss": NaN, "test_accuracy": 0.001}')
    write("Imagenetv2", '{"test_loss": 1.0, "test_accuracy": 0.25}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = load_results(tmp_path)
    assert table[["encoder", "label", "config", "value"]].to_numpy().tolist() == [
        ["SWAV_800", "CIFAR-100", "adam-0.0001", 0.5],
        ["SWAV_800", "Imagenet", "sgd-0.01-StepLR", 0.001],
        ["SWAV_800", "Imagenetv2", "", 0.25],
    ]
    assert table["chosen"].isna().all()
    assert table["ci_low"].isna().all()
    assert np.isnan(table.loc[1, "test_loss"])
    assert (table.loc[0, "train_value"], table.loc[0, "protocol"]) == (0.75, "virb2021")


def test_old_and_new_lie_side_by_side(store):
    (store / "SWAV_800" / "Pets-adam-0.0001").mkdir(parents=True)
    (store / "SWAV_800" / "Pets-adam-0.0001" / "results.json").write_text('{"test_loss": 1.0, "test_accuracy": 0.25}')
    assert len(load_results(store)) == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pixels/digits/job.json", "{"),
        ("pixels/digits/job.json", '{"kind": "job", "schema_version": 1}'),
        ("stranger/thing/job.json", '{"name": "a Slurm job"}'),
        ("stranger/thing/results.json", '{"acc": 3}'),
        ("stranger/thing/results.json", '{"test_accuracy": "high"}'),
        ("stranger/thing/results.json", "iter: 5"),
        ("stranger/thing/results.json", "[]"),
    ],
)
def test_broken_and_foreign_files_are_skipped_with_a_warning(store, name, text):
    path = store / name
    expected = 3 if path.exists() else 4
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.warns(UserWarning, match="skipped: ") as caught:
        table = load_results(store)
    assert [str(path) in str(warning.message) for warning in caught] == [True]
    assert len(table) == expected


def test_half_written_files_of_a_killed_process_are_not_seen(store):
    (store / "pixels" / "digits" / ".tmp-0123-job.json").write_text("{")
    (store / "pixels" / "digits" / "job.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_results(store)) == 3


def test_failures_are_jobs_but_no_rows(store, failure):
    write_failure(store, failure("broken", "digits"))
    assert len(load_results(store)) == 4
    assert [job.encoder.name for job in load_jobs(store, "failed")] == ["broken"]
    assert len(load_jobs(store, None)) == 5


def test_an_empty_store_has_all_columns_and_a_missing_one_is_an_error(tmp_path):
    assert list(load_results(tmp_path).columns) == list(COLUMNS)
    assert load_results(tmp_path, items=True).empty
    with pytest.raises(UserError, match="not a folder"):
        load_results(tmp_path / "none")
