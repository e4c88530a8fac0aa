"""The notebook in examples/ runs, and what a notebook shows."""

import html.parser
import io
import json
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from unveil.json_files import json_line, json_text
from unveil.planning.plan import Plan
from unveil.planning.rules import Choice
from unveil.reports.notebook import ProbeResults, ShownList
from unveil.reports.table import ResultTable
from unveil.runs.open_data import progress_bar
from unveil.train import notebook
from unveil.train.log import Screen
from unveil.train.run_folder import Run

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
    for cell in book.cells:  # on small images, and for a few steps
        for whole, part in (
            ('"digits", ', '"digits-plain", epochs=1, num_evals=1, '),
            ("epochs=20", "epochs=1, num_evals=1"),
            ("labels=1000", "labels=100"),
        ):
            cell.source = cell.source.replace(whole, part)
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
    assert re.search(r'value="(\d+)" max="\1"', bars[0].data["text/html"])  # the last state is kept
    assert len(training) < 10
    for source, kind, text in (
        ("run", "text/html", "pretrained on digits-plain"),
        ('run.curves()["Loss"]', "image/png", ""),
        ("unveil.draw_reconstructions(run, ratios=[0.6], count=3)", "image/png", ""),
        ("unveil.probe(run, labels=100)", "text/html", "raw pixels"),
        ("tuned", "text/html", "fine-tuned on digits-plain"),
        ("classifier.predict_images(list(images[:5]))", "text/html", "<td>"),
    ):
        shown = [each.data for each in outputs[source] if each.output_type == "execute_result"]
        assert len(shown) == 1, source
        assert text in shown[0][kind], shown[0]
    assert "unveil finetune" in "".join(each.text for each in outputs["print(unveil.command(tuned))"])


BAD = '<script>alert("x")</script> & "quotes"'


class FakeDisplay:
    """Stands for IPython in a kernel: records what is displayed, and what it is replaced by."""

    def __init__(self):
        self.shown = []

    def display(self, thing, display_id):
        assert display_id is True
        self.shown.append([thing._repr_html_()])
        return SimpleNamespace(update=lambda new: self.shown[-1].append(new._repr_html_()))


@pytest.fixture
def kernel(monkeypatch):
    """Makes this process look like the kernel of a notebook."""

    class ZMQInteractiveShell: ...

    class Shell(ZMQInteractiveShell): ...  # as on Colab

    fake = FakeDisplay()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: Shell()))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=fake.display))
    monkeypatch.setattr(notebook, "REDRAW_SECONDS", 0.0)
    return fake


def record(step):
    return {"step": step, "loss": 1 / step, "samples_per_second": 20.0, "waiting": 0.0, "seconds": 1.0, "peak_share": 0.1}


def test_progress_is_one_output_that_changes(kernel, capfd):
    screen = Screen(BAD, 50)
    screen.start(10)
    for step in range(11, 51):
        screen.advance(step)
        if step % 10 == 0:
            screen.write(record(step))
    screen.say("a message")
    screen.close()
    assert len(kernel.shown) == 1
    states = kernel.shown[0]
    assert 'value="50" max="50"' in states[-1]
    assert "loss 0.0200" in states[-1]
    assert "s left" not in states[-1]
    assert any("s left" in state for state in states)
    assert BAD not in "".join(states)
    assert "&lt;script&gt;" in states[0]
    said = capfd.readouterr()
    assert said.out == "resuming from step 10\na message\n"
    assert said.err == ""


def test_a_bar_for_reading_is_removed_at_its_end(kernel):
    with progress_bar(BAD, True) as progress:
        progress(1, 3)
        progress(3, 3)
    with progress_bar("nothing to read", True):
        pass
    assert len(kernel.shown) == 1
    assert kernel.shown[0][-1] == ""
    assert 'value="3" max="3"' in kernel.shown[0][-2]


