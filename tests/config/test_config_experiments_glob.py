"""A glob in an experiment list is one encoder per checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from virb.config import (
    UniqueNames,
    encoder_config_from_mapping,
    encoder_configs_from_mapping,
    encoder_from_arguments,
    load_experiment_list,
)
from virb.errors import ConfigError, UserError
from virb.tasks.vocabulary import TaskVocabulary


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a/checkpoint.pth", "a/checkpoint0000.pth", "a/checkpoint0020.pth", "a/checkpoint10000.pth", "b/checkpoint0003.pth"):
        path = tmp_path / "runs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "runs"


def load(folder: Path, text: str, check_paths: bool = True):
    (folder / "list.yaml").write_text(text)
    return load_experiment_list(folder / "list.yaml", TaskVocabulary(()), check_paths=check_paths)


def test_names_have_the_number_and_follow_it(runs: Path) -> None:
    found = load(runs, f"mine: '{runs}/a/checkpoint*.pth'\n").checked()
    assert [encoder.name for encoder in found] == ["mine@0000", "mine@0020", "mine@10000", "mine@last"]
    assert [Path(str(encoder.weights)).name for encoder in found][-1] == "checkpoint.pth"
    assert found[1].meta == {"series": "mine", "checkpoint": "0020"}


def test_the_other_keys_are_kept_and_numbers_are_whole(runs: Path) -> None:
    text = f"mine: {{weights: '{runs}/a/checkpoint0*.pth', checkpoint_key: student, meta: {{group: x, series: own}}}}\n"
    found = load(runs, text).checked()
    assert [encoder.name for encoder in found] == ["mine@0000", "mine@0020"]
    assert {encoder.checkpoint_key for encoder in found} == {"student"}
    assert found[0].meta == {"group": "x", "series": "own", "checkpoint": "0000"}


def test_several_stars(runs: Path) -> None:
    found = load(runs, f"mine: '{runs}/*/checkpoint00*.pth'\n").checked()
    assert [encoder.name for encoder in found] == ["mine@a-0000", "mine@a-0020", "mine@b-0003"]
    assert len(load(runs, f"mine: '{runs}/**/checkpoint*.pth'\n").checked()) == 5


def test_a_file_with_a_star_in_its_name_is_itself(runs: Path) -> None:
    (runs / "check[1].pth").write_bytes(b"x")
    (encoder,) = load(runs, f"mine: '{runs}/check[1].pth'\n").checked()
    assert encoder.name == "mine"


def test_nothing_matches(runs: Path) -> None:
    (problem,) = load(runs, f"mine: '{runs}/a/x*.pth'\n").problems
    assert problem.line == 1
    assert "no file matches" in problem.message
    (problem,) = load(runs, f"mine: {{weights: '{runs}/zz/x*.pth'}}\n").problems
    assert "there is no folder" in problem.message
    assert load(runs, f"mine: '{runs}/a/x*.pth'\n", check_paths=False).items[0].name == "mine"


def test_names_that_meet_are_told(runs: Path) -> None:
    problems = load(runs, f"mine: '{runs}/a/checkpoint*.pth'\nmine@0020: '{runs}/b/checkpoint0003.pth'\n").problems
    assert any("given twice" in problem.message for problem in problems)


def test_python_and_the_command_line_know_globs_as_files_do(runs: Path) -> None:
    words, pattern = TaskVocabulary(()), f"{runs}/a/checkpoint0*.pth"
    listed = load(runs, f"mine: {{weights: '{pattern}', checkpoint_key: student}}\n").checked()
    assert encoder_configs_from_mapping("mine", {"weights": pattern, "checkpoint_key": "student"}, words) == listed
    assert [encoder.name for encoder in encoder_configs_from_mapping("mine", pattern, words)] == ["mine@0000", "mine@0020"]
    assert [encoder.name for encoder in encoder_from_arguments("mine", pattern, words).checked()] == ["mine@0000", "mine@0020"]
    with pytest.raises(ConfigError, match="no file matches"):
        encoder_configs_from_mapping("mine", f"{runs}/a/x*.pth", words)
    with pytest.raises(UserError, match="mine: 2 files match"):
        encoder_config_from_mapping("mine", pattern, words)
    names = UniqueNames()
    encoder_configs_from_mapping("mine@0020", str(runs / "a" / "checkpoint.pth"), words, names=names)
    with pytest.raises(ConfigError, match="mine@0020 is given twice"):
        encoder_configs_from_mapping("mine", pattern, words, names=names)
