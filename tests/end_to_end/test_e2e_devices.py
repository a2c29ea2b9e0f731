"""Numbers do not depend on how many workers share the work: every file of a run on one device and on three is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e_support import PIXELS, Bench, assert_same_results, files_below

ENCODERS = """
pixels: {arch: pixels, args: {side: 4}, input: {size: 16}}
vit: {arch: vit_tiny, weights: random, args: {patch_size: 16, img_size: 32}, input: {size: 32}}
resnet: {arch: resnet18, weights: random, input: {size: 32, resize: squash}}
"""
# 1,300 rows of train are two whole slices of 512 and a remainder of 276, which is no multiple of the encoding batch either.
TASKS = """
defaults: {data: {n_train: 1300, n_test: 70, size: 32}, num_epochs: 3, batch_size: 100}
count: {task: shapes-count, grid: {optimizer: [adamw, sgd], lr: [0.01, 0.1]}, seeds: 2}
class: {task: shapes-class, probe: mlp, training_configs: {small: {optimizer: adam, lr: 0.001, hidden: 32}}, selection: test-best}
"""


def cache_files(folder: Path) -> dict[str, Any]:
    """Contents by name, less the seconds it took to make them."""
    files: dict[str, Any] = {name: (folder / name).read_bytes() for name in files_below(folder)}
    for name in files:
        if name.endswith(".json"):
            files[name] = {key: value for key, value in json.loads(files[name]).items() if key != "seconds"}
    return files


def test_one_device_and_three_write_the_same_files(bench: Bench) -> None:
    bench.write(ENCODERS, TASKS)
    one, three = bench.folder / "one", bench.folder / "three"
    first = bench.run_well("--cache_dir", str(bench.folder / "cache1"), out=one, devices="cpu:1")
    bench.run_well("--cache_dir", str(bench.folder / "cache3"), out=three, devices="cpu:3")
    assert "16px+32px (3 encoders, 1,300 images)" in first.text  # one pass, two geometries
    assert_same_results(one, three)
    left, right = cache_files(bench.folder / "cache1"), cache_files(bench.folder / "cache3")
    slices = {name.rpartition("/")[2] for name in left if name.endswith(".bin")}
    assert len(slices) == 3
    assert left.keys() == right.keys()
    assert [name for name in left if left[name] != right[name]] == []


def test_batch_size_of_test_and_loader_threads_do_not_change_numbers(bench: Bench) -> None:
    numbers = []
    for test_batch, flags in (("5", ("--num_workers", "0")), ("1000", ("--num_workers", "3")), ("12", ())):
        bench.write(tasks=bench.task(f"test_batch_size: {test_batch}"))
        out = bench.folder / f"out{test_batch}"
        bench.run_well("--cache_dir", str(bench.folder / f"cache{test_batch}"), *flags, out=out)
        job = bench.job(out=out)
        rows = [
            {key: row[key] for key in ("config", "train_metrics", "select_metrics", "report_metrics", "epoch")} for row in job["surface"]
        ]
        samples = (out / "pixels/colours/samples.npz").read_bytes()
        numbers.append((job["chosen"], job["metrics"], rows, samples, cache_files(bench.folder / f"cache{test_batch}")))
    assert numbers[0] == numbers[1] == numbers[2]


def test_features_do_not_depend_on_who_rides_along(bench: Bench) -> None:
    """An encoder's slices are the same alone in a pass and beside another one."""
    bench.write(PIXELS)
    bench.run_well("--cache_dir", str(bench.folder / "alone"))
    bench.write(PIXELS + "vit: {arch: vit_tiny, weights: random, args: {patch_size: 8, img_size: 16}, input: {size: 16}}\n")
    bench.run_well("--cache_dir", str(bench.folder / "together"), out=bench.folder / "other")
    alone, together = cache_files(bench.folder / "alone"), cache_files(bench.folder / "together")
    assert alone
    assert len(together) == 2 * len(alone)
    assert {name: together[name] for name in alone} == alone


def test_a_cache_made_by_three_serves_one(bench: Bench) -> None:
    bench.write()
    bench.run_well("--cache_dir", str(bench.folder / "shared"), devices="cpu:3")
    answer = bench.run_well("--cache_dir", str(bench.folder / "shared"), out=bench.folder / "other")
    assert "passes" not in answer.text
    assert_same_results(bench.out, bench.folder / "other")
