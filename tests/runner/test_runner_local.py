"""The local launcher: every unit is done or lost with a reason, whatever a worker does, and no process is left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from virb.errors import ViRBError
from virb.plan.graph import Graph, Unit, UnitReport
from virb.runner import local
from virb.runner.local import run_units

THREE = ("cpu", "cpu", "cpu")


class Refuses:
    """Cannot be pickled, or cannot be read again."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self):
        if self.when == "sent":
            raise TypeError("this cannot travel")
        return refuse, ()


def refuse():
    raise ModuleNotFoundError("no module of that name here")


class Unpacked:
    """A context that is more than a pipe holds, and does something as a worker reads it; it is ``folder`` then."""

    def __init__(self, folder, does: str, *arguments) -> None:
        self.given, self.packed = (str(folder), does, *arguments), 0

    def __reduce__(self):
        self.packed += 1
        return unpack, (*self.given, "x" * 1_000_000)


def unpack(folder: str, does: str, *arguments) -> str:
    getattr(Unpacking, does)(Path(folder), *arguments[:-1])
    return folder


class Unpacking:
    @staticmethod
    def meet(folder, n):
        """Goes on when n workers are at it."""
        (folder / f"started {os.getpid()}").touch()
        wait_for(lambda: n_started(folder) >= n)

    @staticmethod
    def one_only(folder, then):
        """The first goes on; the others do not."""
        try:
            (folder / "first").mkdir()
        except FileExistsError:
            (folder / f"started {os.getpid()}").touch()
            os._exit(5) if then == "die" else time.sleep(60)

    @staticmethod
    def die(folder, number):
        (folder / f"started {os.getpid()}").touch()
        os.kill(os.getpid(), number)

    @staticmethod
    def sleep(folder):
        (folder / f"started {os.getpid()}").touch()
        time.sleep(60)

    @staticmethod
    def wrong(folder):
        raise ModuleNotFoundError("no module of that name here")


def make_doer(context, device):
    """Each unit's payload is (action, argument ...); every unit leaves a line in ``context / log`` first."""
    if context == "broken":
        raise ViRBError(f"{device} does not work")

    def do(unit: Unit, tell) -> UnitReport:
        with open(Path(context) / "log", "a") as log:
            log.write(json.dumps({"unit": unit.key, "pid": os.getpid(), "device": device, "time": time.time()}) + "\n")
        action, *arguments = unit.payload
        return getattr(Actions, action)(unit, tell, *arguments) or UnitReport(summary=f"{unit.key} on {device}")

    return do


class Actions:
    @staticmethod
    def sleep(unit, tell, seconds=0.0):
        time.sleep(seconds)

    @staticmethod
    def progress(unit, tell, total):
        for done in range(total):
            tell("counting", done + 1, total)

    @staticmethod
    def until_others(unit, tell, folder, n, talk=False):
        """Ends when n units have begun; ``talk``: messages without a pause."""
        deadline = time.monotonic() + 20
        while len(log(folder)) < n and time.monotonic() < deadline:
            if talk:
                tell("talking", 1, 1)
            else:
                time.sleep(0.01)

    @staticmethod
    def until_dead(unit, tell, folder, key):
        """Ends when the process that did another unit is gone."""
        wait_for(lambda: any(line["unit"] == key for line in log(folder)))
        pid = next(line["pid"] for line in log(folder) if line["unit"] == key)
        wait_for(lambda: pid not in living(os.getsid(0)))

    @staticmethod
    def report(unit, tell, failed):
        return UnitReport(failed=failed)

    @staticmethod
    def big_report(unit, tell, size):
        return UnitReport(notes=["x" * size])

    @staticmethod
    def bad_report(unit, tell):
        return UnitReport(counts={"lambda": lambda: None})

    @staticmethod
    def fail(unit, tell, message):
        raise ViRBError(message)

    @staticmethod
    def bug(unit, tell, message="1 and 2 do not fit"):
        raise ValueError(message)

    @staticmethod
    def eof(unit, tell):
        raise EOFError("ran out of input")

    @staticmethod
    def exit(unit, tell, code):
        os._exit(code)

    @staticmethod
    def sys_exit(unit, tell):
        sys.exit("a script ended itself")

    @staticmethod
    def kill(unit, tell, number):
        tell("about to die", 1, 2)
        os.kill(os.getpid(), number)
        time.sleep(60)

    @staticmethod
    def die_later(unit, tell, seconds, folder):
        """Done when another worker is at work, but the process dies while it has nothing to do."""
        wait_for(lambda: len(log(folder)) == 2)
        threading.Timer(seconds, os._exit, (5,)).start()

    @staticmethod
    def linger(unit, tell):
        """Leaves a thread that would keep the process from ending."""
        threading.Thread(target=time.sleep, args=(60,)).start()

    @staticmethod
    def stubborn(unit, tell, seconds):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        time.sleep(seconds)

    @staticmethod
    def started(unit, tell, folder, seconds):
        (Path(folder) / f"started {unit.key}").write_text(str(os.getpid()))
        time.sleep(seconds)


