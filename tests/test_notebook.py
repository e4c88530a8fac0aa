"""The notebook in examples/ runs, and what a notebook shows."""

import json
import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "first_steps.ipynb"


def test_the_notebook_is_committed_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Every cell, in a kernel of its own. The progress of training is one output that changes, not one for each step."""
    nbformat = pytest.importorskip("nbformat", reason="the development group of pyproject.toml has it")
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    client = NotebookClient(book, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises CellExecutionError if a cell fails
    if keep := os.environ.get("UNVEIL_KEEP_NOTEBOOK"):
        nbformat.write(book, keep)
    outputs = {"".join(cell.source).splitlines()[-1]: cell.outputs for cell in book.cells if cell.cell_type == "code"}
    assert all(each.output_type != "error" for found in outputs.values() for each in found)
    training = next(found for source, found in outputs.items() if source.startswith("run = unveil.pretrain"))
    assert not [each for each in training if each.get("name") == "stderr"]
    bars = [each for each in training if "<progress" in each.get("data", {}).get("text/html", "")]
    assert len(bars) == 1
    assert 'value="625" max="625"' in bars[0].data["text/html"]  # the last state is kept
    assert len(training) < 10
    for source, kind, text in (
        ("run", "text/html", "pretrained on digits"),
        ('run.curves()["Loss"]', "image/png", ""),
        ('unveil.draw_reconstructions(run, "digits", ratios=[0.6], count=3)', "image/png", ""),
        ("unveil.probe(run, labels=500)", "text/html", "raw pixels"),
        ("tuned", "text/html", "fine-tuned on digits"),
        ("classifier.predict_images(images)", "text/html", "<td>0</td>"),
    ):
        shown = [each.data for each in outputs[source] if each.output_type == "execute_result"]
        assert len(shown) == 1, source
        assert text in shown[0][kind]
    assert "unveil finetune" in "".join(each.text for each in outputs["print(unveil.command(tuned))"])
