"""Why vision and language differ: what is compared is alike but for the data, and can be trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.test_end_to_end import write_images
from unveil.cli import parse
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.experiments import images_vs_words as study
from unveil.experiments.study import Line, draw
from unveil.models import bert, vit


def write_texts(folder: Path) -> str:
    """Two classes of texts that differ by their words."""
    for name, words in (("warm", "sun fire summer heat"), ("cold", "snow ice winter frost")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            text = " ".join(f"{word} and {words.split()[i % 4]}" for word in words.split())
            (folder / name / f"{i:02d}.txt").write_text(20 * f"{text} ")
    return str(folder)


def test_both_have_the_same_shape() -> None:
    for of_images, of_words in study.SIZES.values():
        assert vit.MODELS[of_images] == bert.MODELS[of_words]
    with pytest.raises(UnveilError, match="there is no size 'huge' that both have: use one of nano, base"):
        study.why("images", "texts", size="huge")


def test_every_line_is_a_run_that_can_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts, seen = str(write_images(tmp_path / "images")), write_texts(tmp_path / "texts"), []
    monkeypatch.setattr(study, "draw", lambda groups, *_: seen.append(groups))
    study.why(images, texts)
    lines = [line for group in seen[0].values() for line in group.values()]
    assert [(line.method, line.knob) for line in lines] == [
        ("mae", "mask_ratio"),
        ("wordmae", "mask_ratio"),
        ("mae", "mask_ratio"),
        ("bert", "mask_ratio"),
        ("mae", "decoder_depth"),
        ("wordmae", "decoder_depth"),
    ]
    for line in lines:
        comparison = line.contest(tmp_path / "runs", {"epochs": 1.0, "seeds": (0,)})
        assert [who.options[line.knob] for who in comparison.entries] == list(line.values)
    with pytest.raises(UnveilError, match="give --epochs for wordmae"):
        lines[1].contest(tmp_path / "runs", {"seconds": 5.0})


def test_words_and_images_are_trained_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = write_texts(tmp_path / "texts")
    small = {"length": 16, "vocabulary_size": 60, "batch_size": 8}
    monkeypatch.setattr(study, "RATIOS", (0.5,))
    groups: list[dict[str, dict[str, Line]]] = []
    monkeypatch.setattr(study, "draw", lambda made, *_: groups.append(made))
    study.why("images", texts)
    words = {name: line for group in groups[0].values() for name, line in group.items() if name in ("ratio-words", "tokens-words")}
    options: dict[str, Any] = {
        "epochs": 1.0,
        "seeds": (0,),
        "device": "cpu",
        "precision": "float32",
        "monitor_times": 1,
        "finetune": {"epochs": 1.0},
        "bert": small,
        "wordmae": small,
    }
    sweeps = draw({"words": words}, tmp_path / "out", "words", options)
    for sweep, name in zip(sweeps, ("ratio-words/wordmae", "tokens-words/bert"), strict=True):
        results = json.loads((tmp_path / "out" / f"{name}-mask_ratio-0.5-seed0-finetune" / "results.json").read_text())
        assert sweep.rows[0].figures["finetune"] == [results["score"]["top1"]]
        assert sweep.yardsticks[0].name == "untrained"


def test_options_for_each_side() -> None:
    words = "photos corpus --labelled sst2 --mae.epochs 3 --bert.length 32 --wordmae.epochs 5 --seeds 1"
    assert parse("why", VERBS["why"], words.split()) == {
        "images": "photos",
        "texts": "corpus",
        "size": "nano",
        "out": None,
        "labelled": "sst2",
        "seeds": (1,),
        "mae": {"epochs": 3.0},
        "bert": {"length": 32},
        "wordmae": {"epochs": 5.0},
    }
