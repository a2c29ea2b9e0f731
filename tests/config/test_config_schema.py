"""Every key of the schema is changed once, and the loaded object shows it: no option is parsed and ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from virb.config import GradientConfig, InputOverride, MlpConfig, SchedulerConfig, load_experiment_list, load_task_configs
from virb.config.records import EncoderKeys, TaskKeys, WindowKeys

Write = Callable[[str, str], str]

# key -> (YAML value, attribute that shows it, its value); a YAML value of None: the key is exercised by its refusal.
TASK: dict[str, tuple[str, str, Any]] = {
    "task": ("dtd", "task", "dtd"),
    "probe": ("mlp", "probe", "mlp"),
    "protocol": ("virb2021", "protocol", "virb2021"),
    "num_epochs": ("7", "num_epochs", 7),
    "batch_size": ("7", "batch_size", 7),
    "test_batch_size": ("7", "test_batch_size", 7),
    "pre_encode": ("false", "pre_encode", False),
    "num_dataset_repeats": ("3", "views", 3),
    "views": ("fresh", "views", "fresh"),
    "task_head_weights_path": ("out/%s/a.pt", "task_head_weights_path", "out/%s/a.pt"),
    "head_layout": ("concatenated", "head_layout", "concatenated"),
    "heads_from": ("Imagenet", "heads_from", "Imagenet"),
    "class_map": ("{cat: tabby}", "class_map", {"cat": "tabby"}),
    "selection": ("test-last", "selection", "test-last"),
    "limit": ("{train: 5000}", "limit", {"train": 5000}),
    "seeds": ("3", "seeds", (0, 1, 2)),
    "data": ("{root: /data, limit: 5}", "data", {"root": "/data", "limit": 5}),
    "features": ("[embedding, 'cls[-1]']", "features", ("embedding", "cls[-1]")),
    "refit": ("true", "refit", True),
    "train_encoder": ("false", "train_encoder", False),  # true is refused: see the test of tasks
    "on_bad_image": ("skip", "on_bad_image", "skip"),
    "augment": ("crop-flip", "augment", "crop-flip"),
    "windows": ("{size: 512, stride: [300, 400]}", "windows", WindowKeys(size=512, stride=(300, 400))),
    "score_size": ("100", "score_size", 100),
    "training_configs": ("{a: {optimizer: adam, lr: 1}}", "training_configs", {"a": GradientConfig(optimizer="adam", lr=1)}),
    "grid": ("{optimizer: adam, lr: 1}", "training_configs", {"adam": GradientConfig(optimizer="adam", lr=1)}),
}


@pytest.mark.parametrize("key", TaskKeys.model_fields)
def test_task_keys(write: Write, words, key: str) -> None:
    text, attribute, expected = TASK[key]
    base = "{task: Pets}" if key != "task" else "{task: Pets-Detection}"
    changed = f"{{task: Pets, {key}: {text}}}" if key != "task" else f"{{task: {text}}}"
    (before,) = load_task_configs([write("a.yaml", f"t: {base}\n")], words).checked()
    (after,) = load_task_configs([write("b.yaml", f"t: {changed}\n")], words).checked()
    assert getattr(before, attribute) != expected
    assert getattr(after, attribute) == expected
    assert before != after
    assert ("views" if key == "num_dataset_repeats" else key) in after.explicit
    others = set(type(after).model_fields) - {attribute, "explicit", "config_where", "where"}
    assert all(getattr(before, other) == getattr(after, other) for other in others)


@pytest.mark.parametrize(("value", "expected"), [("[3, 1]", (3, 1)), ("1", (0,)), ("[0]", (0,))])
def test_seeds(write: Write, words, value: str, expected: tuple[int, ...]) -> None:
    assert load_task_configs([write("a.yaml", f"t: {{task: Pets, seeds: {value}}}\n")], words).checked()[0].seeds == expected


def test_one_request_stays_text(write: Write, words) -> None:
    text = "t: {task: Pets, features: 'tokens[-1].mean'}\n"
    assert load_task_configs([write("a.yaml", text)], words).checked()[0].features == "tokens[-1].mean"


ENCODER: dict[str, tuple[str, Any]] = {
    "weights": ("{arch: vit_tiny, weights: a.pt}", "a.pt"),
    "url": ("{arch: vit_tiny, weights: b.pt, url: 'https://a.org/b.pt'}", "https://a.org/b.pt"),
    "sha256": (f"{{arch: vit_tiny, weights: a.pt, sha256: '{'0a' * 32}'}}", "0a" * 32),
    "arch": ("{arch: vit_small, weights: random}", "vit_small"),
    "timm": ("{timm: resnet50, weights: random}", "resnet50"),
    "module": ("{module: 'a.b:C', weights: random}", "a.b:C"),
    "hub": ("{hub: 'a/b:net'}", "a/b:net"),
    "hf": ("{hf: a/b}", "a/b"),
    "open_clip": ("{open_clip: RN50/openai}", "RN50/openai"),
    "checkpoint_key": ("{arch: vit_tiny, weights: a.pt, checkpoint_key: teacher}", "teacher"),
    "args": ("{arch: vit_tiny, weights: random, args: {patch_size: 8}}", {"patch_size": 8}),
    "input": ("{arch: vit_tiny, weights: random, input: {size: 64}}", InputOverride(size=(64, 64))),
    "meta": ("{arch: vit_tiny, weights: random, meta: {method: DINO}}", {"method": "DINO"}),
}


@pytest.mark.parametrize("key", EncoderKeys.model_fields)
def test_encoder_keys(write: Write, words, key: str) -> None:
    write("a.pt", "")
    text, expected = ENCODER[key]
    (before,) = load_experiment_list([write("a.yaml", "e: {arch: vit_tiny, weights: random}\n")], words).checked()
    (after,) = load_experiment_list([write("b.yaml", f"e: {text}\n")], words).checked()
    assert getattr(before, key) != expected
    assert getattr(after, key) == expected
    assert before != after


INPUT: dict[str, tuple[str, Any]] = {
    "size": ("[32, 64]", (32, 64)),
    "resize": ("squash", "squash"),
    "crop": ("none", "none"),
    "crop_pct": ("0.9", 0.9),
    "interpolation": ("bicubic", "bicubic"),
    "mean": ("[0, 0.5, 1]", (0.0, 0.5, 1.0)),
    "std": ("[1, 0.5, 2]", (1.0, 0.5, 2.0)),
    "channels": ("bgr", "bgr"),
}


@pytest.mark.parametrize("key", InputOverride.model_fields)
def test_input_keys(write: Write, words, key: str) -> None:
    text, expected = INPUT[key]
    (encoder,) = load_experiment_list([write("a.yaml", f"e: {{arch: pixels, input: {{{key}: {text}}}}}\n")], words).checked()
    assert encoder.input is not None
    assert encoder.input.model_dump(exclude_none=True) == {key: expected}


# key -> (base, changed): the YAML of a training config of the mlp probe without and with the key changed
TRAINING: dict[str, tuple[str, str, Any]] = {
    "optimizer": ("{optimizer: sgd, lr: 1}", "{optimizer: AdamW, lr: 1}", "adamw"),
    "lr": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1e-4}", 1e-4),
    "head": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, head: attention}", "attention"),
    "init": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, init: normal0.01}", "normal0.01"),
    "standardise": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, standardise: true}", True),
    "momentum": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, momentum: 0.9}", 0.9),
    "nesterov": ("{optimizer: sgd, lr: 1, momentum: 0.9}", "{optimizer: sgd, lr: 1, momentum: 0.9, nesterov: true}", True),
    "weight_decay": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, weight_decay: 1e-2}", 0.01),
    "scheduler": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, scheduler: cosine}", SchedulerConfig(type="cosine")),
    "hidden": ("{optimizer: sgd, lr: 1}", "{optimizer: sgd, lr: 1, hidden: 64}", 64),
}
SCHEDULER: dict[str, tuple[str, str, Any]] = {
    "type": ("type: cosine", "type: OneCycle", "OneCycle"),
    "per": ("type: cosine", "type: cosine, per: step", "step"),
    "step_size": ("type: StepLR, gamma: 1, step_size: 1", "type: StepLR, gamma: 1, step_size: 2", 2),
    "gamma": ("type: StepLR, gamma: 1, step_size: 1", "type: StepLR, gamma: 0.5, step_size: 1", 0.5),
    "exponent": ("type: Poly, exponent: 1", "type: Poly, exponent: 2", 2.0),
    "pct_start": ("type: OneCycle", "type: OneCycle, pct_start: 0.5", 0.5),
    "div_factor": ("type: OneCycle", "type: OneCycle, div_factor: 5", 5.0),
    "final_div_factor": ("type: OneCycle", "type: OneCycle, final_div_factor: 1e3", 1000.0),
    "anneal": ("type: OneCycle", "type: OneCycle, anneal: cos", "cos"),
    "cycle_momentum": ("type: OneCycle", "type: OneCycle, cycle_momentum: false", False),
    "base_momentum": ("type: OneCycle", "type: OneCycle, base_momentum: 0.5", 0.5),
    "max_momentum": ("type: OneCycle", "type: OneCycle, max_momentum: 0.5", 0.5),
    "min_lr": ("type: cosine", "type: cosine, min_lr: 1e-5", 1e-5),
    "warmup": ("type: cosine", "type: cosine, warmup: 3", 3),
}


def training(write: Write, words, text: str) -> MlpConfig:
    (task,) = load_task_configs([write("a.yaml", f"t: {{task: Pets, probe: mlp, training_configs: {{a: {text}}}}}\n")], words).checked()
    config = (task.training_configs or {})["a"]
    assert isinstance(config, MlpConfig)
    return config


@pytest.mark.parametrize("key", MlpConfig.model_fields)
def test_training_keys(write: Write, words, key: str) -> None:
    base, changed, expected = TRAINING[key]
    assert getattr(training(write, words, base), key) != expected
    assert getattr(training(write, words, changed), key) == expected


@pytest.mark.parametrize("key", SchedulerConfig.model_fields)
def test_scheduler_keys(write: Write, words, key: str) -> None:
    schedules = [training(write, words, f"{{optimizer: sgd, lr: 1, scheduler: {{{text}}}}}").scheduler for text in SCHEDULER[key][:2]]
    assert getattr(schedules[0], key) != SCHEDULER[key][2]
    assert getattr(schedules[1], key) == SCHEDULER[key][2]
