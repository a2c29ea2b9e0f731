"""A dense probe from roles to outcome: what is chosen on what, what is reported, and what is kept to be looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dense_support import CPU, held_split
from torch.nn import functional as F

from virb.config.dense import DenseConfig, DenseLinearConfig
from virb.data.placement import DenseTarget
from virb.errors import UserError, ViRBError
from virb.metrics.base import find_metric
from virb.probes.base import Context, Outcome, RoleData, Settings
from virb.probes.dense import DeepLab2021Probe, DenseLinearProbe, SiameseProbe, _handful
from virb.probes.dense_data import loss_grid
from virb.probes.dense_heads import build_head
from virb.probes.dense_score import at_size

LABELS = DenseTarget("labels")
CONFIGS: dict[str, DenseConfig] = {
    "good": DenseLinearConfig(optimizer="adamw", lr=0.1),
    "slow": DenseLinearConfig(optimizer="sgd", lr=1e-5),
    "wild": DenseLinearConfig(optimizer="sgd", lr=1e38, norm="none"),
}


def role(seed: int, n: int) -> RoleData:
    """The class of a cell is the largest of its three channels, with noise."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn((n, 3, 6, 6), generator=generator)
    cells = (maps + 0.5 * torch.randn(maps.shape, generator=generator)).argmax(1)
    targets = F.interpolate(cells[:, None].float(), (24, 24), mode="nearest")[:, 0].numpy().astype(np.uint8)
    return held_split([maps], targets, LABELS, 3).role


def settings(**more: Any) -> Settings:
    values = {
        "configs": CONFIGS,
        "num_epochs": 6,
        "batch_size": 4,
        "test_batch_size": 3,
        "selection": "val",
        "seeds": (0, 1),
        "refit": False,
    }
    values |= {"loss": "cross_entropy", "metrics": ("pixel_accuracy", "miou"), "n_classes": 3, "dense": LABELS}
    return Settings(**{**values, **more})


ROLES = {"fit": role(0, 12), "select": role(1, 5), "report": role(2, 9)}


def outcome(told: list[Any] | None = None, scratch: Path | None = None, **more: Any) -> Outcome:
    said: list[Any] = [] if told is None else told
    context = Context(CPU, scratch, scalars=lambda *what: said.append(what))
    return DenseLinearProbe().from_features(ROLES, settings(**more), context)


@pytest.fixture(scope="module")
def on_val() -> tuple[Outcome, list[Any]]:
    told: list[Any] = []
    return outcome(told), told


def test_the_chosen_config_alone_is_reported(on_val: tuple[Outcome, list[Any]]) -> None:
    found, _ = on_val
    assert (found.chosen, found.selected_on) == ("good", "val")
    assert [run.seed for run in found.runs] == [0, 1]
    for run in found.runs:
        assert list(run.configs) == list(CONFIGS)
        assert {name for name, config in run.configs.items() if config.report is not None} == {"good"}
        assert run.configs["wild"].diverged
        assert run.configs["wild"].head is None
        assert run.configs["wild"].notes == ["diverged in epoch 1"]
        assert set(run.configs["slow"].select_metrics) == {"pixel_accuracy", "miou"}
    assert found.notes == ["training loss at 24 x 24 cells of the input"]


def test_what_is_reported_is_what_the_kept_head_answers(on_val: tuple[Outcome, list[Any]]) -> None:
    found, _ = on_val
    for run in found.runs:
        one = run.configs["good"]
        assert one.head is not None
        assert one.report is not None
        head = build_head(CONFIGS["good"], [(3, 6, 6)], 3).eval()
        head.load_state_dict(one.head)
        for name, data in (("report", ROLES["report"]), ("select", ROLES["select"])):
            maps = data.maps[0].gather(np.arange(len(data)))
            with torch.inference_mode():
                answers = F.interpolate(head([maps]), (24, 24), mode="bilinear", align_corners=False).argmax(1).numpy()
            accuracy = (answers == np.stack(list(data.targets or []))).mean()
            if name == "select":
                assert one.select_metrics["pixel_accuracy"] == pytest.approx(accuracy)
            else:
                assert one.report.statistics is not None
                assert find_metric("pixel_accuracy").of(one.report.statistics["pixel_accuracy"]) == pytest.approx(accuracy)
                if run.seed == 0:
                    assert sorted(found.pictures) == [0, 3, 5, 8]
                    for place, picture in found.pictures.items():
                        np.testing.assert_array_equal(picture, answers[place])


