"""Writes the tables of docs/ that the code decides: keys, flags, protocols, architectures, fields.

A page marks a block with ``<!-- generated: NAME -->`` and ``<!-- end -->``; what stands between is replaced.

    python scripts/make_docs.py            write
    python scripts/make_docs.py --check    say which pages are out of date (exit code 1)

Types, bounds, defaults and names come from the code; what a key means, and an example of it, stand here. A key without words, or words
without a key, is an error, so neither side can be forgotten.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout that this script belongs to, installed or not

import virb.metrics  # noqa: E402
from virb.cli.parser import CACHE_ACTIONS, COMMANDS, DATA_ACTIONS, make_parser  # noqa: E402
from virb.config.records import EncoderKeys, InputOverride, TaskKeys  # noqa: E402
from virb.config.training import _PARAMETERS, _REQUIRED, GradientConfig, MlpConfig, OptimizerConfig, SchedulerConfig  # noqa: E402
from virb.data.datasets.facts import FACTS  # noqa: E402
from virb.data.prepare import places_of, recipes_of  # noqa: E402
from virb.data.prepare.download import downloadable  # noqa: E402
from virb.data.prepare.recipes import Part  # noqa: E402
from virb.encoders.architectures import _GIANT, _XCITS, KNOWN_HEADS, MOCOV3_HEADS, RESNETS  # noqa: E402
from virb.encoders.layouts import layout_markdown  # noqa: E402
from virb.encoders.registry import encoder_names, find_builder  # noqa: E402
from virb.encoders.requests import KINDS, REDUCTIONS  # noqa: E402
from virb.encoders.vit import SIZES  # noqa: E402
from virb.metrics.base import Metric, find_metric, metric_names  # noqa: E402
from virb.pretraining.catalogue import option_sources  # noqa: E402
from virb.pretraining.options import EngineOptions, KeyHelp, describe_keys, options_of, read_config  # noqa: E402
from virb.probes.base import probe_names  # noqa: E402
from virb.results.load import COLUMNS  # noqa: E402
from virb.results.schema import RECORDS  # noqa: E402
from virb.tasks.base import all_tasks  # noqa: E402
from virb.tasks.protocols import PROTOCOLS  # noqa: E402
from virb.tasks.vocabulary import get_probe  # noqa: E402

GENERAL = PROTOCOLS["default"].values  # what holds when nobody says otherwise
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

# Key -> what it means, an example (YAML, checked by tests/test_docs.py). Encoder examples are whole entries, the others parts of one.
ENCODER: Mapping[str, tuple[str, str]] = {
    "weights": (
        "a weights file, an address, or a short name (`dino_vits16`); or `random`; `supervised`, torchvision's supervised ImageNet weights "
        "(ResNets); `pretrained`, timm's own. Left out with `timm`: `pretrained`",
        "{weights: runs/7/last.pt}",
    ),
    "arch": ("an architecture of ViRB ([list](encoders.md#architectures))", "{arch: resnet50, weights: runs/7/last.pt}"),
    "timm": ("a timm model by name", "{timm: convnext_tiny, weights: random}"),
    "module": ("your own class, `package.module:Class`", '{module: "mylab.models:MyNet", weights: runs/7/last.pt}'),
    "checkpoint_key": (
        "which network of a file that holds several, by any run of names on the way to it (default: the teacher or averaged one)",
        "{weights: runs/dino.pth, checkpoint_key: student}",
    ),
    "url": (
        "where `weights` is downloaded from when the file is not there: a plain address, or a share link of Google Drive or Dropbox",
        "{weights: pretrained_weights/mine.pt, url: https://example.org/mine.pt}",
    ),
    "sha256": (
        "the file must have this hash, downloaded or not",
        "{weights: https://example.org/mine.pt, sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855}",
    ),
    "hub": (
        "an entry of a torch.hub repository or local folder; runs that repository's code, as `module:` runs yours",
        "{hub: 'facebookresearch/dinov2:dinov2_vits14'}",
    ),
    "hf": ("a vision model of Hugging Face's transformers (extra `hf`)", "{hf: facebook/dinov2-small}"),
    "open_clip": ("an image tower of open_clip, `MODEL/PRETRAINED` (extra `open_clip`)", "{open_clip: ViT-B-32/laion2b_s34b_b79k}"),
    "args": ("arguments of the architecture, the timm model or the class", "{arch: vit_small, weights: random, args: {patch_size: 8}}"),
    "input": ("how images reach the encoder, in place of its own way (next table)", "{weights: runs/7/last.pt, input: {size: 256}}"),
    "meta": (
        "anything to keep with the results (`encoder.meta` in `job.json`); changes no number",
        "{weights: runs/7/last.pt, meta: {method: DINO, epochs: 100}}",
    ),
}
INPUT: Mapping[str, tuple[str, str]] = {
    "size": ("pixels of the side, or `[height, width]`", "size: [224, 448]"),
    "resize": ("`shorter`: keep the aspect and cover `size` / `crop_pct`; `squash`: both sides to `size`", "resize: squash"),
    "crop": ("`center` after `shorter` (which needs it); `squash` crops nothing", "crop: center"),
    "crop_pct": ("share of the resized image that the centre crop keeps; 1 crops nothing but the longer side", "crop_pct: 0.875"),
    "interpolation": ("of the resize, done by Pillow with antialiasing", "interpolation: bicubic"),
    "mean": ("red, green, blue, for pixels in [0, 1]", "mean: [0.5, 0.5, 0.5]"),
    "std": ("likewise, above 0", "std: [0.5, 0.5, 0.5]"),
    "channels": ("order in which the network wants them: `rgb` or `bgr`", "channels: bgr"),
}
TASK: Mapping[str, tuple[str, str]] = {
    "task": (
        "the task's id (`virb list tasks`), or your own as `package.module:attribute`. The only key that must be there",
        "task: digits",
    ),
    "probe": ("how features are asked (`virb list probes`), or your own as `package.module:Class`", "probe: mlp"),
    "protocol": ("a named bundle of defaults ([below](#protocols))", "protocol: virb2021"),
    "num_epochs": ("epochs of every training config; schedules span them", "num_epochs: 100"),
    "batch_size": (
        "samples per optimizer step, whatever the number of devices; learning rates that you give are never scaled with it "
        "(`dino-linear`'s own are)",
        "batch_size: 512",
    ),
    "test_batch_size": (
        "samples per step when heads are scored; changes speed and memory, and the numbers of metrics that go by batches (`virb2021_iou`)",
        "test_batch_size: 4096",
    ),
    "pre_encode": (
        "`false`: keep no features, encode whenever they are read; with `augment: crop-flip` and one view it means `views: fresh`",
        "pre_encode: false",
    ),
    "task_head_weights_path": (
        "score the heads that a glob finds instead of training ([below](#eval-only-tasks)); `%s` is the encoder's name",
        "task_head_weights_path: out/%s/Imagenet*/model_head.pt",
    ),
    "head_layout": (
        "of heads that others trained on [CLS] and the mean patch token: their numbers in turn, or one after the other",
        "head_layout: concatenated",
    ),
    "heads_from": (
        "score the chosen head of another label, of this run or of the results folder ([below](#eval-only-tasks))",
        "heads_from: Imagenet",
    ),
    "class_map": ("of an eval-only task: its class -> the heads' class, where the names differ", "class_map: {azure: blue}"),
    "limit": (
        "how many samples of a split take part, for trying things: classes in proportion, the same samples for every encoder; only their "
        "images are encoded",
        "limit: {train: 5000, test: 1000}",
    ),
    "selection": ("how epochs and training configs are chosen ([below](#selection))", "selection: val"),
    "seeds": ("how many seeds, or which; the numbers of a config are means over them. `--seed` is added to each", "seeds: 3"),
    "data": ("the dataset's options; `root` is its folder, sought as given and then below `--data_root`", "data: {root: birds}"),
    "features": (
        "the [request](encoders.md#requests) put to the encoder; a list makes one job per entry, labelled like `digits@tokens-1.mean`",
        "features: [embedding, 'tokens[-1].mean']",
    ),
    "refit": ("after the choice, train the chosen config again on fit + select; with `selection: val` only", "refit: true"),
    "train_encoder": ("`true` would fine-tune the encoder: *not available yet*, an error", "train_encoder: false"),
    "on_bad_image": (
        "an image that cannot be decoded: `error` fails the jobs that need it; `skip` leaves its samples out and counts them",
        "on_bad_image: skip",
    ),
    "augment": (
        "of training images: `crop-flip` is a random resized crop (area 8-100 %) and a flip; `scale-crop-flip` a crop of the image at 0.5 "
        "to 2 times its size and a flip, `scale-crop-flip-colour` the same in other colours; fixed per view, targets follow",
        "augment: crop-flip",
    ),
    "windows": (
        "pixelwise: images that are scored are seen through sliding windows of `size` at steps of `stride`, overlaps averaged, after their "
        "shorter side was brought to `shorter` (optional)",
        "windows: {size: 512, stride: 341, shorter: 512}",
    ),
    "score_size": (
        "pixelwise: predictions meet targets in the frame of the input at this longer side, not at the target's native size",
        "score_size: 100",
    ),
    "num_dataset_repeats": ("ViRB 2021's name of `views`", "num_dataset_repeats: 2"),
    "views": (
        "how many augmented views are encoded and kept, epochs cycle through them; `fresh`: a new view each epoch, nothing kept. More than "
        "one, or `fresh`, implies `augment: crop-flip`",
        "views: 4",
    ),
    "training_configs": (
        "name -> hyper-parameters of the head ([below](#training-configs))",
        "training_configs: {a: {optimizer: sgd, lr: 0.1}}",
    ),
    "grid": ("lists of hyper-parameters, all combinations ([below](#grid))", "grid: {optimizer: [sgd, adamw], lr: [1e-3, 1e-2]}"),
}
GRADIENT: Mapping[str, tuple[str, str]] = {
    "optimizer": ("as in `torch.optim`", "optimizer: adamw"),
    "lr": ("the first rate of a schedule, the peak of OneCycle", "lr: 1e-3"),
    "momentum": ("sgd only", "optimizer: sgd, momentum: 0.9"),
    "nesterov": ("sgd only, with momentum above 0", "optimizer: sgd, momentum: 0.9, nesterov: true"),
    "weight_decay": ("decoupled for adamw, an L2 penalty for sgd and adam", "weight_decay: 1e-4"),
    "scheduler": ("a name, or a mapping with `type` (next tables)", "scheduler: {type: StepLR, step_size: 30, gamma: 0.1}"),
    "head": (
        "of a sample's several images a head takes all numbers one after the other, their mean, or a mean weighted by learned attention",
        "head: attention",
    ),
    "init": ("of the weights: as `torch.nn.Linear` does, or normal with deviation 0.01 and zero biases", "init: normal0.01"),
    "standardise": (
        "a head sees every feature minus its mean over the fit samples, divided by its standard deviation over them "
        "([below](#standardised-features))",
        "standardise: true",
    ),
    "hidden": ("probe `mlp` only: units of its hidden layer", "hidden: 1024"),
}
DENSE: Mapping[str, tuple[str, str]] = {
    "norm": ("in front of the convolution: `BatchNorm2d` with weights and running statistics, or nothing", "norm: none"),
    "dropout": ("share of the maps' channels that are left out in each step", "dropout: 0.1"),
    "output": (
        "of depth alone: one number per pixel, or weights of bins over the task's range; none: the probe's habit, and `direct` where the "
        "task has no range",
        "output: direct",
    ),
    "n_bins": ("of `output: bins` alone: how many, evenly over the range", "n_bins: 64"),
    "loss_size": (
        "cells on the longer side of the grid on which the training loss compares, at most one per pixel; none: four for each cell that "
        "the head gives, at most 128 (but, except for the linear probes, as many as it gives)",
        "loss_size: 100",
    ),
    "fusion": ("of the two images: their maps side by side, or compared place by place", "fusion: correlation"),
    "radius": ("of `fusion: correlation` alone: how many places away the second image is searched", "radius: 8"),
}
SCHEDULE: Mapping[str, str] = {
    "type": "which schedule",
    "per": "what one unit is: an optimizer `step` or an `epoch`",
    "step_size": "units between two decays",
    "gamma": "factor of a decay",
    "exponent": "(1 - unit / units) to this power",
    "pct_start": "share of the units in which the rate rises",
    "div_factor": "first rate = lr / div_factor",
    "final_div_factor": "last rate = first rate / final_div_factor",
    "anneal": "shape of both phases",
    "cycle_momentum": "sgd's momentum or adam's beta1 moves against the rate",
    "base_momentum": "its lowest value",
    "max_momentum": "its highest value",
    "min_lr": "the rate after the last unit",
    "warmup": "first units, in which the rate rises to the schedule's own",
}
# Types that a validator widens beyond the annotation.
TYPES = {
    "size": "whole number >= 1, or two of them",
    "mean": "three numbers",
    "std": "three numbers > 0",
    "views": "whole number >= 1, or `fresh`",
    "seeds": "whole number >= 1, or a list of whole numbers >= 0",
    "features": "text or list of texts",
    "scheduler": "text or mapping",
    "module": "`package.module:Class`",
}
# What holds when a key is not given, where no table of the code says so.
DEFAULTS = {
    "task": "(must be given)",
    "probe": "the task's",
    "protocol": "the task's, else `default`",
    "test_batch_size": "the larger of `batch_size` and 1024; of pixelwise tasks `batch_size`",
    "pre_encode": "`true`",
    "task_head_weights_path": "none",
    "head_layout": "`interleaved` for DINO's names (`module.linear.*`), else `concatenated`",
    "heads_from": "the task's (mostly none)",
    "class_map": "none",
    "limit": "none: all samples",
    "windows": "the protocol's (mostly none)",
    "score_size": "the protocol's (mostly none: native size)",
    "data": "the task's",
    "features": "the task's (mostly `embedding`)",
    "train_encoder": "`false`",
    "num_dataset_repeats": "see `views`",
    "training_configs": "the protocol's",
    "grid": "none",
}
OUTPUT: Mapping[str, tuple[str, str]] = {
    "embedding": (
        "N x D",
        "the pooled feature: [CLS] after the final norm (ViT), the mean of block4 (ResNet), timm's features before the classifier",
    ),
    "cls": ("N x D; N x blocks x D for several", "[CLS] of the named blocks, each through the final norm"),
    "tokens": (
        "N x D x h x w",
        "patch tokens of the named blocks, no prefix tokens, through the final norm; ResNet: `tokens[0]` is block1, `tokens[-1]` block4",
    ),
    "pyramid": ("one map per level", "ResNet: conv, block1-4; ViT: four evenly spaced blocks. `pyramid[i]` is one level"),
    "conv": ("N x C x h x w", "ResNet: after the first convolution, bn and relu"),
    "block1": ("N x C x h x w", "ResNet: stride 4"),
    "block2": ("N x C x h x w", "ResNet: stride 8"),
    "block3": ("N x C x h x w", "ResNet: stride 16"),
    "block4": ("N x C x h x w", "ResNet: stride 32"),
    "attention": ("N x heads x h x w", "ViT: how much [CLS] attends to each patch in that block; no other row is computed"),
    "queries": ("N x heads x tokens x d", "ViT: of that block, prefix token first"),
    "keys": ("N x heads x tokens x d", "likewise"),
    "values": ("N x heads x tokens x d", "likewise"),
}
REDUCTION: Mapping[str, tuple[str, str]] = {
    "mean": (".mean", "map -> N x D: mean over places"),
    "max": (".max", "map -> N x D: largest over places"),
    "gem": (".gem(4)", "map -> N x D: generalised mean of power p > 0 over max(x, 1e-6)"),
    "pool": (".pool(2)", "map -> N x D x n x n: means over an adaptive n x n grid"),
    "flatten": (".flatten", "anything -> N x all: maps as channel, row, column; several `cls` as block, channel"),
}
RECORD: Mapping[str, str] = {
    "kind": "which record this is",
    "schema_version": "raised when older files would no longer validate",
    "encoder": "the encoder's name in the experiment list; in `job.json` what was loaded from where, its id, input and size",
    "label": "the task's label",
    "task": "the task's id; in `job.json` also level, dataset, probe, features, roles with their counts, image-list ids",
    "test_ci_high": "its upper end",
    "config": "name of the training config",
    "train_loss": "on the fit samples, in the chosen epoch (running, while they were trained on)",
    "train_accuracy": "likewise, the primary metric",
    "select_loss": "on the selection samples; null under test-last and test-best",
    "select_accuracy": "likewise, the primary metric",
    "chosen": "the chosen training config (`results.json`: whether it is this one)",
    "diverged": "its loss was no longer finite",
    "status": "`done` or `failed`",
    "protocol": "the protocol card: name, what was changed, and every value with who set it",
    "surface": "every training config with every seed: settings, losses, metrics, chosen epoch",
    "runs": "the chosen config by seed",
    "index_lists": "hold-outs, draws, limits: count, hash, and the samples' places in their split (long lists lie in `samples.npz`)",
    "bad_images": "samples that were left out because an image does not decode",
    "streamed": "features were encoded while they were read",
    "notes": "what a reader should know: classes without samples, configs that diverged, batches that memory did not hold",
    "error": "of a failed job: message, hint, traceback",
    "timings": "seconds per stage; `pass: ...` is this job's share of what making its features took, in this run or an earlier one",
    "parts": "where several devices shared the job's work: stage, number, device and seconds of each part",
    "provenance": "versions, git revision and diff hash, hardware, device, seeds, precision, command, config text, start and end",
    "skipped": "jobs that were done before",
    "exit_code": "null while the run goes on, or when it was stopped",
}
COLUMN: Mapping[str, str] = {
    "encoder": "name of the encoder",
    "label": "label of the task",
    "task": "its id",
    "level": "image-level, pixelwise or video",
    "kind": "semantic or structural",
    "dataset": "the dataset's name",
    "probe": "the probe's name",
    "protocol": "its name, with what was changed",
    "features": "the request",
    "geometry": "input size: `224px`",
    "views": "cached views of a training image, or `fresh`",
    "precision": "encoders computed in",
    "selection": "val, test-last or test-best",
    "config": "the training config",
    "chosen": "whether it was chosen",
    "metric": "name of the metric",
    "primary": "whether it is the task's first",
    "value": "on the report samples; missing where the protocol does not score the config",
    "ci_low": "95 % interval, of the chosen config",
    "ci_high": "likewise",
    "unit": "`%`: `value` is a fraction in [0, 1]",
    "higher_is_better": "direction of the metric",
    "select_value": "the metric on the selection samples",
    "select_loss": "loss there",
    "train_value": "the metric on the fit samples",
    "train_loss": "loss there",
    "test_loss": "loss on the report samples",
    "epoch": "the chosen epoch, from 1; missing when seeds differ",
    "refit": "`value` and `test_loss` are of the head trained again on fit + select; `train_*` and `select_*` of the one before",
    "diverged": "in any seed",
    "n_samples": "report samples",
    "n_units": "their units",
    "n_classes": "classes of the task",
    "seeds": "`0 1 2`; numbers are means over them",
    "n_params": "parameters of the encoder",
    "embed_dim": "width of its embedding",
    "reference": "the published number of the same encoder, task, probe and protocol, where there is one ([below](#published-numbers))",
    "reference_difference": "value - reference",
    "reference_tolerance": "how large the difference may be",
    "reference_source": "where it was published",
    "encoder_id": "hash of what it is",
    "encoder_step": "of a checkpoint of `virb pretrain`: how many optimizer steps it had",
    "encoder_source": "what was loaded from where",
    "virb_version": "that made the job",
    "finished": "UTC",
    "newer_failed": "why a newer attempt with other settings failed; the row is of the job before it",
}

# Where a key of pretraining and its default are from; what is not here is ours.
_DINO = (
    "arch patch_size out_dim norm_last_layer momentum_teacher use_bn_in_head warmup_teacher_temp teacher_temp warmup_teacher_temp_epochs "
    "freeze_last_layer drop_path_rate global_crops_scale local_crops_number local_crops_scale num_workers seed epochs "
    "batch_size_per_gpu optimizer lr warmup_epochs min_lr weight_decay weight_decay_end clip_grad use_fp16 dist_url local_rank saveckp_freq"
).split()
_IN_CODE = (
    "global_crops_size local_crops_size flip_p jitter_p grayscale_p blur_p solarize_p student_temp center_momentum head_layers "
    "head_hidden_dim head_bottleneck_dim"
).split()
_SUBMITIT = "nodes ngpus partition timeout comment use_volta32".split()
_IN_SUBMITIT = "cpus_per_task mem_per_gpu max_requeues".split()
ORIGIN: Mapping[str, str] = {
    **dict.fromkeys(_DINO, "DINO"),
    **dict.fromkeys(_IN_CODE, "DINO, fixed in its code"),
    **dict.fromkeys(_SUBMITIT, "DINO, `run_with_submitit.py`"),
    **dict.fromkeys(_IN_SUBMITIT, "DINO, fixed in `run_with_submitit.py`"),
    "data_path": "DINO; the built-in data are ours",
    "partition": "DINO, `run_with_submitit.py` (there `learnfair`)",
}
PATCHWISE_ORIGIN: Mapping[str, str] = {
    **dict.fromkeys(("arch", "patch_size", "out_dim", "batch_size_per_gpu", "num_workers", "global_crops_number"), "Patch-Wise DINO"),
    "center": "`position`: Patch-Wise DINO, fixed in its code",
}
# Recipe -> for which hardware, and what the original reached with it on ImageNet (k-NN, linear).
RECIPES: Mapping[str, tuple[str, str]] = {
    "dino_tiny_cpu": ("two CPU cores, a minute or two", "ours: digits by k-NN 81 to 82 %, 41 before"),
    "dino_tiny": ("two CPU cores, ten minutes", "ours: [the encoder that ships](#the-encoder-that-ships)"),
    "dino_vits16_100ep": ("8 GPUs, 512 images a step; DINO: 1.75 days", "69.3 %, 74.0 %"),
    "dino_vits16_300ep": ("16 GPUs, 1024 images a step; DINO: 2.6 days", "73.3 %, 76.0 %"),
    "dino_vits16_800ep": ("16 GPUs, 1024 images a step; 180 hours on 16 V100s", "74.5 %, 77.0 %"),
    "dino_vits8": ("64 GPUs with 32 GB, 1024 images a step", "78.3 %, 79.7 %"),
    "dino_vitb16": ("32 GPUs, 1024 images a step", "76.1 %, 78.2 %"),
    "dino_vitb8": ("128 GPUs, 1024 images a step", "77.4 %, 80.1 %"),
    "dino_resnet50": ("8 GPUs, 512 images a step", "67.5 %, 75.3 % (released weights, of another batch)"),
    "patchwise_imagenet100": ("4 GPUs, 240 images a step", "not published with its code"),
    "patchwise_vits16": ("8 GPUs, 512 images a step", "none: ours, to be compared with `dino_vits16_100ep`"),
    "patchwise_cifar10": ("1 GPU, 256 images a step", "not published with its code"),
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(_cell, line)) + " |\n" for line in lines)


def _cell(text: str) -> str:
    """Pipes would end the cell, and angle brackets outside code would be HTML (``<br>`` is meant to be)."""
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(part if i % 2 else re.sub(r"<(?!br>)", "&lt;", part) for i, part in enumerate(parts))


def code(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def matched(keys: Iterable[str], words: Mapping[str, Any], what: str) -> list[str]:
    """The keys, in the code's order; a key without words or words without a key stop the script."""
    keys = list(keys)
    lacking, left = [key for key in keys if key not in words], [word for word in words if word not in keys]
    if lacking or left:
        raise SystemExit(f"scripts/make_docs.py, {what}: no words for {lacking}, no key for {left}")
    return keys


