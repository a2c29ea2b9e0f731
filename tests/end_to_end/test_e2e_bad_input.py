"""What goes wrong outside ViRB gets one clear message and an exit code, and loses nothing: 2 for the user's input, 1 for a failed job."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_support import PIXELS, Answer, Bench, files_below, save_images

import virb.io
from virb.cli import main
from virb.results.schema import Job, validate


def refused(bench: Bench, *parts: str, flags: tuple[str, ...] = ()) -> Answer:
    """The run is not even started: exit code 2, a message with all these parts and no traceback, nothing written."""
    before = files_below(bench.out) if bench.out.is_dir() else []
    answer = bench.run(*flags)
    assert answer.code == 2, answer.text + answer.errors
    for part in parts:
        assert part in answer.errors
    assert "Traceback" not in answer.errors + answer.text
    assert (files_below(bench.out) if bench.out.is_dir() else []) == before
    return answer


def failed(bench: Bench, *parts: str, label: str = "colours", encoder: str = "pixels", devices: str = "cpu:1") -> Answer:
    """The job fails: exit code 1, the reason in the table that comes last and in a valid job.json."""
    answer = bench.run(devices=devices)
    assert answer.code == 1, answer.text + answer.errors
    assert "Traceback" not in answer.errors + answer.text
    table = answer.text[answer.text.rindex("jobs failed") :]
    assert table.rstrip().endswith("failed.json of each")
    record = validate(bench.out / encoder / label / "failed.json")
    assert isinstance(record, Job)
    assert record.status == "failed"
    assert record.error is not None
    for part in parts:
        assert part in table
        assert part in record.error.message
    return answer


# --- files and folders -------------------------------------------------------------------------------------------------------------


def test_missing_weights(bench: Bench) -> None:
    (bench.folder / "weights.pth").touch()
    bench.write("mine: weight.pth\n")
    refused(bench, "encoders.yaml:1", "weight.pth does not exist", "weights.pth")


def test_weights_that_are_no_weights(bench: Bench) -> None:
    (bench.folder / "weights.pth").write_bytes(b"not a checkpoint")
    bench.write("mine: weights.pth\n")
    refused(bench, "weights.pth", "mine")


def test_absent_dataset(bench: Bench) -> None:
    bench.write(tasks=bench.task(root=bench.folder / "nowhere"))
    refused(bench, "tasks.yaml:1", "nowhere does not exist", "{train,val,test}/<class>/*")


def test_empty_class(bench: Bench) -> None:
    shutil.rmtree(bench.images / "train/red")
    (bench.images / "train/red").mkdir()
    bench.write()
    refused(bench, "class 'red' of train is empty")


def test_one_class(bench: Bench) -> None:
    for split in ("train", "test"):
        for name in ("red", "green"):
            shutil.rmtree(bench.images / split / name)
    bench.write()
    refused(bench, "one class, 'blue'", "at least two")


def test_nothing_to_hold_out(bench: Bench) -> None:
    save_images(bench.folder / "few", {"train": 1, "test": 2})
    bench.write(tasks=bench.task(root=bench.folder / "few"))
    refused(
        bench, "tasks.yaml:1", "colours.data", "nothing can be held out for selection", "give a validation split or selection: test-last"
    )
    bench.write(tasks=bench.task("selection: test-last", root=bench.folder / "few"))
    bench.run_well()


def test_file_names_that_are_not_valid_utf8(bench: Bench) -> None:
    names = [os.fsencode(bench.images / "train/red") + b"/caf\xe9.png", os.fsencode(bench.images / "test/red") + b"/caf\xe9.png"]
    try:
        for name in names:
            shutil.copy(os.fsencode(bench.images / "train/red/000.png"), name)
    except OSError:
        pytest.skip("this file system has valid names only")
    bench.write()
    bench.run_well()
    assert bench.job()["task"]["roles"]["report"]["n_samples"] == 13


def test_all_mistakes_are_told_together(bench: Bench) -> None:
    bench.write("a: {arch: vit_smal, weights: random}\nb: gone.pth\n", bench.task(root=bench.folder / "nowhere") + "x: {task: digitz}\n")
    answer = refused(bench, "vit_small", "gone.pth does not exist", "nowhere does not exist", "digits")
    assert answer.errors.startswith("4 problems in 2 files")


# --- images ------------------------------------------------------------------------------------------------------------------------


def spoil(bench: Bench, *names: str) -> None:
    for name in names:
        (bench.images / name).write_bytes((bench.images / name).read_bytes()[:60])


@pytest.mark.parametrize("name", ["train/red/003.png", "test/blue/001.png"])
@pytest.mark.parametrize("more", ["", "pre_encode: false"])
def test_an_image_that_does_not_decode_is_named(bench: Bench, name: str, more: str) -> None:
    spoil(bench, name)
    bench.write(tasks=bench.task(more))
    failed(bench, name, "on_bad_image: skip")


@pytest.mark.parametrize("more", ["", ", pre_encode: false"])
def test_skipped_images_are_counted_and_take_no_part(bench: Bench, more: str) -> None:
    spoil(bench, "train/red/003.png", "test/blue/001.png", "test/blue/002.png")
    bench.write(tasks=bench.task(f"on_bad_image: skip{more}"))
    bench.run_well()
    job = bench.job()
    assert job["bad_images"]["count"] == 3
    assert sorted(job["bad_images"]["ids"]) == ["test/blue/001.png", "test/blue/002.png", "train/red/003.png"]
    roles = job["task"]["roles"]
    assert roles["report"]["n_samples"] == 10
    assert roles["fit"]["n_samples"] + roles["select"]["n_samples"] == 29
    # The same as if the images had never been there. The hold-out draws from what is left, so its indices differ, not its members.
    clean = save_images(bench.folder / "clean", {"train": 10, "test": 4})
    for name in job["bad_images"]["ids"]:
        (clean / name).unlink()
    bench.write(tasks=bench.task(root=clean))
    bench.run_well(out=bench.folder / "other")
    other = bench.job(out=bench.folder / "other")
    assert (other["metrics"], other["surface"]) == (job["metrics"], job["surface"])


def test_images_repaired_after_a_failure(bench: Bench) -> None:
    name = bench.images / "train/red/003.png"
    good = name.read_bytes()
    spoil(bench, "train/red/003.png")
    bench.write()
    failed(bench, "train/red/003.png")
    name.write_bytes(good)
    bench.run_well()
    assert bench.job()["bad_images"]["count"] == 0


@pytest.mark.parametrize("more", ["", "on_bad_image: skip", "on_bad_image: skip, pre_encode: false"])
def test_a_shard_that_is_copied_again(bench: Bench, more: str) -> None:
    """A fault of reading says nothing of the images: it is told, and nothing of it is kept."""
    bench.write(tasks=bench.task(more))
    bench.run_well("--no_cache", out=bench.folder / "whole")
    packed = bench.folder / "packed"
    assert main(["data", "pack", str(bench.images), "--out", str(packed), "--data_root", str(bench.folder)]) == 0
    shard = packed / "train-000000.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    bench.write(tasks=bench.task(more, root=packed))
    failed(bench, "the shard is cut off")
    shard.write_bytes(content)
    bench.run_well()
    assert bench.job()["bad_images"]["count"] == 0
    assert bench.job()["metrics"] == bench.job(out=bench.folder / "whole")["metrics"]


def test_no_image_of_a_split_decodes(bench: Bench) -> None:
    spoil(bench, *(f"test/{name}/{i:03}.png" for name in ("red", "green", "blue") for i in range(4)))
    bench.write(tasks=bench.task("on_bad_image: skip"))
    failed(bench, "no sample of split test is left")


def test_fewer_test_images_than_a_batch(bench: Bench) -> None:
    bench.write(tasks=bench.task("test_batch_size: 1000, batch_size: 500").replace("batch_size: 16, ", ""))
    bench.run_well()
    assert bench.job()["metrics"][0]["n_samples"] == 12


# --- encoders ----------------------------------------------------------------------------------------------------------------------

NETWORKS = '''
import torch

class Good(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3))

class NotFinite(torch.nn.Module):
    """NaN for bright images alone, so that noise does not show it."""

    def forward(self, images):
        return (0.6 - images.mean((2, 3))).log()

class Flat(torch.nn.Module):
    def forward(self, images):
        return images.mean((1, 2, 3))

class OneRow(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)).mean(0, keepdim=True)

class Raises(torch.nn.Module):
    """Cannot take bright images, which noise does not have."""

    def forward(self, images):
        if images.mean((2, 3)).max() > 0.6:
            raise RuntimeError("size mismatch in my layer")
        return images.mean((2, 3))
'''
EASY = ", input: {size: 16, mean: [0, 0, 0], std: [1, 1, 1]}}\n"


def network(bench: Bench, name: str, more: str = EASY) -> str:
    (bench.folder / "e2e_networks.py").write_text(NETWORKS)
    return f"{name.lower()}: {{module: 'e2e_networks:{name}'{more}"


@pytest.fixture(autouse=True)
def _fresh_modules() -> Iterator[None]:
    yield
    sys.modules.pop("e2e_networks", None)


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_features_that_are_not_finite(bench: Bench, devices: str) -> None:
    bench.write(network(bench, "NotFinite") + PIXELS)
    answer = failed(bench, "notfinite gave NaN or infinite values of embedding for image", encoder="notfinite", devices=devices)
    assert "1 of 2 jobs failed, 1 done" in answer.text
    assert bench.job()["status"] == "done"


@pytest.mark.parametrize(("name", "parts"), [("Flat", ("shape (2,)",)), ("OneRow", ("shape (1, 3) for 2 images",))])
def test_output_of_the_wrong_shape(bench: Bench, name: str, parts: tuple[str, ...]) -> None:
    bench.write(network(bench, name))
    refused(bench, "encoders.yaml:1", name, *parts)


def test_a_network_that_fails_in_the_middle_stops_nobody_else(bench: Bench) -> None:
    bench.write(network(bench, "Raises") + network(bench, "Good") + PIXELS)
    answer = failed(bench, "RuntimeError: size mismatch in my layer", encoder="raises")
    assert "1 of 3 jobs failed, 2 done" in answer.text


# --- disks -------------------------------------------------------------------------------------------------------------------------


@contextmanager
def broken_disk(monkeypatch: pytest.MonkeyPatch, number: int, hits: Callable[[Path], bool], after: int = 0) -> Iterator[list[Path]]:
    """Writing a file that ``hits`` ends with this error number, from the ``after``-th on."""
    real, seen = os.replace, []

    def replace(source: str | Path, target: str | Path) -> None:
        if hits(Path(target)):
            seen.append(Path(target))
            if len(seen) > after:
                raise OSError(number, os.strerror(number), str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(virb.io.os, "replace", replace)
        yield seen


def no_leftovers(folder: Path) -> bool:
    return not list(folder.rglob(".tmp-*"))


def test_a_disk_that_fills_up_with_features(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write()
    with broken_disk(monkeypatch, errno.ENOSPC, lambda path: path.suffix == ".bin", after=1):
        failed(bench, "the disk is full: cannot write", "free some space")
    assert no_leftovers(bench.folder)
    answer = bench.run_well()
    assert "done" in answer.text
    assert bench.job()["status"] == "done"


@pytest.mark.parametrize("name", ["results.json", "samples.npz", "job.json", "model_head.pt"])
def test_a_disk_that_fills_up_with_results(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    bench.write(tasks=bench.task() + bench.task().replace("colours:", "again:"))
    bench.run_well("--tasks", "colours")
    before = (bench.out / "pixels/colours/job.json").read_bytes()
    with broken_disk(monkeypatch, errno.ENOSPC, lambda path: path.name == name):
        answer = bench.run()
    assert answer.code == 1
    assert "the disk is full: cannot write" in answer.text
    assert f"again{'-fast' if name in ('results.json', 'model_head.pt') else ''}" in answer.text or "again-slow" in answer.text
    assert no_leftovers(bench.folder)
    assert (bench.out / "pixels/colours/job.json").read_bytes() == before
    assert not (bench.out / "pixels/again/job.json").exists()
    bench.run_well()
    assert (bench.out / "pixels/colours/job.json").read_bytes() == before
    assert bench.job(label="again")["metrics"] == bench.job()["metrics"]


def test_a_disk_that_is_full_from_the_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write()
    with broken_disk(monkeypatch, errno.ENOSPC, lambda path: True):
        answer = bench.run()
    assert answer.code == 1
    assert "the disk is full" in answer.text + answer.errors
    assert "Traceback" not in answer.text + answer.errors


def test_a_table_that_cannot_be_written_is_told_when_nothing_else_failed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write()
    with broken_disk(monkeypatch, errno.ENOSPC, lambda path: path.name == "results.csv"):
        answer = bench.run()
    assert answer.code == 1
    assert "the disk is full: cannot write out/results.csv" in answer.errors.replace(str(bench.folder) + "/", "")
    assert bench.job()["status"] == "done"
    bench.run_well()  # nothing is left to do, but the table is made good
    assert (bench.out / "results.csv").exists()


def test_a_full_disk_under_the_curves(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    bench.write()
    with monkeypatch.context() as patch:
        patch.setattr(SummaryWriter, "add_scalar", full)
        failed(bench, "the disk is full: cannot write")
    bench.run_well()


def test_an_out_folder_that_is_a_file(bench: Bench) -> None:
    bench.write()
    bench.out.write_text("mine")
    answer = bench.run()
    assert answer.code == 2
    assert str(bench.out) in answer.errors
    assert bench.out.read_text() == "mine"


def test_a_read_only_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write()
    real = Path.mkdir

    def mkdir(self: Path, *args: object, **options: object) -> None:
        if self == bench.out or bench.out in self.parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        real(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", mkdir)
    answer = bench.run()
    assert answer.code == 2
    assert f"cannot write {bench.out}" in answer.errors
    assert "Read-only file system; choose a folder you may write to" in answer.errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_others_own(bench: Bench) -> None:
    bench.write()
    bench.out.mkdir()
    bench.out.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        refused(bench, f"{bench.out} cannot be written; choose a folder you may write to")
    finally:
        bench.out.chmod(stat.S_IRWXU)


# --- several runs, several jobs ------------------------------------------------------------------------------------------------------


def test_two_runs_on_one_out_folder(bench: Bench) -> None:
    bench.write()
    code = (
        "import sys, pathlib; from virb.runner.run import claim\nwith claim(pathlib.Path(sys.argv[1])): print('mine', flush=True); input()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(virb.__file__).parent.parent)}
    command = [sys.executable, "-c", code, str(bench.out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        lease = (bench.out / ".run.lease").read_bytes()
        refused(bench, f"{bench.out} is in use by another run (process {other.pid}", "wait for it, or choose another --out")
        assert (bench.out / ".run.lease").read_bytes() == lease
        other.communicate("\n", timeout=20)
    bench.run_well()


def test_a_failing_job_among_good_ones(bench: Bench) -> None:
    """It alone fails, the table comes last, and when it is mended it alone runs."""
    bad = save_images(bench.folder / "bad", {"train": 10, "test": 4})
    spoiled = bad / "test/red/002.png"
    good = spoiled.read_bytes()
    spoiled.write_bytes(b"")
    tasks = bench.task() + bench.task(root=bad).replace("colours:", "spoiled:") + bench.task("seeds: 2").replace("colours:", "seeds:")
    bench.write(tasks=tasks)
    answer = bench.run()
    assert answer.code == 1
    lines = answer.text.rstrip().splitlines()
    assert lines[-3] == "1 of 3 jobs failed, 2 done:"
    assert lines[-2].startswith("  pixels x spoiled")
    assert "test/red/002.png" in lines[-2]
    assert "same command" in lines[-1]
    done = {label: (bench.out / f"pixels/{label}/job.json").stat().st_mtime_ns for label in ("colours", "seeds")}
    assert json.loads((bench.out / "pixels/spoiled/failed.json").read_text())["error"]["hint"]
    spoiled.write_bytes(good)
    again = bench.run_well()
    assert "2 jobs already" in again.text
    assert {label: (bench.out / f"pixels/{label}/job.json").stat().st_mtime_ns for label in done} == done
    assert bench.job(label="spoiled")["status"] == "done"
    assert not (bench.out / ".jobs").exists()


def test_a_job_that_fails_when_forced_keeps_its_old_result(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write()
    bench.run_well()
    before = bench.job()
    with broken_disk(monkeypatch, errno.ENOSPC, lambda path: path.suffix == ".bin"):
        shutil.rmtree(bench.folder / "cache")
        assert bench.run("--force").code == 1
    assert bench.job() == before
