"""``virb cache``: what is listed, what goes and what stays, and that verifying finds what is wrong."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from virb.cli import main
from virb.cli.cache import parse_age
from virb.encoders.base import Encoder
from virb.errors import UserError
from virb.features.cache import FeatureCache
from virb.features.inventory import stored_entries
from virb.features.uses import Use
from virb.runner import recheck

ENCODERS = """px: {arch: pixels, args: {side: 4}, input: {size: 16}}
vit: {arch: vit, weights: random, args: {width: 24, depth: 1, heads: 1, patch_size: 8, img_size: 16}}
"""
TASKS = "a: {task: shapes-count, data: {n_train: 40, n_test: 10}, num_epochs: 1, grid: {optimizer: sgd, lr: 0.1}}\n"
FILES = ("--experiment_list", "e.yaml", "--task_configs", "t.yaml", "--devices", "cpu:1", "--cache_dir", "c")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(ENCODERS)
    (tmp_path / "t.yaml").write_text(TASKS)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


@pytest.fixture
def cache(call: Call) -> FeatureCache:
    """What a run of two encoders on 50 images left in ``c``: two entries each."""
    assert call("run", *FILES)[0] == 0
    return FeatureCache(Path("c"))


def aged(cache: FeatureCache, days: dict[str, float]) -> None:
    """Sets when the entries of each encoder were last used."""
    for entry in stored_entries(cache):
        moment = time.time() - days[entry.encoder] * 86400
        for path in entry.folder.iterdir():
            os.utime(path, (moment, moment))


def encoders_of(cache: FeatureCache) -> list[str]:
    return sorted(entry.encoder for entry in stored_entries(cache))


def test_list_and_size(call: Call, cache: FeatureCache) -> None:
    aged(cache, {"px": 3, "vit": 0})
    code, out, _ = call("cache", "list", "--cache_dir", "c")
    assert code == 0
    head, *lines, total = out.splitlines()
    assert head.split()[:3] == ["encoder", "images", "output"]
    assert [line.split()[0] for line in lines] == ["px", "px", "vit", "vit"]  # used longest ago first
    assert all("3 d ago" in line for line in lines[:2])
    assert {line.split()[1] for line in lines} == {"train", "test"}
    nbytes = 50 * (4 * 4 * 3 + 24) * 2
    assert total == f"4 entries of 2 encoders, {nbytes / 1000:.3g} kB in c"
    assert [line.split()[0] for line in call("cache", "list", "--cache_dir", "c", "--encoder", "v*")[1].splitlines()[1:-1]] == ["vit"] * 2
    assert call("cache", "list", "--cache_dir", "c", "--older_than", "2d")[1].count("3 d ago") == 2
    out = call("cache", "size", "--cache_dir", "c")[1]
    assert re.search(r"^px +2 +4\.8 kB$", out, re.MULTILINE)
    assert re.search(r"^vit +2 +2\.4 kB$", out, re.MULTILINE)
    assert f"{nbytes / 1000:.3g} kB in c;" in out


def test_the_cache_is_found_where_runs_put_it(call: Call, tmp_path: Path) -> None:
    code, _, err = call("cache", "size")
    assert (code, err) == (2, f"virb: there is no cache in {Path('out/.virb_cache')}; --cache_dir says where it is\n")
    assert call("run", *FILES[:-2])[0] == 0
    assert "4 entries" in call("cache", "size")[1]
    assert "in out/.virb_cache" in call("cache", "size", "--out", "out")[1]
    (tmp_path / "d" / ".virb_cache").mkdir(parents=True)
    assert "0 entries" in call("cache", "size", "--data_root", "d")[1]


def test_prune_shows_first_and_removes_when_told(call: Call, cache: FeatureCache) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("c").rglob("*") if path.is_file()}
    code, out, _ = call("cache", "prune", "--cache_dir", "c", "--encoder", "px")
    assert code == 0
    assert "nothing was removed; with --yes these 2 go, and 4.8 kB are free" in out
    assert {path: path.stat().st_mtime_ns for path in Path("c").rglob("*") if path.is_file()} == before
    out = call("cache", "prune", "--cache_dir", "c", "--encoder", "px", "--yes")[1]
    assert "removed 2 entries of 1 encoder, 4.8 kB in c" in out
    assert encoders_of(cache) == ["vit", "vit"]
    assert call("run", *FILES, "--force")[0] == 0  # what is gone is made again
    assert encoders_of(cache) == ["px", "px", "vit", "vit"]


def test_prune_by_age_and_size(call: Call, cache: FeatureCache) -> None:
    aged(cache, {"px": 40, "vit": 10})
    prune = ("cache", "prune", "--cache_dir", "c", "--yes")
    assert "nothing to remove" in call(*prune, "--older_than", "8w")[1]
    assert "nothing to remove" in call(*prune, "--older_than", "30d", "--encoder", "vit")[1]  # what fits both
    assert "nothing to remove" in call(*prune, "--to", "7.2kB")[1]
    assert "removed 1 entry" in call(*prune, "--to", "7.1kB")[1]
    assert encoders_of(cache) == ["px", "vit", "vit"]
    assert "removed 1 entry" in call(*prune, "--older_than", "30d")[1]
    assert encoders_of(cache) == ["vit", "vit"]
    assert "removed 2 entries" in call(*prune, "--to", "0")[1]
    assert encoders_of(cache) == []


def test_reading_an_entry_makes_it_young(call: Call, cache: FeatureCache) -> None:
    aged(cache, {"px": 40, "vit": 40})
    assert call("run", *FILES, "--only", "px", "--force")[0] == 0
    out = call("cache", "prune", "--cache_dir", "c", "--older_than", "1d", "--yes")[1]
    assert "removed 2 entries" in out
    assert encoders_of(cache) == ["px", "px"]


def test_what_a_run_uses_stays(call: Call, cache: FeatureCache) -> None:
    keys = [entry.key for entry in stored_entries(cache) if entry.encoder == "vit"]
    with Use(cache, keys):
        assert call("cache", "list", "--cache_dir", "c")[1].count("in use") == 2
        out = call("cache", "prune", "--cache_dir", "c", "--to", "0", "--yes")[1]
        assert "2 entries of 1 encoder, 2.4 kB in c would fit too, but a run uses them: they stay" in out
        assert encoders_of(cache) == ["vit", "vit"]
    assert "removed 2 entries" in call("cache", "prune", "--cache_dir", "c", "--to", "0", "--yes")[1]


@pytest.fixture
def read_only(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written below ``c`` any more."""
    access, opening, place = os.access, io.open, Path("c").absolute()

    def inside(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(place)

    def refused(real: Callable[..., object]) -> Callable[..., object]:
        def call(path: object, *arguments: object, **options: object) -> object:
            if inside(path) or (arguments and inside(arguments[0])):
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return real(path, *arguments, **options)

        return call

    def open_(path: object, mode: str = "r", *arguments: object, **options: object) -> object:
        if inside(path) and set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opening(path, mode, *arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and inside(path)) and access(path, mode))
    monkeypatch.setattr(io, "open", open_)
    monkeypatch.setattr("builtins.open", open_)
    real = os.open

    def os_open(path: object, flags: int, *arguments: object, **options: object) -> object:
        if inside(path) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", os_open)
    for name in ("mkdir", "rename", "replace", "link", "unlink", "utime", "rmdir"):
        monkeypatch.setattr(os, name, refused(getattr(os, name)))


