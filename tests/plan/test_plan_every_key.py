"""No option is parsed and ignored: every key of the YAML is changed once, and the plan shows it. A new key fails until it has a case."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_support import DIGITS, PIXELS, TINY_VIT, MakePlan

from virb.config import GradientConfig, InputOverride, MlpConfig, SchedulerConfig, encoder_config_from_mapping
from virb.config.records import EncoderKeys, TaskKeys, WindowKeys
from virb.data.transforms import AUGMENTS as ALL_AUGMENTS
from virb.encoders.load import encoder_names, load_encoder
from virb.errors import ConfigError, ViRBError
from virb.plan.jobs import Job, Plan
from virb.probes.base import probe_names
from virb.tasks.vocabulary import TaskVocabulary, get_probe

AUGMENTS = [augment for augment in ALL_AUGMENTS if augment != "none"]
SGD = {"optimizer": "sgd", "lr": 1.0}
SMALL = {"task": "shapes-count", "data": {"n_train": 12, "n_test": 6}}
MASKS = {"task": "shapes-segmentation", "data": {"n_train": 12, "n_test": 6}, "training_configs": {"a": {"optimizer": "sgd", "lr": 1.0}}}


def only_job(plan: Plan) -> Job:
    (job,) = plan.jobs
    return job


def seen(plan: Plan) -> dict[str, Any]:
    """What a key of the schema can change."""
    job = only_job(plan)
    return {
        "key": job.key,
        "geometry": job.geometry,
        "entries": {role: role_plan.entries for role, role_plan in job.roles.items()},
        "units": [unit.kind for unit in plan.units],
        "meta": dict(plan.context.encoders[job.encoder].meta),
    }


# key -> (the task without it, its value, what changes); a text that is nothing seen: the message of the refusal
TASK: dict[str, tuple[dict[str, Any], Any, str]] = {
    "task": (DIGITS, "shapes-class", "key"),
    "probe": (DIGITS, "mlp", "key"),
    "protocol": (DIGITS, "virb2021", "geometry"),
    "num_epochs": (DIGITS, 7, "key"),
    "batch_size": (DIGITS, 7, "key"),
    "test_batch_size": (DIGITS, 7, "key"),
    "pre_encode": (DIGITS, False, "units"),
    "num_dataset_repeats": (DIGITS, 3, "entries"),
    "views": (DIGITS, 3, "entries"),
    "task_head_weights_path": (DIGITS, "out/%s/t-a/model_head.pt", "no head matches .*t-a/model_head.pt: run the task that trains"),
    "head_layout": (DIGITS, "interleaved", "it needs task_head_weights_path"),
    "heads_from": (DIGITS, "other", "there is no head of other for the encoder e in out: run the task other first"),
    "class_map": (DIGITS, {"0": "zero"}, "it needs heads_from or task_head_weights_path"),
    "limit": (DIGITS, {"train": 100}, "entries"),
    "selection": (DIGITS, "test-last", "key"),
    "seeds": (DIGITS, [4], "key"),
    "data": (SMALL, {"n_train": 13, "n_test": 6}, "entries"),
    "features": (DIGITS, "tokens[-1].mean", "entries"),
    "refit": (DIGITS, True, "key"),
    "train_encoder": (DIGITS, True, "fine-tuning is not available yet"),
    "on_bad_image": (DIGITS, "skip", "key"),
    "augment": (DIGITS, "crop-flip", "entries"),
    "windows": (MASKS, {"size": 48, "stride": 32}, "entries"),
    "score_size": (MASKS, 32, "key"),
    "training_configs": (DIGITS, {"a": SGD}, "key"),
    "grid": (DIGITS, SGD, "key"),
}


def test_every_key_of_a_task_has_a_case() -> None:
    assert set(TASK) == set(TaskKeys.model_fields)


@pytest.mark.parametrize("key", TASK)
def test_task_keys(make_plan: MakePlan, key: str) -> None:
    task, value, effect = TASK[key]
    before = seen(make_plan(None, {"t": task}))
    if effect not in before:
        with pytest.raises(ConfigError, match=effect):
            make_plan(None, {"t": {**task, key: value}})
        return
    after = seen(make_plan(None, {"t": {**task, key: value}}))
    assert before[effect] != after[effect]
    assert (before["key"] != after["key"]) == (key != "pre_encode")


@pytest.mark.parametrize("task", [DIGITS, MASKS])
def test_every_way_to_augment_makes_other_views(make_plan: MakePlan, task: dict[str, Any]) -> None:
    plans = [seen(make_plan(None, {"t": {**task, "augment": augment}})) for augment in ("none", *AUGMENTS)]
    for part in ("key", "entries"):
        assert len({str(plan[part]) for plan in plans}) == 4
    assert len({str(plan["entries"]["report"]) for plan in plans}) == 1  # only what is trained on


# key -> (windows without it, its value)
WINDOWS: dict[str, tuple[dict[str, Any], Any]] = {
    "size": ({"size": 48, "stride": 32}, [48, 56]),
    "stride": ({"size": 48, "stride": 32}, [32, 31]),
    "shorter": ({"size": 48, "stride": 32}, 96),
}


@pytest.mark.parametrize("key", WindowKeys.model_fields)
def test_window_keys(make_plan: MakePlan, key: str) -> None:
    base, value = WINDOWS[key]
    before, after = (seen(make_plan(None, {"t": {**MASKS, "windows": windows}})) for windows in (base, {**base, key: value}))
    assert before["key"] != after["key"]
    assert before["entries"]["fit"] == after["entries"]["fit"]
    assert before["entries"]["report"] != after["entries"]["report"]
    assert before["entries"]["select"] != after["entries"]["select"]


# probe -> its own keys: (a training config without it, its value); and the task on which all its keys mean something
DENSE: dict[str, dict[str, tuple[dict[str, Any], Any]]] = {
    "dense-linear": {"norm": (SGD, "none"), "dropout": (SGD, 0.1), "output": (SGD, "direct"), "n_bins": (SGD, 64), "loss_size": (SGD, 16)},
    "dense-multi": {"norm": (SGD, "none"), "dropout": (SGD, 0.1), "output": (SGD, "direct"), "n_bins": (SGD, 64), "loss_size": (SGD, 16)},
    "pixelshuffle": {"output": (SGD, "bins"), "n_bins": ({**SGD, "output": "bins"}, 64), "loss_size": (SGD, 16)},
    "deeplab": {"output": (SGD, "direct"), "n_bins": (SGD, 64), "loss_size": (SGD, 16)},
    "siamese": {
        "output": (SGD, "direct"),
        "n_bins": (SGD, 64),
        "loss_size": (SGD, 16),
        "fusion": (SGD, "correlation"),
        "radius": ({**SGD, "fusion": "correlation"}, 2),
    },
}
OF_OPTIMIZER: dict[str, tuple[dict[str, Any], Any]] = {
    "optimizer": (SGD, "adam"),
    "lr": (SGD, 0.5),
    "momentum": (SGD, 0.9),
    "nesterov": ({**SGD, "momentum": 0.9}, True),
    "weight_decay": (SGD, 0.1),
    "scheduler": (SGD, "cosine"),
}
DEPTH, FLOW = ({"task": name, "data": {"n_train": 12, "n_test": 6}} for name in ("shapes-depth", "shapes-flow"))


def test_every_key_of_a_dense_config_has_a_case() -> None:
    assert set(get_probe("deeplab@virb2021").Config.model_fields) == set(get_probe("deeplab").Config.model_fields)  # needs a large network
    assert set(DENSE) | {"deeplab@virb2021"} == {name for name in probe_names() if getattr(get_probe(name), "reads_maps", False)}
    for name, own in DENSE.items():
        assert set(own) | set(OF_OPTIMIZER) == set(get_probe(name).Config.model_fields), name


@pytest.mark.parametrize(("probe", "key"), [(probe, key) for probe, own in DENSE.items() for key in (*OF_OPTIMIZER, *own)])
def test_dense_keys(make_plan: MakePlan, probe: str, key: str) -> None:
    config, value = {**OF_OPTIMIZER, **DENSE[probe]}[key]
    task = FLOW if probe == "siamese" else DEPTH
    if probe == "siamese" and key in ("output", "n_bins"):  # depth alone has them
        with pytest.raises(ConfigError, match=rf"a: {key}:? .*belongs to "):
            make_plan(None, {"t": {**task, "training_configs": {"a": {**config, key: value}}}})
        return
    plans = [make_plan(None, {"t": {**task, "probe": probe, "training_configs": {"a": one}}}) for one in (config, {**config, key: value})]
    assert only_job(plans[0]).key != only_job(plans[1]).key


# key -> (a training config without it, its value)
CONFIG: dict[str, tuple[dict[str, Any], Any]] = {
    "optimizer": (SGD, "adam"),
    "lr": (SGD, 0.5),
    "momentum": (SGD, 0.9),
    "nesterov": ({**SGD, "momentum": 0.9}, True),
    "weight_decay": (SGD, 0.1),
    "scheduler": (SGD, "cosine"),
    "head": (SGD, "attention"),
    "init": (SGD, "normal0.01"),
    "standardise": (SGD, True),
    "hidden": (SGD, 64),
}
STEP, ONE_CYCLE = {"type": "StepLR", "step_size": 2, "gamma": 0.5}, {"type": "OneCycle"}
SCHEDULER: dict[str, tuple[dict[str, Any], Any]] = {
    "type": ({"type": "cosine"}, "OneCycle"),
    "per": ({"type": "cosine"}, "step"),
    "step_size": (STEP, 3),
    "gamma": (STEP, 0.1),
    "exponent": ({"type": "Poly", "exponent": 1.0}, 2.0),
    "pct_start": (ONE_CYCLE, 0.5),
    "div_factor": (ONE_CYCLE, 5.0),
    "final_div_factor": (ONE_CYCLE, 1e3),
    "anneal": (ONE_CYCLE, "cos"),
    "cycle_momentum": (ONE_CYCLE, False),
    "base_momentum": (ONE_CYCLE, 0.5),
    "max_momentum": (ONE_CYCLE, 0.5),
    "min_lr": ({"type": "cosine"}, 0.1),
    "warmup": ({"type": "cosine"}, 3),
}


def test_every_key_of_a_training_config_has_a_case() -> None:
    assert set(CONFIG) == set(MlpConfig.model_fields) >= set(GradientConfig.model_fields)
    assert set(SCHEDULER) == set(SchedulerConfig.model_fields)


def config_key(make_plan: MakePlan, config: dict[str, Any], probe: str = "mlp") -> str:
    return only_job(make_plan(None, {"t": {**DIGITS, "probe": probe, "training_configs": {"a": config}}})).key


@pytest.mark.parametrize("key", CONFIG)
def test_training_keys(make_plan: MakePlan, key: str) -> None:
    config, value = CONFIG[key]
    if key == "head":  # of a sample's several images; here they have one
        with pytest.raises(ConfigError, match="a sample of this task has one image"):
            config_key(make_plan, {**config, key: value})
        return
    assert config_key(make_plan, config) != config_key(make_plan, {**config, key: value})
    if key in GradientConfig.model_fields:
        assert config_key(make_plan, config, "linear") != config_key(make_plan, {**config, key: value}, "linear")


@pytest.mark.parametrize("key", SCHEDULER)
def test_scheduler_keys(make_plan: MakePlan, key: str) -> None:
    schedule, value = SCHEDULER[key]
    base = {**SGD, "momentum": 0.9}
    assert config_key(make_plan, {**base, "scheduler": schedule}) != config_key(make_plan, {**base, "scheduler": {**schedule, key: value}})


# key -> (its value, what changes)
INPUT: dict[str, tuple[Any, str]] = {
    "size": ([24, 40], "geometry"),
    "resize": ("squash", "geometry"),
    "crop": ("none", "add crop center, or squash"),
    "crop_pct": (0.5, "geometry"),
    "interpolation": ("bicubic", "geometry"),
    "mean": ([0.1, 0.2, 0.3], "entries"),
    "std": ([0.1, 0.2, 0.3], "entries"),
    "channels": ("bgr", "entries"),
}


@pytest.mark.parametrize("key", InputOverride.model_fields)
def test_input_keys(make_plan: MakePlan, key: str) -> None:
    base = {"resize": "shorter", "size": 32}
    value, effect = INPUT[key]
    before = seen(make_plan({"e": {**PIXELS, "input": base}}))
    changed = {"e": {**PIXELS, "input": {**base, key: value}}}
    if effect not in before:
        with pytest.raises(ConfigError, match=effect):
            make_plan(changed)
        return
    after = seen(make_plan(changed))
    assert before[effect] != after[effect]
    assert before["key"] != after["key"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny ViTs in one file."""
    path = tmp_path_factory.mktemp("weights") / "two.pt"
    states = [load_encoder(TINY_VIT, seed=seed).network.state_dict() for seed in (5, 6)]
    torch.save(dict(zip(("student", "teacher"), states, strict=True)), path)
    return path


