"""A process ends with its parent, also when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHILDREN = """
import multiprocessing, sys, time
from virb.processes import end_with_parent

def child(pipe):
    end_with_parent()
    pipe.send(multiprocessing.current_process().pid)
    time.sleep(60)

if __name__ == "__main__":
    kind = multiprocessing.get_context(sys.argv[1])
    ours, theirs = kind.Pipe()
    for _ in range(2):
        kind.Process(target=child, args=(theirs,)).start()
    print(ours.recv(), ours.recv(), flush=True)
    time.sleep(60)
"""
STARTED = """
import os, subprocess, sys, time
code = "import os, time; from virb.processes import when_parent_ends as w; w(lambda: os._exit(1), parent=%d); time.sleep(60)" % os.getpid()
print(subprocess.Popen([sys.executable, "-c", code]).pid, flush=True)
time.sleep(60)
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: list[int], within: float) -> bool:
    deadline = time.monotonic() + within
    while any(map(lives, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(lives, pids))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not listed here")
@pytest.mark.parametrize(("script", "argument"), [(CHILDREN, "fork"), (CHILDREN, "spawn"), (STARTED, "")])
def test_children_go_when_their_parent_is_killed(script: str, argument: str, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "parent.py", argument], stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert parent.stdout is not None
    children = [int(text) for text in parent.stdout.readline().split()]
    time.sleep(1.2)  # nothing ends while the parent lives
    assert children
    assert all(map(lives, children))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(children, within=3)