def numbers(out: Path) -> str:
    """All of the table but the times."""
    return re.sub(r"\d{4}-\d\d-\d\dT[^,]*", "", (out / "results.csv").read_text())


def everything(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.usefixtures("read_only")
def test_a_cache_that_cannot_be_written_but_has_everything_can_be_used(call: Call) -> None:
    before, results = everything(Path("c")), numbers(Path("out"))
    code, out, err = call("check", *FILES, "--force")
    assert (code, err) == (0, "")
    assert "0 images to decode" in out
    code, out, err = call("run", *FILES, "--out", "again")
    assert (code, err) == (0, "")
    assert numbers(Path("again")) == results
    for command in ("list", "size", "verify"):
        assert call("cache", command, "--cache_dir", "c")[0] == 0
    verify = call("cache", "verify", "--cache_dir", "c", "--experiment_list", "e.yaml", "--task_configs", "t.yaml", "--devices", "cpu:1")
    assert verify[0] == 0
    assert "4 encoded again to the same bits" in verify[1]
    assert everything(Path("c")) == before
    code, _, err = call("cache", "prune", "--cache_dir", "c", "--to", "0", "--yes")
    assert code == 2
    assert "Read-only file system" in err


@pytest.mark.usefixtures("read_only")
def test_a_cache_that_cannot_be_written_and_lacks_something_is_refused(call: Call) -> None:
    for command in ("check", "run"):
        code, _, err = call(command, *FILES, "--out", "again", "--input_size", "24")
        assert code == 2
        assert "--cache_dir  c cannot be written, and 4 of the 4 feature sets that are needed are not there; choose a folder" in err
        assert not Path("again").exists()
        code, _, err = call(command, *FILES, "--input_size", "24", "--only", "px", "--cache_dir", "c/below")
        assert code == 2
        assert "2 of the 2 feature sets that are needed are not there" in err
    # Verifying makes nothing: what is there is compared.
    verify = ("cache", "verify", "--cache_dir", "c", "--experiment_list", "e.yaml", "--task_configs", "more.yaml", "--devices", "cpu:1")
    Path("more.yaml").write_text(TASKS + TASKS.replace("a: {task", "b: {task").replace("40", "41"))
    code, out, _ = call(*verify)
    assert code == 0
    assert "4 encoded again to the same bits" in out


def test_damage_in_a_cache_that_cannot_be_written_is_told(call: Call, cache: FeatureCache, request: pytest.FixtureRequest) -> None:
    entry = next(entry for entry in stored_entries(cache) if entry.encoder == "vit" and entry.n_rows == 40)
    cache.slice_path(entry.key, 0).write_bytes(b"")
    request.getfixturevalue("read_only")
    code, out, _ = call("run", *FILES, "--force")
    assert code == 1
    assert "0000000000.bin is damaged or gone, and c cannot be written: choose another --cache_dir" in out
    assert "1 of 2 jobs failed, 1 done" in out


def test_a_run_says_what_it_uses_while_it_runs(call: Call, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    from virb.runner import run

    units, seen = run.run_units, []

    def looking(*arguments: object) -> None:
        seen.append(call("cache", "prune", "--cache_dir", "c", "--to", "0", "--yes")[1])
        units(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "run_units", looking)
    assert call("run", *FILES, "--only", "px", "--force")[0] == 0
    assert "removed 2 entries" in seen[0]
    assert encoders_of(cache) == ["px", "px"]
    assert json.loads(max(Path("out/runs").glob("*.json"), key=lambda p: p.stat().st_mtime_ns).read_text())["plan"]["decoded_images"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "what may go?"),
        (("--older_than", "soon"), "'soon' is no time"),
        (("--to", "80%"), "80% is no size"),
        (("--to", "much"), "'much' is no amount"),
        (("--older_then", "3d"), "did you mean --older_than"),
    ],
)
def test_mistakes(call: Call, cache: FeatureCache, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = call("cache", "prune", "--cache_dir", "c", "--yes", *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
    assert message in err
    assert len(encoders_of(cache)) == 4


def test_ages() -> None:
    assert [parse_age(text) for text in ("90s", "5m", "12h", "1.5d", "2 w")] == [90, 300, 43200, 129600, 1209600]
    with pytest.raises(UserError, match="no time"):
        parse_age("30")


def test_unreadable_entries_are_seen_and_can_go(call: Call, cache: FeatureCache) -> None:
    broken, damaged, foreign, whole = stored_entries(cache)
    (broken.folder / "record.json").write_text("{")
    values = cache.slice_path(damaged.key, 0)
    values.write_bytes(bytes([values.read_bytes()[0] ^ 1]) + values.read_bytes()[1:])
    record = json.loads((foreign.folder / "record.json").read_text())
    (foreign.folder / "record.json").write_text(json.dumps({**record, "output": "something else"}))
    out = call("cache", "list", "--cache_dir", "c")[1]
    assert "its record is gone or cannot be read" in out
    assert "its record is not what its key says" in out
    code, out, _ = call("cache", "verify", "--cache_dir", "c")
    assert code == 1
    assert {line.split()[0] for line in out.splitlines()[:3]} == {"UNUSABLE", "DAMAGED"}
    assert "1 damaged, 2 unusable, 1 not encoded again, checksums right · not ok" in out
    assert values.exists()  # looking changes nothing
    assert "removed 3 entries" in call("cache", "prune", "--cache_dir", "c", "--unreadable", "--yes")[1]
    assert [entry.key for entry in stored_entries(cache)] == [whole.key]
    assert call("cache", "verify", "--cache_dir", "c")[0] == 0


def test_verify_encodes_a_sample_again(call: Call, cache: FeatureCache) -> None:
    code, out, _ = call("cache", "verify", *FILES, "--rows", "5")
    assert code == 0, out
    assert [line.split()[0] for line in out.splitlines()[:-1]] == ["same"] * 4
    assert out.splitlines()[-1] == "c: 4 encoded again to the same bits · ok"
    out = call("cache", "verify", *FILES, "--only", "px")[1]
    assert "2 encoded again to the same bits, 2 not encoded again, checksums right · ok" in out


def test_verify_tells_rounding_from_other_values(call: Call, cache: FeatureCache) -> None:
    first, second, third, _ = stored_entries(cache)
    for entry, factor in ((first, 1.001), (second, 1.5)):
        (piece,) = cache.slices(entry.key, entry.n_rows)
        values = np.fromfile(piece.path, piece.dtype).reshape(entry.n_rows, -1).astype(np.float32)
        cache.write_slice(entry.key, 0, values * factor, {})
    cache.write_slice(third.key, 0, np.zeros((third.n_rows, 7), np.float32), {})
    code, out, _ = call("cache", "verify", *FILES)
    assert code == 1
    assert [line.split()[0] for line in out.splitlines()].count("DIFFERS") == 2
    assert "shape (7,) is stored" in out
    assert "1 encoded again to the same bits, 1 to the same but for rounding, 2 to something else · not ok" in out


def test_verify_goes_on_when_a_network_raises(call: Call, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    real = recheck.encode

    def broken(encoder: Encoder, *given: object, **options: object) -> object:
        if encoder.spec.name == "px":
            raise ZeroDivisionError("their network")
        return real(encoder, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recheck, "encode", broken)
    code, out, err = call("cache", "verify", *FILES)
    assert (code, err) == (1, "")
    assert out.count("it cannot be made again: px: ZeroDivisionError: their network") == 2
    assert "2 encoded again to the same bits, 2 to something else · not ok" in out


def test_verify_looks_at_parts_and_at_images_that_are_gone(call: Call, tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "test"):
        for name, value in (("cat", 10), ("dog", 200)):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (value + number,) * 3).save(folder / f"{number}.png")
    Path("t.yaml").write_text(
        f"a: {{task: folder, data: {{root: '{tmp_path / 'pets'}'}}, num_epochs: 1, grid: {{optimizer: sgd, lr: 0.1}}}}\n"
    )
    only = (*FILES, "--only", "px")
    assert call("run", *only)[0] == 0
    assert call("cache", "verify", *only)[0] == 0
    path = tmp_path / "pets" / "test" / "dog" / "2.png"
    path.write_bytes(b"x" * path.stat().st_size)  # of the same size: the same list
    code, out, _ = call("cache", "verify", *only)
    assert code == 1
    assert "image test/dog/2.png can no longer be decoded" in out or "image dog/2.png can no longer be decoded" in out
    assert call("cache", "verify", *only, "--rows", "0")[0] == 2
    assert "--task_configs" in call("cache", "verify", "--experiment_list", "e.yaml", "--cache_dir", "c")[2]


def test_decoded_images_are_entries_too(call: Call, cache: FeatureCache, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(TASKS.replace("num_epochs: 1", "num_epochs: 9, pre_encode: false, augment: none, views: 1"))
    (tmp_path / "e.yaml").write_text(ENCODERS.splitlines()[0])
    assert call("run", *FILES, "--cache_dir", "d")[0] == 0
    lines = call("cache", "list", "--cache_dir", "d")[1].splitlines()
    assert sorted(line.split()[:4] for line in lines[1:-1]) == [["decoded", "images", name, "pixels"] for name in ("test", "train")]
    assert lines[-1] == f"2 entries of 0 encoders, {50 * 3 * 16 * 16 / 1000:.3g} kB in d"
    verify = ("cache", "verify", "--cache_dir", "d", "--devices", "cpu:1")
    assert "2 not encoded again, checksums right" in call(*verify)[1]
    again = (*verify, *FILES[:4], "--rows", "50")
    assert "2 encoded again to the same bits" in call(*again)[1]
    # Other pixels with a right checksum: another renderer, say.
    entry = max(stored_entries(FeatureCache(Path("d"))), key=lambda entry: entry.n_rows)
    FeatureCache(Path("d")).write_slice(entry.key, 0, np.zeros((40, 3, 16, 16), np.uint8), {})
    code, out, _ = call(*again)
    assert code == 1
    assert re.search(r"DIFFERS +decoded images +train +pixels .* has other pixels", out)
    assert "removed 2 entries" in call("cache", "prune", "--cache_dir", "d", "--encoder", "decoded*", "--yes")[1]
