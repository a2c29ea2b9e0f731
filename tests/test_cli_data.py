"""``virb data`` from the command line: what it prints, exit codes, and that listing writes nothing."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from virb.cli import main
from virb.cli.data import _Meter, dataset_of
from virb.cli.parser import DATA_ACTIONS
from virb.data import verify
from virb.data.datasets.facts import FACTS
from virb.errors import UserError
from virb.tasks import base
from virb.tasks.base import all_tasks

BREEDS = ("Abyssinian", "Bengal")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """``call("list")`` -> exit code, standard output, standard error; in a fresh current folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["data", *arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    """Pets' two archives, in small."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    images, lists = {}, {"trainval": "", "test": ""}
    for k, name in enumerate(BREEDS):
        for i in range(3):
            file = io.BytesIO()
            pixels = np.random.default_rng(10 * k + i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file, "JPEG")
            images[f"images/{name}_{i}.jpg"] = file.getvalue()
            lists["test" if i == 2 else "trainval"] += f"{name}_{i} {k + 1} 1 1\n"
    write_tar(folder / "images.tar.gz", images)
    write_tar(folder / "annotations.tar.gz", {f"annotations/{split}.txt": text.encode() for split, text in lists.items()})
    return folder


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_list_has_every_task_with_size_source_and_licence(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("list")
    assert code == 0
    lines = out.splitlines()
    for dataset, facts in FACTS.items():
        (line,) = [line for line in lines if re.search(rf"  {re.escape(dataset)}  ", line)]
        assert facts.size in line
        assert facts.source in line
        assert facts.licence in line
        assert f"  {'-'}  " in line  # not there
    for task in all_tasks().values():
        if task.dataset in FACTS and "@" not in task.id:
            assert task.id in out
    assert lines[-1].startswith("nothing to get for digits")
    assert not list(tmp_path.iterdir())


def test_prepare_list_verify(call: Call, downloads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = call("prepare", "Pets", "--source", "downloads")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "images.tar.gz: 6 files written",
        "annotations.tar.gz: 2 files written",
        "pets in data/oxford-iiit-pet: train 4 · test 2 · official lists",
        "virb data verify Pets looks at every image",
    ]
    assert "finished before" in call("prepare", "pets", "--source", str(downloads / "images.tar.gz"), str(downloads))[1]
    assert re.search(r"^Pets +pets +oxford-iiit-pet +0.8 GB", call("list")[1], re.MULTILINE)

    code, out, _ = call("verify", "Pets", "--quick")
    assert code == 1
    assert "wrong  train has 4 samples; published are 3,680\n" in out
    assert out.endswith("pets: train 4 · test 2 · official lists · no image decoded (--quick) · not ok\n")
    monkeypatch.setattr(verify, "FACTS", {})
    code, out, _ = call("verify", "Pets")
    assert (code, out) == (0, "pets: train 4 · test 2 · official lists · 6 images decoded · ok\n")
    (tmp_path / "data/oxford-iiit-pet/images/Bengal_1.jpg").write_bytes(b"no image")
    code, out, _ = call("verify", "Pets", "--num_workers", "2")
    assert code == 1
    assert out.splitlines()[0] == "wrong  1 of 6 images cannot be read"
    assert out.splitlines()[1].endswith("images/Bengal_1.jpg: is not an image that can be read")


def test_an_interrupted_prepare_is_listed_as_unfinished(call: Call, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from virb.data.prepare.extract import Target

    write, left = Target.write, iter(range(3))

    def stop(self: Target, *arguments: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Target, "write", stop)
    code, _, err = call("prepare", "Pets", "--source", "downloads")
    assert code == 130
    assert "the same command goes on from here" in err
    monkeypatch.undo()
    monkeypatch.chdir(downloads.parent)
    assert "oxford-iiit-pet: unfinished" in call("list", "Pets")[1]
    code, out, _ = call("prepare", "Pets", "--source", "downloads")
    assert code == 0
    assert "images.tar.gz: 3 files written, 3 were there" in out


def test_details_of_a_task(call: Call) -> None:
    code, out, _ = call("list", "clevrdist", "dtd")
    assert code == 0
    assert re.search(r"  archives +CLEVR_v1.0.zip -> CLEVR/ \(test images \(they have no scenes\) and questions are left out\)\n", out)
    assert re.search(r"  samples +train 1,880 · val 1,880 · test 1,880 · 47 classes\n", out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("lst",), 2, "virb data: no data command 'lst'; did you mean list?"),
        ((), 2, "virb data: the following arguments are required: ACTION"),
        (("prepare", "Pets"), 2, "virb data prepare: the following arguments are required: --source"),
        (("prepare", "Pets", "--sorce", "x"), 2, "virb data prepare: the following arguments are required: --source"),
        (("verify", "Pets", "--quik"), 2, "virb data verify: unknown option --quik; did you mean --quick?"),
        (("verify", "Pest"), 2, "virb: no task or dataset 'Pest'; did you mean Pets?"),
        (("verify", "Pets"), 2, "virb: --data_root data does not exist"),
        (("verify", "Pets", "--num_workers", "0"), 2, "virb: --num_workers 0 is not at least 1"),
        (("prepare", "Pets", "--source", "nowhere"), 2, "virb: --source nowhere does not exist"),
        (("prepare", "Pets", "--source", "."), 2, "virb: pets: images.tar.gz, annotations.tar.gz are not in ."),
        (("prepare", "digits", "--source", "."), 2, "virb: digits comes with ViRB"),
        (("download", "Imagenet"), 2, "virb: imagenet is not downloaded by ViRB. Get it from https://image-net.org"),
    ],
)
def test_mistakes(call: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    found = call(*arguments)
    assert found[0] == code
    assert message in found[2]
    assert found[1] == ""
    assert not list(tmp_path.iterdir())


def test_download_says_how_to_go_on(call: Call) -> None:
    assert call("download", "Imagenet")[2].startswith("note: once you have it: virb data prepare Imagenet --source FOLDER\n")


def test_names_of_tasks_and_datasets() -> None:
    assert {dataset_of(name) for name in ("Pets", "pets", "PETS", "Pets@virb2021")} == {"pets"}
    assert dataset_of("ImagenetReaL") == "imagenet-real"
    with pytest.raises(UserError, match="virb data list shows what there is"):
        dataset_of("qqqqq")


@pytest.mark.parametrize("action", DATA_ACTIONS)
def test_help(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["data", action, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith(f"usage: virb data {action}")
    assert max(map(len, text.splitlines())) <= 130


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_and_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("virb.cli.data.time.monotonic", lambda: clock[0])
    for stream, step, lines in ((Terminal(), 1.0, 10), (io.StringIO(), 4.0, 2)):
        monkeypatch.setattr(sys, "stderr", stream)
        meter = _Meter(lambda n: f"{n:.0f}", "images")
        for done in range(11):
            clock[0] += step
            meter("decoding", 10 * done, 100)
        meter.close()
        shown = [line for line in re.split(r"[\r\n]", stream.getvalue()) if line.strip()]
        assert abs(len(shown) - lines) <= 1
        assert re.search(r"decoding   \d+ / 100   \d+ %   \d+ images/s   left about \d:\d\d", shown[-2])
    rate = 10 / 4.0
    assert f"left about 0:{round((100 - 70) / rate):02}" in shown[-1]


def test_built_in_data_need_no_folder(call: Call) -> None:
    code, out, err = call("verify", "digits", "--quick")
    assert (code, err) == (0, "")
    assert out == "digits: train 1,438 · test 359 · no image decoded (--quick) · ok\n"
    assert call("verify", "Pets")[0] == 2


def test_what_is_not_built_yet_is_said_so(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = replace(all_tasks()["digits"], id="Later", dataset="later", available=False)
    monkeypatch.setitem(base._TASKS, later.id, later)
    assert call("list", later.id)[1] == f"{later.id}: not available yet\n"
    (tmp_path / "data").mkdir()
    for action in (("verify", later.id), ("download", later.id), ("prepare", later.id, "--source", ".")):
        code, out, err = call(*action)
        assert (code, out) == (2, "")
        assert f"{later.id} is known and not available yet; virb list tasks shows those that are" in err
    assert call("list", "digits")[1] == "digits: nothing to get\n"


def test_how_says_what_can_be_fetched(call: Call) -> None:
    assert re.search(r"^  how +download, prepare$", call("list", "ImagenetC")[1], re.MULTILINE)
    assert re.search(r"^  how +download its lists, prepare$", call("list", "nuScenesActionPrediction")[1], re.MULTILINE)


def test_pack_a_folder_and_read_it_back(call: Call, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for cls in BREEDS:
            (tmp_path / "photos" / split / cls).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / split / cls / "0.png")
    code, out, err = call("pack", "photos", "--out", "packed", "--shard_size", "1KB")
    assert (code, err) == (0, "")
    assert out.startswith("folder in packed: train 2 · test 2 · 2 shards, ")
    assert "data: {root: packed}" in out
    code, _, err = call("pack", "photos", "--out", "packed")
    assert code == 2
    assert "--force packs again" in err
    assert call("pack", "photos", "--out", "packed", "--force")[0] == 0
    assert "did you mean" in call("pack", "petz", "--out", "x")[2]
    assert "--shard_size 0 is too small" in call("pack", "photos", "--out", "x", "--shard_size", "0")[2]
    assert "--shard_size 10% is a share; write a size" in call("pack", "photos", "--out", "x", "--shard_size", "10%")[2]
    assert not (tmp_path / "x").exists()


def test_verify_looks_at_a_folder_and_at_a_pack(call: Call, tmp_path: Path) -> None:
    for number, (split, cls) in enumerate((split, cls) for split in ("train", "test") for cls in BREEDS):
        (tmp_path / "photos" / split / cls).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "photos" / split / cls / "0.png")
    assert call("pack", "photos", "--out", "packed")[0] == 0
    for place in ("photos", "packed"):
        code, out, err = call("verify", place)
        assert (code, err) == (0, "")
        assert out.splitlines()[-1].startswith("folder: train 2 · test 2")
        assert out.endswith("4 images decoded · ok\n")
    shard = tmp_path / "packed" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:300])
    code, out, _ = call("verify", "packed")
    assert code == 1
    assert out.splitlines()[0] == "wrong  2 of 4 images cannot be read"
    assert "the shard is cut off" in out
    assert "did you mean" in call("verify", "petz")[2]
