"""Each image is decoded once, counted by the calls themselves; and features that do not fit the disk at once give the same results."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from e2e_support import Bench, assert_same_results, save_images
from PIL import Image

from virb.data import decode, images
from virb.features import encoding
from virb.features.cache import FeatureCache
from virb.runner import run

FOUR = (
    "small: {arch: pixels, args: {side: 4}, input: {size: 16}}\n"
    "finer: {arch: pixels, args: {side: 8}, input: {size: 16}}\n"
    "large: {arch: pixels, args: {side: 4}, input: {size: 24}}\n"
    "vit: {arch: vit, weights: random, args: {width: 24, depth: 1, heads: 1, patch_size: 8, img_size: 24}, input: {size: 24}}\n"
)


class Calls:
    """Calls of the decoder, and files that Pillow opened, while units run; planning looks at a few images too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []
        self.opened = 0
        self.running = False
        read, units, open_file = images.read_rgb, run.run_units, Image.open

        def counting_read(path: str) -> Image.Image:
            self.paths += [path] * self.running
            return read(path)

        def counting_open(*arguments: Any, **options: Any) -> Any:
            self.opened += self.running
            return open_file(*arguments, **options)

        def running_units(*arguments: Any) -> None:
            self.running = True
            try:
                units(*arguments)
            finally:
                self.running = False

        monkeypatch.setattr(images, "read_rgb", counting_read)
        monkeypatch.setattr(run, "run_units", running_units)
        monkeypatch.setattr(Image, "open", counting_open)


