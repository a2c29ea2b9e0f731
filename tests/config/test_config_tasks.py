"""Task configs: defaults, words, training configs, names, and every mistake with its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from virb.config import GradientConfig, MlpConfig, TaskConfig, Where, load_task_configs, path_collisions, task_config_from_mapping
from virb.errors import ConfigError

Write = Callable[[str, str], str]
ADAM = "{optimizer: adam, lr: 1e-3}"


def load(write: Write, words, text: str, **options: Any) -> tuple[dict[str, TaskConfig], list[str], list[str]]:
    loaded = load_task_configs([write("t.yaml", text)], words, **options)
    return {task.label: task for task in loaded.items}, [str(p) for p in loaded.problems], [str(p) for p in loaded.warnings]


def good(write: Write, words, text: str, **options: Any) -> dict[str, TaskConfig]:
    found, problems, warnings = load(write, words, text, **options)
    assert problems == warnings == []
    return found


def test_a_task_with_training_configs(write: Write, words) -> None:
    text = f"# x\nmine:\n  task: Pets\n  batch_size: 32\n  training_configs:\n    a: {ADAM}\n    b:\n      optimizer: sgd\n      lr: 1\n"
    config = good(write, words, text)["mine"]
    assert (config.label, config.task, config.batch_size, config.num_epochs) == ("mine", "Pets", 32, None)
    assert config.training_configs == {"a": GradientConfig(optimizer="adam", lr=1e-3), "b": GradientConfig(optimizer="sgd", lr=1.0)}
    assert {key: (str(where), where.key) for key, where in config.explicit.items()} == {
        "task": ("t.yaml:3", "mine.task"),
        "batch_size": ("t.yaml:4", "mine.batch_size"),
        "training_configs": ("t.yaml:5", "mine.training_configs"),
    }
    assert {name: str(where) for name, where in config.config_where.items()} == {"a": "t.yaml:6", "b": "t.yaml:7"}
    assert (str(config.where), config.where.key) == ("t.yaml:2", "mine")


def test_grid_makes_training_configs_beside_the_named_ones(write: Write, words) -> None:
    text = f"t:\n  task: Pets\n  training_configs: {{mine: {ADAM}}}\n  grid: {{optimizer: [sgd, adam], lr: [1e-3, 1e-2], momentum: 0.9}}\n"
    configs = good(write, words, text)["t"].training_configs
    assert configs is not None
    assert list(configs) == ["mine", "sgd-lr0.001", "sgd-lr0.01", "adam-lr0.001", "adam-lr0.01"]
    assert configs["sgd-lr0.01"] == GradientConfig(optimizer="sgd", lr=0.01, momentum=0.9)
    assert configs["adam-lr0.01"] == GradientConfig(optimizer="adam", lr=0.01)


def test_the_probe_decides_what_a_training_config_is(write: Write, words) -> None:
    text = "a: {task: Pets, probe: mlp, grid: {optimizer: adam, lr: 1, hidden: [8, 16]}}\n"
    text += "b: {task: Pets, protocol: dino-knn, grid: {k: [10, 20]}}\n"
    found = good(write, words, text)
    assert found["a"].training_configs == {f"hidden{n}": MlpConfig(optimizer="adam", lr=1, hidden=n) for n in (8, 16)}
    assert [config.model_dump() for config in (found["b"].training_configs or {}).values()] == [
        {"k": 10, "temperature": 0.07},
        {"k": 20, "temperature": 0.07},
    ]
    knn = "b: {task: Pets, grid: {k: 10}}\n"
    assert "default" in (good(write, words, knn, protocol="dino-knn")["b"].training_configs or {})  # the run's protocol
    assert load(write, words, knn)[1][0].startswith("t.yaml:1  b.grid.")
    assert load(write, words, "b: {task: Pets, protocol: dino-linear, grid: {k: 10}}\n", protocol="dino-knn")[1] == []  # wins


def test_users_own_task_and_probe(write: Write, words) -> None:
    found = good(write, words, "t: {task: 'mylab.tasks:Birds', probe: 'mylab.probes:Lax', training_configs: {a: {power: 2.5}}}\n")["t"]
    assert (found.task, found.probe) == ("mylab.tasks:Birds", "mylab.probes:Lax")
    assert {name: config.model_dump() for name, config in (found.training_configs or {}).items()} == {"a": {"power": 2.5}}
    text = "t:\n  task: nolab:X\n  probe: mylab.probes:Lax\n  training_configs: {a: {pover: 2.5}}\n"
    text += "u: {task: Pets, probe: 'mylab.probes:Missing'}\n"
    assert load(write, words, text)[1] == [
        "t.yaml:2  t.task  nolab cannot be imported",
        "t.yaml:4  t.training_configs.a.pover  unknown key; did you mean power?",
        "t.yaml:5  u.probe  mylab.probes has no Missing",
    ]


def test_defaults_are_shared_and_a_tasks_own_key_wins(write: Write, words) -> None:
    text = "defaults:\n  num_epochs: 5\n  batch_size: 8\n  views: 3\n  grid: {optimizer: adam, lr: [1, 2]}\n"
    text += "a: {task: Pets}\nb: {task: Pets, batch_size: 9, num_dataset_repeats: 2, views: , num_epochs: }\n"
    text += f"c: {{task: Pets, training_configs: {{x: {ADAM}}}}}\n"
    found = good(write, words, text)
    a, b, c = found["a"], found["b"], found["c"]
    assert (a.num_epochs, a.batch_size, a.views, list(a.training_configs or ())) == (5, 8, 3, ["lr1", "lr2"])
    assert (str(a.explicit["batch_size"]), a.explicit["batch_size"].key) == ("t.yaml:3", "defaults.batch_size")
    assert (b.num_epochs, b.batch_size, b.views) == (None, 9, 2)  # an empty key undoes the file's default
    assert (str(b.explicit["batch_size"]), str(b.explicit["views"]), "num_epochs" in b.explicit) == ("t.yaml:7", "t.yaml:7", False)
    assert b.explicit["views"].key == "b.num_dataset_repeats"
    assert list(c.training_configs or ()) == ["x"]  # training_configs and grid are one thing: the task's own
    assert a.by_defaults == {"num_epochs", "batch_size", "views", "grid"}
    assert b.by_defaults == {"grid"}
    assert [b.on_task(key) for key in ("views", "batch_size", "grid", "num_epochs")] == [True, True, False, False]


def test_mistakes_in_defaults_are_said_once(write: Write, words) -> None:
    text = "defaults:\n  bach_size: 3\n  num_epochs: many\n  seeds: 0\n  grid: {lr: [1, x], optimizer: adam}\n"
    assert sorted(load(write, words, text + "a: {task: Pets, seeds: 3}\nb: {task: Pets}\n")[1]) == [
        "t.yaml:2  defaults.bach_size  unknown key; did you mean batch_size?",
        't.yaml:3  defaults.num_epochs  expected a whole number, got "many"',
        "t.yaml:4  defaults.seeds  expected how many seeds, or a list of seeds (whole numbers from 0), got 0",
        't.yaml:5  defaults.grid.lr[1]  expected a number, got "x"',
    ]
    assert load(write, words, "defaults: 3\na: {task: Pets}\n")[1] == ["t.yaml:1  defaults  expected a mapping of task keys, got 3"]
    assert load(write, words, "defaults: {batch_size: 3}\n")[1] == ["t.yaml  has no tasks"]


def test_a_stray_key_is_a_warning_and_applies_to_the_task_above(write: Write, words) -> None:
    found, problems, warnings = load(write, words, "a: {task: Pets}\nb:\n  task: Pets\nbatch_size: 32\nc: {task: Pets}\n")
    assert problems == []
    assert warnings == ["t.yaml:4  batch_size  stands outside any task; it is taken as a key of b above it (indent it)"]
    assert [task.batch_size for task in found.values()] == [None, 32, None]
    assert (str(found["b"].explicit["batch_size"]), found["b"].explicit["batch_size"].key) == ("t.yaml:4", "batch_size")
    _, problems, _ = load(write, words, "a: {task: Pets}\nbatch_size: x\n")
    assert problems == ['t.yaml:2  batch_size  expected a whole number, got "x"']


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_size: 3\na: {task: Pets}\n", ["t.yaml:1  batch_size  stands outside any task; indent it below the label of its task"]),
        (
            "a: {task: Pets}\ndefaults: {refit: true}\nbatch_size: 3\n",
            ["t.yaml:3  batch_size  stands outside any task; indent it below the label of its task"],
        ),
        (
            "a: {task: Pets, batch_size: 1}\nbatch_size: 3\n",
            ["t.yaml:2  batch_size  stands outside any task, and a above it has a batch_size already"],
        ),
        ("a: {task: Pets}\nseeds: [1]\n", ["t.yaml:2  seeds  expected a mapping of task keys, got [1]"]),
        ("a: {task: Pets}\nb: 3\n", ["t.yaml:2  b  expected a mapping of task keys, got 3"]),
        ("a: {task: Pets}\nb:\n", ["t.yaml:2  b  expected a mapping of task keys, got nothing"]),
        (
            "a: {task: Pets}\ndata: {root: x}\n",
            [
                "t.yaml:2  data.task  missing key; should this stand indented in the task above?",
                "t.yaml:2  data.root  unknown key",
            ],
        ),
    ],
)
def test_top_levels_that_are_no_tasks(write: Write, words, text: str, expected: list[str]) -> None:
    assert load(write, words, text)[1] == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("{batch_size: 3}", "t.task  missing key"),
        ("{task: }", "t.task  missing key"),
        ("{task: 3}", "t.task  expected text, got 3"),
        ("{task: CIFAR100}", 't.task  no task "CIFAR100"; did you mean CIFAR-100?'),
        ("{task: zzzzz}", 't.task  no task "zzzzz"'),
        ("{task: Pets, probe: linera}", 't.probe  no probe "linera"; did you mean linear?'),
        ("{task: Pets, probe: 3}", "t.probe  expected text, got 3"),
        ("{task: Pets, protocol: dinolinear}", 't.protocol  no protocol "dinolinear"; did you mean dino-linear?'),
        ("{task: Pets, num_epochs: 0}", "t.num_epochs  expected at least 1, got 0"),
        ("{task: Pets, num_epochs: 1.5}", "t.num_epochs  expected a whole number, got 1.5"),
        ("{task: Pets, batch_size: true}", "t.batch_size  expected a whole number, got true"),
        ("{task: Pets, test_batch_size: '32'}", 't.test_batch_size  expected a whole number, got "32"'),
        ("{task: Pets, pre_encode: 1}", "t.pre_encode  expected true or false, got 1"),
        ("{task: Pets, num_dataset_repeats: 0}", "t.num_dataset_repeats  expected at least 1, got 0"),
        ("{task: Pets, views: 0}", "t.views  expected a whole number of at least 1, or fresh, got 0"),
        ("{task: Pets, views: frehs}", 't.views  expected a whole number of at least 1, or fresh, got "frehs"'),
        ("{task: Pets, views: 2, num_dataset_repeats: 2}", "t.views  given twice: num_dataset_repeats is its old name"),
        ("{task: Pets, views: fresh, pre_encode: true}", "t.views  fresh views cannot be encoded in advance; leave out pre_encode: true"),
        (
            "{task: Pets, num_dataset_repeats: 2, pre_encode: false}",
            "t.num_dataset_repeats  2 views are encoded in advance; leave out pre_encode: false",
        ),
        (
            "{task: Pets, task_head_weights_path: 'out/%s/%s'}",
            't.task_head_weights_path  expected at most one %s (the encoder\'s name), got "out/%s/%s"',
        ),
        ("{task: Pets, selection: best}", 't.selection  "best" is none of val, test-last, test-best; did you mean test-best?'),
        ("{task: Pets, seeds: [0, 0]}", "t.seeds  a seed is given twice in [0, 0]"),
        ("{task: Pets, seeds: [-1]}", "t.seeds  expected how many seeds, or a list of seeds (whole numbers from 0), got [-1]"),
        ("{task: Pets, data: /data}", 't.data  expected a mapping, got "/data"'),
        ("{task: Pets, data: {root: 3}}", "t.data  root: expected a path, got 3"),
        ("{task: Pets, data: {x: .inf}}", "t.data  expected finite numbers, got Infinity"),
        ("{task: Pets, features: []}", "t.features  expected a request such as embedding, or a list of requests, got []"),
        ("{task: Pets, features: [a, a]}", 't.features  a request is given twice in ["a", "a"]'),
        ("{task: Pets, refit: maybe}", 't.refit  expected true or false, got "maybe"'),
        ("{task: Pets, train_encoder: true}", "t.train_encoder  fine-tuning is not available yet"),
        ("{task: Pets, on_bad_image: ignore}", 't.on_bad_image  "ignore" is none of error, skip'),
        (
            "{task: Pets, augment: crop}",
            't.augment  "crop" is none of none, crop-flip, scale-crop-flip, scale-crop-flip-colour; did you mean crop-flip?',
        ),
        ("{task: Pets, windows: 512}", "t.windows  expected a mapping, got 512"),
        ("{task: Pets, windows: {size: 512}}", "t.windows.stride  missing key"),
        (
            "{task: Pets, windows: {size: 512, stride: 600}}",
            "t.windows.stride  leaves gaps between windows of 512 x 512; expected at most that",
        ),
        (
            "{task: Pets, windows: {size: [512, 64], stride: 100}}",
            "t.windows.stride  leaves gaps between windows of 512 x 64; expected at most that",
        ),
        ("{task: Pets, windows: {size: 64, stride: 0}}", "t.windows.stride  expected a size in pixels or [height, width], got 0"),
        ("{task: Pets, windows: {size: 64, stride: 32, step: 3}}", "t.windows.step  unknown key; did you mean stride?"),
        ("{task: Pets, score_size: 0}", "t.score_size  expected at least 1, got 0"),
        ("{task: Pets, nmu_epochs: 3}", "t.nmu_epochs  unknown key; did you mean num_epochs?"),
        ("{task: Pets, label: x}", "t.label  unknown key"),
        ("{task: Pets, explicit: {}}", "t.explicit  unknown key; did you mean limit?"),
        ("{task: Pets, training_configs: {}}", "t.training_configs  is empty"),
        ("{task: Pets, training_configs: [a]}", 't.training_configs  expected a mapping, got ["a"]'),
        ("{task: Pets, training_configs: {a: }}", "t.training_configs.a  expected a mapping, got nothing"),
        ("{task: Pets, training_configs: {a: {lr: 1}}}", "t.training_configs.a.optimizer  missing key"),
        ("{task: Pets, grid: {lr: [1, 2]}}", "t.grid.optimizer  missing key"),
        (
            "{task: Pets, grid: {lr: [1], optimiser: sgd}}",
            ["t.grid.optimizer  missing key", "t.grid.optimiser  unknown key; did you mean optimizer?"],
        ),
        ("{task: Pets, grid: {}}", "t.grid  is empty"),
        ("{task: Pets, grid: {optimizer: sgd, lr: []}}", "t.grid.lr  is empty"),
        ("{task: Pets, grid: {optimizer: sgd, lr: [1, 0]}}", "t.grid.lr[1]  expected more than 0, got 0"),
        (
            "{task: Pets, grid: {optimizer: sgd, lr: 1, scheduler: [none, {type: poli}]}}",
            't.grid.scheduler[1].type  "poli" is none of none, StepLR, OneCycle, Poly, cosine; did you mean Poly?',
        ),
        (
            "{task: Pets, task_head_weights_path: a.pt, grid: {optimizer: sgd, lr: 1}}",
            "t.grid  nothing is trained when task_head_weights_path gives the head; leave out one of them",
        ),
        (
            "{task: Pets, training_configs: {sgd: {optimizer: sgd, lr: 1}}, grid: {optimizer: sgd, lr: 1}}",
            "t.grid  makes a training config sgd, which training_configs has too (t.yaml:2)",
        ),
    ],
)
def test_mistakes(write: Write, words, keys: str, expected: str | list[str]) -> None:
    found, problems, _ = load(write, words, f"ok: {{task: Pets}}\nt: {keys}\n")
    assert problems == [f"t.yaml:2  {line}" for line in ([expected] if isinstance(expected, str) else expected)]
    assert list(found) == ["ok"]


def test_a_label_that_is_a_task(write: Write, words) -> None:
    assert load(write, words, "Pets: {batch_size: 3}\n")[1] == ["t.yaml:1  Pets.task  missing key; task: Pets?"]


def test_training_configs_of_a_misspelt_task_are_checked_all_the_same(write: Write, words) -> None:
    text = "t:\n  task: CIFAR100\n  training_configs:\n    a: {optimizer: sgdd, lr: 1}\n"
    assert load(write, words, text)[1] == [
        't.yaml:2  t.task  no task "CIFAR100"; did you mean CIFAR-100?',
        't.yaml:4  t.training_configs.a.optimizer  "sgdd" is none of sgd, adam, adamw; did you mean sgd?',
    ]


def test_six_mistakes_give_six_located_messages(write: Write, words) -> None:
    text = """\
