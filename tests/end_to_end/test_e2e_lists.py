"""Lists of samples: those that a file names are what is learned from, their content decides the job, and all stored lists count alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from e2e_support import Bench, save_images

from virb.data.datasets.imagenet import wnids

KNN = "plain: {{task: folder, data: {{root: '{root}'}}, probe: knn, grid: {{k: [5]}}}}\n"


@pytest.fixture
def named(bench: Bench) -> Bench:
    """Images whose file names are all different, as ImageNet's are; sample i of train is train/<class>/<class>_<i>.png."""
    for path in sorted(bench.images.rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{path.name}"))
    return bench


def task(bench: Bench, configs: str, more: str = "") -> str:
    return f"few: {{task: folder, probe: lowshot, data: {{root: '{bench.images}'}}, training_configs: {configs}{more}}}\n"


def lists(bench: Bench, label: str) -> dict[str, list[int]]:
    return {name: entry["indices"] for name, entry in bench.job(label=label)["index_lists"].items()}


def names(bench: Bench) -> list[str]:
    """The samples of train, in order."""
    return [path.name for path in sorted((bench.images / "train").rglob("*.png"))]


def test_a_list_is_read_when_planning_kept_from_the_hold_out_and_part_of_the_key(named: Bench) -> None:
    text = task(named, "{a: {list: few.txt}}")
    named.write(tasks=text)
    answer = named.run()
    assert answer.code == 2
    assert "tasks.yaml:1  few.training_configs  there is no list of samples" in answer.errors

    every, chosen = names(named), list(range(0, 30, 2))
    (named.images / "few.txt").write_text("\n".join(every[i] for i in chosen))
    named.run_well()
    found, first = lists(named, "few"), named.job(label="few")
    assert found["list"] == chosen
    assert found["select"]
    assert not set(found["select"]) & set(chosen)
    assert any("the list few.txt" in note for note in first["notes"])
    assert "the job is done" in named.run_well().text

    (named.images / "few.txt").write_text("\n".join(every[i] for i in range(1, 30, 2)))  # another content in the same place
    named.run_well()
    assert lists(named, "few")["list"] == list(range(1, 30, 2))
    assert named.job(label="few")["key"] != first["key"]


def test_all_lists_count_the_samples_of_the_split(named: Bench) -> None:
    """Also where some are held out, some cannot be decoded, and some are left out by a limit: draws, hold-outs and lists share no numbering
    of their own."""
    next((named.images / "train/blue").iterdir()).write_bytes(b"no image")
    every = names(named)
    (named.folder / "few.txt").write_text("\n".join(every[10:]))
    named.write(
        tasks=task(named, "{a: {share: 0.5}}", ", on_bad_image: skip, limit: {train: 24}")
        + task(named, "{a: {list: few.txt}}", ", on_bad_image: skip").replace("few:", "listed:")
    )
    named.run_well()
    found = lists(named, "few")
    limited = found.pop("limit-train")
    assert len(limited) == 24
    select = set(found.pop("select"))
    for drawn in found.values():
        assert set(drawn) <= set(limited) - select
    assert len(found) == 3
    assert select <= set(limited)
    listed = lists(named, "listed")
    assert listed["list"] == list(range(10, 30))
    assert set(listed["select"]) == {number for number in listed["select"] if 0 < number < 10}


def test_imagenets_own_lists_are_taken_where_they_lie(bench: Bench) -> None:
    data, classes = bench.folder / "imagenet", wnids()[:3]
    drawn = save_images(bench.folder / "drawn", {"train": 10, "val": 2})
    for split in ("train", "val"):
        (data / split).mkdir(parents=True)
        for colour, wnid in zip(("red", "green", "blue"), classes, strict=True):
            (drawn / split / colour).rename(data / split / wnid)
            for path in sorted((data / split / wnid).iterdir()):
                path.rename(path.with_name(f"{wnid}_{path.name}"))
    text = "few: {task: Imagenet, probe: lowshot, training_configs: {a: {share: 0.1}}}\n"
    bench.write(tasks=text)
    bench.run_well()
    assert sorted(lists(bench, "few")) == ["draw0", "draw1", "draw2", "select"]
    (data / "10percent.txt").write_text("".join(f"{wnid}_00{i}.JPEG\n" for wnid in classes for i in (3, 4)))
    bench.run_well()
    assert lists(bench, "few")["list"] == [3, 4, 13, 14, 23, 24]
    assert "the samples are those of the list 10percent.txt" in bench.job(label="few")["notes"]


def test_views_in_a_files_defaults_leave_a_knn_alone(bench: Bench) -> None:
    """It reads every image once: augmented views, of which it would see the first alone, are for heads that are trained."""
    knn = KNN.format(root=bench.images)
    bench.write(tasks=knn)
    bench.run_well()
    alone = bench.job(label="plain")
    bench.write(tasks="defaults: {views: 4}\n" + knn + bench.task())
    bench.run_well(out=Path("second"))
    beside = bench.job(label="plain", out=Path("second"))
    assert beside["key"] == alone["key"]
    assert beside["metrics"] == alone["metrics"]
    assert json.loads((Path("second") / "pixels/colours/job.json").read_text())["protocol"]["values"]["views"]["value"] == 4