def unit(key: str, *payload, inputs=(), outputs=()) -> Unit:
    return Unit("kind", key, key, inputs, outputs, 1.0, payload or ("sleep",))


class Watcher:
    def __init__(self) -> None:
        self.said: list[tuple] = []
        self.ticks = 0

    def starting(self, slot):
        self.said.append(("starting", "", slot))

    def up(self, slot):
        self.said.append(("up", "", slot))

    def note(self, text):
        self.said.append(("note", text))

    def started(self, slot, unit):
        self.said.append(("started", unit.key, slot))

    def advanced(self, slot, unit, phase, done, total):
        self.said.append(("advanced", unit.key, slot, phase, done, total))

    def spent(self, slot, unit, so_far): ...

    def finished(self, slot, unit, report):
        self.said.append(("finished", unit.key, slot))

    def failed(self, unit, reason):
        self.said.append(("failed", unit.key))

    def tick(self, graph):
        self.ticks += 1

    def keys(self, what: str) -> list[str]:
        return [said[1] for said in self.said if said[0] == what]


class SlowWatcher(Watcher):
    def advanced(self, slot, unit, phase, done, total):
        time.sleep(0.002)


def run(units, folder, devices=THREE, watcher=None) -> tuple[Graph, dict[str, str], Watcher]:
    """Runs the units; every one of them must be done or lost, once."""
    graph, watcher, lost = Graph(units), watcher or Watcher(), {}

    def on_lost(unit: Unit, reason: str) -> None:
        assert unit.key not in lost
        lost[unit.key] = reason

    run_units(graph, str(folder), devices, make_doer, watcher, on_lost)
    assert graph.finished
    assert set(graph.done) | set(lost) == set(graph.units)
    assert not set(graph.done) & set(lost)
    assert graph.failed == lost
    assert sorted(watcher.keys("finished")) == sorted(graph.done)
    assert sorted(watcher.keys("failed")) == sorted(lost)
    assert watcher.ticks > 0
    assert multiprocessing.active_children() == []
    return graph, lost, watcher


def log(folder) -> list[dict]:
    path = Path(folder) / "log"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# One device: in this process


def test_one_device_needs_no_process(tmp_path):
    units = [unit("job", inputs=("a",)), unit("pass", "progress", 3, outputs=("a",)), unit("other")]
    graph, lost, watcher = run(units, tmp_path, ("cpu",))
    assert lost == {}
    assert [line["unit"] for line in log(tmp_path)] == ["pass", "job", "other"]
    assert {line["pid"] for line in log(tmp_path)} == {os.getpid()}
    assert graph.done["job"].summary == "job on cpu"
    assert [said for said in watcher.said if said[0] == "advanced"] == [("advanced", "pass", 0, "counting", i, 3) for i in (1, 2, 3)]


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_a_failure_is_alone_and_takes_what_needs_it(tmp_path, devices):
    units = [
        unit("mistake", "fail", "the folder is gone:\nmake it again", outputs=("a",)),
        unit("needs it", inputs=("a",), outputs=("b",)),
        unit("needs that", inputs=("b",)),
        unit("bug", "bug"),
        unit("silent", "fail", ""),
        unit("half", "report", {"c": "NaN"}, outputs=("c", "d")),
        unit("needs c", inputs=("c",)),
        unit("needs d", inputs=("d",)),
        unit("end of file", "eof"),
        unit("free"),
    ]
    graph, lost, _ = run(units, tmp_path, devices)
    assert set(graph.done) == {"half", "needs d", "free"}
    assert lost["mistake"] == lost["needs it"] == lost["needs that"] == "the folder is gone:\nmake it again"
    assert lost["needs c"] == "NaN"
    first, _, trace = lost["bug"].partition("\n")
    assert first.startswith("ValueError: 1 and 2 do not fit (test_runner_local.py:")
    assert trace.startswith("Traceback")
    assert lost["silent"]  # has a first line to show
    assert lost["end of file"].startswith("EOFError: ran out of input")


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_a_device_that_does_not_work(devices):
    graph, lost = Graph([unit("1"), unit("2"), unit("3")]), {}
    run_units(graph, "broken", devices, make_doer, Watcher(), lambda unit, reason: lost.update({unit.key: reason}))
    assert lost == dict.fromkeys("123", "cpu does not work")


