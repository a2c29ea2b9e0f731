"""``--decoder fast``: other features under other keys, and records that say so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from e2e_support import Bench
from PIL import Image

from virb.results.load import load_results
from virb.runner import settings


def of_run(bench: Bench) -> dict[str, Any]:
    return json.loads(max((bench.out / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def test_a_missing_decoder_is_a_mistake_that_says_what_to_install(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == "simplejpeg" else object())
    bench.write()
    answer = bench.run("--decoder", "fast")
    assert answer.code == 2
    assert "fast needs simplejpeg: pip install 'virb[fast]'" in answer.errors
    answer = bench.run("--decoder", "fats")
    assert answer.code == 2
    assert "'fats' is none of pillow, fast; did you mean fast?" in answer.errors
    assert bench.run("--decoder", "pillow", command="check").code == 0


def test_a_fast_run_is_told_from_the_reference(bench: Bench) -> None:
    pytest.importorskip("simplejpeg")
    for number, path in enumerate(sorted(bench.images.rglob("*.png"))):
        with Image.open(path) as image:
            if number % 6:  # every sixth file stays a PNG
                image.resize((40, 30)).save(path.with_suffix(".jpg"), quality=95)
        if number % 6:
            path.unlink()
    bench.write()
    bench.run_well()
    reference, plain = bench.job(), of_run(bench)
    assert (plain["plan"]["decoded_images"], plain["plan"]["refused_images"]) == (42, 0)
    assert plain["options"]["decoder"] == "pillow"
    assert "decoder" not in reference["protocol"]["changed"]

    answer = bench.run_well("--decoder", "fast")
    job, record = bench.job(), of_run(bench)
    assert (record["plan"]["decoded_images"], record["plan"]["refused_images"]) == (42, 7)
    assert "7 of 42 images were decoded by Pillow" in answer.text
    assert record["options"]["decoder"] == "fast"
    assert job["key"] != reference["key"]
    assert job["protocol"]["changed"] == {**reference["protocol"]["changed"], "decoder": "fast"}
    assert job["protocol"]["values"]["geometry"]["value"]["decoder"] == "fast"
    assert "decoder: fast" in str(load_results(bench.out).iloc[0]["protocol"])

    assert bench.run_well("--decoder", "fast").text.startswith("the job is done")
    bench.run_well()  # what Pillow made is still there
    assert of_run(bench)["plan"]["decoded_images"] == 0
    assert bench.job()["metrics"] == reference["metrics"]


def test_heads_are_scored_by_the_decoder_of_the_run(bench: Bench) -> None:
    pytest.importorskip("simplejpeg")
    bench.write()
    bench.run_well("--decoder", "fast")
    both = bench.task() + f"again: {{task: folder, data: {{root: '{bench.images}'}}, heads_from: colours}}\n"
    bench.write(tasks=both)
    bench.run_well("--decoder", "fast")
    changed = bench.job(label="again")["protocol"]["changed"]
    assert changed["decoder"] == changed["decoder of the heads"] == "fast"