def type_text(annotation: Any, bounds: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], [item for field in arguments[1:] for item in getattr(field, "metadata", [])])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_text(part, bounds) for part in arguments if part is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    name = {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(
        annotation, "mapping" if origin is dict else "list"
    )
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{sign} {getattr(bound, key):g}" for bound in bounds for key, sign in signs.items() if getattr(bound, key, None) is not None]
    return f"{name} {', '.join(limits)}".strip()


def _type(model: type[BaseModel], key: str) -> str:
    field = model.model_fields[key]
    return TYPES.get(key) or type_text(field.annotation, field.metadata)


def encoder_keys() -> str:
    rows = [
        [f"`{k}`", _type(EncoderKeys, k), ENCODER[k][0], f"`{ENCODER[k][1]}`"]
        for k in matched(EncoderKeys.model_fields, ENCODER, "ENCODER")
    ]
    return table(["key", "type", "meaning", "example"], rows)


def input_keys() -> str:
    rows = [
        [f"`{k}`", _type(InputOverride, k), INPUT[k][0], f"`{INPUT[k][1]}`"] for k in matched(InputOverride.model_fields, INPUT, "INPUT")
    ]
    return table(["key", "type", "meaning", "example"], rows)


def task_keys() -> str:
    keys = sorted(matched(TaskKeys.model_fields, TASK, "TASK"), key=list(TASK).index)
    unknown = [key for key in keys if (key in GENERAL) == (key in DEFAULTS)]
    if unknown:
        raise SystemExit(f"scripts/make_docs.py, DEFAULTS: which default has {unknown}?")
    rows = [[f"`{k}`", _type(TaskKeys, k), code(GENERAL[k]) if k in GENERAL else DEFAULTS[k], TASK[k][0], f"`{TASK[k][1]}`"] for k in keys]
    return table(["key", "type", "default", "meaning", "example"], rows)


def gradient_keys() -> str:
    rows = []
    for key in matched(MlpConfig.model_fields, GRADIENT, "GRADIENT"):
        field = MlpConfig.model_fields[key]
        default = "(must be given)" if field.is_required() else "none" if field.default is None else code(field.default)
        rows.append(
            [f"`{key}`", _type(MlpConfig if key not in GradientConfig.model_fields else GradientConfig, key), default, *GRADIENT[key]]
        )
        rows[-1][-1] = f"`{rows[-1][-1]}`"
    return table(["key", "type", "default", "meaning", "example"], rows)


def dense_keys() -> str:
    probes = {name: get_probe(name) for name in probe_names() if getattr(get_probe(name), "reads_maps", False)}
    own = {name: [key for key in probe.Config.model_fields if key not in OptimizerConfig.model_fields] for name, probe in probes.items()}
    rows = []
    for key in matched(dict.fromkeys(key for keys in own.values() for key in keys), DENSE, "DENSE"):
        owners = [name for name, keys in own.items() if key in keys]
        config = probes[owners[0]].Config
        default = "none" if config.model_fields[key].default is None else code(config.model_fields[key].default)
        of = "all" if len(owners) == len(probes) else ", ".join(f"`{name}`" for name in owners)
        rows.append([f"`{key}`", of, _type(config, key), default, DENSE[key][0], f"`{DENSE[key][1]}`"])
    return table(["key", "probe", "type", "default", "meaning", "example"], rows)


def dense_probes() -> str:
    rows = [
        [
            f"`{name}`",
            f"`{probe.features}`",
            str(probe.images),
            f"`{probe.Config.depth_by_default}`",
            " ".join((probe.__doc__ or "").split()),
        ]
        for name in probe_names()
        if getattr(probe := get_probe(name), "reads_maps", False)
    ]
    return table(["probe", "features, where the task is for another probe", "images per sample", "depth", "what it is"], rows)


def schedule_keys() -> str:
    rows = []
    for key in matched(SchedulerConfig.model_fields, SCHEDULE, "SCHEDULE"):
        if key != "type":
            owners = [kind for kind, parameters in _PARAMETERS.items() if key in parameters]
            values = [f"{kind} {'(must be given)' if (v := _PARAMETERS[kind][key]) is _REQUIRED else code(v)}" for kind in owners]
            rows.append([f"`{key}`", _type(SchedulerConfig, key), "; ".join(values), SCHEDULE[key]])
    return table(["key", "type", "of which schedule, default", "meaning"], rows)


def protocols() -> str:
    rows = [
        [f"`{key}`", *(_value(p.values[key]) if key in p.values else "" for p in PROTOCOLS.values())]
        for key in dict.fromkeys(key for p in PROTOCOLS.values() for key in p.values)
    ]
    for probe in dict.fromkeys(probe for p in PROTOCOLS.values() for probe in p.probes):
        cells = ["<br>".join(f"{key}: {_value(v)}" for key, v in p.probes.get(probe, {}).items()) for p in PROTOCOLS.values()]
        rows.append([f"probe `{probe}`", *cells])
    for task_id in dict.fromkeys(task_id for p in PROTOCOLS.values() for task_id in p.tasks):
        rows.append([f"task `{task_id}`", *(_bundle(p.tasks[task_id]) if task_id in p.tasks else "" for p in PROTOCOLS.values())])
    rows.append(
        [
            "learning rates of its grids",
            *(f"per {p.lr_per} samples: x batch size / {p.lr_per}" if p.lr_per else "" for p in PROTOCOLS.values()),
        ]
    )
    shown = ("size", "resize", "interpolation")
    geometries = [
        {key: value for key, value in p.geometry.record().items() if key in shown} if p.geometry else {} for p in PROTOCOLS.values()
    ]
    rows.append(["geometry", *(_bundle(geometry) if geometry else "the task's, else the encoder's" for geometry in geometries)])
    options = [", ".join(f"{key}: {', '.join(map(code, values))}" for key, values in p.options.items()) for p in PROTOCOLS.values()]
    rows.append(["as good", *options])
    rows.append(["task ids", *(f"`ID@{p.variant}` where there is one" if p.variant else "as written" for p in PROTOCOLS.values())])
    about = "".join(f"- `{p.name}`: {p.about}.\n" for p in PROTOCOLS.values())
    return f"{about}\n{table(['', *(f'`{name}`' for name in PROTOCOLS)], rows)}"


def _bundle(values: Mapping[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        parts.append(f"{key}: {_plain(value)}")
    return f"`{', '.join(parts)}`"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{_bundle(value).strip('`')}}}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_plain, value))}]" if any(isinstance(item, Mapping) for item in value) else code(value).strip("`")
    return code(value).strip("`")


