"""The keys that reports know, and how numbers are written."""

import subprocess
import sys

from unveil.reports.vocabulary import CURVES, QUANTITIES, format_number, label_of, numbers_of, primary_of


def test_any_number_is_shown():
    assert (label_of("mean_iou"), format_number("mean_iou", 0.5)) == ("mean IoU", "50.0 %")
    assert (label_of("boundary_error"), format_number("boundary_error", 0.123456)) == ("boundary error", "0.1235")
    assert format_number("parameters", 1234567) == "1,234,567"


def test_every_curve_knows_how_its_number_is_shown():
    assert CURVES.keys() <= QUANTITIES.keys()


def test_the_numbers_of_a_metric():
    metric = {"top1": 0.5, "count": 3, "per_class": [1.0], "exact": True, "unit": "pixels"}
    assert numbers_of(metric) == {"top1": 0.5}
    assert primary_of({"score": metric}) == "top1"
    assert primary_of({"score": {"a": 1, "b": 2}, "primary": "b"}) == "b"
    assert primary_of({}) is None


def test_matplotlib_is_imported_only_to_draw():
    modules = ["page", "comparison", "study_page", "reconstruct", "attention", "class_maps", "translation_attention"]
    imports = "; ".join(f"import unveil.reports.{module}" for module in modules)
    code = f"{imports}; import sys; print('matplotlib' in sys.modules, 'unveil.reports.sections' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["False", "True"]
