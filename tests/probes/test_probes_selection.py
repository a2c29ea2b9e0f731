"""The hold-out and the order of preference."""

from __future__ import annotations

import time

import numpy as np
import pytest

from virb.errors import ViRBError
from virb.probes.selection import Candidate, choose, hold_out, over_seeds


def ids(n: int) -> np.ndarray:
    return np.array([f"s{i}" for i in range(n)])


def check_partition(fit: np.ndarray, select: np.ndarray, units: np.ndarray) -> None:
    assert sorted([*fit.tolist(), *select.tolist()]) == list(range(len(units)))
    assert (np.diff(fit) > 0).all()
    assert (np.diff(select) > 0).all()
    assert not set(units[fit]) & set(units[select])


def test_ten_percent_of_each_class_between_1_and_50() -> None:
    sizes = [2, 5, 14, 100, 495, 2000]
    targets = np.random.default_rng(0).permutation(np.repeat(np.arange(6) * 3, sizes))
    units = ids(len(targets))
    fit, select = hold_out(targets, units)
    check_partition(fit, select, units)
    assert [int((targets[select] == 3 * c).sum()) for c in range(6)] == [1, 1, 1, 10, 50, 50]


def test_it_is_a_function_of_its_input_and_seed() -> None:
    targets, units = np.arange(400) % 4, ids(400)
    first, again, other = hold_out(targets, units)[1], hold_out(targets, units)[1], hold_out(targets, units, seed=1)[1]
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize("with_classes", [True, False])
def test_what_is_kept_is_not_held_out(with_classes: bool) -> None:
    targets, units = np.arange(400) % 4, np.array([f"u{i // 8}" for i in range(400)])
    keep = np.arange(0, 400, 16)  # every second unit
    fit, select = hold_out(targets if with_classes else None, units, keep=keep)
    check_partition(fit, select, units)
    assert len(select) == 40
    assert not set(units[select]) & set(units[keep])
    assert [a.tolist() for a in hold_out(targets, units, keep=[])] == [a.tolist() for a in hold_out(targets, units)]
    with pytest.raises(ViRBError, match="all samples are needed to fit"):
        hold_out(targets if with_classes else None, units, keep=np.arange(400))


def test_units_stay_together() -> None:
    rng = np.random.default_rng(1)
    unit_numbers = rng.permutation(np.repeat(np.arange(60), 7))
    targets = unit_numbers % 3
    units = np.array([f"video{u}" for u in unit_numbers])
    fit, select = hold_out(targets, units)
    check_partition(fit, select, units)
    assert [int((targets[select] == c).sum()) for c in range(3)] == [14, 14, 14]  # two whole videos of 7 each, 10 % of 140


def test_a_unit_of_several_classes_counts_for_all_of_them() -> None:
    rng = np.random.default_rng(2)
    units = np.array([f"scene{u}" for u in np.repeat(np.arange(40), 6)])
    targets = rng.integers(0, 3, len(units))
    fit, select = hold_out(targets, units)
    check_partition(fit, select, units)
    for c in range(3):
        assert 1 <= (targets[select] == c).sum() <= 50
        assert (targets[fit] == c).any()


def test_a_class_of_one_unit_stays_in_fit() -> None:
    targets = np.array([0] * 20 + [1] * 8 + [2])
    units = np.array([f"s{i}" for i in range(20)] + ["lonely"] * 8 + ["single"])
    fit, select = hold_out(targets, units)
    check_partition(fit, select, units)
    assert set(targets[select].tolist()) == {0}
    assert (targets[fit] == 1).sum() == 8


def test_only_the_smallest_unit_is_taken_where_none_fits() -> None:
    sizes = {"a": 30, "b": 20, "c": 25}  # quota 8
    units = np.array([name for name, n in sizes.items() for _ in range(n)] + [f"o{i}" for i in range(50)])
    targets = np.array([0] * 75 + [1] * 50)
    fit, select = hold_out(targets, units)
    check_partition(fit, select, units)
    assert set(units[select][targets[select] == 0]) == {"b"}


def test_targets_of_other_kinds_hold_out_ten_percent_of_the_units() -> None:
    units = np.array([f"u{i // 3}" for i in range(90)])
    fit, select = hold_out(None, units)
    check_partition(fit, select, units)
    assert len(select) == 9


def test_nothing_to_hold_out_says_so() -> None:
    with pytest.raises(ViRBError, match="all samples are of one unit"):
        hold_out(np.array([0, 1, 0]), np.array(["v", "v", "v"]))
    with pytest.raises(ViRBError, match="every class has its samples in a single unit"):
        hold_out(np.array([0, 0, 1]), np.array(["v", "v", "w"]))


def test_a_large_set_takes_a_second_or_two() -> None:
    targets = np.random.default_rng(0).integers(0, 1000, 200_000)
    start = time.perf_counter()
    _, select = hold_out(targets, np.arange(200_000).astype(str))
    assert time.perf_counter() - start < 10
    assert len(select) == pytest.approx(20_000, rel=0.02)


def test_order_of_preference() -> None:
    a, b = Candidate("a", 0.5, 1.0, 3), Candidate("b", 0.6, 2.0, 9)
    assert choose([a, b], True).name == "b"
    assert choose([a, b], False).name == "a"
    assert choose([a, Candidate("b", 0.5, 0.9, 9)], True).name == "b"  # equal metric: lower loss
    assert choose([a, Candidate("b", 0.5, 1.0, 2)], True).name == "b"  # then earlier epoch
    assert choose([a, Candidate("b", 0.5, 1.0, 3)], True).name == "a"  # then file order
    assert choose([Candidate("n", None, 0.0, 1), a], True).name == "a"  # nothing to compare comes last
    assert choose([Candidate("d", 0.9, 0.0, 1, diverged=True), a], True).name == "a"
    with pytest.raises(ViRBError, match=r"every training config diverged \(d, e\)"):
        choose([Candidate(name, 0.9, 0.0, 1, diverged=True) for name in "de"], True)


def test_seeds_are_averaged_and_one_divergence_rules_out() -> None:
    records = [{"select_top1": 0.5, "select_loss": 1.0, "epoch": 2}, {"select_top1": 0.7, "select_loss": 2.0, "epoch": 4}]
    assert over_seeds("a", records, "select_top1", "select_loss") == Candidate("a", pytest.approx(0.6), 1.5, 3.0)
    assert over_seeds("a", [records[0], None], "select_top1", "select_loss").diverged
