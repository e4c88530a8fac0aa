"""Images against words: both sides differ in the data only, and can be trained."""

from pathlib import Path
from typing import Any

import pytest

from tests.recipes.test_end_to_end import write_images
from unveil.command_line import parse_options
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.experiments import images_vs_words as module
from unveil.experiments.images_vs_words import CURVES, QUESTIONS, SIZES, default_folder, images_vs_words, judge
from unveil.experiments.study import SweepSpec, facts_of, run_study
from unveil.models import bert, vit_config
from unveil.reports.chance import TestCounts
from unveil.reports.comparison import row_of
from unveil.reports.study_page import Sweep, write_study
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


def curve(counts: TestCounts, samples: float = 1000.0, **accuracies: list[float]) -> Sweep:
    """A curve over mask ratios, with fine-tuning accuracies by names such as r75."""
    ratios = [int(name[1:]) / 100 for name in accuracies]
    rows = [
        row_of(f"{ratio}", [{"finetune": value, "samples": samples} for value in values])
        for ratio, values in zip(ratios, accuracies.values(), strict=True)
    ]
    return Sweep("a curve", "mask_ratio", ratios, rows, [], counts)


def test_the_answers_compare_each_kind_of_data_with_itself() -> None:
    few, many = {"finetune": 400.0}, {"finetune": 10_000.0}
    sweeps = {
        "ratio-images": curve(many, r15=[0.50, 0.51, 0.52], r75=[0.54, 0.55, 0.56]),
        "ratio-words": curve(few, r15=[0.80, 0.81, 0.82], r75=[0.80, 0.80, 0.80]),
    }
    (found,) = judge(sweeps)  # the other questions have no results yet
    assert found.question == next(iter(QUESTIONS))
    assert found.judgement.answer == "open"
    # By hand: the two-sample t-test over the seeds (4 degrees of freedom, 2.776), and Agresti and Caffo over 10,000 images.
    seeds = 2.776**2 * 0.01**2 * 2 / 3
    images = 1.96**2 * sum(p * (1 - p) / 10_002 for p in ((5_101 / 10_002), (5_501 / 10_002)))
    margin = 100 * (seeds + images) ** 0.5 * 10_002 / 10_000
    assert f'ahead of "MAE on images, ratio 0.15" by fine-tuning ({4 - margin:+.1f} to {4 + margin:+.1f})' in found.text
    assert 'cannot be told from 3 seeds: the difference between "MAE on words, ratio 0.15" and' in found.text
    assert found.text.index("on words") < found.text.index("A part of it does") < found.text.index("on images, ratio 0.75")


def test_answers_that_hold_and_fail(tmp_path: Path) -> None:
    counts = {"finetune": 10_000.0}
    high, low = [0.60, 0.601, 0.602], [0.50, 0.501, 0.502]
    sweeps = {
        "ratio-images": curve(counts, r15=low, r75=high),
        "ratio-words": curve(counts, r15=low, r75=high),
        "tokens-images": curve(counts, r15=low, r75=low),
        "tokens-words": curve(counts, r15=high),
    }
    mae, bert_like, architectures = judge(sweeps)
    assert mae.judgement.answer == "fails"  # words are better at 0.75 as well
    assert '"MAE on words, ratio 0.15" is 10.0 points behind' in mae.text
    assert bert_like.judgement.answer == "open"
    assert "there is no result for BERT on words, ratio 0.75" in bert_like.text
    assert architectures.judgement.answer == "holds"
    assert judge({"depth-images": sweeps["ratio-images"]}) == []  # another option
    facts = {"config": {}, "environment": {}, "versions": {}}
    page = write_study(tmp_path, "A study", {"Mask ratio": list(sweeps.values())}, facts, [architectures]).read_text()
    assert page.index("BERT&#x27;s for words at 0.15? <strong>Yes.</strong></p>") < page.index("<p>The finding holds here: ")
    assert page.index("<p>The finding holds here: ") < page.index("<h2")


def test_unequal_training_is_not_compared() -> None:
    counts, high, low = {"finetune": 10_000.0}, [0.60, 0.601, 0.602], [0.50, 0.501, 0.502]
    sweeps = {
        "ratio-images": curve(counts, r15=low, r75=high),
        "tokens-images": curve(counts, r75=low),
        "ratio-words": curve(counts, r15=low, r75=high),
        "tokens-words": curve(counts, samples=3000.0, r15=high, r75=low),
    }
    *_, architectures = judge(sweeps)
    assert architectures.judgement.answer == "open"
    assert '"BERT on words, ratio 0.15" was trained on 3,000 samples, and "MAE on words, ratio 0.15" was trained on 1,000' in (
        architectures.text
    )


def test_the_settings_of_all_curves_are_recorded(tmp_path: Path) -> None:
    """Those of the first curve stood for all of them, so the texts and the epochs of words were nowhere."""
    images, texts = str(write_images(tmp_path / "images")), write_texts(tmp_path / "texts")
    specs = {
        "ratio-images": SweepSpec(method="mae", data=images, option="mask_ratio", values=(0.5, 0.75), fixed={"decoder_depth": 2}),
        "ratio-words": SweepSpec(method="wordmae", data=texts, option="mask_ratio", values=(0.5, 0.75), labelled_data=texts),
    }
    options = {"seeds": (0,), "mae": {"epochs": 2.0}, "wordmae": {"epochs": 3.0}, "finetune": {"epochs": 1.0}}
    facts = facts_of({name: spec.comparison(tmp_path / name, options) for name, spec in specs.items()})
    config = facts["config"]
    assert (config["ratio-images.data"], config["ratio-words.data"], config["ratio-words.labelled_data"]) == (images, texts, texts)
    assert (config["ratio-images.epochs"], config["ratio-words.epochs"], config["ratio-images.decoder_depth"]) == (2.0, 3.0, 2)
    assert (config["finetune.epochs"], config["seeds"]) == (1.0, (0,))
    assert not any("mask_ratio" in key for key in config)  # which the curves vary
    assert facts["data"] == f"{images}, {texts}"
    with pytest.raises(UnveilError, match="there are options for simmim, expected one of mae, wordmae, finetune"):
        run_study({"both": specs}, tmp_path, "both", ("study", "both"), options | {"simmim": {"epochs": 5.0}})


def test_questions_ask_for_what_the_study_trains() -> None:
    cells = {cell for pairs in QUESTIONS.values() for pair in pairs for cell in pair}
    assert {folder for folder, _ in cells} == set(CURVES)
    assert {ratio for _, ratio in cells} <= set(module.RATIOS)


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