Pets:
  task: Pets
  num_epoch: 100
  batch_size: big
  training_configs:
    a:
      optimizer: adm
      lr: 1e-4
      scheduler:
        type: StepLRR
cifar100:
  task: CIFAR100
  training_configs:
    a: {optimizer: sgd, lr: 0}
"""
    with pytest.raises(ConfigError) as failure:
        load_task_configs([write("tasks.yaml", text)], words).checked()
    assert [line.split() for line in str(failure.value).splitlines()] == [
        line.split()
        for line in """\
6 problems in 1 file:
  tasks.yaml:3   Pets.num_epoch                         unknown key; did you mean num_epochs?
  tasks.yaml:4   Pets.batch_size                        expected a whole number, got "big"
  tasks.yaml:7   Pets.training_configs.a.optimizer      "adm" is none of sgd, adam, adamw; did you mean adam?
  tasks.yaml:10  Pets.training_configs.a.scheduler.type "StepLRR" is none of none, StepLR, OneCycle, Poly, cosine; did you mean StepLR?
  tasks.yaml:12  cifar100.task                          no task "CIFAR100"; did you mean CIFAR-100?
  tasks.yaml:14  cifar100.training_configs.a.lr         expected more than 0, got 0
""".splitlines()
    ]


def test_names(write: Write, words) -> None:
    text = f"a/b: {{task: Pets}}\n.x: {{task: Pets}}\nc: {{task: Pets, training_configs: {{'a b': {ADAM}}}}}\n"
    assert load(write, words, text)[1] == [
        't.yaml:1  a/b  the name "a/b" may only have letters, digits and . _ @ + -',
        't.yaml:2  .x  the name ".x" may not start with a dot',
        't.yaml:3  c.training_configs.a b  the name "a b" may only have letters, digits and . _ @ + -',
    ]


def test_names_that_meet_in_one_folder(write: Write, words) -> None:
    text = f"a-b: {{task: Pets, training_configs: {{c: {ADAM}}}}}\n"
    text += f"a: {{task: Pets, training_configs: {{b-c: {ADAM}, b: {ADAM}, x: {ADAM}, X: {ADAM}}}}}\n"
    assert load(write, words, text)[1] == [
        "t.yaml:2  a  a's training config b-c and a-b's training config c (t.yaml:1) would share the folder a-b-c",
        "t.yaml:2  a  a's training config b and the task a-b (t.yaml:1) would share the folder a-b",
        "t.yaml:2  a  a's training config X and a's training config x (t.yaml:2) would share the folder a-X",
    ]
    where = good(write, words, "t: {task: Pets}\n")["t"].where
    again = Where("t.yaml", 7, "t")
    assert path_collisions([("t", ["a"], where), ("u", ["a"], where)]) == ()
    assert path_collisions([("t", ["a", "b"], where), ("t", ["b", "A"], again), ("T", ["a"], again)]) == ()  # given twice, and said so
    assert len(path_collisions([("t", ["a", "A"], where)])) == 1
    assert len(path_collisions([("t", ["a-b"], where), ("t-a", ["b"], where)])) == 1


def test_duplicates_in_and_across_files(write: Write, words) -> None:
    write("a.yaml", "x: {task: Pets}\nx: {task: Pets}\n")
    write("b.yaml", "x: {task: Pets}\nX: {task: Pets}\n")
    assert [str(problem) for problem in load_task_configs(["a.yaml", "b.yaml"], words).problems] == [
        "a.yaml:2  x  given twice; first in a.yaml:1",
        "b.yaml:1  x  given twice; first in a.yaml:1",
        "b.yaml:2  X  X and x (a.yaml:1) differ in case only and would share one folder on some disks",
    ]


def test_tasks_from_python(write: Write, words) -> None:
    task = task_config_from_mapping("t", {"task": "Pets", "seeds": (1, 2), "grid": {"optimizer": ["sgd"], "lr": (0.1, 0.2)}}, words)
    assert task == good(write, words, "t: {task: Pets, seeds: [1, 2], grid: {optimizer: [sgd], lr: [0.1, 0.2]}}\n")["t"]
    assert (str(task.where), task.explicit["seeds"].line) == ("<python>", 0)
    with pytest.raises(ConfigError) as failure:
        task_config_from_mapping("t", {"task": "Pats", "grid": {"optimizer": "sgd", "lr": "x"}, "views": -1}, words)
    assert [str(problem) for problem in failure.value.problems] == [
        '<python>  t.grid.lr  expected a number, got "x"',
        '<python>  t.task  no task "Pats"; did you mean Pets?',
        "<python>  t.views  expected a whole number of at least 1, or fresh, got -1",
    ]
    with pytest.raises(ConfigError, match="expected a mapping of task keys, got 3"):
        task_config_from_mapping("t", 3, words)  # type: ignore[arg-type]


def test_place_is_no_part_of_equality(write: Write, words) -> None:
    first, second = (good(write, words, text)["t"] for text in ("t: {task: Pets}\n", "\nt:\n  task: Pets\n"))
    assert first == second
    assert first.where != second.where
    assert hash(first) == hash(second)
    assert first != good(write, words, "t: {task: Pets, refit: true}\n")["t"]
    assert not {"where", "explicit", "config_where"} & set(first.model_dump())