def _value(value: Any) -> str:
    return _bundle(value) if isinstance(value, Mapping) else f"`{_plain(value)}`"


def _flags(command: str, *below: str) -> str:
    parser = make_parser()
    for name in (command, *below):
        commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
        parser = commands.choices[name]
    rows = []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.dest}`"
        word = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar or action.dest.upper()
        value = ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else f"`{word}`"
        value = "" if action.nargs == 0 else "(text)" if not action.option_strings and not action.choices else value
        value += " ..." if action.nargs in ("+", "*") else ""
        unset = isinstance(action.default, (bool, list)) or action.default in (None, "", argparse.SUPPRESS)
        shown = " ".join(action.default) if isinstance(action.default, tuple) else action.default
        default = "" if unset else f"`{shown}`"
        rows.append([names, value, default, (action.help or "").replace("%%", "%")])
    return table(["flag", "value", "default", "meaning"], rows)


def flags_other() -> str:
    return "\n".join(f"`virb {name}`\n\n{_flags(name)}" for name in COMMANDS if name not in _APART)


_APART = ("run", "check", "data", "cache", "pretrain", "visualize")  # a place of their own


def flags_data() -> str:
    return "\n".join(f"`virb data {name}`\n\n{_flags('data', name)}" for name in DATA_ACTIONS)


def flags_cache() -> str:
    return "\n".join(f"`virb cache {name}`\n\n{_flags('cache', name)}" for name in CACHE_ACTIONS)


def _pretrain_rows(method: str, wanted: Callable[[KeyHelp], bool], origin: Mapping[str, str]) -> str:
    record = options_of(option_sources(method))
    rows = []
    for item in filter(wanted, describe_keys(record, "method")):
        default = "none" if item.default is None else "empty" if item.default == "" else code(item.default)
        count = len(item.default) if isinstance(item.default, tuple) else 0
        values = ", ".join(f"`{choice}`" for choice in item.choices) or (f"{count} numbers" if count else _type(record, item.name))
        rows.append([f"`{item.name}`", values, default, item.text, origin.get(item.name, "ours")])
    return table(["key", "values", "default", "meaning", "name and default from"], rows)


def pretrain_patchwise() -> str:
    """What differs from DINO."""
    dino = {item.name: item for item in describe_keys(options_of(option_sources("dino")), "method")}

    def differs(item: KeyHelp) -> bool:
        return item.name not in dino or item.default != dino[item.name].default

    return _pretrain_rows("patchwise", differs, PATCHWISE_ORIGIN)


def pretrain_engine() -> str:
    groups = dict.fromkeys(item.group for item in describe_keys(EngineOptions, ""))
    return "\n".join(f"*{group}*\n\n{_pretrain_rows('dino', partial(_is_of, group), ORIGIN)}" for group in groups)


def _is_of(group: str, item: KeyHelp) -> bool:
    return item.group == group


def pretrain_recipes() -> str:
    rows = []
    paths = {path.stem: path for path in (ROOT / "configs" / "pretraining").glob("*.yaml")}
    for name in sorted(matched(paths, RECIPES, "RECIPES"), key=list(RECIPES).index):
        values = {key: given.value for key, given in read_config(paths[name])[0].items()}
        hardware, numbers = RECIPES[name]
        arch = f"{values['arch']}/{values['patch_size']}" if "patch_size" in values else str(values["arch"])
        rows.append([f"[`{name}`](../configs/pretraining/{name}.yaml)", f"`{arch}`", str(values["epochs"]), hardware, numbers])
    return table(["recipe", "network", "epochs", "for", "the original, on ImageNet: k-NN, linear"], rows)


def datasets() -> str:
    tasks_of: dict[str, list[str]] = {name: [] for name in FACTS}
    for task in all_tasks().values():
        if task.dataset in tasks_of:
            tasks_of[task.dataset].append(task.id)
    rows = []
    for name, ids in sorted(tasks_of.items(), key=lambda item: (item[1] or [item[0]])[0].casefold()):
        facts = FACTS[name]
        splits = ", ".join(f"{split} {_counts(count)}" for split, count in facts.splits.items())
        samples = splits + (f"{', ' * bool(splits)}{facts.total:,} in all" if facts.total else "")
        how = " or ".join(["download"] * downloadable(name) + ["prepare"] * bool(recipes_of(name))) or "by hand"
        places = ", ".join(f"`{place}/`" for place in places_of(name))
        known = [samples, str(facts.n_classes or ""), facts.size, how, facts.source, facts.licence]
        rows.append([", ".join(f"`{i}`" for i in ids), f"`{name}`", places, *known])
    return table(["tasks", "dataset", "looked for in", "samples", "classes", "download", "`virb data`", "from", "licence"], rows)


def _counts(count: int | tuple[int, ...]) -> str:
    return " or ".join(f"{n:,}" for n in (count if isinstance(count, tuple) else (count,)))


def _alternatives(part: Part) -> str:
    names = [f"`{name}`" for name in part.names] + [f"the folder `{name}/`" for name in part.folders]
    return " or ".join(names)


def archives() -> str:
    rows = []
    for name in FACTS:
        for recipe in recipes_of(name):
            parts = [f"{_alternatives(part)}{'' if part.needed else ' (optional)'}" for part in recipe.parts]
            rows.append([f"`{name}`", ", ".join(parts), f"`{recipe.place}/`", recipe.note])
    return table(["dataset", "what `--source` has", "goes to", "note"], rows)


def tasks() -> str:
    here = [task for task in all_tasks().values() if task.available]
    later = [f"`{task.id}`" for task in all_tasks().values() if not task.available]
    rows = [
        [f"`{t.id}`", f"{t.level}, {t.kind}", f"`{t.probe}`", f"`{t.features}`", ", ".join(f"`{m}`" for m in t.metrics),
         _bundle({"size": t.geometry.size, "resize": t.geometry.resize}) if t.geometry else "the encoder's", t.about]
        for t in sorted(here, key=lambda task: task.id)
    ]  # fmt: skip
    known = f"\nReserved ids of ViRB 2021, *not available yet*: {', '.join(sorted(later, key=str.casefold))}.\n" if later else ""
    return table(["id", "cell", "probe", "features", "metrics (first is primary)", "geometry", "about"], rows) + known


def architectures() -> str:
    rows = []
    for name in encoder_names():
        parameters = inspect.signature(find_builder(name)).parameters.values()
        fixed = SIZES.get(name)
        given = [p for p in parameters if not (fixed and p.name in ("width", "depth", "heads"))]
        texts = [p.name if p.default is p.empty else f"{p.name}: {code(p.default).strip('`')}" for p in given]
        size = f"{fixed[0]} wide, {fixed[1]} blocks, {fixed[2]} heads" if fixed else ""
        rows.append([f"`{name}`", f"`{', '.join(texts)}`" if texts else "none", size])
    return table(["`arch`", "`args` and their defaults", "size"], rows)


