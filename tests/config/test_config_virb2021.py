"""The seven files of ViRB 2021 load, with the meaning they had."""

from __future__ import annotations

from pathlib import Path

import pytest

from virb.config import GradientConfig, SchedulerConfig, TaskConfig, load_experiment_list, load_task_configs

HERE = Path(__file__).parent / "virb2021"
LISTS, CONFIGS = HERE / "experiment_lists", HERE / "virb_configs"


def tasks(name: str, words) -> dict[str, TaskConfig]:
    loaded = load_task_configs([CONFIGS / name], words)
    assert loaded.problems == loaded.warnings == ()
    return {task.label: task for task in loaded.items}


def configs(task: TaskConfig) -> dict[str, GradientConfig]:
    assert task.training_configs is not None
    assert all(isinstance(config, GradientConfig) for config in task.training_configs.values())
    return task.training_configs  # type: ignore[return-value]


def test_experiment_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words) -> None:
    monkeypatch.chdir(tmp_path)
    absent = load_experiment_list([LISTS / "all.yaml"], words)
    assert len(absent.problems) == 33  # each missing file with its own line
    assert len({problem.line for problem in absent.problems}) == 33

    Path("pretrained_weights").mkdir()
    for encoder in load_experiment_list([LISTS / "all.yaml"], words, check_paths=False).checked():
        Path(str(encoder.weights)).touch()
    encoders = {encoder.name: encoder for encoder in load_experiment_list([LISTS / "all.yaml"], words).checked()}
    assert len(encoders) == 33
    assert list(encoders)[:3] == ["Supervised", "Random", "SWAV_800"]
    assert encoders["MoCov2HalfImagenet"].weights == "pretrained_weights/MoCov2HalfImagenet_200.pt"
    assert all(encoder.arch is encoder.timm is encoder.module is None for encoder in encoders.values())
    (swav,) = load_experiment_list([LISTS / "swav.yaml"], words).checked()
    assert swav == encoders["SWAV_800"]


def test_all(words) -> None:
    found = tasks("all.yaml", words)
    assert len(found) == 18
    assert all(task.task == label and len(configs(task)) == 1 for label, task in found.items())
    assert all(task.test_batch_size is None and task.seeds is None and task.selection is None for task in found.values())
    assert {task.batch_size for task in found.values()} == {16, 32}
    assert [label for label, task in found.items() if task.pre_encode] == ["KineticsActionPrediction"]
    assert sum(task.pre_encode is False for task in found.values()) == 8
    assert sum(task.num_epochs or 0 for task in found.values()) == 100 * 9 + 250 * 4 + 500 + 200 + 50 * 2 + 25
    assert configs(found["THORDepth"]) == {"adam-0.0001-l1": GradientConfig(optimizer="adam", lr=3e-4)}
    poly = SchedulerConfig(type="Poly", exponent=0.9)
    assert poly.per == "step"
    assert configs(found["CityscapesSemanticSegmentation"]) == {"adam-0.0001": GradientConfig(optimizer="adam", lr=3e-4, scheduler=poly)}


def test_caltech(words) -> None:
    assert tasks("caltech.yaml", words) == {"CalTech-101": tasks("all.yaml", words)["CalTech-101"]}


def test_imagenet_grid_search(words) -> None:
    found = configs(tasks("imagenet_grid_search.yaml", words)["Imagenet"])
    assert list(found) == ["adam-0.0001", "adam-0.001", "sgd-0.01-StepLR", "sgd-0.01-OneCycle", "sgd-0.01-Poly"]
    assert found["sgd-0.01-StepLR"].scheduler == SchedulerConfig(type="StepLR", per="epoch", step_size=50, gamma=0.1)
    one_cycle = found["sgd-0.01-OneCycle"].scheduler
    assert one_cycle == SchedulerConfig(type="OneCycle")
    assert one_cycle is not None
    assert (one_cycle.per, one_cycle.anneal, one_cycle.div_factor) == ("epoch", "linear", 25)
    assert found["sgd-0.01-Poly"].lr == 1e-3  # the name lies


def test_exemplar_grid_search(words) -> None:
    found = tasks("exemplar_grid_search.yaml", words)
    assert {label: (task.task, task.batch_size, task.test_batch_size, task.pre_encode) for label, task in found.items()} == {
        "Imagenet": ("Imagenet", 32, 32, None),
        "CLEVERNumObjects": ("CLEVRNumObjects", 32, 32, None),
        "CityscapesSemanticSegmentation": ("CityscapesSemanticSegmentation", 16, 2, False),
        "THORDepth": ("THORDepth", 16, 2, False),
    }
    six = {f"{name}-{lr}": (name, float(lr)) for name in ("adam", "sgd") for lr in ("0.0001", "0.001", "0.01")}
    for task in found.values():
        assert {name: (config.optimizer, config.lr) for name, config in configs(task).items()} == six


def test_imagenetv2_with_its_stray_key(words) -> None:
    loaded = load_task_configs([CONFIGS / "imagenetv2.yaml"], words)
    assert loaded.problems == ()
    (warning,) = loaded.warnings
    assert (warning.line, warning.key) == (4, "batch_size")
    (task,) = loaded.items
    assert (task.task, task.task_head_weights_path, task.batch_size) == ("Imagenetv2", "out/%s/Imagenet*/model_head.pt", 32)
    assert task.training_configs is None


def test_all_task_configs_at_once_name_each_duplicate(words) -> None:
    loaded = load_task_configs([CONFIGS], words)
    assert sorted(problem.key for problem in loaded.problems if "given twice" in problem.message) == [
        "CalTech-101",
        "CityscapesSemanticSegmentation",
        "Imagenet",
        "Imagenet",
        "THORDepth",
    ]
