"""What is written where, in which order, and what a crash, a rerun or a changed config leaves."""

import json

import numpy as np
import pytest
import torch

import virb.results.store as store_module
from virb.errors import UserError, ViRBError
from virb.results.samples import SampleArrays, write_samples
from virb.results.schema import RunRecord
from virb.results.store import (
    config_folder,
    conflicts,
    finished,
    job_files,
    missing_heads,
    read_failure,
    read_job,
    read_job_samples,
    remove_events,
    remove_job,
    write_failure,
    write_run,
)


def files(out):
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


EXPECTED = {
    "pixels/digits/job.json",
    "pixels/digits/samples.npz",
    "pixels/digits-adamw-lr0.001/results.json",
    "pixels/digits-sgd-lr0.1/results.json",
    "pixels/digits-sgd-lr0.1/model_head.pt",
    "pixels/digits-sgd-lr1e30/results.json",
}


def test_layout_is_that_of_virb_2021(tmp_path, make):
    path = make().write(tmp_path)
    assert path == tmp_path / "pixels" / "digits" / "job.json"
    assert files(tmp_path) == EXPECTED
    chosen = json.loads((tmp_path / "pixels/digits-sgd-lr0.1/results.json").read_text())
    other = json.loads((tmp_path / "pixels/digits-adamw-lr0.001/results.json").read_text())
    assert chosen["chosen"]
    assert chosen["test_accuracy"] == read_job(tmp_path, "pixels", "digits").primary().value
    assert (other["chosen"], other["test_loss"], other["test_accuracy"], other["train_loss"]) == (False, None, None, 0.5)


@pytest.mark.parametrize(("keep", "n_heads"), [("all", 3), ("chosen", 1), ("none", 0)])
def test_heads_that_are_kept(tmp_path, make, keep, n_heads):
    make().write(tmp_path, keep_heads="all")
    make().write(tmp_path, keep_heads=keep)  # what is not wanted any more goes
    heads = list(tmp_path.rglob("model_head.pt"))
    assert len(heads) == n_heads
    for path in heads:
        assert set(torch.load(path, weights_only=True)) == {"head.weight", "head.bias"}


def test_a_head_that_is_a_slice_of_a_stack_does_not_drag_the_stack_along(tmp_path, make):
    made = make()
    made.heads["sgd-lr0.1"] = {"head.weight": torch.zeros(100, 256, 64)[3].requires_grad_()}
    made.write(tmp_path)
    assert (tmp_path / "pixels/digits-sgd-lr0.1/model_head.pt").stat().st_size < 100_000


def test_round_trip_of_the_job_and_its_index_lists(tmp_path, make):
    made = make(seeds=(0, 1))
    made.write(tmp_path)
    job = read_job(tmp_path, "pixels", "digits")
    assert job.model_copy(update={"index_lists": {}}) == made.job
    assert job.index_lists["holdout"].indices == list(range(20))
    assert (job.index_lists["long"].count, job.index_lists["long"].indices) == (1000, None)
    samples = read_job_samples(tmp_path, "pixels", "digits")
    assert list(samples.index_lists) == ["long"]
    np.testing.assert_array_equal(samples.index_lists["long"], np.arange(1000))
    for name in ("sample_id", "unit_id", "target", "prediction"):
        np.testing.assert_array_equal(getattr(samples, name), getattr(made.samples, name))
    for name, runs in made.samples.statistics.items():
        assert len(samples.statistics[name]) == 2
        for ours, theirs in zip(samples.statistics[name], runs, strict=True):
            np.testing.assert_array_equal(ours.total(), theirs.total())


def test_the_hash_of_an_index_list_is_that_of_its_numbers(tmp_path, make):
    made = make()
    made.index_lists = {"a": [1, 2, 3], "b": np.array([1, 2, 3], dtype=np.int32), "c": [1, 2, 4]}
    made.write(tmp_path)
    lists = read_job(tmp_path, "pixels", "digits").index_lists
    assert lists["a"] == lists["b"]
    assert lists["a"].sha256 != lists["c"].sha256


