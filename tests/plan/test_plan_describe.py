"""The plan in words says what the run will do: geometries as they are, what is kept, where features will be read from."""

from __future__ import annotations

from typing import Any

import pytest
from plan_support import DIGITS, PIXELS, MakePlan

from virb.features import limits
from virb.plan.describe import check_report, geometry_names, header
from virb.plan.jobs import Plan
from virb.plan.measure import Meter
from virb.runner.run import plan_facts


def line(plan: Plan, start: str) -> str:
    (found,) = [text for text in check_report(plan, []) if text.startswith(start)]
    return found


def resized(**how: Any) -> dict[str, Any]:
    return {**PIXELS, "input": how}


def test_geometries_of_one_size_are_several(make_plan: MakePlan) -> None:
    encoders = {
        "a": resized(size=16, resize="squash", interpolation="bilinear"),
        "b": resized(size=16, resize="squash", interpolation="bicubic"),
        "c": resized(size=24, resize="squash", interpolation="bicubic"),
    }
    plan = make_plan(encoders)
    text = line(plan, "geometries")
    assert text.startswith("geometries  3: 16px bilinear squashed (1 job), 16px bicubic squashed (1 job), 24px (1 job)")
    assert text.endswith(" · input: {size: 24} for all encoders would make 2 of 3")
    assert plan_facts(plan)["geometries"] == sorted(geometry_names(plan.to_do))
    only = make_plan({name: encoders[name] for name in "ab"})
    assert line(only, "geometries") == "geometries  2: 16px bilinear squashed (1 job), 16px bicubic squashed (1 job)"  # no size merges them
    crops = [resized(size=16, resize="shorter", crop="center", crop_pct=share) for share in (1.0, 0.875)]
    assert "16px bilinear centre crop of 0.875 (1 job)" in line(make_plan(dict(zip("ab", crops, strict=True))), "geometries")


def test_the_head_tells_of_images_that_are_kept(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Meter, "decode", lambda self, images, geometry: 5e-3)
    plan = make_plan(None, {"t": {**DIGITS, "pre_encode": False, "views": 1, "augment": "none"}})
    (text,) = [text for text in header(plan) if text.startswith("  keeps")]
    assert f" 0 B of features and {(1438 + 359) * 3 * 32 * 32 / 1e6:.3g} MB of decoded images in " in text
    (text,) = [text for text in header(make_plan()) if text.startswith("  keeps")]
    assert "decoded images" not in text


def test_where_features_will_be_read_from(make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan()
    size = max(job.nbytes for job in plan.jobs)
    for free, place in ((100 * size, "host memory"), (size // 2, "read from disk")):
        monkeypatch.setattr(limits, "free_memory", lambda free=free: free)
        assert line(plan, "  e x t").endswith(place)