def outputs() -> str:
    return table(["output", "shape", "what it is"], [[f"`{k}`", *OUTPUT[k]] for k in matched(KINDS, OUTPUT, "OUTPUT")])


def reductions() -> str:
    return table(
        ["reduction", "what it gives"], [[f"`{REDUCTION[k][0]}`", REDUCTION[k][1]] for k in matched(REDUCTIONS, REDUCTION, "REDUCTION")]
    )


def recognised() -> str:
    sizes = ", ".join(f"{width} x {depth} ({heads})" for (width, depth), heads in sorted(KNOWN_HEADS.items()))
    mocov3 = ", ".join(f"{heads} where the width is {width}" for width, heads in MOCOV3_HEADS.items())
    xcits = ", ".join(f"{name} ({width})" for width, name in _XCITS.items())
    names = ", ".join(f"`{name}`" for name in RESNETS.values())
    keys = "`cls_token`, `pos_embed`, `patch_embed.proj`, `blocks.0.attn.qkv`, ..."
    return (
        f"- vision transformers with the key names of DINO, DeiT and timm ({keys}), any patch size; width and depth tell the "
        f"number of heads: {sizes}; in files of MoCo v3's layout {mocov3};\n"
        f"- DINOv2's giant ({_GIANT[0]} wide, {_GIANT[1]} blocks, gated units), with registers or without, which becomes timm's;\n"
        f"- XCiT with the authors' names or timm's, patches of 8 or 16, which becomes timm's, by width: {xcits};\n"
        f"- torchvision's ResNets: {names};\n"
        f"- any network of timm or torchvision in a checkpoint of `virb pretrain`, also converted: the file notes which.\n"
    )