def test_curves_are_told_epoch_by_epoch(on_val: tuple[Outcome, list[Any]]) -> None:
    _, told = on_val
    tags = {tag for config, tag, _, _ in told if config == "good"}
    plain = {"lr", "loss/train", "loss/select", "pixel_accuracy/select", "miou/select"}
    assert tags == plain | {f"seed1/{tag}" for tag in plain}
    assert [epoch for config, tag, _, epoch in told if (config, tag) == ("good", "loss/train")] == [1, 2, 3, 4, 5, 6]
    assert [epoch for config, tag, _, epoch in told if (config, tag) == ("good", "miou/select")] == [2, 4, 6]
    assert not any(config == "wild" for config, *_ in told)


@pytest.mark.parametrize("selection", ["test-last", "test-best"])
def test_under_test_modes_every_config_is_reported(selection: str) -> None:
    found = outcome(selection=selection, seeds=(0,))
    (run,) = found.runs
    assert {name for name, config in run.configs.items() if config.report is not None} == {"good", "slow"}
    assert found.selected_on == selection
    if selection == "test-last":
        assert run.configs["good"].epoch == run.configs["slow"].epoch == 6


def test_other_configs_do_not_change_a_config(on_val: tuple[Outcome, list[Any]]) -> None:
    alone = outcome(configs={"good": CONFIGS["good"]})
    for one, other in zip(alone.runs, on_val[0].runs, strict=True):
        for mine, theirs in zip(one.configs["good"].history, other.configs["good"].history, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)  # heads of one form share their products: to rounding
        state, same = one.configs["good"].head, other.configs["good"].head
        for key, value in state.items():
            torch.testing.assert_close(value, same[key], rtol=1e-4, atol=1e-6)


def test_a_killed_job_goes_on(tmp_path: Path, on_val: tuple[Outcome, list[Any]]) -> None:
    class Killed(Exception):
        pass

    class Often(DenseLinearProbe):
        save_every_s = 0.0

    def kill(phase: str, done: int, total: int) -> None:
        if phase == "training" and done == total * 3 // 4:  # in the middle of the second seed
            raise Killed

    with pytest.raises(Killed):
        Often().from_features(ROLES, settings(), Context(CPU, tmp_path, progress=kill))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense-seed0.pt", "dense-seed1.pt"]
    steps: list[int] = []
    found = Often().from_features(ROLES, settings(), Context(CPU, tmp_path, progress=lambda phase, done, total: steps.append(done)))
    assert found.chosen == on_val[0].chosen
    for one, other in zip(found.runs, on_val[0].runs, strict=True):
        for name in CONFIGS:
            assert one.configs[name].history == other.configs[name].history
        assert all(torch.equal(one.configs["good"].head[key], value) for key, value in other.configs["good"].head.items())


def test_when_all_diverge_the_job_fails() -> None:
    with pytest.raises(ViRBError):
        outcome(configs={"wild": CONFIGS["wild"]})


def test_a_handful_is_spread_over_the_split() -> None:
    assert _handful(100) == [0, 33, 66, 99]
    assert _handful(4) == [0, 1, 2, 3]
    assert _handful(2) == [0, 1]
    assert _handful(1) == [0]


def test_what_is_refused_by_shape() -> None:
    flow = DenseTarget("flow")
    DenseLinearProbe.check_maps(LABELS, [(3, 4, 4)], 1)
    SiameseProbe.check_maps(flow, [(3, 4, 4), (3, 2, 2)], 2)
    for shape, part in (((3,), "the features are 3 per image"), (None, "of different shapes"), ((5, 3), "5 x 3 per image")):
        with pytest.raises(UserError, match=part):
            DenseLinearProbe.check_maps(LABELS, [(3, 4, 4), shape], 1)
    with pytest.raises(UserError, match="takes samples of 1 image, these have several"):
        DenseLinearProbe.check_maps(LABELS, [(3, 4, 4)], None)
    with pytest.raises(UserError, match="siamese takes samples of 2 images, these have 3"):
        SiameseProbe.check_maps(flow, [(3, 4, 4)], 3)
    with pytest.raises(UserError, match="layer4"):
        DeepLab2021Probe.check_encoder(object(), [(3, 4, 4)])


def test_decoders_see_the_mean_of_what_a_cell_of_the_loss_covers_and_linear_probes_a_sample() -> None:
    found = torch.arange(64.0).reshape(1, 1, 8, 8)
    means = found.reshape(4, 2, 4, 2).mean((1, 3))
    assert torch.equal(at_size(found, (4, 4), every_output=True)[0, 0], means)
    assert torch.equal(at_size(found, (8, 8), every_output=True), found)
    larger = F.interpolate(found, (16, 12), mode="bilinear", align_corners=False)
    for every in (True, False):
        assert torch.equal(at_size(found, (16, 12), every), larger)
    seen = ROLES["fit"].seen
    assert seen is not None
    assert loss_grid(seen, (24, 24), 8, every_output=False) == loss_grid(seen, (24, 24), 8, every_output=True) == (8, 8)
