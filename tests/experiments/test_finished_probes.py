"""A probe that has ended is used again only if it is of the same encoder, labelled images and options."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import unveil
from tests.experiments.test_compare import TINY, no_pages
from tests.recipes.test_end_to_end import write_images
from unveil.experiments.calls import Call
from unveil.experiments.paper_studies import STUDIES
from unveil.experiments.run_paper_study import plan_study
from unveil.experiments.runner import Comparison
from unveil.interop.encoder_only import checksums, encoder_of
from unveil.json_files import CHECKSUM, json_text
from unveil.train.run_folder import ChangedSettingsError, Run

__all__ = ["no_pages"]
PRETRAINING = {key: value for key, value in TINY.items() if key not in ("finetune", "device", "precision")} | {"epochs": 0.5}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A comparison with one encoder and one probe of it, with all labels."""
    data, folder = str(write_images(tmp_path_factory.mktemp("images"))), tmp_path_factory.mktemp("study")
    options = {"seeds": (0,), "device": "cpu", "precision": "float32", **PRETRAINING}
    found = plan_study(STUDIES["label-fraction"], "mae", data, folder, options).comparison
    (last,) = (each for each in found.evaluations if each.suffix == "linear-all-labels")
    found = replace(found, evaluations=(last,))
    assert found.pretraining(found.entries[0], 0)().kind == "done"
    assert probing(found)().kind == "done"
    return found


def probing(comparison: Comparison) -> Call:
    call = comparison.evaluating("mae", 0, comparison.evaluations[0])
    assert call is not None
    return call


def other_labels(comparison: Comparison, data: Path) -> Comparison:
    return replace(comparison, config=replace(comparison.config, labelled_data=str(data)))


def test_the_same_probe_is_not_computed_again(comparison: Comparison, tmp_path: Path) -> None:
    results = Run(comparison.path("mae", 0, "-linear-all-labels"), {}).results
    assert results["encoder"] == checksums(encoder_of(unveil.load(comparison.path("mae", 0))))
    assert comparison.evaluating("mae", 0, comparison.evaluations[0]) is None
    copy = other_labels(comparison, write_images(tmp_path / "copy"))  # the path does not matter, as in a run
    assert copy.evaluating("mae", 0, comparison.evaluations[0]) is None


@pytest.mark.parametrize(("count", "said"), [(14, "data: was 24 images, is 28 images"), (12, "some have other names")])
def test_other_labelled_images_are_refused(comparison: Comparison, tmp_path: Path, count: int, said: str) -> None:
    data = write_images(tmp_path / "other", count)
    if count == 12:  # as many files, one of which has another class
        (data / "warm" / "00.png").rename(data / "cold" / "99.png")
    with pytest.raises(ChangedSettingsError, match=rf"linear-all-labels is a probe with different settings: .*({said})"):
        other_labels(comparison, data).evaluating("mae", 0, comparison.evaluations[0])


def test_another_encoder_and_other_options_are_refused(comparison: Comparison) -> None:
    path = comparison.path("mae", 0, "-linear-all-labels") / "results.json"
    content = path.read_text()
    results = {key: value for key, value in json.loads(content).items() if key != CHECKSUM}
    for changed, said in (
        ({"encoder": results["encoder"] | {"weights": "0"}}, r"settings: the encoder: its weights changed since the run began\. "),
        ({"config": results["config"] | {"labels": 3}}, r"settings: labels was 3, is 0\. "),
    ):
        path.write_text(json_text(results | changed))
        with pytest.raises(ChangedSettingsError, match=said):
            comparison.evaluating("mae", 0, comparison.evaluations[0])
    path.write_text(json_text({key: value for key, value in results.items() if key not in ("encoder", "data")}))
    assert comparison.evaluating("mae", 0, comparison.evaluations[0]) is None  # an earlier version recorded neither
    path.write_text(content)
