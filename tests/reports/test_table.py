import io
import os
from collections import Counter

import pytest
from rich.console import Console

from tests.reports.conftest import FEATURES, RESULTS, TASK_RESULTS
from unveil.evaluate.features import MAX_WHITENED
from unveil.reports.run_summary import conclusion
from unveil.reports.table import ResultTable, html_table, split_columns, terminal_table, to_terminal


def printed(results: dict) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(terminal_table(results))
    return stream.getvalue()


def test_the_terminal_shows_the_numbers_and_says_who_is_ahead():
    text = printed(RESULTS)
    for part in (
        "41.3 %",
        "70.5 %",
        "0.121",
        "2,000 test images of 10 classes",
        "With k-NN, this encoder is 22.3 points ahead of an untrained encoder and 29.2 points behind raw pixels.",
        "With a linear probe, this encoder is 27.8 points ahead of an untrained encoder and 37.0 points ahead of raw pixels.",
        "50 % lower than predicting the mean of each patch (0.242) and 86 % lower than predicting the mean of the image (0.847)",
        "With 2,000 test images, differences of up to about 3.1 points can be due to chance.",
    ):
        assert part in text, part


def test_a_cell_without_a_whitened_neighbour_is_explained():
    note = f"It is left out for more than {MAX_WHITENED:,} features, which raw pixels have."
    whitened = {"encoder": {"whitened": 0.5}, "untrained": {"whitened": 0.4}}
    assert note not in printed({"features": whitened | {"raw pixels": {"whitened": 0.3}}})
    assert note in printed({"features": whitened | {"raw pixels": {"knn": 0.3}}})


def test_a_tie_is_a_tie():
    errors = {"held_out_error": 0.2, "patch_mean_error": 0.2}
    text = printed({"features": {"encoder": {"knn": 0.5}, "untrained": {"knn": 0.5}}, "held_out": errors})
    assert "level with an untrained encoder" in text
    assert "level with predicting the mean of each patch" in text


def test_collapsed_features_give_a_warning():
    fine = {"feature_deviation": 0.61, "rank_me": 40.2}
    results = {"spread": {"encoder": fine, "untrained": {"feature_deviation": 0.005, "rank_me": 1.4}}, "width": 96}
    text = printed(results)
    assert "Spread of the features in 96 dimensions" in text
    assert "0.61" in text
    assert "40.2" in text
    for shown in (text, conclusion(results | {"features": FEATURES})):
        assert "collapsed" not in shown  # an untrained encoder may have collapsed
    for flat in ({"feature_deviation": 0.004, "rank_me": 30.0}, {"feature_deviation": 0.7, "rank_me": 1.1}):
        results["spread"] = {"encoder": flat, "untrained": fine}
        for shown in (printed(results), html_table(results), conclusion(results | {"features": FEATURES})):
            assert "The features have collapsed: they are nearly the same for every image (standard deviation 0" in shown
    assert "41.3 %" in conclusion(results | {"features": FEATURES})


def test_a_classifier_and_a_run_without_results():
    assert "60.0 %" in printed(TASK_RESULTS)
    assert "top-5" not in printed(TASK_RESULTS)  # there are three classes
    assert "no results yet" in printed({})
    assert html_table({}) == ""


def test_the_page_has_the_same_numbers():
    page = html_table(RESULTS)
    assert "41.3\N{NO-BREAK SPACE}%" in page
    assert "29.2 points behind raw pixels" in page


def test_the_verdict_is_a_sentence_with_numbers():
    assert "41.3 %" in conclusion({"features": FEATURES})
    assert conclusion(TASK_RESULTS) == (
        "Its top-1 accuracy is 60.0 % on 10 test images (95 % interval: 31.3 to 83.2 %); chance level for 3 classes is 33.3 %."
    )
    assert "0.121" in conclusion({"held_out": RESULTS["held_out"]})
    assert "no results yet" in conclusion({})


def test_a_wide_table_is_cut_between_columns_and_never_in_a_number(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    heads = ["", "time", "k-NN, %", "linear, %", "fine-tuned, %", "gain, points", "feature deviation"]
    cells = ["6 min 12 s", "42.5 ± 1.3", "46.8 ± 0.4", "36.2 ± 0.1", "+10.4 ± 0.5", "0.22 ± 0.01"]
    table = ResultTable("title", heads, [["supervised", *cells], ["raw pixels", *([""] * 6)]], [])
    assert split_columns(table, 60) == [[0, 1, 2, 3], [0, 4, 5, 6]]
    assert split_columns(table, 200) == [list(range(7))]
    assert split_columns(table, 1) == [[0, i] for i in range(1, 7)]
    console = Console(width=60, file=io.StringIO())
    console.print(to_terminal(table))
    text = console.file.getvalue()
    assert all(text.count(cell) == 1 for cell in cells)
    assert text.count("supervised") == 2
    assert "…" not in text


def test_headings_are_wrapped_and_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = ["setting", "linear, %", "paper, %", "fine-tuned, %", "paper, %", "FLOPs of a step", "step", "training"]
    row = ["random 75 *", "48.6 ± 0.2", "73.5", "52.0 ± 1.0", "84.9", "8.1 G", "236 ms", "5 min 13 s"]
    for width in (80, 60, 120, 30):
        monkeypatch.setattr("unveil.reports.table.get_terminal_size", lambda width=width: os.terminal_size((width, 24)))
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(to_terminal(ResultTable("title", heads, [row], [])))
        assert isinstance(console.file, io.StringIO)
        shown = console.file.getvalue()
        words = Counter(shown.replace("…", " … ").split())
        assert not words["…"]
        assert all(word in words for cell in [*heads, *row] for word in cell.split())
        assert max(map(len, shown.splitlines())) <= width
