"""A bench with tiny images for every end-to-end test."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e_support import Bench, save_images


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """42 images of three colours in train and test; works in its own folder."""
    monkeypatch.chdir(tmp_path)
    found = Bench(tmp_path, capsys)
    save_images(found.images, {"train": 10, "test": 4})
    return found