def test_a_long_message_is_cut(tmp_path):
    _, lost, _ = run([unit("bug", "bug", "tensor(" + "0., " * 1_000_000)], tmp_path, ("cpu",))
    assert lost["bug"].startswith("ValueError: tensor(0., 0.,")
    assert len(lost["bug"]) < 50_000
    assert "Traceback" in lost["bug"]


def test_threads_are_given_back(tmp_path):
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()

    def make(context, device):
        torch.set_num_threads(before + 1)
        return lambda unit, tell: UnitReport()

    run_units(Graph([unit("1")]), None, ("cpu",), make, Watcher(), lambda unit, reason: None)
    assert torch.get_num_threads() == before


# Several devices: a process each


def test_three_workers_share_the_units(tmp_path):
    long = unit("long", "until_others", str(tmp_path), 17)
    units = [long, *(unit(f"{i}", "sleep", 0.02) for i in range(15)), unit("counts", "progress", 5)]
    graph, lost, watcher = run(units, tmp_path)
    assert lost == {}
    lines = log(tmp_path)
    assert sorted(line["unit"] for line in lines) == sorted(graph.units)  # each once
    pid_of = {line["unit"]: line["pid"] for line in lines}
    assert os.getpid() not in pid_of.values()
    assert 2 <= len(set(pid_of.values())) <= 3
    assert [key for key in pid_of if pid_of[key] == pid_of["long"]] == ["long"]  # the others did the rest meanwhile
    assert {said[2] for said in watcher.said} <= {0, 1, 2}
    assert ("advanced", "counts", "counting", 5, 5) in [said[:2] + said[3:] for said in watcher.said if said[0] == "advanced"]


def test_units_wait_for_those_that_other_workers_do(tmp_path):
    units = [unit("job", inputs=("a",)), *(unit(f"slice {i}", "sleep", 0.1 * i, outputs=("a",)) for i in range(3))]
    run(units, tmp_path)
    assert log(tmp_path)[-1]["unit"] == "job"


def test_nothing_to_do_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_start", None)
    graph = Graph([])
    run_units(graph, str(tmp_path), THREE, make_doer, Watcher(), lambda unit, reason: None)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (("exit", 3), "the worker on cpu died (exit code 3: it ended by itself"),
        (("exit", 0), "the worker on cpu died (exit code 0: it ended by itself"),
        (("kill", signal.SIGKILL), "the worker on cpu died (exit code -9: killed from outside, or by the system for want of memory)"),
        (("kill", signal.SIGSEGV), "the worker on cpu died (exit code -11: killed"),
        (("kill", signal.SIGTERM), "the worker on cpu died (exit code 143"),
        (("sys_exit",), "the worker on cpu died (exit code 1: it ended by itself"),
    ],
)
def test_a_worker_that_dies_loses_its_unit_only(tmp_path, payload, words):
    units = [unit("deadly", *payload, outputs=("a",)), unit("needs it", inputs=("a",)), *(unit(f"{i}", "sleep", 0.02) for i in range(6))]
    graph, lost, _ = run(units, tmp_path, ("cpu", "cpu"))
    assert set(graph.done) == set("012345")
    assert lost["deadly"].startswith(words)
    assert lost["needs it"] == lost["deadly"]
    assert [line["unit"] for line in log(tmp_path)].count("deadly") == 1  # not tried again


def test_all_workers_die_again_and_again(tmp_path):
    graph, lost, _ = run([*(unit(f"{i}", "exit", 7) for i in range(5)), unit("fine", inputs=())], tmp_path, ("cpu", "cpu"))
    assert set(graph.done) == {"fine"}
    assert len(lost) == 5


def test_a_worker_that_dies_idle_is_replaced_when_there_is_work(tmp_path):
    units = [
        unit("done, then dead", "die_later", 0.1, str(tmp_path)),
        unit("slow", "until_dead", str(tmp_path), "done, then dead", outputs=("a",)),
        unit("1", "sleep", 0.1, inputs=("a",)),
        unit("2", "sleep", 0.1, inputs=("a",)),
    ]
    _, lost, _ = run(units, tmp_path, ("cpu", "cpu"))
    assert lost == {}


