"""The probes fewshot and lowshot: draws that every encoder shares, all shot counts scored, lists of files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from vector_support import CLASSES, CPU, planted, predicted, role, roles, settings, shuffled, x_of

from virb.errors import UserError
from virb.metrics.base import find_metric
from virb.probes.base import find_probe
from virb.probes.fewshot import FewshotConfig, FewshotProbe, draw_shots
from virb.probes.lowshot import LowshotConfig, LowshotProbe, draw_share, find_list
from virb.results.statistics import estimate

SHOTS = {f"shots{n}": FewshotConfig(shots=n) for n in (1, 4, 16)}
SEEDS = (0, 1, 2, 3)


def run(data, configs=SHOTS, probe=FewshotProbe, seeds=SEEDS, **changes):
    return probe().from_features(data, settings(configs, seeds=seeds, **changes), CPU)


def test_draws_are_nested_balanced_and_seeded() -> None:
    targets = np.random.default_rng(0).permutation(np.repeat([0, 2, 5], [30, 40, 7]))
    one, four, sixteen = (draw_shots(targets, shots, 3) for shots in (1, 4, 16))
    assert set(one) < set(four) < set(sixteen)
    assert np.bincount(targets[four]).tolist() == [4, 0, 4, 0, 0, 4]
    assert np.bincount(targets[sixteen]).tolist() == [16, 0, 16, 0, 0, 7]
    assert (np.diff(sixteen) > 0).all()
    assert draw_shots(targets, 4, 3).tolist() == four.tolist() != draw_shots(targets, 4, 4).tolist()


def test_every_shot_count_is_scored_in_every_draw() -> None:
    data = roles()
    outcome = run(data)
    assert find_probe("fewshot") is FewshotProbe
    assert [r.seed for r in outcome.runs] == list(SEEDS)
    assert outcome.draws
    assert outcome.selected_on == "none"
    assert outcome.chosen == "shots16"
    assert set(outcome.index_lists) == {f"draw{seed}-shots{n}" for seed in SEEDS for n in (1, 4, 16)}
    fit = data["fit"]
    for r in outcome.runs:
        for name, config in SHOTS.items():
            drawn = outcome.index_lists[f"draw{r.seed}-{name}"]
            assert len(drawn) == config.shots * CLASSES
            x = x_of(fit)[drawn] / np.linalg.norm(x_of(fit)[drawn], axis=1, keepdims=True)
            means = np.stack([x[fit.targets[drawn] == c].mean(0) for c in range(CLASSES)])
            expected = (x_of(data["report"]) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)
            np.testing.assert_array_equal(r.configs[name].report.values, expected)
    top1 = find_metric("top1")
    means = {name: estimate(top1, [r.configs[name].report.statistics["top1"] for r in outcome.runs], draws=True) for name in SHOTS}
    assert means["shots1"].value < means["shots4"].value < means["shots16"].value
    assert all(m.ci_low < m.value < m.ci_high for m in means.values())


def test_draws_do_not_depend_on_the_features() -> None:
    data = roles(select=False)
    other = data | {"fit": role("fit", np.random.default_rng(5).normal(size=(210, 7)), data["fit"].targets)}
    other["report"] = role("report", np.random.default_rng(6).normal(size=(83, 7)), data["report"].targets)
    assert run(data).index_lists == run(other).index_lists == run(shuffled(data, "report")).index_lists


def test_logistic_heads_and_rivals_of_the_most_shots() -> None:
    configs = {
        "few": FewshotConfig(shots=2, head="logistic"),
        "ncm": FewshotConfig(shots=8),
        "logistic": FewshotConfig(shots=8, head="logistic"),
    }
    data = roles()
    outcome = run(data, configs)
    means = {name: np.mean([r.configs[name].select_metrics["top1"] for r in outcome.runs]) for name in ("ncm", "logistic")}
    assert outcome.chosen == max(means, key=lambda name: means[name])
    assert outcome.selected_on == "val"
    assert all(config.report is not None for r in outcome.runs for config in r.configs.values())
    assert run(shuffled(data, "report"), configs).chosen == outcome.chosen


def test_a_class_with_fewer_samples_is_noted() -> None:
    outcome = run(roles() | {"fit": planted("fit", 23, 1)})
    assert any("fewer than 16 fit samples" in note for note in outcome.notes)
    assert not any("fewer than 4 " in note for note in outcome.notes)


def test_a_slow_head_is_noted_by_draw() -> None:
    outcome = run(roles(), {"a": FewshotConfig(shots=4, head="logistic", max_iter=1)}, seeds=(0, 1))
    assert [note.partition(", ")[0] for note in outcome.notes] == ["draw 0", "draw 1"]


def test_keys_of_the_other_head_are_refused() -> None:
    with pytest.raises(ValidationError, match="the head ncm takes no C; it belongs to logistic"):
        FewshotConfig(shots=1, C=2.0)
    with pytest.raises(ValidationError, match="the head logistic takes no metric"):
        FewshotConfig(shots=1, head="logistic", metric="euclidean")
    with pytest.raises(UserError, match="refit"):
        run(roles(), refit=True)


def test_a_share_of_each_class() -> None:
    targets = np.repeat([0, 1, 2], [100, 250, 3])
    drawn = draw_share(targets, 0.1, 0)
    assert np.bincount(targets[drawn]).tolist() == [10, 25, 1]
    assert set(drawn) < set(draw_share(targets, 0.2, 0))


def test_lowshot_chooses_c_on_select_over_its_draws() -> None:
    data, configs = roles(), {f"C{c:g}": LowshotConfig(C=c, share=0.1) for c in (1e-3, 0.1, 10.0)}
    outcome = run(data, configs, LowshotProbe)
    means = {name: np.mean([r.configs[name].select_metrics["top1"] for r in outcome.runs]) for name in configs}
    assert means[outcome.chosen] == max(means.values())
    assert outcome.selected_on == "val"
    assert outcome.draws
    assert all([n for n, c in r.configs.items() if c.report is not None] == [outcome.chosen] for r in outcome.runs)
    assert {len(drawn) for drawn in outcome.index_lists.values()} == {25}  # 42 samples of each class
    assert any("25 of 210 fit samples" in note for note in outcome.notes)
    with pytest.raises(UserError, match="give it a label of its own"):
        run(data, {"a": LowshotConfig(share=0.1), "b": LowshotConfig(share=0.2)}, LowshotProbe)


def test_lowshot_reads_a_list(tmp_path: Path) -> None:
    data = roles()
    ids = np.array([f"n01/img_{i}.JPEG" for i in range(210)])
    data["fit"] = replace(data["fit"], sample_ids=ids, units=ids)
    names = tmp_path / "1percent.txt"
    chosen = list(range(0, 210, 7))
    names.write_text("\n".join(f"img_{i}.JPEG" for i in chosen) + "\nimg_held_out.JPEG\n")
    outcome = run(data, {"a": LowshotConfig(list=str(names))}, LowshotProbe)
    assert outcome.index_lists["list"] == chosen
    assert len(outcome.runs) == 1
    assert any("those of the list 1percent.txt; 1 of its names" in note for note in outcome.notes)
    assert len(predicted(outcome)) == 83
    names.write_text("img_x.JPEG\nimg_1.JPEG\n")
    with pytest.raises(UserError, match="1 of its 2 samples, such as img_x"):
        run(data, {"a": LowshotConfig(list=str(names))}, LowshotProbe)
    with pytest.raises(UserError, match="cannot read the list"):
        run(data, {"a": LowshotConfig(list=str(tmp_path / "none.txt"))}, LowshotProbe)


def test_a_list_keeps_its_samples_where_some_are_held_out(tmp_path: Path) -> None:
    """Nothing of what it names is held out for the choice, and stored positions are those of all fit samples."""
    data = roles(select=False)
    names = tmp_path / "list.txt"
    chosen = list(range(0, 210, 2))
    names.write_text("\n".join(data["fit"].sample_ids[chosen]))
    outcome = run(data, {"a": LowshotConfig(list=str(names))}, LowshotProbe)
    held = outcome.index_lists["select"]
    assert outcome.index_lists["list"] == chosen
    assert held
    assert not set(held) & set(chosen)
    drawn = run(data, {"a": LowshotConfig(share=0.5)}, LowshotProbe).index_lists
    assert not set(drawn["select"]) & {i for name, positions in drawn.items() if name.startswith("draw") for i in positions}
    shots = run(data, {"a": FewshotConfig(shots=16)}).index_lists
    assert not set(shots["select"]) & {i for name, positions in shots.items() if name.startswith("draw") for i in positions}


def test_a_share_beside_a_list_is_refused() -> None:
    with pytest.raises(ValidationError, match="leave out one of share and list"):
        LowshotConfig(list="a.txt", share=0.1)
    assert LowshotConfig().share == 0.01
    assert LowshotConfig(list="a.txt").share is None


def test_published_lists_are_found_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "10percent.txt").write_text("x\n")
    (tmp_path / "mine.txt").write_text("x\n")
    assert find_list(LowshotConfig(share=0.1), "imagenet", tmp_path, []) == tmp_path / "10percent.txt"
    assert find_list(LowshotConfig(share=0.01), "imagenet", tmp_path, []) is None  # not there
    assert find_list(LowshotConfig(share=0.1), "folder", tmp_path, []) is None  # another data set's share
    assert find_list(LowshotConfig(list="mine.txt"), "folder", None, [tmp_path]) == tmp_path / "mine.txt"
    with pytest.raises(UserError, match="there is no list of samples"):
        find_list(LowshotConfig(list="other.txt"), "folder", None, [tmp_path])