def test_two_writes_give_the_same_bytes(tmp_path, make, monkeypatch):
    make().write(tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    make().write(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_rewriting_removes_stale_configs_and_nothing_else(tmp_path, make):
    make().write(tmp_path)
    make(label="digits-more").write(tmp_path)  # a neighbour whose folders begin alike
    make(encoder="other").write(tmp_path)
    mine = config_folder(tmp_path, "pixels", "digits", "adamw-lr0.001")
    (mine / "events.out.tfevents.1").touch()
    (mine / "notes.txt").write_text("the user's own")
    neighbours = {name for name in files(tmp_path) if "digits-more" in name or name.startswith("other")}
    make(key="k2", configs={"sgd-lr0.1": {"optimizer": "sgd", "lr": 0.1}}).write(tmp_path)
    mine_left = {"pixels/digits/job.json", "pixels/digits/samples.npz", "pixels/digits-adamw-lr0.001/notes.txt"}
    kept = {"pixels/digits-sgd-lr0.1/results.json", "pixels/digits-sgd-lr0.1/model_head.pt"}
    assert files(tmp_path) == neighbours | mine_left | kept


def test_finished_asks_for_this_very_job(tmp_path, make, failure):
    assert not finished(tmp_path, "pixels", "digits", "k1")
    path = make().write(tmp_path)
    assert finished(tmp_path, "pixels", "digits", "k1")
    assert not finished(tmp_path, "pixels", "digits", "k2")
    assert not finished(tmp_path, "pixels", "other", "k1")
    path.write_text(path.read_text()[:-200])
    assert not finished(tmp_path, "pixels", "digits", "k1")
    assert write_failure(tmp_path, failure())
    assert not finished(tmp_path, "pixels", "digits", "k1")


@pytest.mark.parametrize("crash_at", range(5))
def test_job_json_is_there_only_when_everything_is(tmp_path, make, monkeypatch, crash_at):
    """Dies at each write in turn, over an earlier job with another key: neither key may count as finished."""
    make(key="old").write(tmp_path)
    calls = iter(range(100))

    class Killed(BaseException):
        pass

    def dying(write):
        def wrapped(path, *arguments):
            if next(calls) == crash_at:
                raise Killed
            return write(path, *arguments)

        return wrapped

    for name in ("write_json", "write_atomic", "write_samples"):
        monkeypatch.setattr(store_module, name, dying(getattr(store_module, name)))
    with pytest.raises(Killed):
        make(key="new").write(tmp_path)
    monkeypatch.undo()
    assert not finished(tmp_path, "pixels", "digits", "new")
    assert not finished(tmp_path, "pixels", "digits", "old")
    make(key="new").write(tmp_path)
    assert finished(tmp_path, "pixels", "digits", "new")
    assert files(tmp_path) == EXPECTED


def test_failure_lies_beside_an_outdated_job_until_a_success(tmp_path, make, failure):
    make(key="old").write(tmp_path)
    (tmp_path / "pixels/digits-sgd-lr0.1/events.out.tfevents.1").touch()
    before = contents(tmp_path)
    assert write_failure(tmp_path, failure(key="new"))
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) == set(before) | {"pixels/digits/failed.json"}
    assert finished(tmp_path, "pixels", "digits", "old")
    assert not finished(tmp_path, "pixels", "digits", "new")
    job = read_failure(tmp_path, "pixels", "digits")
    assert (job.status, job.key, job.error.message) == ("failed", "new", "depth/0412.tiff is truncated")
    make(key="new").write(tmp_path)
    assert files(tmp_path) == EXPECTED
    assert read_failure(tmp_path, "pixels", "digits") is None


def test_curves_move_in_with_the_results_and_take_the_place_of_old_ones(tmp_path, make):
    out, curves = tmp_path / "out", tmp_path / "curves"
    make().write(out)
    for place in ("digits", "digits-sgd-lr0.1", "digits-adamw-lr0.001"):
        (out / "pixels" / place / "events.out.tfevents.old").touch()
    (curves / "sgd-lr0.1").mkdir(parents=True)
    (curves / "sgd-lr0.1" / "events.out.tfevents.new").write_text("a curve")
    (curves / "events.out.tfevents.all").write_text("curves")
    make().write(out, curves=curves)
    moved = {"pixels/digits-sgd-lr0.1/events.out.tfevents.new", "pixels/digits/events.out.tfevents.all"}
    assert files(out) == EXPECTED | moved
    assert files(curves) == set()


def test_heads_that_were_not_kept(tmp_path, make):
    made = make()
    for keep, missing in (("all", []), ("chosen", ["adamw-lr0.001"]), ("none", ["adamw-lr0.001", "sgd-lr0.1"])):
        made.write(tmp_path, keep_heads=keep)
        assert missing_heads(tmp_path, read_job(tmp_path, "pixels", "digits")) == missing  # what diverged has none


def test_failure_of_a_forced_rerun_does_not_lose_the_finished_job(tmp_path, make, failure):
    make().write(tmp_path)
    before = contents(tmp_path)
    assert not write_failure(tmp_path, failure())
    assert contents(tmp_path) == before


def test_labels_that_share_a_folder_are_refused(tmp_path, make):
    make(label="a", configs={"b": {}}, chosen="b").write(tmp_path)
    assert len(conflicts(tmp_path, "pixels", "a-b", ["c"])) == 1
    with pytest.raises(ViRBError, match="training config b of label a: rename"):
        make(label="a-b").write(tmp_path)
    make(label="x-y").write(tmp_path)
    with pytest.raises(ViRBError, match="holds the job of label x-y"):
        make(label="x", configs={"y": {}}, chosen="y").write(tmp_path)
    make(label="p", configs={"q-r": {}}, chosen="q-r").write(tmp_path)
    with pytest.raises(ViRBError, match="training config q-r of label p"):
        make(label="p-q", configs={"r": {}}, chosen="r").write(tmp_path)
    assert conflicts(tmp_path, "pixels", "a", ["b"]) == []


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a b", "é", "a\n"])
def test_names_that_are_no_folder_are_refused(tmp_path, make, name):
    with pytest.raises(UserError, match="cannot name a folder"):
        make(label=name).write(tmp_path)
    assert files(tmp_path) == set()


def test_an_encoder_cannot_be_named_runs(tmp_path, make):
    with pytest.raises(UserError, match="runs"):
        make(encoder="runs").write(tmp_path)


def test_results_of_another_job_are_refused(tmp_path, make, failure):
    made = make()
    made.configs[0] = make(key="k2").configs[0]
    with pytest.raises(ValueError, match="another job"):
        made.write(tmp_path)
    with pytest.raises(ValueError, match="failed job"):
        write_failure(tmp_path, make().job)
    assert files(tmp_path) == set()


def test_read_job_of_nothing_and_of_something_else(tmp_path, make):
    assert read_job(tmp_path, "pixels", "digits") is None
    path = make().write(tmp_path)
    path.write_bytes((tmp_path / "pixels/digits-sgd-lr0.1/results.json").read_bytes())
    with pytest.raises(ViRBError, match="not a job"):
        read_job(tmp_path, "pixels", "digits")


def test_remove_job_and_events(tmp_path, make):
    make().write(tmp_path)
    folder = config_folder(tmp_path, "pixels", "digits", "sgd-lr0.1")
    (folder / "events.out.tfevents.7").touch()
    remove_events(folder)
    assert files(tmp_path) == EXPECTED
    remove_job(tmp_path, "pixels", "digits")
    assert files(tmp_path) == set()
    assert list((tmp_path / "pixels").iterdir()) == []


def test_pictures_are_those_of_the_last_job(tmp_path, make):
    """They go with a job that has none, and with the job."""
    make().write(tmp_path, pictures=b"first")
    make().write(tmp_path, pictures=b"second")
    assert files(tmp_path) == EXPECTED | {"pixels/digits/pictures.png"}
    assert (tmp_path / "pixels/digits/pictures.png").read_bytes() == b"second"
    make().write(tmp_path)
    assert files(tmp_path) == EXPECTED
    make().write(tmp_path, pictures=b"third")
    remove_job(tmp_path, "pixels", "digits")
    assert files(tmp_path) == set()


def test_a_label_of_which_nothing_but_a_failure_is_there_keeps_its_folder(tmp_path, make, failure):
    write_failure(tmp_path, failure(label="x-y"))
    with pytest.raises(ViRBError, match="holds the job of label x-y"):
        make(label="x", configs={"y": {}}, chosen="y").write(tmp_path)
    remove_job(tmp_path, "pixels", "x-y")
    assert files(tmp_path) == set()


def test_a_read_only_store_is_a_message(tmp_path, make, monkeypatch):
    make().write(tmp_path)

    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(UserError, match="cannot write"):
        remove_job(tmp_path, "pixels", "digits")


def test_run_records_do_not_overwrite_each_other(tmp_path, provenance_record):
    record = RunRecord(files={"tasks.yaml": "digits: {task: digits}"}, provenance=provenance_record())
    first, second = write_run(tmp_path, record), write_run(tmp_path, record)
    assert (first.name, second.name) == ("2026-11-21T10-02-11Z.json", "2026-11-21T10-02-11Z-2.json")
    ended = record.model_copy(update={"done": ["pixels/digits"], "exit_code": 0})
    assert write_run(tmp_path, ended, first) == first
    assert json.loads(first.read_text())["done"] == ["pixels/digits"]
    assert list(job_files(tmp_path)) == []


def test_samples_of_strange_types_are_refused(tmp_path):
    ids = np.array(["a", "b"])
    ragged = np.empty(2, dtype=object)
    with pytest.raises(ValueError, match="plain dtype"):
        write_samples(tmp_path / "s.npz", SampleArrays(ids, ids, target=ragged))
    with pytest.raises(ValueError, match="`prediction` to have 2 entries on axis 1"):
        write_samples(tmp_path / "s.npz", SampleArrays(ids, ids, prediction=np.zeros(2)))
    with pytest.raises(ValueError, match="`unit_id`"):
        write_samples(tmp_path / "s.npz", SampleArrays(ids, ids[:1]))
    assert list(tmp_path.iterdir()) == []


def test_broken_samples_are_named(tmp_path, make):
    make().write(tmp_path)
    path = tmp_path / "pixels/digits/samples.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ViRBError, match=r"samples\.npz"):
        read_job_samples(tmp_path, "pixels", "digits")