def metrics() -> str:
    modules = [import_module(f"virb.metrics.{module.name}") for module in iter_modules(virb.metrics.__path__)]
    built_in = {value.name for module in modules for value in vars(module).values() if isinstance(value, Metric)}
    found = [find_metric(name) for name in metric_names() if name in built_in]  # whoever imports this may have registered others
    return table(
        ["metric", "in tables", "better", "unit"],
        [[f"`{m.name}`", m.title, "higher" if m.higher_is_better else "lower", m.unit] for m in found],
    )


def columns() -> str:
    return table(["column", "type", "meaning"], [[f"`{k}`", COLUMNS[k], COLUMN[k]] for k in matched(COLUMNS, COLUMN, "COLUMN")])


def records() -> str:
    described = {key for model in RECORDS.values() for key, field in model.model_fields.items() if field.description}
    matched({key for model in RECORDS.values() for key in model.model_fields} - described | set(RECORD), RECORD, "RECORD")
    parts = []
    files = {"training_config": "results.json", "job": "job.json", "run": "runs/<time>.json"}
    for kind, model in RECORDS.items():
        rows = [[f"`{key}`", field.description or RECORD[key]] for key, field in model.model_fields.items()]
        parts.append(f"`{files[kind]}` ([schema](../virb/results/schemas/{kind}.schema.json))\n\n{table(['field', 'what it holds'], rows)}")
    return "\n".join(parts)


