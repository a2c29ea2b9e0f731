"""Tables for people."""

import pandas as pd
import pytest

from virb.results.load import load_results
from virb.results.store import write_failure
from virb.results.tables import footnotes, format_value, leaderboard, text_table, write_csv


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((0.931, 0.905, 0.957, "%"), "93.1 ±2.6"),
        ((1.0, 1.0, 1.0, "%"), "100.0 ±0.0"),
        ((0.5, None, None, "%"), "50.0"),
        ((0.5217, 0.51, 0.53, "m"), "0.522 ±0.010"),
        ((12.345, None, None, "px"), "12.3"),
        ((1234.5, None, None, None), "1234"),
        ((0.0, None, None, "m"), "0.00"),
        ((float("nan"), None, None, "%"), "-"),
        ((None, None, None, "%"), "-"),
    ],
)
def test_format_value(arguments, text):
    assert format_value(*arguments) == text


def test_leaderboard_in_the_order_that_is_asked_for(store):
    results = load_results(store)
    table = leaderboard(results, encoders=["random_vit", "missing", "pixels"], labels=["digits_mlp", "digits", "absent"])
    assert list(table.index) == ["random_vit", "missing", "pixels"]
    assert list(table.columns) == [("digits_mlp", "top-1 % ↑"), ("digits", "top-1 % ↑"), ("absent", "")]
    row = results[(results["encoder"] == "pixels") & (results["label"] == "digits")].iloc[0]
    assert table.iloc[2, 1] == f"{100 * row['value']:.1f} ±{50 * (row['ci_high'] - row['ci_low']):.1f}"
    assert set(table.loc["missing"]) == {"-"}
    assert set(table.iloc[:, 2]) == {"-"}


def test_text_table_is_aligned(store):
    lines = text_table(load_results(store))
    assert len(lines) == 4
    assert lines[0].split() == ["digits", "digits_mlp"]
    assert lines[1].split() == ["top-1", "%", "↑"] * 2
    assert [line.split()[0] for line in lines[2:]] == ["pixels", "random_vit"]
    assert len({line.index("±") for line in lines[2:]}) == 1
    assert lines[0].index("digits_mlp") == lines[1].rindex("top-1")


def test_a_metric_that_is_better_when_lower_says_so(store):
    results = load_results(store)
    results["metric"], results["unit"], results["higher_is_better"] = "rmse_of_tomorrow", "m", False
    assert leaderboard(results).columns[0] == ("digits", "rmse_of_tomorrow m ↓")


def test_columns_whose_choices_were_made_on_test_say_so(store):
    results = load_results(store)
    assert footnotes(results) == "choices made on validation"
    results.loc[results["label"] == "digits", "selection"] = "test-best"
    assert [head[1] for head in leaderboard(results).columns] == ["top-1 % ↑, test-best", "top-1 % ↑"]
    assert footnotes(results) == "choices made on validation unless the column says otherwise; test-best: choices made on test"
    results["selection"] = "test-last"
    assert footnotes(results) == "last epoch, choices made on test"
    results.loc[results["encoder"] == "pixels", "selection"] = "test-best"
    assert leaderboard(results).columns[0][1] == "top-1 % ↑, test-best | top-1 % ↑, test-last"
    assert footnotes(results) == "test-last: last epoch, choices made on test; test-best: choices made on test"


def test_a_number_whose_newer_attempt_failed_is_marked(store, failure):
    write_failure(store, failure(key="new"))
    results = load_results(store)
    table = leaderboard(results)
    assert [text.endswith(" (old)") for text in table.to_numpy().ravel()] == [True, False, False, False]
    assert footnotes(results) == "choices made on validation; (old): of earlier settings, the newer attempt failed"


def test_two_metrics_are_never_mixed_in_one_column(store):
    results = load_results(store)
    results.loc[results["encoder"] == "pixels", ["metric", "higher_is_better"]] = ["other", False]
    assert leaderboard(results).columns[0] == ("digits", "other % ↓ | top-1 % ↑")


def test_results_of_virb_2021_can_be_shown(tmp_path):
    folder = tmp_path / "SWAV_800" / "Pets-adam-0.0001"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"test_loss": 1.0, "test_accuracy": 0.25}')
    assert text_table(load_results(tmp_path))[-1].split() == ["SWAV_800", "0.250"]


def test_nothing_to_show(tmp_path):
    assert text_table(load_results(tmp_path)) == []


def test_csv_has_every_config_and_metric_and_is_written_again(store):
    path = write_csv(store)
    table = pd.read_csv(path)
    assert len(table) == 4 * 3 * 2
    assert table.groupby("metric")["chosen"].sum().to_dict() == {"top1": 4, "mean_class_accuracy": 4}
    best = table[table["chosen"] & table["primary"]]
    pd.testing.assert_series_equal(best["value"].reset_index(drop=True), load_results(store)["value"])
    before = path.read_bytes()
    assert write_csv(store).read_bytes() == before
