"""Provenance: git state, versions, hardware."""

import subprocess

import numpy as np
import pytest

import virb
from virb.results import environment
from virb.results.environment import git_state, provenance, utc_now


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout"
    (folder / "virb").mkdir(parents=True)
    (folder / "virb" / "a.py").write_text("one = 1\n")

    def git(*arguments):
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", "-C", folder, *names, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    return folder, git


@pytest.fixture(autouse=True)
def _forget():
    git_state.cache_clear()


def state(folder):
    git_state.cache_clear()
    return git_state(folder)


def test_git_state_follows_commits_changes_and_new_files(checkout):
    folder, git = checkout
    assert state(folder) == (None, None)  # no commit yet
    git("add", ".")
    git("commit", "-q", "-m", "first")
    revision = git("rev-parse", "HEAD")
    assert state(folder) == (revision, None)
    (folder / "virb" / "a.py").write_text("one = 2\n")
    changed = state(folder)
    assert changed[0] == revision
    (folder / "virb" / "b.py").write_text("two = 2\n")
    added = state(folder)
    (folder / "virb" / "b.py").write_text("two = 3\n")
    edited = state(folder)
    assert len({None, changed[1], added[1], edited[1]}) == 4
    (folder / "notes.txt").write_text("not part of the package")
    assert state(folder) == edited
    git("checkout", "-q", "--", ".")
    (folder / "virb" / "b.py").unlink()
    assert state(folder) == (revision, None)


def test_a_package_inside_somebody_elses_repository_is_no_checkout(checkout):
    folder, git = checkout
    git("add", ".")
    git("commit", "-q", "-m", "first")
    assert state(folder / "virb") == (None, None)


def test_no_git_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert state(tmp_path) == (None, None)


def test_provenance_says_what_ran():
    record = provenance(started=utc_now(), device="cpu", seeds=(0, 1), precision="float32", command=["virb", "run"], config_text="a: 1")
    assert record.virb_version == virb.__version__
    assert record.packages["numpy"] == np.__version__
    assert set(record.packages) <= set(environment.PACKAGES)
    assert record.hardware.cores >= 1
    assert record.hardware.cpu
    assert (record.seeds, record.command, record.started[-6:]) == ([0, 1], ["virb", "run"], "+00:00")
    assert provenance(started=utc_now()).command  # the process's own