NETWORK = """
import torch
class Net(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(2, 3))
"""
# key -> (the encoder without it, the encoder with it, what changes)
ENCODER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "weights": (TINY_VIT, {**TINY_VIT, "weights": "FILE", "checkpoint_key": "teacher"}, "key"),
    "arch": (PIXELS, TINY_VIT, "key"),
    "timm": (PIXELS, {"timm": "resnet10t", "weights": "random"}, "key"),
    "module": (PIXELS, {"module": "net_of_every_key:Net", "weights": "random"}, "key"),
    "checkpoint_key": (
        {**TINY_VIT, "weights": "FILE", "checkpoint_key": "student"},
        {**TINY_VIT, "weights": "FILE", "checkpoint_key": "teacher"},
        "key",
    ),
    "args": (PIXELS, {**PIXELS, "args": {"side": 4}}, "key"),
    "input": (PIXELS, {**PIXELS, "input": {"size": 16}}, "geometry"),
    "meta": (PIXELS, {**PIXELS, "meta": {"method": "none"}}, "meta"),
    # A plan without a network: what would be downloaded is named; a hash that is not the file's is refused.
    "url": (PIXELS, {**TINY_VIT, "weights": "nowhere.pt", "url": "https://nowhere.invalid/net.pt"}, "not downloaded yet: https://nowhere"),
    "sha256": (TINY_VIT, {**TINY_VIT, "weights": "FILE", "checkpoint_key": "teacher", "sha256": "0" * 64}, "sha256"),
    "hub": (PIXELS, {"hub": "./no_such_repository:net"}, "no_such_repository"),
    "hf": (PIXELS, {"hf": "nobody/nothing"}, "hf|transformers"),
    "open_clip": (PIXELS, {"open_clip": "NoModel/none"}, "open_clip"),
}


@pytest.mark.parametrize("key", EncoderKeys.model_fields)
def test_encoder_keys(make_plan: MakePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path, key: str) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "net_of_every_key.py").write_text(NETWORK)
    without, with_key, effect = (
        {k: str(weights) if v == "FILE" else v for k, v in case.items()} if isinstance(case, dict) else case for case in ENCODER[key]
    )
    before = seen(make_plan({"e": without}))
    if effect not in before:
        config = encoder_config_from_mapping("e", with_key, TaskVocabulary(encoder_names()))
        with pytest.raises(ViRBError, match=effect):
            load_encoder(config, name="e", offline=True)
        return
    after = seen(make_plan({"e": with_key}))
    assert before[effect] != after[effect]
    assert (before["key"] == after["key"]) == (key == "meta")