def test_what_cannot_travel_is_lost_alone(tmp_path):
    units = [
        unit("cannot be sent", Refuses("sent")),
        unit("cannot be read", Refuses("read")),
        unit("report cannot be sent", "bad_report"),
        unit("big unit", "sleep", 0.0, "x" * 3_000_000),
        unit("big report", "big_report", 5_000_000),
        unit("long reason", "fail", "very " * 1_000_000 + "long"),
        unit("fine"),
    ]
    graph, lost, _ = run(units, tmp_path, ("cpu", "cpu"))
    assert "this cannot travel" in lost["cannot be sent"]
    assert lost["cannot be read"].startswith("ModuleNotFoundError: no module of that name here")
    assert "lambda" in lost["report cannot be sent"]
    assert lost["long reason"].endswith("long")
    assert lost["big unit"].startswith("TypeError")  # it arrived: the action takes no third argument
    assert len(graph.done["big report"].notes[0]) == 5_000_000
    assert set(graph.done) == {"big report", "fine"}


def test_a_context_that_cannot_travel(tmp_path):
    graph = Graph([unit("1"), unit("2")])
    with pytest.raises(ViRBError, match=r"cannot be given what it needs .*this cannot travel.*one device"):
        run_units(graph, Refuses("sent"), ("cpu", "cpu"), make_doer, Watcher(), lambda unit, reason: None)
    assert multiprocessing.active_children() == []


# Starting


@pytest.fixture
def three_cores(monkeypatch):
    monkeypatch.setattr(local, "available_cores", lambda: 3)


def run_with(context, units, devices=THREE) -> tuple[Graph, dict[str, str], Watcher]:
    graph, watcher, lost = Graph(units), Watcher(), {}
    run_units(graph, context, devices, make_doer, watcher, lambda unit, reason: lost.update({unit.key: reason}))
    assert graph.finished
    assert multiprocessing.active_children() == []
    return graph, lost, watcher


def test_workers_start_side_by_side_and_what_they_need_is_pickled_once(tmp_path, three_cores):
    context = Unpacked(tmp_path, "meet", 3)  # none would be up if they came one after the other
    _, lost, _ = run_with(context, [unit(f"{i}", "sleep", 0.1) for i in range(6)])
    assert lost == {}
    assert context.packed == 1
    assert n_started(tmp_path) == 3


def test_nobody_waits_for_a_worker_that_is_not_up_yet(tmp_path, three_cores):
    began = time.monotonic()
    _, lost, watcher = run_with(Unpacked(tmp_path, "one_only", "sleep"), [unit(f"{i}") for i in range(4)])
    assert lost == {}
    assert len({line["pid"] for line in log(tmp_path)}) == 1
    assert time.monotonic() - began < 20
    started = [said for said in watcher.said if said[0] in ("starting", "up")]
    assert [said[0] for said in started].count("starting") == 3
    assert [said[0] for said in started].count("up") == 1


def test_no_more_workers_than_work_and_no_more_at_once_than_cores(tmp_path, monkeypatch):
    _, _, watcher = run_with(str(tmp_path), [unit("1"), unit("2")])
    assert [said[0] for said in watcher.said].count("starting") <= 2
    monkeypatch.setattr(local, "available_cores", lambda: 1)
    _, lost, watcher = run_with(str(tmp_path), [unit(f"{i}", "until_others", str(tmp_path), 5) for i in range(3)])
    assert lost == {}
    started = [said[0] for said in watcher.said if said[0] in ("starting", "up")]
    assert started == ["starting", "up"] * 3


def test_a_worker_that_dies_as_it_starts_is_missed_by_nobody(tmp_path, three_cores):
    context = Unpacked(tmp_path, "one_only", "die")
    _, lost, watcher = run_with(context, [unit(f"{i}", "sleep", 0.3) for i in range(8)])
    assert lost == {}
    notes = [said[1] for said in watcher.said if said[0] == "note"]
    assert len(notes) == n_started(tmp_path) == 2
    assert all(note.startswith("the worker on cpu died as it started (exit code 5: it ended by itself") for note in notes)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_where_every_worker_dies_as_it_starts_all_is_lost_at_once(tmp_path, number):
    units = [unit("0", outputs=("a",)), unit("needs it", inputs=("a",)), *(unit(f"{i}") for i in range(1, 50))]
    graph, lost, watcher = run_with(Unpacked(tmp_path, "die", number), units)
    assert lost == graph.failed
    assert set(lost) == set(graph.units)
    code = -9 if number == signal.SIGKILL else 143
    assert all(reason.startswith(f"the worker on cpu died as it started (exit code {code}: ") for reason in lost.values())
    assert n_started(tmp_path) == 3  # each slot once
    assert watcher.keys("started") == []


def test_a_context_that_cannot_be_read(tmp_path):
    _, lost, _ = run_with(Unpacked(tmp_path, "wrong"), [unit("1"), unit("2")])
    assert set(lost) == {"1", "2"}
    assert all("ModuleNotFoundError: no module of that name here" in reason for reason in lost.values())


