"""Images against words: both sides differ in the data only, and can be trained."""

from pathlib import Path
from typing import Any

import pytest

from tests.recipes.test_end_to_end import write_images
from unveil.command_line import parse_options
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.experiments import images_vs_words as module
from unveil.experiments.images_vs_words import SIZES, default_folder, images_vs_words
from unveil.experiments.study import SweepSpec, run_study
from unveil.models import bert, vit_config
from unveil.train.run_folder import Run


def write_texts(folder: Path) -> str:
    """Two classes of texts that differ by their words."""
    for name, words in (("warm", "sun fire summer heat"), ("cold", "snow ice winter frost")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            text = " ".join(f"{word} and {words.split()[i % 4]}" for word in words.split())
            (folder / name / f"{i:02d}.txt").write_text(20 * f"{text} ")
    return str(folder)


def test_both_have_the_same_shape() -> None:
    for image_model, text_model in SIZES.values():
        assert vit_config.MODELS[image_model] == bert.MODELS[text_model]
    with pytest.raises(UnveilError, match="there is no size 'huge' for both images and text: use one of nano, base"):
        images_vs_words("images", "texts", size="huge")


def test_every_run_can_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, calls = str(write_images(tmp_path / "images")), write_texts(tmp_path / "texts"), []
    monkeypatch.setattr(module, "run_study", lambda groups, *_: calls.append(groups))
    images_vs_words(images, texts)
    specs = [spec for group in calls[0].values() for spec in group.values()]
    assert [(spec.method, spec.option) for spec in specs] == [
        ("mae", "mask_ratio"),
        ("wordmae", "mask_ratio"),
        ("mae", "mask_ratio"),
        ("bert", "mask_ratio"),
        ("mae", "decoder_depth"),
        ("wordmae", "decoder_depth"),
    ]
    for spec in specs:
        comparison = spec.comparison(tmp_path / "runs", {"epochs": 1.0, "seeds": (0,)})
        assert [entry.options[spec.option] for entry in comparison.entries] == list(spec.values)
    with pytest.raises(UnveilError, match="give --epochs for wordmae"):
        specs[1].comparison(tmp_path / "runs", {"seconds": 5.0})


def test_words_and_images_are_trained_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = write_texts(tmp_path / "texts")
    small = {"max_length": 16, "vocabulary_size": 60, "batch_size": 8}
    monkeypatch.setattr(module, "RATIOS", (0.5,))
    calls: list[dict[str, dict[str, SweepSpec]]] = []
    monkeypatch.setattr(module, "run_study", lambda groups, *_: calls.append(groups))
    images_vs_words("images", texts)
    chosen = ("ratio-words", "tokens-words")
    specs = {name: spec for group in calls[0].values() for name, spec in group.items() if name in chosen}
    options: dict[str, Any] = {
        "epochs": 1.0,
        "seeds": (0,),
        "device": "cpu",
        "precision": "float32",
        "num_evals": 1,
        "finetune": {"epochs": 1.0},
        "bert": small,
        "wordmae": small,
    }
    sweeps = run_study({"words": specs}, tmp_path / "out", "words", ("study", "words"), options)
    for sweep, name in zip(sweeps, ("ratio-words/wordmae", "tokens-words/bert"), strict=True):
        run = Run(tmp_path / "out" / f"{name}-mask_ratio-0.5-seed0-finetune")
        assert run.config["test_split"] == "held-out"  # the test set of texts was evaluated
        results = run.results
        assert sweep.rows[0].figures["finetune"] == [results["score"]["top1"]]
        assert sweep.baselines[0].name == "untrained"


def test_options_for_each_side() -> None:
    words = "photos corpus --labelled-data sst2 --mae.epochs 3 --bert.max-length 32 --wordmae.epochs 5 --seeds 1"
    assert parse_options("study information-density", VERBS["study information-density"], words.split()) == {
        "images": "photos",
        "texts": "corpus",
        "size": "nano",
        "out": None,
        "labelled_data": "sst2",
        "seeds": (1,),
        "mae": {"epochs": 3.0},
        "bert": {"max_length": 32},
        "wordmae": {"epochs": 5.0},
    }


def test_a_study_of_an_earlier_version_continues_in_its_folder(tmp_path: Path) -> None:
    assert default_folder(tmp_path) == tmp_path / "images-vs-words"
    (tmp_path / "why").mkdir()
    assert default_folder(tmp_path) == tmp_path / "images-vs-words"
    (tmp_path / "why" / "study.json").write_text("{}")
    assert default_folder(tmp_path) == tmp_path / "why"