BLOCKS: Mapping[str, Callable[[], str]] = {
    "encoder-keys": encoder_keys,
    "input-keys": input_keys,
    "task-keys": task_keys,
    "training-keys": gradient_keys,
    "dense-probes": dense_probes,
    "dense-keys": dense_keys,
    "schedule-keys": schedule_keys,
    "protocols": protocols,
    "tasks": tasks,
    "flags-run": lambda: _flags("run"),
    "flags-other": flags_other,
    "flags-data": flags_data,
    "flags-cache": flags_cache,
    "flags-visualize": lambda: _flags("visualize", "match"),
    "pretrain-recipes": pretrain_recipes,
    "pretrain-dino": lambda: _pretrain_rows("dino", partial(_is_of, "method"), ORIGIN),
    "pretrain-patchwise": pretrain_patchwise,
    "pretrain-engine": pretrain_engine,
    "datasets": datasets,
    "archives": archives,
    "architectures": architectures,
    "recognised": recognised,
    "layouts": layout_markdown,
    "outputs": outputs,
    "reductions": reductions,
    "metrics": metrics,
    "records": records,
    "columns": columns,
}


def rewrite(text: str) -> str:
    """The page with every block made anew; KeyError for a block that nobody makes."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{BLOCKS[match[2]]()}\n{match[4]}", text)


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--check", action="store_true", help="write nothing, name the pages that are out of date")
    check = arguments.parse_args().check
    old = []
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := rewrite(text)) != text:
            old.append(page)
            if not check:
                page.write_text(new, encoding="utf-8")
    for page in old:
        print(f"{page.relative_to(ROOT)} {'is out of date' if check else 'written'}")
    return int(check and bool(old))


if __name__ == "__main__":
    sys.exit(main())
