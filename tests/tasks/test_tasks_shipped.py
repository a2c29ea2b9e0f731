"""Every YAML that is shipped is loaded and resolved; the one on built-in data is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from virb.cli import main
from virb.config import load_experiment_list, load_task_configs
from virb.encoders.load import encoder_names
from virb.probes.base import probe_names
from virb.results.load import load_jobs
from virb.tasks.base import all_tasks
from virb.tasks.resolve import resolve_task
from virb.tasks.vocabulary import TaskVocabulary, get_probe

CONFIGS = Path(__file__).parents[2] / "configs"
TASKS = sorted((CONFIGS / "task_configs").glob("*.yaml"))
WORDS = TaskVocabulary(encoder_names())
BUILT_IN = ("digits", "shapes-class", "shapes-count")


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_task_configs(path: Path) -> None:
    loaded = load_task_configs(path, WORDS)
    assert not loaded.warnings
    for config in loaded.checked():
        for protocol in (None, "virb2021", "linear-sweep"):
            (task,) = resolve_task(config, protocol)
            assert task.task.available
            assert task.configs or task.scores_heads


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiment_lists").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiment_lists(path: Path) -> None:
    loaded = load_experiment_list(path, WORDS)
    assert not loaded.warnings
    assert loaded.checked()


def test_every_image_level_task_has_a_file_of_its_own_and_stands_in_the_file_of_all() -> None:
    def ids(name: str) -> list[str]:
        return [config.task for config in load_task_configs(CONFIGS / "task_configs" / f"{name}.yaml", WORDS).checked()]

    wanted = {
        task.id
        for task in all_tasks().values()
        if task.level == "image-level" and task.available and "@" not in task.id and task.id not in (*BUILT_IN, "folder")
    }
    trained = {task_id for task_id in wanted if all_tasks()[task_id].heads_from is None}
    alone = {task_ids[0] for path in TASKS if len(task_ids := ids(path.stem)) == 1}
    assert trained <= alone
    assert trained <= set(ids("image_level"))
    assert wanted - trained == set(ids("imagenet_shifts"))


def test_the_quick_one_has_every_probe() -> None:
    tasks = [resolve_task(config)[0] for config in load_task_configs(CONFIGS / "task_configs/quick_image_level.yaml", WORDS).checked()]
    built_in = {name for name in probe_names() if ":" not in name and not getattr(get_probe(name), "reads_maps", False)}
    assert built_in <= {task.probe for task in tasks}
    assert any(task.scores_heads for task in tasks)
    assert {task.task.id for task in tasks} <= set(BUILT_IN)


@pytest.mark.slow
def test_the_quick_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = ["--experiment_list", str(CONFIGS / "experiment_lists/baselines.yaml")]
    files += ["--task_configs", str(CONFIGS / "task_configs/quick_image_level.yaml")]
    assert main(["run", *files, "--only", "pixels", "--devices", "cpu:1"]) == 0
    jobs = load_jobs(tmp_path / "out")
    assert len(jobs) == 10
    for job in jobs:
        primary = job.primary()
        assert primary is not None
        assert None not in (primary.value, primary.ci_low, primary.ci_high), job.task.label
