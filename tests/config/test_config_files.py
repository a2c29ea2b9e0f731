"""Which files are read, and what is said of those that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from virb.config import Loaded, load_experiment_list, load_task_configs, only
from virb.errors import ConfigError

Write = Callable[[str, str], str]
TASK = "{label}: {{task: digits, num_epochs: 1}}\n"


def strings(problems: object) -> list[str]:
    return [str(problem) for problem in problems]  # type: ignore[attr-defined]


def test_folders_files_and_texts(write: Write, words) -> None:
    write("t/b.yaml", TASK.format(label="b"))
    write("t/a.yml", "\ufeff" + TASK.format(label="a"))
    write("t/note.txt", "not YAML: [")
    write("t/.hidden.yaml", "not YAML: [")
    write("c.yaml", TASK.format(label="c"))
    loaded = load_task_configs(["c.yaml", Path("t"), "./t/b.yaml"], words)  # b.yaml is named twice and read once
    assert [task.label for task in loaded.items] == ["c", "a", "b"]
    assert loaded.problems == loaded.warnings == ()
    assert loaded.texts == {name: TASK.format(label=label) for name, label in {"c.yaml": "c", "t/a.yml": "a", "t/b.yaml": "b"}.items()}
    assert [task.label for task in load_task_configs("c.yaml", words).checked()] == ["c"]


def test_files_that_cannot_be_read(write: Write, words) -> None:
    write("lists/swav.yaml", "a: {arch: pixels}\n")
    write("empty.yaml", "")
    write("list.yaml", "- a\n- b\n")
    write("bad/x.yaml", "a: [\n")
    Path("latin.yaml").write_bytes(b"a: {arch: pixels}\n# caf\xe9\n")
    Path("folder").mkdir()
    found = load_experiment_list(["lists/swavv.yaml", "nowhere/x.yaml", "folder", "empty.yaml", "list.yaml", "bad", "latin.yaml"], words)
    assert strings(found.problems) == [
        "lists/swavv.yaml  does not exist; did you mean lists/swav.yaml?",
        "nowhere/x.yaml  does not exist: there is no folder nowhere",
        "folder  has no .yaml files",
        "empty.yaml  is empty",
        "bad/x.yaml:2  is not valid YAML: expected the node content, but found '<stream end>'",
        "latin.yaml:2  is not UTF-8 text",
        'list.yaml:1  expected a mapping of encoder names to weights, got ["a", "b"]',
    ]
    assert strings(load_task_configs(["list.yaml"], words).problems) == [
        'list.yaml:1  expected a mapping of labels to tasks, got ["a", "b"]'
    ]


def test_unreadable_file(write: Write, words, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.yaml", "a: {arch: pixels}\n")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert strings(load_experiment_list(["a.yaml"], words).problems) == ["a.yaml  cannot be read: Permission denied"]


def test_the_folder_of_virb_2021_falls_back(write: Write, words) -> None:
    write("configs/task_configs/x.yaml", TASK.format(label="x"))
    loaded = load_task_configs(["configs/virb_configs/x.yaml"], words)
    assert [task.label for task in loaded.items] == ["x"]
    assert strings(loaded.warnings) == ["configs/virb_configs/x.yaml  does not exist; configs/task_configs/x.yaml is read instead"]
    assert list(loaded.texts) == ["configs/task_configs/x.yaml"]
    assert [task.label for task in load_task_configs(["configs/virb_configs"], words).items] == ["x"]
    assert strings(load_task_configs(["configs/virb_configs/y.yaml"], words).problems) == [
        "configs/virb_configs/y.yaml  does not exist: there is no folder configs/virb_configs"
    ]
    write("configs/virb_configs/x.yaml", TASK.format(label="own"))
    assert [task.label for task in load_task_configs(["configs/virb_configs/x.yaml"], words).items] == ["own"]


def test_only(write: Write, words) -> None:
    write("e.yaml", "".join(f"{name}: {{arch: pixels}}\n" for name in ("DINO_S16", "DINO_B8", "MoCo", "SWAV")))
    encoders = load_experiment_list(["e.yaml"], words).items
    kept, problems = only(encoders, ["SWAV", "DINO*"])
    assert [encoder.name for encoder in kept] == ["DINO_S16", "DINO_B8", "SWAV"]
    assert problems == ()
    kept, problems = only(encoders, "*_B?, MoCa,swaw*")
    assert [encoder.name for encoder in kept] == ["DINO_B8"]
    assert strings(problems) == [
        "command line  --only  MoCa matches no name; did you mean MoCo?",
        "command line  --only  swaw* matches no name; did you mean SWAV?",
    ]
    assert strings(only(encoders, "dino_s16")[1]) == ["command line  --only  dino_s16 matches no name; did you mean DINO_S16?"]
    assert only(encoders, []) == (encoders, ())
    tasks = load_task_configs([write("t.yaml", TASK.format(label="NYUDepth") + TASK.format(label="Pets"))], words).items
    assert [task.label for task in only(tasks, "NYU*", option="--tasks")[0]] == ["NYUDepth"]
    assert strings(only(tasks, "x", option="--tasks")[1]) == ["command line  --tasks  x matches no name"]


def test_checked_raises_all_problems(write: Write, words) -> None:
    loaded = load_experiment_list([write("e.yaml", "a: 1\nb: 2\n")], words)
    with pytest.raises(ConfigError, match="2 problems in 1 file") as failure:
        loaded.checked()
    assert failure.value.problems == loaded.problems
    assert Loaded((1, 2)).checked() == (1, 2)