def test_only_a_kernel_is_a_notebook(monkeypatch):
    assert not notebook.in_notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # imported, but not running
    assert not notebook.in_notebook()

    class TerminalInteractiveShell: ...

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: TerminalInteractiveShell()))
    assert not notebook.in_notebook()


def run_folder(path, **files):
    """A run folder as training leaves it."""
    path.mkdir(parents=True)
    facts = {
        "format": 6,
        "kind": "pretrain",
        "config": {"method": "mae", "model": "vit-nano", "epochs": 2.0},
        "data": {"name": f"photos/{BAD}", "count": 1234, "path": None},
    }
    (path / "run.json").write_text(json_text(facts))
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return Run(path)


def test_a_run_shows_its_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = {"features": {"encoder": {"knn": 0.75}, "untrained": {"knn": 0.5}, "raw pixels": {"knn": 0.25}}, "seconds": 1.0}
    log = "".join(json_line({**record(step), "epoch": step / 10}) for step in range(1, 21))
    run = run_folder(tmp_path / "a <b> run", results_json=json_text(results), report_html="x", log_jsonl=log)
    shown = run._repr_html_()
    for text in (
        "pretrained on",
        "1,234 images",
        "75.0",
        "50.0",
        "25.0",
        "script&gt; &amp;",
        "<svg",
        'href="a%20%3Cb%3E%20run/report.html"',
    ):
        assert text in shown, text
    for text in ("<script", "<b> run", "#1f2733", "<h1"):
        assert text not in shown, text
    html.parser.HTMLParser().feed(shown)
    second = run._repr_html_()
    ids = [set(re.findall(r' id="([^"]+)"', each)) for each in (shown, second)]
    assert ids[0]
    assert not ids[0] & ids[1]  # two outputs of one notebook
    assert list(run.curves()) == ["Loss"]
    png = run.curves()["Loss"]._repr_png_()
    assert np.asarray(Image.open(io.BytesIO(png))).std() > 5


def test_a_run_without_results_says_so(tmp_path):
    shown = run_folder(tmp_path / "run")._repr_html_()
    assert "There are no results yet" in shown
    assert "report" not in shown
    damaged = run_folder(tmp_path / "other", results_json="{")
    assert "is damaged" in damaged._repr_html_()


def test_a_probe_is_a_dictionary_with_a_table(tmp_path):
    content = {
        "kind": "linear",
        "trained_on": 1500,
        "classes": [BAD, "b"],
        "score": {"count": 1000, "top1": 0.5},
        "top1": {"encoder": 0.5, "untrained": 0.25, BAD: 0.125},
    }
    found = ProbeResults(content, tmp_path / BAD.replace("/", ""))
    assert found == content
    assert json.loads(json.dumps(found)) == content
    shown = found._repr_html_()
    for text in ("linear probe on 1,500 labelled images, tested on 1,000 images of 2 classes", "this encoder", "50.0", "12.5"):
        assert text in shown
    assert "<script" not in shown


def test_a_comparison_is_a_list_with_tables(tmp_path):
    table = ResultTable("mae on digits", ["", "k-NN, %"], [[BAD, "50.0"]], ["One seed."])
    rows = ShownList([1, 2], [table], tmp_path)
    assert rows == [1, 2]
    assert "50.0" in rows._repr_html_()
    assert "<script" not in rows._repr_html_()


def test_a_plan_shows_the_command_and_the_choices(tmp_path):
    plan = Plan(
        path=tmp_path,
        command=f"unveil pretrain '{BAD}'",
        choices={"image_size": Choice((32, 32), "suits <them>"), "compile": Choice(False, "given")},
        config={},
        seconds=90.0,
        memory=None,
        parts={"training": 60.0},
        notes=("only 3 steps",),
    )
    shown = plan._repr_html_()
    for text in ("unveil pretrain", "image size", ">32<", "suits &lt;them&gt;", "unknown", "Note: only 3 steps."):
        assert text in shown, text
    assert "<script" not in shown
