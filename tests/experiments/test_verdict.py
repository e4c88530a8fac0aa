"""A verdict from images to its answer: the same numbers as `probe` and `finetune` alone, resumed, and with the right sign."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import unveil
from tests.experiments.test_compare import no_pages
from unveil.command_line import parse_options
from unveil.commands import VERBS
from unveil.errors import Interrupted, UnveilError
from unveil.evaluate.paired import Gain, paired_gain
from unveil.experiments import calls
from unveil.experiments.jobs import FailedRunsError
from unveil.experiments.label_budgets import label_counts
from unveil.experiments.verdict_runs import VerdictRuns
from unveil.reports.verdict_results import GainOver, VerdictResults, answer_sentence
from unveil.train.run_folder import Run

__all__ = ["no_pages"]

SHAPE: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "device": "cpu",
    "precision": "float32",
    "num_evals": 0,
    "held_out": 4,
}
QUICK: dict[str, Any] = {"device": "cpu", "precision": "float32", "shares": (0.1,)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes of two directions and of two widths, at random places and in noise: raw pixels do not tell them apart."""
    folder, chance = tmp_path_factory.mktemp("verdict") / "stripes", np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 15)):
        for number, name in enumerate(("across", "down", "across thin", "down thin")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                wave = np.sin(np.arange(16) * (1.6 if number > 1 else 0.8) + chance.uniform(0, 6.3))
                pixels = np.tile(wave[:, None] if number % 2 else wave[None], (1, 16) if number % 2 else (16, 1))
                grey = 128 + 60 * pixels + chance.normal(0, 30, (16, 16))
                Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Run:
    return unveil.pretrain(str(data), out=data.parent / "run", epochs=1.0, batch_size=8, **SHAPE)


@pytest.fixture(scope="module")
def found(run: Run, data: Path) -> dict[str, Any]:
    return unveil.verdict(run.path, str(data), finetune={"epochs": 1.0, "batch_size": 8}, **QUICK)


def right(path: Path) -> list[bool]:
    with path.open(newline="") as file:
        return [row["label"] == row["predicted"] for row in csv.DictReader(file)]


def row_of(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """The only row with these values."""
    (found,) = (row for row in rows if wanted.items() <= row.items())
    return found


def test_gains_are_those_of_the_runs_of_fine_tuning(found: dict[str, Any], run: Run) -> None:
    folder = run.path.with_name("run-verdict")
    assert (found["labels"], found["test_images"]) == (80, 60)
    both = []
    for name in ("finetune", "scratch"):
        runs = [Run(folder / f"{name}-8-seed{seed}") for seed in (0, 1, 2)]
        both.append(np.array([right(each.path / "predictions.csv") for each in runs]))
        assert [each.config["seed"] for each in runs] == [0, 1, 2]
        assert {(each.config["validation"], each.results["trained_on"]) for each in runs} == {(0, 8)}
        assert all("probe" in each.results for each in runs)  # from scratch as well: what differs is the encoder alone
    gain = paired_gain(*both)._asdict()
    row = row_of(found["gains"], how="fine-tuned", labels=8)
    assert row["model"] == "from scratch"
    assert {key: row[key] for key in gain} == pytest.approx(gain)
    assert json.loads((folder / "verdict.json").read_text())["sentence"] == found["sentence"]
    assert found["sentence"].split(":")[0] in (folder / "report.html").read_text()


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, data: Path) -> Iterator[list[Path]]:
    """Runs of fine-tuning that take no time: with 60 test images, of which pre-training gets 55 right and scratch 30 + seed.

    Nothing is probed or drawn.
    """
    made: list[Path] = []

    def finetune(weights: Any, data: Any, *, out: Path, seed: int, scratch: bool = False, **_: Any) -> None:
        if not (out / "results.json").exists():
            made.append(out)
            out.mkdir(parents=True)
            right = 30 + seed if scratch else 55
            lines = [f"{i}.png,a,{'a' if i < right else 'b'}" for i in range(60)]
            (out / "predictions.csv").write_text("\n".join(["file,label,predicted", *lines]) + "\n")
            (out / "run.json").write_text('{"kind": "finetune", "config": {}}')
            (out / "results.json").write_text('{"task": "finetune"}')
            (out / "report.html").write_text("a page")

    monkeypatch.setattr(calls, "COMMANDS", {"finetune": finetune})
    monkeypatch.setattr(VerdictRuns, "probe", lambda self: None)
    monkeypatch.setattr("unveil.experiments.verdict_runs.write_verdict_page", lambda folder, found, facts: None)
    return made


def test_a_stopped_verdict_goes_on(
    run: Run, data: Path, tmp_path: Path, tuned: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calls.COMMANDS["finetune"]

    def stop(*args: Any, **options: Any) -> None:
        if len(tuned) in (5, 7):
            raise Interrupted("stopped")
        real(*args, **options)

    options, path = QUICK | {"shares": (1.0,), "out": tmp_path / "verdict"}, tmp_path / "verdict" / "verdict.json"
    with monkeypatch.context() as patch:
        patch.setattr(calls, "COMMANDS", {"finetune": stop})
        with pytest.raises(Interrupted):
            unveil.verdict(run.path, str(data), **options)
    early = json.loads(path.read_text())  # training from scratch has ended, with all seeds
    assert (early["runs"], early["finished"], early["answer"]) == (6, 5, "cannot tell")
    assert early["sentence"].startswith("There is no answer yet: fine-tuning has not finished.")
    found = unveil.verdict(run.path, str(data), **options)
    assert len(tuned) == len(set(tuned)) == 6
    assert (found["answer"], found.get("runs"), found.get("finished")) == ("yes", None, None)
    (gain,) = (each for each in found["gains"] if each["model"] == "from scratch")
    assert gain["mean"] == pytest.approx((25 + 24 + 23) / 3 / 60)
    again = unveil.verdict(run.path, str(data), **options, jobs=2)  # nothing is left to do for two processes
    assert (again["sentence"], again["gains"]) == (found["sentence"], found["gains"])
    known = path.read_bytes()
    more = options | {"seeds": (0, 1, 2, 3)}
    with monkeypatch.context() as patch:
        patch.setattr(calls, "COMMANDS", {"finetune": stop})
        with pytest.raises(Interrupted):
            unveil.verdict(run.path, str(data), **more)
    assert path.read_bytes() == known  # until there is a full answer with the new seed
    assert unveil.verdict(run.path, str(data), **more)["accuracies"][0]["seeds"] == [0.5, 31 / 60, 32 / 60, 33 / 60]


def test_linear_probes_do_not_stand_in_for_fine_tuning_to_come() -> None:
    gain = Gain(0.05, 0.04, 0.06, of_seeds=0.0, of_images=0.1, of_both=0.1, seeds=3, images=100)
    probed = GainOver("raw pixels", "linear probe", 8, gain)
    found = VerdictResults("run", 80, 100, [], [probed], [], unfinished=3)
    assert (found.answer, found.deciding) == ("cannot tell", [])
    assert answer_sentence(found) == "There is no answer yet: fine-tuning has not finished."
    assert found._replace(unfinished=0).answer == "yes"  # without fine-tuning, or if all of it has failed


def test_an_answer_names_labels_with_which_it_cannot_be_told() -> None:
    lower, unsure = Gain(-0.01, -0.015, -0.005, 0.0, 0.1, 0.1, 3, 100), Gain(0.05, -0.01, 0.11, 0.0, 0.1, 0.1, 3, 100)
    compared = [GainOver("from scratch", "fine-tuned", labels, gain) for labels, gain in ((10, unsure), (995, lower))]
    sentence = answer_sentence(VerdictResults("run", 1000, 100, [], compared, []))
    assert sentence.startswith("No, pre-training did not pay off with some numbers of labels: -1.0 points")
    assert "with 995 labels (99.5 %)" in sentence
    assert "cannot be told from chance: +5.0 points" in sentence
    assert "with 10 labels (1 %)" in sentence


def test_runs_on_other_images_are_refused(run: Run, data: Path, tmp_path: Path, tuned: list[Path]) -> None:
    options = QUICK | {"shares": (1.0,), "out": tmp_path / "verdict"}
    unveil.verdict(run.path, str(data), **options)
    path = tmp_path / "verdict" / "scratch-80-seed2" / "predictions.csv"
    path.write_text(path.read_text().replace("59.png", "60.png"))
    with pytest.raises(UnveilError, match="tested on different images"):
        unveil.verdict(run.path, str(data), **options)
    path.write_text("file,predicted\n")
    with pytest.raises(UnveilError, match="is damaged"):
        unveil.verdict(run.path, str(data), **options)


def test_a_smaller_verdict_does_not_replace_a_larger_one(run: Run, data: Path, tmp_path: Path, tuned: list[Path]) -> None:
    options = QUICK | {"shares": (0.1, 1.0), "seeds": (0, 1, 2, 3), "out": tmp_path / "verdict"}
    unveil.verdict(run.path, str(data), **options)
    path = tmp_path / "verdict" / "verdict.json"
    known = path.read_bytes()
    for fewer, lost in (
        ({"with_finetune": False}, "fine-tuning"),
        ({"shares": (1.0,)}, "8 labels"),
        ({"seeds": (1, 2, 3, 4, 5)}, "seed 0"),
        ({"seeds": (0, 1, 4), "shares": (0.5,)}, "seeds 2, 3; 8 labels, 80 labels"),
    ):
        with pytest.raises(UnveilError, match=f"would be lost: {lost}\\. Ask for them as well, choose another --out, or remove"):
            unveil.verdict(run.path, str(data), **options | fewer)
        assert path.read_bytes() == known
    more = unveil.verdict(run.path, str(data), **options | {"seeds": tuple(range(5)), "shares": (0.1, 0.5, 1.0)})
    assert (len(more["config"]["seeds"]), {row["labels"] for row in more["accuracies"]}) == (5, {8, 40, 80})
    path.unlink()
    fewer = unveil.verdict(run.path, str(data), **options | {"shares": (1.0,)})
    assert {row["labels"] for row in fewer["accuracies"]} == {80}


def test_a_verdict_on_other_weights_of_the_same_name_is_refused(run: Run, data: Path, tmp_path: Path, tuned: list[Path]) -> None:
    mine, other = tmp_path / "run", tmp_path / "other"
    options = QUICK | {"with_finetune": False, "out": tmp_path / "verdict", "against": (str(other),)}
    for path in (mine, other):
        shutil.copytree(run.path, path)
    unveil.verdict(mine, str(data), **options)
    unveil.verdict(mine, str(data), **options)
    again = unveil.pretrain(str(data), out=tmp_path / "again", epochs=0.5, batch_size=8, **SHAPE).path
    for path in (other, mine):
        shutil.rmtree(path)
        shutil.copytree(again, path)
        with pytest.raises(
            UnveilError, match=f"verdict on other weights of {path}, which have changed since: choose another --out"
        ):
            unveil.verdict(mine, str(data), **options)
        shutil.rmtree(path)
        shutil.copytree(run.path, path)


def test_linear_probes_are_those_of_the_probe_command(run: Run, data: Path, tmp_path: Path) -> None:
    """With few and with all labels; of another encoder, with images of another size, as well."""
    other = unveil.pretrain(str(data), out=tmp_path / "other", epochs=0.5, batch_size=8, **SHAPE | {"image_size": (8,)})
    options = QUICK | {"shares": (0.1, 1.0), "with_finetune": False, "out": tmp_path / "verdict"}
    found = unveil.verdict(run.path, str(data), against=(str(other.path),), **options)
    assert [each["model"] for each in found["gains"][::2]] == ["raw pixels", "untrained", str(other.path)]
    assert {each["how"] for each in found["gains"]} == {"linear probe"}
    for weights, count, labels in ((run.path, 8, 8), (run.path, 80, 0), (other.path, 8, 8)):
        options = {"labels": labels, "device": "cpu"}
        probed = [
            unveil.probe(weights, str(data), seed=seed, out=tmp_path / f"{weights.name}-{count}-{seed}", **options)
            for seed in (0, 1, 2)
        ]
        names = {"encoder": "this run", "raw pixels": "raw pixels"} if weights == run.path else {"encoder": str(other.path)}
        for row, name in names.items():
            own = row_of(found["accuracies"], model=name, how="linear probe", labels=count)
            one_image = 1.01 / 60  # features of a batch with other images are rounded otherwise
            assert own["seeds"] == pytest.approx([each["top1"][row] for each in probed], abs=one_image)


def test_what_would_give_a_wrong_answer_is_refused(run: Run, data: Path, tmp_path: Path, tuned: list[Path]) -> None:
    options = QUICK | {"out": tmp_path / "verdict"}
    unveil.verdict(run.path, str(data), **options)
    with pytest.raises(UnveilError, match="on another run or on other images"):
        unveil.verdict(run.path, str(data), test=str(data / "train"), **options)
    one = tmp_path / "one"
    (one / "test" / "down").mkdir(parents=True)
    (one / "train").symlink_to(data / "train")
    (one / "test" / "down" / "0.png").write_bytes((data / "test" / "down" / "0.png").read_bytes())
    with pytest.raises(UnveilError, match="expected at least 2 with a label"):
        unveil.verdict(run.path, str(one), **QUICK | {"out": tmp_path / "other"})
    probed = unveil.probe(run.path, str(data), out=tmp_path / "probed", device="cpu", compare=False)
    with pytest.raises(UnveilError, match="was trained with labels"):
        unveil.verdict(probed.folder, str(data), **QUICK | {"out": tmp_path / "other"})


def test_the_run_itself_is_no_other_encoder(run: Run, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="itself: leave it out"):
        unveil.verdict(run.path, str(data), against=(f"{run.path}/",), out=tmp_path / "verdict")


def test_a_run_that_fails_stops_no_other_and_is_named(
    run: Run, data: Path, tmp_path: Path, tuned: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = calls.COMMANDS["finetune"]

    def fail(*args: Any, seed: int, out: Path, **options: Any) -> None:
        if out.name == "scratch-8-seed1":
            raise MemoryError("too large")
        real(*args, seed=seed, out=out, **options)

    options = QUICK | {"shares": (0.1, 1.0), "out": tmp_path / "verdict"}
    with monkeypatch.context() as patch:
        patch.setattr(calls, "COMMANDS", {"finetune": fail})
        with pytest.raises(FailedRunsError, match=r"1 of 12 runs failed: scratch-8-seed1 \(MemoryError: too large\)"):
            unveil.verdict(run.path, str(data), **options)
    known = json.loads((tmp_path / "verdict" / "verdict.json").read_text())
    assert [each["labels"] for each in known["gains"]] == [80]
    assert known["failed"][0]["run"] == "scratch-8-seed1"
    assert {each["labels"] for each in unveil.verdict(run.path, str(data), **options)["gains"]} == {8, 80}


def test_copies_of_a_test_image_count_as_one(run: Run, data: Path, tmp_path: Path) -> None:
    """Four copies of every test image tell no more than one."""
    copied = tmp_path / "copied"
    for path in sorted((data / "test").rglob("*.png")):
        (copied / path.parent.name).mkdir(parents=True, exist_ok=True)
        for number in range(4):
            (copied / path.parent.name / f"{path.stem}-{number}.png").write_bytes(path.read_bytes())
    options = QUICK | {"with_finetune": False}
    found = unveil.verdict(run.path, str(data), test=str(copied), out=tmp_path / "verdict", **options)
    assert found["test_images"] == 240
    assert {gain["images"] for gain in found["gains"]} == {60}
    assert "180 test images are copies, or parts, of others" in found["sentence"]


def test_unreadable_images_and_test_images_that_were_trained_on_are_told(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(data, own)
    trained = unveil.pretrain(str(own), out=tmp_path / "all", split="train+test", epochs=0.5, batch_size=8, **SHAPE)
    (own / "train" / "down" / "0.png").write_bytes(b"no image")
    options = QUICK | {"shares": (1.0,), "with_finetune": False}
    found = unveil.verdict(trained, str(own), **options)
    assert "is the test set now: its results are too good." in found["sentence"]
    assert "1 training image could not be read" in found["sentence"]
    assert len(found["cautions"]) == 2


def test_every_way_to_test_on_images_that_were_trained_on_is_told(run: Run, data: Path, tmp_path: Path) -> None:
    """Given by another path, or copied into the training images: in the sentence, in `verdict.json` and on the page."""
    copied = shutil.copytree(data, tmp_path / "copied")
    for path in (data / "test" / "down").iterdir():
        (copied / "train" / "down" / f"test-{path.name}").write_bytes(path.read_bytes())
    options = QUICK | {"shares": (1.0,), "with_finetune": False}
    for images, said in (
        (data / "train", f"{run} was trained on 4 of 4 test images: its results are too good."),
        (copied, "15 of 60 test images are exact copies of training images: the results are too good (unveil doctor lists them)."),
    ):
        out = tmp_path / f"verdict-{images.name}"
        found = unveil.verdict(run, str(images), out=out, **options)
        assert found["cautions"] == [said[:1].upper() + said[1:]]
        assert found["cautions"][0] in found["sentence"]
        assert json.loads((out / "verdict.json").read_text())["cautions"] == found["cautions"]
        assert said.split(":")[0] in (out / "report.html").read_text()


def test_numbers_of_labels() -> None:
    assert label_counts(25_000, 100, (1.0, 0.01, 0.1)) == (250, 2500, 25_000)
    assert label_counts(2640, 81, (0.01, 0.1, 1.0)) == (81, 264, 2640)  # at least one for each class
    assert label_counts(30, 10, (0.01, 0.1, 1.0)) == (10, 30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seeds": (0, 1)}, "expected at least 3 different seeds"),
        ({"seeds": (0, 1, 1)}, "expected at least 3 different seeds"),
        ({"shares": ()}, "--shares is empty"),
        ({"finetune": {"labels": 5}}, "finetune.labels is set by the verdict"),
        ({"finetune": {"split": "test"}}, "finetune.split is set by the verdict"),
        ({"finetune": {"test_split": "val"}}, "finetune.test_split is set by the verdict"),
        ({"finetune": {"validation": 0.2}}, "finetune.validation is set by the verdict"),
        ({"finetune": {"blocks": 1.0}}, "the model from scratch is trained as a whole, and so are the others"),
        ({"finetune": {"epochs": 1.0}, "with_finetune": False}, "--no-with-finetune"),
        ({"against": ("a/enc", "b/enc")}, "--against b/enc would have the same run folders as a/enc"),
        ({"against": ("scratch",)}, "--against scratch would have the same run folders as the verdict itself"),
        ({"against": ("a/enc", "a/enc")}, "has an encoder twice"),
        ({"epochs": 3.0}, "--finetune.epochs"),
    ],
)
def test_options_that_give_no_verdict(run: Run, data: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UnveilError, match=said):
        unveil.verdict(run.path, str(data), out=tmp_path / "verdict", **options)
    assert not (tmp_path / "verdict").exists()


def test_the_command_line() -> None:
    options = parse_options("verdict", VERBS["verdict"], ["run", "data", "--shares", "0.5", "--finetune.epochs", "3"])
    assert (options["shares"], options["finetune"]["epochs"]) == ((0.5,), 3.0)
