"""Small but complete results: what a job of a linear grid hands to the store."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from virb.metrics.base import find_metric
from virb.results import schema
from virb.results.samples import SampleArrays
from virb.results.statistics import estimate
from virb.results.store import write_job

CONFIGS = {
    "adamw-lr0.001": {"optimizer": "adamw", "lr": 1e-3, "scheduler": {"type": "none"}},
    "sgd-lr0.1": {"optimizer": "sgd", "lr": 0.1, "scheduler": {"type": "StepLR", "step_size": 2}},
    "sgd-lr1e30": {"optimizer": "sgd", "lr": 1e30, "scheduler": {"type": "none"}},
}
METRICS = ("top1", "mean_class_accuracy")


@dataclass
class MadeJob:
    """The arguments of ``write_job``."""

    job: schema.Job
    configs: list
    heads: dict
    samples: SampleArrays
    index_lists: dict

    def write(self, out, **options):
        return write_job(out, self.job, self.configs, self.heads, self.samples, self.index_lists, **options)


def make_provenance(**changes):
    hardware = schema.Hardware(cpu="a processor", cores=2, memory_bytes=8 << 30, gpus=[], platform="Linux")
    values = {"virb_version": "0.1.0", "python": "3.11.0", "packages": {"torch": "2.15.0"}, "hardware": hardware, "device": "cpu"}
    times = {"started": "2026-11-21T10:02:11+00:00", "finished": "2026-11-21T10:03:00+00:00"}
    return schema.Provenance(**(values | times | {"command": ["virb", "run"], "seeds": [0], "precision": "float32"} | changes))


def make_job(encoder="pixels", label="digits", *, key="k1", chosen="sgd-lr0.1", configs=CONFIGS, seeds=(0,), n_samples=60, accuracy=0.8):
    generator = np.random.default_rng([len(encoder), len(label), n_samples])
    target, units = generator.integers(0, 4, n_samples), np.array([f"unit{i // 2:03d}" for i in range(n_samples)])
    prediction = np.where(generator.random((len(seeds), n_samples)) < accuracy, target, generator.integers(0, 4, (len(seeds), n_samples)))
    statistics = {name: [find_metric(name).statistics(np.eye(4)[run], target) for run in prediction] for name in METRICS}
    metrics, surface, results = [], [], []
    for name in METRICS:
        metric, found = find_metric(name), estimate(find_metric(name), statistics[name], units, n_resamples=200)
        numbers = {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "n_samples": n_samples, "n_units": found.n_units}
        about = {"name": name, "unit": metric.unit, "higher_is_better": metric.higher_is_better, "primary": name == METRICS[0]}
        metrics.append(schema.MetricRecord(**about, **numbers))
    for number, (config, settings) in enumerate(configs.items()):
        diverged = config == "sgd-lr1e30"
        loss = float("nan") if diverged else 0.5 + number
        accuracies = dict.fromkeys(METRICS, 0.0 if diverged else 0.7 + 0.05 * number)
        for seed in seeds:
            scored = {m.name: m.value for m in metrics} if config == chosen else {}
            row = {"config": config, "seed": seed, "settings": settings, "epoch": 3, "diverged": diverged, "report_metrics": scored}
            losses = {"train_loss": loss, "select_loss": loss, "report_loss": 0.9 if scored else None}
            surface.append(schema.SurfaceRow(**row, **losses, train_metrics=accuracies, select_metrics=accuracies))
        tests = {"test_loss": 0.9, "test_accuracy": metrics[0].value} if config == chosen else {}
        results.append(
            schema.TrainingConfigResult(
                encoder=encoder,
                label=label,
                task="digits",
                config=config,
                key=key,
                settings=settings,
                seeds=list(seeds),
                metric=schema.MetricInfo(name="top1", unit="%", higher_is_better=True),
                train_loss=loss,
                train_accuracy=accuracies["top1"],
                select_loss=loss,
                select_accuracy=accuracies["top1"],
                metrics={"fit": accuracies, "select": accuracies},
                chosen=config == chosen,
                diverged=diverged,
                epoch=3,
                **tests,
            )
        )
    job = schema.Job(
        status="done",
        key=key,
        encoder=schema.EncoderInfo(name=encoder, id="e" * 64, source="raw pixels", n_params=1234, embed_dim=64, input={"size": [8, 8]}),
        task=schema.TaskInfo(
            id="digits",
            label=label,
            level="image-level",
            kind="semantic",
            dataset="digits",
            probe="linear",
            features=["embedding"],
            n_classes=4,
            image_list_ids={"digits": "f" * 64},
            roles={"report": schema.RoleInfo(split="test", n_samples=n_samples, n_units=n_samples // 2, images="digits")},
        ),
        protocol=schema.ProtocolCard(name="default", values={"batch_size": schema.ProtocolValue(value=32, origin="task")}),
        chosen=chosen,
        metrics=metrics,
        surface=surface,
        runs=[schema.RunInfo(seed=seed, chosen=chosen, metrics={m.name: m.value for m in metrics}, loss=0.9) for seed in seeds],
        timings=[schema.Timing(stage="encode", seconds=1.5, items=1797)],
        tier="host",
        provenance=make_provenance(seeds=list(seeds)),
    )
    heads = {config: {"head.weight": torch.full((4, 64), float(i)), "head.bias": torch.zeros(4)} for i, config in enumerate(configs)}
    samples = SampleArrays(np.array([f"image{i}" for i in range(n_samples)]), units, target, prediction, statistics)
    return MadeJob(job, results, heads, samples, {"holdout": np.arange(20), "long": np.arange(1000)})


def make_failure(encoder="pixels", label="digits", key="k1"):
    made = make_job(encoder, label, key=key).job
    error = schema.JobError(message="depth/0412.tiff is truncated", hint="fix the file, then run again", traceback="Traceback ...")
    changes = {"status": "failed", "error": error, "metrics": [], "surface": [], "runs": [], "chosen": None}
    return made.model_copy(update=changes)


@pytest.fixture
def make():
    return make_job


@pytest.fixture
def failure():
    return make_failure


@pytest.fixture
def provenance_record():
    return make_provenance


@pytest.fixture
def store(tmp_path):
    """Two encoders on two labels."""
    for encoder, accuracy in (("pixels", 0.5), ("random_vit", 0.9)):
        for label in ("digits", "digits_mlp"):
            make_job(encoder, label, accuracy=accuracy).write(tmp_path / "out")
    return tmp_path / "out"