def test_a_worker_that_talks_all_the_time_does_not_drown_the_others(tmp_path):
    began = time.monotonic()
    units = [unit("loud", "until_others", str(tmp_path), 6, True), *(unit(f"{i}") for i in range(5))]
    _, lost, _ = run(units, tmp_path, ("cpu", "cpu"), SlowWatcher())
    assert lost == {}
    assert time.monotonic() - began < 15


def test_a_thread_that_does_not_end_cannot_hold_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_PATIENCE", 0.5)
    began = time.monotonic()
    run([unit("1", "linger"), unit("2", "linger")], tmp_path, ("cpu", "cpu"))
    assert time.monotonic() - began < 10


def test_an_observer_that_fails_ends_all_workers(tmp_path):
    class Broken(Watcher):
        def finished(self, slot, unit, report):
            raise BrokenPipeError("nobody listens")

    with pytest.raises(BrokenPipeError):
        run_units(Graph([unit("1"), unit("2", "sleep", 60)]), str(tmp_path), ("cpu", "cpu"), make_doer, Broken(), lambda unit, reason: None)
    assert multiprocessing.active_children() == []


# Ctrl-C and worse: a whole run in a process group of its own

SCRIPT = """
import sys, test_runner_local as tests
try:
    tests.run([tests.unit(str(i), *payload) for i, payload in enumerate(eval(sys.argv[2]))], sys.argv[1])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


# Workers that do not come up.
STARTING = """
import sys, test_runner_local as tests
tests.local.available_cores = lambda: 3
try:
    tests.run_with(tests.Unpacked(sys.argv[1], "sleep"), [tests.unit(str(i)) for i in range(3)])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


def start_run(folder: Path, payloads: list[tuple], script: str = SCRIPT) -> subprocess.Popen[str]:
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parents[1]}"}
    command = [sys.executable, "-c", script, str(folder), repr(payloads)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def wait_for(check, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def living(group: int) -> list[int]:
    """Processes of the session that are there and no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(session) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def n_started(folder: Path) -> int:
    return len(list(folder.glob("started *")))


def test_ctrl_c_ends_all_within_seconds_and_keeps_what_is_done(tmp_path):
    sleeping = ("started", str(tmp_path), 60)
    process = start_run(tmp_path, [("sleep", 0.0), sleeping, sleeping, sleeping, sleeping])
    wait_for(lambda: n_started(tmp_path) == 3)
    assert len(living(process.pid)) >= 4
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert process.returncode == 130
    assert out == "interrupted\n"
    assert err == ""  # no worker says anything
    wait_for(lambda: not living(process.pid), 2)
    assert n_started(tmp_path) == 3  # nothing new was begun


def test_ctrl_c_while_workers_start(tmp_path):
    process = start_run(tmp_path, [("started", str(tmp_path), 60)] * 3)
    wait_for(lambda: len(living(process.pid)) >= 3)  # the resource tracker, and a first worker that has hardly begun
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=8)
    assert (process.returncode, out, err) == (130, "interrupted\n", "")
    wait_for(lambda: not living(process.pid), 2)


def test_ctrl_c_while_workers_import_what_they_need(tmp_path):
    process = start_run(tmp_path, [], STARTING)
    wait_for(lambda: n_started(tmp_path) == 3)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, out, err) == (130, "interrupted\n", "")
    wait_for(lambda: not living(process.pid), 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_that_start_end_with_their_parent(tmp_path, number):
    process = start_run(tmp_path, [], STARTING)
    wait_for(lambda: n_started(tmp_path) == 3)
    process.send_signal(number)
    process.communicate(timeout=5)
    assert process.returncode == -number
    wait_for(lambda: not living(process.pid), 3)


def test_a_second_ctrl_c_does_not_wait_for_the_stubborn(tmp_path):
    process = start_run(tmp_path, [("started", str(tmp_path), 60), ("stubborn", 60), ("stubborn", 60)])
    wait_for(lambda: n_started(tmp_path) == 1 and len(log(tmp_path)) == 3)
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=5)
    assert time.monotonic() - began < 1.5
    assert process.returncode == 130
    wait_for(lambda: not living(process.pid), 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path, number):
    process = start_run(tmp_path, [("started", str(tmp_path), 60), ("stubborn", 60), ("sleep", 0.0)])
    wait_for(lambda: n_started(tmp_path) == 1 and len(log(tmp_path)) == 3)
    process.send_signal(number)
    process.communicate(timeout=5)
    assert process.returncode == -number
    wait_for(lambda: not living(process.pid), 3)
