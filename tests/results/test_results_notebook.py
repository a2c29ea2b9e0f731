"""The leaderboard notebook runs on any results store and is kept without outputs."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from virb.results.store import write_failure

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "01_leaderboard.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_outputs_are_stripped(notebook):
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_it_runs_on_a_store_and_shows_table_plots_and_failures(notebook, store, failure, monkeypatch):
    write_failure(store, failure("broken", "digits"))
    monkeypatch.setenv("VIRB_OUT", str(store))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook shows its plots inline
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    ).execute()
    cells = code_cells(notebook)
    table = next(cell for cell in cells if cell.source == "leaderboard(results)").outputs[0].data["text/plain"]
    assert "random_vit" in table
    assert "±" in table
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 2
    assert "depth/0412.tiff is truncated" in cells[-1].outputs[0].data["text/plain"]
    assert not [output for cell in cells for output in cell.outputs if output.output_type in ("error", "stream")]
