"""The command line: messages, exit codes, and that looking at a run neither runs nor writes anything."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import virb
from virb.cli import main
from virb.cli.parser import COMMANDS
from virb.cli.run import failure_lines
from virb.tasks.base import find_task

REPO = Path(__file__).parent.parent
VIRB2021 = Path(__file__).parent / "config" / "virb2021"
QUICKSTART = (
    "--experiment_list",
    str(REPO / "configs/experiment_lists/quickstart.yaml"),
    "--task_configs",
    str(REPO / "configs/task_configs/quickstart.yaml"),
)
ENCODERS = "px: {arch: pixels}\nsmall: {arch: pixels, args: {side: 4}}\n"
TASKS = "a: {task: digits, num_epochs: 2, grid: {optimizer: adam, lr: [1e-2, 1e-1]}}\nb: {task: digits, num_epochs: 3, probe: mlp}\n"
FILES = ("--experiment_list", "e.yaml", "--task_configs", "t.yaml")
ONE = (*FILES, "--only", "px", "--tasks", "a", "--devices", "cpu:1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current folder with an experiment list and a task config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.yaml").write_text(ENCODERS)
    (tmp_path / "t.yaml").write_text(TASKS)
    return tmp_path


@pytest.fixture
def call(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``call("check", ...)`` -> exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


Call = Callable[..., tuple[int, str, str]]


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Help


def test_help_is_instant() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = subprocess.run([sys.executable, str(REPO / "main.py"), "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5
    assert "check     plan and verify everything, run nothing" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from virb.cli import main\ntry: main(['run', '--help'])\nexcept SystemExit: print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO).stdout
    assert not re.search(r"'(torch|numpy|pydantic|rich|yaml|sklearn)'", modules)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert text.startswith(f"usage: virb {command}")
    assert max(map(len, text.split("examples:")[0].splitlines())) <= 130
    for line in text.splitlines():  # every option says what it is for
        if re.match(r"  -\S", line) and not line.startswith("  -h"):
            assert len(re.split(r" {2,}", line.strip())) == 2 or text.splitlines()[text.splitlines().index(line) + 1].startswith(" " * 20)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ViRB {virb.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chekc",), "virb: no command 'chekc'; did you mean check?"),
        (("frobnicate",), "virb: no command 'frobnicate'; there are run, check, list, show, convert, data, cache, pretrain, visualize"),
        (("--experiment_lst", "e.yaml"), "virb run: unknown option --experiment_lst; did you mean --experiment_list?"),
        (("check", "--sed=3"), "virb check: unknown option --sed=3; did you mean --seed?"),
        (("check", "--qqqq"), "virb check: unknown option --qqqq; virb check --help shows what there is"),
        (("show", "digits", "--seed", "x"), "virb show: --seed: invalid int value: 'x' (virb show --help shows what there is)"),
        (("list", "TASK"), "virb list: no list 'TASK'; did you mean tasks?"),
        (("list", "task"), "virb list: no list 'task'; did you mean tasks?"),
        (("list",), "virb list: the following arguments are required: WHAT (virb list --help shows what there is)"),
        (("show", "digitz"), "virb: no task 'digitz'; did you mean digits?"),
        (("show", "c", "--task_configs", "t.yaml"), "virb: no label 'c' in t.yaml; there are a, b"),
    ],
)
def test_a_command_line_that_is_not_understood(call: Call, arguments: tuple[str, ...], message: str) -> None:
    assert call(*arguments) == (2, "", f"{message}\n")


# Mistakes


def test_six_mistakes_are_six_located_messages(call: Call, here: Path) -> None:
    (here / "t.yaml").write_text(
        "one: {task: digits, num_epoch: 3}\n"
        "two: {task: digitz}\n"
        "three:\n  task: digits\n  training_configs:\n    x: {optimizer: adm, lr: 1e-3}\n    y: {optimizer: sgd, lr: fast}\n"
        "four: {task: digits, features: 'tokens[-1].meen'}\n"
        "five: {task: digits, data: {size: 3}}\n"
    )
    before = files_of(here)
    for command in (("check",), ("run",), ("run", "--dry_run"), ()):
        code, out, err = call(*command, *FILES)
        lines = err.splitlines()
        assert (code, out) == (2, "")
        assert lines[0] == "6 problems in 1 file:"
        assert [line.split()[:2] for line in lines[1:7]] == [
            ["t.yaml:1", "one.num_epoch"],
            ["t.yaml:2", "two.task"],
            ["t.yaml:6", "three.training_configs.x.optimizer"],
            ["t.yaml:7", "three.training_configs.y.lr"],
            ["t.yaml:8", "four.features"],
            ["t.yaml:9", "five.data"],
        ]
        assert all("did you mean" in line for line in (lines[1], lines[2], lines[3]))
        assert files_of(here) == before


def test_mistakes_of_the_command_line_come_with_those_of_the_files(call: Call, here: Path) -> None:
    (here / "e.yaml").write_text("px: {arch: pixls}\n")
    given = "--devices gpu --seed -1 --cache_budget x --precision y --protocol z --no_cache --cache_dir q --data_root zz --input_size 0"
    code, _, err = call(*FILES, *given.split(), "--num_workers", "-2")
    assert code == 2
    keys = [line.split("  ")[1:4] for line in err.splitlines()[1:]]
    assert err.startswith("10 problems in 1 file:")
    flags = ["cache_budget", "data_root", "devices", "input_size", "no_cache", "num_workers", "precision", "protocol", "seed"]
    assert re.findall(r"command line  --(\w+)", err) == flags
    assert "e.yaml:1" in keys[-1][0]


def test_options_that_are_no_numbers_hide_nothing(call: Call, here: Path) -> None:
    (here / "t.yaml").write_text("a: {task: digits, num_epoch: 3}\n")
    given = "--seed three --input_size 2.5 --num_workers x --keep_heads ALL"
    code, _, err = call("check", *FILES, *given.split())
    assert code == 2
    text = re.sub(" +", " ", err)
    for message in (
        "command line --input_size '2.5' is not a whole number of at least 1",
        "command line --keep_heads 'ALL' is none of chosen, all, none; did you mean all?",
        "command line --num_workers 'x' is not a whole number of at least 0",
        "command line --seed 'three' is not a whole number of at least 0",
        "t.yaml:1 a.num_epoch unknown key; did you mean num_epochs?",
    ):
        assert message in text
    assert err.startswith("5 problems in 1 file:")


def test_a_label_given_twice_is_one_mistake(call: Call, here: Path) -> None:
    (here / "t.yaml").write_text("a: {task: digits, training_configs: {x: {optimizer: adam, lr: 1e-2}}}\n" * 2)
    assert call("check", *FILES)[2] == "1 problem in 1 file:\n  t.yaml:2  a  given twice; first in t.yaml:1\nnothing was run\n"


def test_a_terminal_without_utf8(here: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "OMP_NUM_THREADS": "1"}
    for arguments in (("check", *ONE), ONE):
        done = subprocess.run([sys.executable, str(REPO / "main.py"), *arguments], capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"px" in done.stdout
    assert b" ?" in done.stdout  # the arrow of the table, or its plus-minus


def test_an_archive_that_cannot_be_written_is_checked_and_found_done(call: Call, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    assert call(*ONE)[0] == 0
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and str(path) == str(here / "out")) and real(path, mode))
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    code, out, err = call("check", *ONE)
    assert (code, err) == (0, "")
    assert "0 to run, 1 done" in out
    code, out, err = call(*ONE)
    assert (code, err) == (0, "")
    assert out.startswith("the job is done (out, just now)")
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before
    for command in (("check", *FILES), (*ONE, "--force"), (*ONE, "--seed", "4")):
        code, _, err = call(*command)
        assert code == 2
        assert "--out  out cannot be written; choose a folder you may write to" in err


def test_where_a_shown_task_comes_from(call: Call) -> None:
    _, out, _ = call("show", "digits")
    assert re.search(r"^  task +digits +command line$", out, re.MULTILINE)
    assert "<python>" not in out


def test_what_is_missing(call: Call) -> None:
    code, _, err = call()
    assert code == 2
    assert "--experiment_list  is missing: which encoders?" in err
    assert "--task_configs     is missing: which tasks?" in err
    assert "--encoder_weights  needs --name" in call("--encoder_weights", "x", "--task_configs", "t.yaml")[2]
    assert "--name  is for a single encoder" in call(*FILES, "--name", "x")[2]
    assert "--only  q* matches no name" in call(*FILES, "--only", "q*")[2]
    assert "--tasks  c matches no name" in call(*FILES, "--tasks", "c")[2]


def test_files_that_are_not_there(call: Call) -> None:
    code, _, err = call("check", "--experiment_list", "f.yaml", "--task_configs", "t.yml")
    assert code == 2
    assert re.search(r"f\.yaml +does not exist", err)
    assert "t.yml does not exist; did you mean t.yaml?" in re.sub(" +", " ", err)


def test_a_task_problem_is_not_said_again_for_every_encoder(call: Call, here: Path) -> None:
    (here / "t.yaml").write_text("a: {task: digits, protocol: virb2020}\nb: {task: folder}\n")
    _, _, err = call("check", *FILES)
    assert len(err.splitlines()) == 4  # the head, two problems, nothing was run
    assert 'a.protocol  no protocol "virb2020"; did you mean virb2021?' in err
    assert "b           folder: no root is given" in err


def test_a_request_that_an_encoder_lacks_names_both(call: Call, here: Path) -> None:
    (here / "t.yaml").write_text("a: {task: digits, features: 'cls[-1]'}\n")
    _, _, err = call("check", *FILES)
    assert re.findall(r't.yaml:1  a.features  encoder "(\w+)" .*: no output \'cls\'', err) == ["px", "small"]


def test_a_broken_encoder_outside_the_subset_does_not_matter(call: Call, here: Path) -> None:
    (here / "e.yaml").write_text(ENCODERS + "lost: {weights: lost.pth}\n")
    assert call("check", *FILES)[0] == 2
    assert call("check", *FILES, "--only", "px", "small")[0] == 0
    code, _, err = call("check", *FILES, "--only", "lost")
    assert code == 2
    assert "lost.pth" in err


def test_problems_of_a_users_own_code_are_messages(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "broken_cli_lab.py").write_text("1 / 0\n")
    (here / "t.yaml").write_text('a: {task: "broken_cli_lab:T"}\nb: {task: digits, probe: "broken_cli_lab:P"}\n')
    code, _, err = call("check", *FILES)
    assert code == 2
    assert err.count("cannot be imported: ZeroDivisionError: division by zero") == 2
    assert "Traceback" not in err


def test_a_mistake_of_our_own_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: object) -> int:
        raise KeyError("lost")

    monkeypatch.setattr("virb.cli.run.check", fail)
    code, _, err = call("check", *FILES)
    assert code == 1
    assert re.fullmatch(r"virb: a mistake of ViRB itself: KeyError: 'lost' \(test_cli.py:\d+\); --debug shows more\n", err)
    with pytest.raises(KeyError):
        main(["check", *FILES, "--debug"])


def test_ctrl_c(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("virb.cli.run.run", stop)
    code, _, err = call(*FILES)
    assert code == 130
    assert "finished jobs are kept, the same command goes on from here" in err


# The files of ViRB 2021


@pytest.mark.parametrize("name", ["all", "caltech", "imagenet_grid_search", "exemplar_grid_search", "imagenetv2"])
@pytest.mark.parametrize("protocol", [(), ("--protocol", "virb2021")])
def test_task_configs_of_virb2021_say_what_is_not_built_and_what_data_is_not_there(
    call: Call, name: str, protocol: tuple[str, ...]
) -> None:
    file = VIRB2021 / "virb_configs" / f"{name}.yaml"
    code, out, err = call("check", "--experiment_list", "e.yaml", "--task_configs", str(file), *protocol)
    tasks = re.findall(r"^(\S+):\n", file.read_text(), re.MULTILINE)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("note:")]
    assert re.match(rf"{len(tasks)} problems? in 1 file:", lines[0])
    text = file.read_text().splitlines()
    ids = dict(zip(tasks, re.findall(r"^  task: (\S+)", file.read_text(), re.MULTILINE), strict=True))
    unbuilt = {label for label, task_id in ids.items() if not find_task(task_id).available}
    said = [match for line in lines if (match := re.match(rf"  {re.escape(str(file))}:(\d+) +(\S+) +(.*)", line))]
    assert sorted(match[2].removesuffix(".task") for match in said) == sorted(tasks)
    for match in said:
        label = match[2].removesuffix(".task")
        assert (match[2] != label) == (label in unbuilt)
        assert (ids[label] if label in unbuilt else label) in text[int(match[1]) - 1]
        assert (f"the task {ids[label]} is not available yet" if label in unbuilt else "not found: looked for") in match[3]
    assert ("note:" in err) == (name == "imagenetv2")


@pytest.mark.parametrize(("name", "count"), [("all", 33), ("swav", 1)])
def test_experiment_lists_of_virb2021_name_each_missing_file(call: Call, name: str, count: int) -> None:
    file = VIRB2021 / "experiment_lists" / f"{name}.yaml"
    code, _, err = call("check", "--experiment_list", str(file), "--task_configs", "t.yaml")
    assert code == 2
    assert err.startswith(f"{count} problem")
    assert len(re.findall(rf"{re.escape(str(file))}:\d+ .*does not exist", err)) == count


def test_the_old_folder_of_task_configs(call: Call, here: Path) -> None:
    (here / "configs" / "task_configs").mkdir(parents=True)
    (here / "configs" / "task_configs" / "x.yaml").write_text("a: {task: digits}\n")
    code, out, err = call("check", "--experiment_list", "e.yaml", "--virb_configs", "configs/virb_configs/x.yaml")
    assert code == 0
    assert "note: configs/virb_configs/x.yaml  does not exist; configs/task_configs/x.yaml is read instead" in err
    assert "1 task" in out


# check


def test_check_shows_the_quickstart_and_touches_nothing(call: Call, here: Path) -> None:
    (here / "weights").symlink_to(REPO / "weights")
    before = files_of(here)
    code, out, err = call("check", *QUICKSTART, "--devices", "cpu:2")
    assert (code, err) == (0, "")
    for text in (
        r"5 encoders",
        r"  dino_tiny +dino_tiny.safetensors, converted from checkpoint.pth; trained by dino, .* 100 % +160x160 +ImageNet .*",
        r"  random_vit +random weights \(seed 0\) +vit_tiny/8 +5\.4 M +- +64x64 +ImageNet .*tokens 192x8x8, pyramid of 4, .*",
        r"  shapes_count +shapes-count, linear, 12 configs +fit 3,000 / report 1,000, select held out of fit",
        r"25 jobs",
        r"  pixels x digits_mlp +32px bilinear squashed \(task digits\) +4\.97 MB +host memory",
        r"jobs +25 to run, 0 done",
        r"passes +6 over images instead of 50, in 15 slices; 6,897 images to decode",
        r"geometries +2: 32px \(15 jobs\), 64px \(10 jobs\)",
        r"features +5\d(\.\d)? MB to make, nothing cached yet; largest job 46\.7 MB \(random_vit x shapes_segmentation\)",
        r"disk +out/\.virb_cache: .* free, budget 80%",
        r"time +about (\d+ s|\d+ min|[\d.]+ h) on cpu x 2, float32",
        r"nothing was run",
    ):
        assert re.search(f"^{text}$", out, re.MULTILINE), text
    number, unit = re.findall(r"about ([\d.]+) (s|min|h) on", out)[0]
    assert 10 < float(number) * {"s": 1, "min": 60, "h": 3600}[unit] < 3600  # about 85 s where nothing else runs
    assert files_of(here) == before
    assert call(*QUICKSTART, "--dry_run", "--devices", "cpu:2")[1].splitlines()[-1] == "nothing was run"
    assert files_of(here) == before


def test_check_of_an_experiment_list_alone_shows_its_encoders(call: Call, here: Path) -> None:
    before = files_of(here)
    code, out, err = call("check", "--experiment_list", "e.yaml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "2 encoders"
    assert [line.split()[0] for line in lines[1:4]] == ["encoder", "px", "small"]
    assert lines[-1] == "nothing was run"
    assert not re.search("task|job|passes", out)
    code, dry, err = call("run", "--dry_run", "--experiment_list", "e.yaml")
    seconds = re.compile(r" \d+\.\d\d ")  # a busy machine checks an encoder in 0.01 of them, not in 0.00
    assert (code, seconds.sub(" ", dry), err) == (0, seconds.sub(" ", out), "")
    assert call("check", "--name", "one", "--encoder_weights", "nowhere.pt")[0] == 2
    (here / "bad.pt").write_bytes(b"no weights")
    (here / "e.yaml").write_text("px: {arch: pixels}\nbad: bad.pt\n")
    code, out, err = call("check", "--experiment_list", "e.yaml")
    assert code == 2
    assert re.search(r"^  px +", out, re.MULTILINE)
    assert re.search(r"^  bad +FAILED", out, re.MULTILINE)
    assert "1 problem in 1 file:\n  e.yaml:2  bad  bad.pt is not a weights file" in err
    assert "task" not in out + err
    assert files_of(here) == before | {"bad.pt"}


def test_tasks_are_missed_where_they_are_needed(call: Call, here: Path) -> None:
    for command in ("check", "run"):
        code, _, err = call(command)
        assert (code, err.splitlines()[0]) == (2, "2 problems:")
        assert "--experiment_list  is missing" in err
        assert "--task_configs     is missing" in err
    assert "--task_configs  is missing" in call("run", "--experiment_list", "e.yaml")[2]
    (here / "none.yaml").write_text("{}\n")
    assert call("check", "--experiment_list", "e.yaml", "--task_configs", "none.yaml")[0] == 2


def test_check_says_which_input_would_merge_geometries(call: Call, here: Path) -> None:
    (here / "e.yaml").write_text("a: {arch: pixels}\nb: {arch: pixels, input: {size: [16, 24], resize: squash}}\n")
    _, out, _ = call("check", *FILES)
    assert "geometries  2: 32px (2 jobs), 16x24px (2 jobs) · input: {size: 32} for all encoders would make one of 2" in out


def test_check_says_what_streams(call: Call) -> None:
    _, out, _ = call("check", *FILES, "--cache_budget", "0", "--tasks", "a")
    assert out.count("streams: encoded while heads train") == 2
    assert "do not fit the cache budget (0)" in out
    assert "features    0 B to make" in out


# run


def test_a_run_and_its_repetition(call: Call, here: Path) -> None:
    code, out, err = call(*ONE, "--suffix", "_x")
    assert (code, err) == (0, "")
    assert re.search(r"^px_x +\d+\.\d ±\d+\.\d$", out, re.MULTILINE)
    assert out.splitlines()[-1] == "95 % intervals · choices made on validation · results: out/results.csv"
    job = json.loads((here / "out/px_x/a/job.json").read_text())
    assert job["provenance"]["config_text"] == TASKS.splitlines()[0]
    assert job["protocol"]["changed"] == {"num_epochs": 2, "training_configs": ["lr0.01", "lr0.1"]}
    written = {path: path.stat().st_mtime_ns for path in (here / "out").rglob("*.json")}
    code, out, _ = call("run", *ONE, "--suffix", "_x")
    assert (code, out) == (0, "the job is done (out, just now) · --force runs it again\n")
    assert {path: path.stat().st_mtime_ns for path in (here / "out").rglob("*.json")} == written
    code, out, _ = call("check", *FILES, "--only", "px", "--suffix", "_x")
    assert "px_x x a" in out
    assert "jobs        1 to run, 1 done" in out
    assert "  done    1 job already" in call(*FILES, "--only", "px", "--suffix", "_x", "--tasks", "a,b", "--devices", "cpu:1")[1]


def test_a_job_that_fails_is_named_last_and_the_exit_code_is_1(call: Call, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (here / "failing_cli_lab.py").write_text(
        "from virb.probes.base import ProbeConfig\n"
        "from virb.errors import ViRBError\n"
        "class Bad:\n    name, shape, Config = 'bad', 'features', ProbeConfig\n"
        "    def from_features(self, roles, settings, context):\n        raise ViRBError('no luck today')\n"
    )
    (here / "t.yaml").write_text(TASKS.splitlines()[0] + '\nc: {task: digits, probe: "failing_cli_lab:Bad"}\n')
    code, out, _ = call(*FILES, "--only", "px", "--devices", "cpu:1")
    assert code == 1
    assert "1 of 2 jobs failed, 1 done:\n  px x c" in out
    assert re.search(r"px x c +no luck today$", out, re.MULTILINE)


def test_failure_lines() -> None:
    assert failure_lines({}, 3, 3) == []
    assert failure_lines({"a/b": "x\ntrace", "long/c": ""}, 1, 3)[1:4] == ["2 of 3 jobs failed, 1 done:", "  a x b     x", "  long x c  ?"]


# list and show


def test_lists(call: Call, here: Path) -> None:
    code, out, _ = call("list", "tasks")
    assert code == 0
    assert re.search(r"^digits +image-level, semantic +linear +top-1 +1,438 / hold-out / 359 +which digit", out, re.MULTILINE)
    assert re.search(r"^folder .* your own ", out, re.MULTILINE)
    assert re.search(r"^KITTI +pixelwise, structural +siamese +EPE", out, re.MULTILINE)
    for task, sizes in PUBLISHED.items():
        assert re.search(rf"^{re.escape(task)} .*  {re.escape(sizes)}  ", out, re.MULTILINE), task
    assert "resnet50" in call("list", "encoders")[1]
    assert re.search(
        r"^shapes +n_train=3000, n_test=1000, size=64, seed=0 +One image per sample", call("list", "datasets")[1], re.MULTILINE
    )
    assert re.search(r"^linear +features +One Linear layer", call("list", "probes")[1], re.MULTILINE)
    assert files_of(here) == {"e.yaml", "t.yaml"}


def test_show_gives_every_value_and_its_origin(call: Call) -> None:
    code, out, _ = call("show", "a", "--task_configs", "t.yaml", "--seed", "4")
    assert code == 0
    rows = {
        line.split()[0]: re.split(r" {2,}", line.strip())[1:] for line in out.splitlines()[1:] if len(re.split(r" {2,}", line.strip())) == 3
    }
    assert rows["num_epochs"] == ["2", "t.yaml:1"]
    assert rows["batch_size"] == ["256", "default"]
    assert rows["probe"] == ["linear", "task digits"]
    assert rows["seeds"] == ["4", "default + --seed 4"]
    assert rows["geometry"] == ["32px bilinear squashed", "task digits"]
    assert rows["training_configs"] == ["2", "t.yaml:1"]
    assert "    lr0.1   optimizer adam, lr 0.1" in out
    assert "changed from the protocol default: num_epochs 2, training_configs lr0.01, lr0.1" in out
    origins = [line.rindex(row[-1]) for line in out.splitlines()[1:] for row in [re.split(r" {2,}", line.strip())] if len(row) == 3]
    assert len(set(origins[:10])) == 1  # aligned

    from virb.tasks.resolve import ResolvedTask

    hidden = {
        "label",
        "changed",
        "configs",
        "data",
        "stream",
        "origins",
        "where",
        "places",
        "modules",
        "limit_by_defaults",
        "windows",
        "score_size",
    }
    assert set(ResolvedTask.__dataclass_fields__) - hidden <= set(rows)


def test_show_of_other_tasks(call: Call) -> None:
    _, out, _ = call("show", "shapes-count")
    assert re.search(r"data.n_train +3000 +dataset shapes", out)
    _, out, _ = call("show", "NYUDepth")
    assert re.search(r"targets +kind depth channels 1 range 0.001, 10 at native resample nearest rescale none +task NYUDepth\n", out)
    assert re.search(r"windows +none +default\n", out)
    assert re.search(r"score_size +native size +default\n", out)
    assert re.search(r"geometry +480x640px bilinear squashed +task NYUDepth\n", out)
    _, out, _ = call("show", "ADE20K", "--protocol", "ibot-linear")
    assert re.search(r"windows +size 512, 512 stride 341, 341 shorter 512 +protocol ibot-linear\n", out)
    assert re.search(r"augment +scale-crop-flip-colour +protocol ibot-linear\n", out)
    assert re.search(r"score_size +100 +protocol timet-linear\n", call("show", "PascalVOC", "--protocol", "timet-linear")[1])
    _, out, _ = call("show", "Pets-Detection", "--protocol", "virb2021")
    assert re.search(r"geometry +224px bilinear squashed +(protocol virb2021|task Pets-Detection@virb2021)\n", out)
    assert re.search(r"heads_from +Imagenet +task Imagenetv2\n", call("show", "Imagenetv2")[1])
    assert re.search(r"selection +test-last +protocol virb2021", call("show", "digits", "--protocol", "virb2021")[1])
    code, _, err = call("show", "digits", "--protocol", "virb2020")
    assert code == 2
    assert "no protocol 'virb2020'; there are default, dino-knn, dino-linear, ibot-linear, linear-sweep, timet-linear, virb2021" in err


PUBLISHED = {
    "Pets": "3,680 / hold-out / 3,669",
    "dtd": "1,880 / 1,880 / 1,880",
    "dtd@virb2021": "3,760 / hold-out / 1,880",
    "CalTech-101": "3,060 / hold-out / 6,084",
    "SUN397": "? / hold-out / of 108,754",
    "Imagenet100": "130,000 or 126,689 / hold-out / 5,000",
    "Imagenetv2": "- / - / 10,000",
    "ImagenetC": "- / - / 3,750,000",
    "THORNumSteps": "60,000 / hold-out / ?",
}


def test_help_names_every_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    from virb.cli.parser import make_parser
    from virb.tasks.protocols import PROTOCOLS

    with pytest.raises(SystemExit):
        make_parser().parse_args(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # names are broken at their hyphens
    named = text.partition("a named bundle of settings for all tasks: ")[2].partition(" --")[0].split(", ")
    assert sorted(named) == sorted(PROTOCOLS)