def last_run(out: Path) -> dict[str, Any]:
    return json.loads(max((out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def test_four_encoders_three_geometries_and_two_tasks_decode_each_image_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    bench.write(FOUR, bench.task() + bench.task("probe: mlp").replace("colours:", "again:"))
    bench.run_well()
    n = 42  # 30 to train on, 12 to test
    assert sorted(calls.paths) == sorted(str(path) for path in bench.images.rglob("*.png"))
    assert len(calls.paths) == calls.opened == n
    record = last_run(bench.out)
    assert record["plan"]["geometries"] == ["16px", "24px bicubic centre crop", "24px bilinear centre crop"]
    assert len(record["done"]) == 8
    assert record["plan"]["decoded_images"] == n
    # Another grid reads no image.
    calls.paths.clear()
    bench.write(FOUR, bench.task("seeds: [1]"))
    bench.run_well()
    assert calls.paths == []
    assert last_run(bench.out)["plan"]["decoded_images"] == 0


def test_what_is_decoded_while_heads_train_counts_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    bench.write()
    bench.run_well("--cache_budget", "0")
    assert len(calls.paths) > 5 * 27  # every epoch anew
    assert last_run(bench.out)["plan"]["decoded_images"] == len(calls.paths)
    profile = last_run(bench.out)["profile"]
    seconds = profile["worker_seconds"]
    assert min(seconds["decode"], seconds["encode"]) > 0  # apart, and none of the heads'
    assert sum(seconds.values()) == pytest.approx(profile["wall_seconds"], rel=0.05, abs=0.02)
    assert profile["bound"] in ("loader-bound", "encoder-bound")
    assert min(profile["loader_images_per_second"], profile["encoder_images_per_second"]) > 0


def test_what_failed_was_decoded_all_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    bench.write(tasks=bench.task("on_bad_image: skip"))

    def wrong(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no head today")

    monkeypatch.setattr("virb.probes.linear.GradientProbe.from_features", wrong)
    answer = bench.run("--cache_budget", "0")  # looks for bad images before it fails
    assert answer.code == 1
    assert last_run(bench.out)["plan"]["decoded_images"] == len(calls.paths) >= 42


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_a_stream_decodes_each_image_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, devices: str) -> None:
    """Without the store: five epochs on 27 images and a look at what was learned, each followed by a look at the 3 held out, and two at the
    12 to test on."""
    stream = bench.task("pre_encode: false, augment: none, views: 1")
    bench.write(tasks=stream)
    bench.run_well("--cache_budget", "0", out=bench.folder / "without")
    without = last_run(bench.folder / "without")["plan"]
    assert without["decoded_images"] == 6 * 30 + 2 * 12 == without["images_to_decode"] == without["images_to_decode_in_training"]
    assert "0 images to decode, and about 204 while heads train" in bench.run("--cache_budget", "0", command="check").text
    answer = bench.run_well(devices=devices)
    record = last_run(bench.out)
    assert record["plan"]["decoded_images"] == record["plan"]["images_to_decode"] == 42
    assert record["plan"]["images_to_decode_in_training"] == 0
    assert any("decoded images of 2 image lists are kept" in note for note in record["plan"]["notes"])
    assert "decoded images of 2 image lists are kept" in answer.text
    assert bench.job()["streamed"]
    assert_same_results(bench.folder / "without", bench.out)
    # Another grid finds them there; so does another encoder, whose features are kept.
    bench.write(tasks=bench.task("pre_encode: false, augment: none, views: 1, seeds: [1]"))
    bench.run_well(devices=devices)
    assert last_run(bench.out)["plan"]["decoded_images"] == 0
    bench.write("other: {arch: pixels, args: {side: 3}, input: {size: 16}}\n", bench.task())
    bench.run_well(devices=devices)
    assert last_run(bench.out)["plan"]["decoded_images"] == 0
    plain = bench.folder / "plain"
    bench.run_well("--no_cache", out=plain)
    first, second = bench.job("other"), bench.job("other", out=plain)
    assert (first["metrics"], first["surface"]) == (second["metrics"], second["surface"])


def test_several_streams_share_the_decoding_and_skip_the_same_bad_images(bench: Bench) -> None:
    bad = bench.images / "train" / "red" / "004.png"
    bad.write_bytes(b"no image")
    tasks = bench.task("pre_encode: false, augment: none, views: 1, on_bad_image: skip")
    bench.write(FOUR, tasks + tasks.replace("colours:", "again:"))
    bench.run_well("--cache_budget", "0", out=bench.folder / "without")
    bench.run_well()
    assert last_run(bench.out)["plan"]["decoded_images"] == 42
    assert_same_results(bench.folder / "without", bench.out)
    assert bench.job("vit")["bad_images"]["count"] == 1
    # Where a bad image is an error, the words are those of the decoder.
    bench.write(tasks=bench.task("pre_encode: false, augment: none, views: 1"))
    answer = bench.run()
    assert answer.code == 1
    assert f"{bad}: is not an image that can be read; repair or remove it" in answer.text


PLANTED = "planted: {module: 'e2e_dense:Colours', weights: random, input: {size: [24, 36], mean: [0, 0, 0], std: [1, 1, 1]}}\n"
PIXELWISE = "{task: 'e2e_dense:MASKS', num_epochs: 3, batch_size: 5, training_configs: {a: {optimizer: adamw, lr: 0.1}}, pre_encode: false"


@pytest.mark.parametrize("more", ["probe: dense-multi", "windows: {size: [24, 36], stride: [8, 12]}"])
def test_dense_heads_that_stream_decode_each_image_once(bench: Bench, more: str) -> None:
    """14 to train on and 7 to test on, however many maps or windows are made of them; and 4 once more, for the picture."""
    bench.write(PLANTED, f"masks: {PIXELWISE}, {more}}}\n")
    bench.run_well("--cache_budget", "0", out=bench.folder / "without")
    assert last_run(bench.folder / "without")["plan"]["decoded_images"] > 3 * 14
    bench.run_well()
    record = last_run(bench.out)
    known = 2 if "windows" in more else 0  # looked at while planning, and a list of windows remembers its last few images
    assert record["plan"]["decoded_images"] == 14 + 7 + 4 - known
    assert record["plan"]["images_to_decode"] >= 14 + 7  # windows count one by one there
    assert any("decoded images of 2 image lists are kept" in note for note in record["plan"]["notes"])
    job = bench.job("planted", "masks")
    assert (job["streamed"], job["tier"]) == (True, "streamed")
    assert "stream" in {timing["stage"] for timing in job["timings"]}
    assert_same_results(bench.folder / "without", bench.out)


def test_a_stream_encodes_as_many_images_as_a_step_has(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five samples a step: eight images at once, in every batch, also where windows make several rows of a sample to test on."""
    shapes: set[int] = set()
    forward = encoding.forward

    def noting(encoder: Any, pixels: Any, requests: Any, device: Any, numerics: Any, batch_size: int, *more: Any) -> Any:
        shapes.add(batch_size)
        return forward(encoder, pixels, requests, device, numerics, batch_size, *more)

    monkeypatch.setattr(encoding, "forward", noting)
    bench.write(PLANTED, f"masks: {PIXELWISE}, windows: {{size: [24, 36], stride: [8, 12]}}}}\n")
    bench.run_well()
    assert shapes == {8}


def test_passes_that_memory_splits_decode_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write(FOUR)
    bench.run_well(out=bench.folder / "whole")
    for module in ("virb.runner.worker", "virb.plan.units"):
        monkeypatch.setattr(f"{module}.weight_bytes", lambda spec: 10.0)
        monkeypatch.setattr(f"{module}.encoder_limit", lambda devices: 15.0)
    answer = bench.run_well("--cache_dir", str(bench.folder / "other"))
    record = last_run(bench.out)
    assert record["plan"]["passes"] == 8
    assert record["plan"]["decoded_images"] == record["plan"]["images_to_decode"] == 42
    assert "passes after the first decode none" in answer.text
    assert_same_results(bench.folder / "whole", bench.out)
    # Nothing of it is left.
    assert FeatureCache(bench.folder / "other").size() == FeatureCache(bench.folder / "cache").size()


def test_the_counter_counts_failed_tries_and_threads(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    save_images(tmp_path, {"train": 20})
    paths = [str(path) for path in tmp_path.rglob("*.png")]
    before = decode.DECODED.value
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode.read_rgb, paths * 5))
    assert decode.DECODED.value - before == 5 * len(paths)
    with pytest.raises(images.BadImage):
        decode.read_rgb(str(tmp_path / "none.png"))
    assert decode.DECODED.value - before == 5 * len(paths) + 1
    assert decode.read_target(paths[0]).tobytes() == decode.read_rgb(paths[0]).tobytes()
    assert decode.DECODED.value - before == 5 * len(paths) + 2  # a target is no image


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_rounds_of_features_give_the_same_results_in_less_room(bench: Bench, devices: str) -> None:
    bench.write(FOUR)
    bench.run_well(out=bench.folder / "whole")
    whole = FeatureCache(bench.folder / "cache").size()
    largest = 42 * 3 * 8 * 8 * 2  # of one encoder: finer
    tight = bench.folder / "tight"
    answer = bench.run_well("--cache_dir", str(tight), "--cache_budget", str(largest), devices=devices)
    assert "at once: they are made in" in answer.text
    assert_same_results(bench.folder / "whole", bench.out)
    assert 0 < FeatureCache(tight).size() <= largest < whole
    record = last_run(bench.out)
    assert not any(bench.job(name)["streamed"] for name in ("small", "finer", "large", "vit"))
    assert record["plan"]["decoded_images"] == 42 * record["plan"]["passes"] // 2  # a round decodes anew, and no epoch does
    # Another run uses what the last round left first, and makes room with it.
    bench.run_well("--cache_dir", str(tight), "--cache_budget", str(largest), "--force", devices=devices)
    assert_same_results(bench.folder / "whole", bench.out)
    assert not any(bench.job(name)["streamed"] for name in ("small", "finer", "large", "vit"))
    assert 0 < FeatureCache(tight).size() <= largest


def test_profile_stands_at_the_end_and_in_the_record(bench: Bench) -> None:
    bench.write()
    text = bench.run_well("--profile").text
    profile = last_run(bench.out)["profile"]
    assert {"decode", "encode", "write", "read", "head", "metrics", "results", "other", "idle"} <= set(profile["worker_seconds"])
    assert sum(profile["worker_seconds"].values()) == pytest.approx(profile["wall_seconds"], rel=0.05, abs=0.02)
    assert profile["bound"] in ("loader-bound", "encoder-bound")
    for line in ("  encode ", "  head ", "  idle ", f"  {profile['bound']}: the loader gives "):
        assert any(found.startswith(line) for found in text.splitlines()), text
    assert "the loader gives" in bench.run_well("--force", "--no_cache").text
    assert "  head " not in bench.run_well("--force").text  # the table is for who asks for it


def test_a_job_too_large_for_memory_reads_from_copies_on_this_machine(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from virb.features import feature_set, local_copies
    from virb.runner import reading

    read: set[Path] = set()
    mapped = feature_set.MappedFile

    def looking(path: Path, dtype: str) -> object:
        read.add(path)
        return mapped(path, dtype)

    monkeypatch.setattr(feature_set, "MappedFile", looking)
    bench.write()
    bench.run_well(out=bench.folder / "whole")
    read.clear()
    monkeypatch.setattr(local_copies.shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**12))  # whatever is free here
    monkeypatch.setattr(reading, "working_tier", lambda *_: "mapped")
    here = bench.folder / "here"
    bench.run_well("--local_cache", str(here))
    assert bench.job()["tier"] == "mapped"
    assert read
    assert all(path.is_relative_to(here) for path in read)
    assert not list(here.iterdir())
    assert_same_results(bench.folder / "whole", bench.out)
