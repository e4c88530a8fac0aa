"""The ablations of the paper: their declarations, their runs, and what a failed run leaves."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import unveil
from tests.experiments.test_compare import TINY, no_pages
from tests.experiments.test_images_vs_words import write_texts
from tests.recipes.test_end_to_end import write_images
from unveil import cli
from unveil.command_line import verb_name
from unveil.errors import Interrupted, UnveilError
from unveil.experiments import all_studies, calls, jobs
from unveil.experiments.all_studies import applicable
from unveil.experiments.jobs import FailedRunsError, Job
from unveil.experiments.paper_studies import STUDIES, list_studies
from unveil.experiments.paper_study import Shape
from unveil.experiments.run_paper_study import plan_study, result_of
from unveil.experiments.same_runs import with_same_runs
from unveil.experiments.step_cost import flops_per_step, seconds_per_step
from unveil.interop.model_files import rebuild
from unveil.models.flops import mae_cost
from unveil.reports.failures import read_failures
from unveil.reports.findings import Judgement, judge_finding
from unveil.reports.paper_study_page import PaperStudyResult, Point, study_table
from unveil.train.log import JsonLines
from unveil.train.run_folder import ChangedSettingsError, Run

__all__ = ["no_pages"]
LARGE = Shape(1024, 24, 800.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images")))


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_every_study_is_complete(study: Any, images: str, tmp_path: Path) -> None:
    labels = [cell.label for cell in study.cells]
    assert len(set(labels)) == len(labels)
    assert sum(cell.default for cell in study.cells) == 1
    for shape in (LARGE, Shape(96, 4, 20.0)):
        settings = study.settings(shape)
        known = [setting.label for setting in settings]
        claims = study.claims(known)
        assert claims
        assert all(label in known and metric in (*study.metrics, "step") for claim in claims for label, metric in claim.needs())
    options = {key: value for key, value in TINY.items() if (study.name, key) != ("model-size", "model")}
    plan = plan_study(study, "mae", images, tmp_path, {**options, "epochs": 2.0, "seeds": (0,)})
    assert len({job.name for job in plan.comparison.jobs()}) == len(plan.comparison.jobs())
    assert not tmp_path.joinpath("mae").exists()


def test_the_settings_of_vit_large_are_those_of_the_paper() -> None:
    def options(name: str, shape: Shape, key: str) -> list[Any]:
        return [setting.options[key] for setting in STUDIES[name].settings(shape)]

    assert options("decoder-width", LARGE, "decoder_width") == [128, 256, 512, 768, 1024]
    assert options("decoder-depth", LARGE, "decoder_depth") == [1, 2, 4, 8, 12]
    assert options("partial", LARGE, "blocks") == [0, 1, 2, 4, 6, 12, 18, 24]
    assert options("epochs", LARGE, "epochs") == [100, 200, 400, 800, 1600]
    nano = Shape(96, 4, 20.0)
    assert options("decoder-width", nano, "decoder_width") == [16, 24, 48, 72, 96]
    assert options("decoder-depth", nano, "decoder_depth") == [1, 2, 4]
    assert options("partial", nano, "blocks") == [0, 1, 2, 3, 4]
    assert options("epochs", nano, "epochs") == [2.5, 5, 10, 20, 40]
    assert STUDIES["partial"].left_out(nano) == ["1 of 24 blocks", "2 of 24 blocks", "4 of 24 blocks"]


def test_the_numbers_are_those_of_the_paper() -> None:
    best = {study.name: max(study.cells, key=lambda cell: cell.linear or 0).label for study in STUDIES.values()}
    assert best["mask-ratio"] == "0.75"
    assert best["target"] == "normalised pixel"
    ratios = [cell.linear for cell in STUDIES["mask-ratio"].cells]
    assert ratios == [54.6, 58.9, 61.7, 67.0, 69.9, 71.8, 73.2, 73.5, 71.8, 66.1]
    assert [cell.finetune for cell in STUDIES["sampling"].cells] == [84.9, 83.9, 82.8, 84.0]


def test_a_study_agrees_with_its_runs(images: str, tmp_path: Path) -> None:
    options = {"epochs": 0.5, "seeds": (0,), "with_finetune": False, **TINY}
    del options["finetune"]
    (found,) = unveil.study("mask-token", images, out=tmp_path, **options)
    assert isinstance(found, PaperStudyResult)
    content = json.loads((tmp_path / "study.json").read_text())
    assert (content["study"], content["answer"]) == ("mask-token", found.judgement.answer)
    for cell, name in zip(content["cells"], ("with-tokens", "without-tokens"), strict=True):
        runs = [Run(tmp_path / f"mae-{name}-seed{seed}") for seed in (0,)]
        assert [run.config["mask_tokens_in_encoder"] for run in runs] == [name == "with-tokens"]
        assert cell["figures"]["linear"] == [run.results["features"]["encoder"]["linear"] for run in runs]
        assert cell["figures"]["seconds"] == [run.results["seconds"] for run in runs]
        assert "step" not in cell["figures"]  # one step is no median
    learner: Any = rebuild(json.loads((tmp_path / "mae-without-tokens-seed0" / "config.json").read_text()))
    depth, width = learner.config.decoder_depth, learner.config.decoder_width
    cost = mae_cost(learner.encoder.config, 4, width=width, depth=depth, predicted=48, batch=8)  # 4 of 16 patches, 4 x 4 x 3 values
    assert flops_per_step(Run(tmp_path / "mae-without-tokens-seed0")) == pytest.approx(cost.step * 8)
    table = study_table(found)
    assert table.heads == ["setting", "linear, %", "paper, %", "FLOPs of a step", "training"]
    assert [row[2] for row in table.rows] == ["59.6", "73.5"]
    page = (tmp_path / "report.html").read_text()
    with pytest.raises(UnveilError, match="would be lost: seed 0"):
        unveil.study("mask-token", images, out=tmp_path, **options | {"seeds": (1, 2)})
    del content["checksum"]
    content["cells"][0]["figures"]["finetune"] = [0.5]  # as with fine-tuning
    (tmp_path / "study.json").write_text(json.dumps(content))
    with pytest.raises(UnveilError, match="would be lost: fine-tuning"):
        unveil.study("mask-token", images, out=tmp_path, **options)
    assert (tmp_path / "report.html").read_text() == page
    assert found.judgement.reason in page
    assert all((tmp_path / link).is_file() for link in re.findall(r'href="([^"#]+)"', page))


def test_one_encoder_is_evaluated_with_few_and_with_all_labels(images: str, tmp_path: Path) -> None:
    (found,) = unveil.study("label-fraction", images, out=tmp_path, seeds=(0,), epochs=0.5, **TINY)
    assert isinstance(found, PaperStudyResult)
    assert {path.name for path in tmp_path.glob("*") if path.is_dir()} == {
        "mae-seed0",
        *(f"mae-seed0-{kind}-{share}" for kind in ("linear", "finetune", "scratch") for share in SHARES),
    }
    scores = [Run(tmp_path / f"mae-seed0-scratch-{share}").results["score"]["top1"] for share in SHARES]
    assert [point.figures["scratch"] for point in found.points] == [[score] for score in scores[1:]]
    labels = [Run(tmp_path / f"mae-seed0-finetune-{share}").config["labels"] for share in SHARES]
    assert labels == [2, 2, 0]  # at least one of each class, so the first two are one row
    every = Run(tmp_path / "mae-seed0-linear-all-labels", {}).results["trained_on"]
    assert [point.heading for point in found.points] == ["10 % of the labels (2)", f"all labels ({every})"]
    assert [point.position for point in found.points] == [2 / every, 1.0]
    assert "in the paper" not in study_table(found).heads
    assert "the same as another setting: 1 % of the labels." in found.notes[-1]
    assert "cannot be told from 1 seed: there is only one result for 10 % of the labels" in found.judgement.reason
    results = tmp_path / "mae-seed0-linear-1-of-the-labels" / "results.json"
    content = results.read_text()
    results.write_text(content[:50])
    (again,) = unveil.study("label-fraction", images, out=tmp_path, seeds=(0,), epochs=0.5, **TINY)
    assert isinstance(again, PaperStudyResult)
    assert again.points == found.points  # a damaged probe is computed again
    assert results.with_name("results.damaged.json").read_text() == content[:50]
    with pytest.raises(ChangedSettingsError, match="epochs"):
        unveil.study("label-fraction", images, out=tmp_path, seeds=(0,), epochs=2.0, **TINY)
    other = str(write_images(tmp_path / "other", 14))
    with pytest.raises(
        ChangedSettingsError, match="linear-1-of-the-labels is a probe with different settings: data: was 24 images"
    ):
        unveil.study("label-fraction", images, out=tmp_path, seeds=(0,), epochs=0.5, labelled_data=other, **TINY)


def test_more_and_more_blocks_are_fine_tuned_by_one_recipe(images: str, tmp_path: Path) -> None:
    options = {"seeds": (0,), "epochs": 0.5, **TINY}
    (found,) = unveil.study("partial", images, out=tmp_path, **options)
    assert isinstance(found, PaperStudyResult)
    runs = [Run(tmp_path / f"mae-seed0-partial-{blocks}-of-4") for blocks in range(4)] + [Run(tmp_path / "mae-seed0-finetune")]
    assert {path.name for path in tmp_path.glob("*") if path.is_dir()} == {"mae-seed0", *(run.path.name for run in runs)}
    assert [run.config["blocks"] for run in runs] == [0, 1, 2, 3, None]
    assert [run.config | {"blocks": None} for run in runs[:4]] == [runs[4].config] * 4
    assert [point.figures for point in found.points] == [{"finetune": [run.results["score"]["top1"]]} for run in runs]
    with pytest.raises(UnveilError, match=r"partial varies blocks itself: leave --finetune\.blocks out"):
        unveil.study("partial", images, out=tmp_path, **options | {"finetune": {"blocks": 1.0}})
    with pytest.raises(UnveilError, match="partial fine-tunes the last blocks alone, which the task linear cannot"):
        unveil.study("partial", images, out=tmp_path / "labels", **options | {"finetune": {"task": "linear"}})
    assert not (tmp_path / "labels").exists()


SHARES = ("1-of-the-labels", "10-of-the-labels", "all-labels")


def test_ratios_that_mask_as_many_patches_are_one_setting() -> None:
    study = STUDIES["mask-ratio"]
    few = study.settings(Shape(96, 4, 20.0, patches=16))
    assert [setting.options["mask_ratio"] for setting in few] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.8, 0.9]
    assert study.left_out(Shape(96, 4, 20.0, patches=16)) == ["0.7"]  # 4 of 16 stay visible, as with 0.75
    assert [setting.label for setting in study.settings(Shape(96, 4, 20.0, patches=4))] == ["0.1", "0.3", "0.75"]
    assert len(study.settings(Shape(96, 4, 20.0, patches=64))) == 10


def test_epochs_that_are_equally_many_steps_are_one_setting(images: str, tmp_path: Path) -> None:
    plan = plan_study(STUDIES["epochs"], "mae", images, tmp_path, {"epochs": 1.0, "seeds": (0, 1), "with_finetune": False})

    def train(label: str, steps: int) -> None:
        for seed in (0, 1):
            path = plan.comparison.path(plan.names[label], seed)
            path.mkdir()
            (path / "run.json").write_text('{"config": {"batch_size": 64}}')
            (path / "report.html").write_text("")
            Run(path).write_results({"seconds": 1.0, "images_seen": 64 * steps, "features": {"encoder": {"linear": 0.5}}})

    for label in ("1/8 of the epochs", "1/4 of the epochs", "1/2 of the epochs"):
        train(label, 1)
    result = result_of(plan)
    assert [point.label for point in result.points] == ["1/2 of the epochs"]  # the longest, before the default has finished
    assert "Without results: 1, 2." in result.notes
    train("the epochs", 1)
    train("twice the epochs", 2)
    result = result_of(plan)
    assert [point.label for point in result.points] == ["the epochs", "twice the epochs"]
    assert result.correlation("linear") is None  # two settings have no order
    left_out = "1/8 of the epochs, 1/4 of the epochs, 1/2 of the epochs."
    assert any(note.startswith("Left out") and note.endswith(left_out) for note in result.notes)
    assert result.judgement.answer == "open"


def test_missing_seeds_are_told() -> None:
    def point(name: str, *linear: float) -> Point:
        paper = {"linear": 0.5 + len(name) / 100}
        return Point(name, name, name, 0.0, {"linear": linear, "step": [1.38] * len(linear)}, paper)

    judgement = Judgement("open", "Nothing.")
    points = [point("a", 0.1, 0.12), point("bb", 0.2, 0.21), point("ccc", 0.3, 0.31)]
    result = PaperStudyResult("sampling", "Table 1f", "?", "", "photos", [*points, point("dddd", 0.0)], judgement)
    notes = study_table(result).sentences
    assert (
        "Seeds are missing: dddd (1 of 2). The rank correlation of an accuracy leaves out settings that lack its numbers." in notes
    )
    assert "Rank correlation with the paper (Spearman), linear: 1.00 (an interval takes 3 seeds), 3 settings." in notes
    assert study_table(result).rows[0][3] == "1,380 ms"
    assert not any("missing" in note for note in study_table(result._replace(points=points)).sentences)


def test_another_study_is_not_overwritten(images: str, tmp_path: Path) -> None:
    options = {"seeds": (0,), "epochs": 1.0, **TINY}
    for known, what, name in (
        ('{"study": "partial"}', "mask-ratio", "partial"),
        ('{"study": "partial"}', "mask_ratio=0.5,0.75", "partial"),
        ('{"option": "sampling"}', "mask-ratio", "sampling"),
        ('{"option": "sampling"}', "mask_ratio=0.5,0.75", "sampling"),
        ('{"study": "partial"}', "all", "partial"),
        ('{"study": "all"}', "mask-ratio", "all"),
    ):
        (tmp_path / "study.json").write_text(known)
        with pytest.raises(UnveilError, match=f"the results of another study, {name}: choose another --out"):
            unveil.study(what, images, out=tmp_path, **options)
        assert (tmp_path / "study.json").read_text() == known
    (tmp_path / "study.json").write_text('{"study": "par')  # damaged, so it is written again
    assert plan_study(STUDIES["mask-ratio"], "mae", images, tmp_path, options).study.name == "mask-ratio"
    (tmp_path / "study.json").write_text('{"study": "all"}')
    with pytest.raises(UnveilError, match="the results of another study, all: choose another --out"):
        unveil.images_vs_words(images, write_texts(tmp_path / "texts"), out=tmp_path)
    with pytest.raises(UnveilError, match="is the folder of a study: choose another --out"):
        unveil.compare("mae", images, out=tmp_path, **options)
    for file, kind in (("compare.json", "comparison"), ("run.json", "run")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / file).write_text("{}")
        for what in ("mask-ratio", "mask_ratio=0.5,0.75", "all"):
            with pytest.raises(UnveilError, match=f"is the folder of a {kind}: choose another --out"):
                unveil.study(what, images, out=tmp_path / kind, **options)
    with pytest.raises(UnveilError, match=r"has the value 0\.5 twice"):
        unveil.study("mask_ratio=0.5,0.5", images, out=tmp_path / "other", **options)
    with pytest.raises(UnveilError, match="mask-ratio varies mask_ratio, which dino does not have: use --method mae"):
        unveil.study("mask-ratio", images, method="dino", out=tmp_path / "other", **options)


def test_the_time_of_a_step_leaves_the_start_of_a_process_out(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text('{"config": {"batch_size": 8}}')
    Run(run).write_results({"seconds": 10.0, "images_seen": 40})
    assert seconds_per_step(Run(run)) is None  # without a log
    log = JsonLines(run / "log.jsonl")
    log.start(0)
    for step, (speed, known) in enumerate(((1.0, None), (80.0, None), (100.0, 8 / 80), (90.0, 8 / 85))):
        log.write({"step": step, "samples_per_second": speed})
        assert seconds_per_step(Run(run)) == (known if known is None else pytest.approx(known))
    log.close()


def test_runs_that_are_too_short_do_not_tell_which_step_is_faster() -> None:
    def point(name: str, linear: float, **more: list[float]) -> Point:
        return Point(name, name, name, 0.0, {"linear": [linear, linear + 0.01], "seconds": [2.0, 2.0], **more}, {"linear": 0.5})

    def told(*points: Point) -> tuple[str, str, list[str]]:
        study = STUDIES["mask-token"]
        judgement = judge_finding(study.claims([]), {each.label: each.figures for each in points}, {"linear": 10**6})
        result = PaperStudyResult("mask-token", "Table 1c", "?", "", "photos", points, judgement)
        return judgement.answer, judgement.reason, study_table(result).heads

    answer, reason, heads = told(point("with tokens", 0.2), point("without tokens", 0.6))
    assert answer == "open"
    assert "the runs of without tokens are too short to tell the time of a step." in reason
    assert heads[-2:] == ["paper, %", "training"]
    answer, _, heads = told(point("with tokens", 0.2, step=[2.0, 2.1]), point("without tokens", 0.6, step=[1.0, 1.1]))
    assert answer == "holds"
    assert heads[-2:] == ["step", "training"]


def test_a_failed_run_stops_only_what_needs_it(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = calls.COMMANDS["pretrain"]

    def pretrain(*arguments: Any, **options: Any) -> Any:
        if broken and options["sampling"] == "block":
            raise RuntimeError("the card fell out\nof its slot")
        return usual(*arguments, **options)

    broken = True
    monkeypatch.setattr(calls, "COMMANDS", {**calls.COMMANDS, "pretrain": pretrain})
    options = {"epochs": 0.5, "seeds": (0,), **TINY}  # the baseline without training is fine-tuned with the first value
    with pytest.raises(
        FailedRunsError, match=r"^1 of 5 runs failed: mae-sampling-block-seed0 \(RuntimeError: the card fell out\)"
    ) as error:
        unveil.study("sampling=block,grid", images, out=tmp_path, **options)
    assert "mae-sampling-block-seed0-finetune is left out, because mae-sampling-block-seed0 has failed" in capsys.readouterr().err
    assert (tmp_path / "mae-sampling-grid-seed0-finetune" / "results.json").is_file()
    ((row,),) = (sweep.rows for sweep in error.value.results)
    assert row.name == "mae-sampling-grid"
    (failure,) = read_failures(tmp_path)
    assert "in pretrain" in failure.details
    assert "1 of 5 runs failed" in (tmp_path / "report.html").read_text()
    broken = False
    (sweep,) = unveil.study("sampling=block,grid", images, out=tmp_path, **options)
    assert len(sweep.rows) == 2
    assert not (tmp_path / "failed.json").exists()
    assert "runs failed" not in (tmp_path / "report.html").read_text()


def test_an_interruption_stops_everything(tmp_path: Path) -> None:
    done: list[str] = []

    def job(name: str, error: BaseException | None = None) -> Job:
        def prepare() -> None:
            done.append(name)
            if error:
                raise error

        return Job(name, prepare)

    for error in (Interrupted("stopped"), KeyboardInterrupt(), ChangedSettingsError("epochs", "")):
        with pytest.raises(type(error)):
            jobs.run_jobs([job("a"), job("b", error), job("c")], tmp_path, lambda name: None)
    assert done == ["a", "b"] * 3
    assert not (tmp_path / "failed.json").exists()
    failures = jobs.run_jobs([job("a"), job("b", UnveilError("no")), job("c")], tmp_path, lambda name: None)
    assert [(each.run, each.error) for each in failures] == [("b", "no")]
    assert done[-3:] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("mask-ratio", {"seconds": 10.0, "epochs": 2.0}, "the budget is either --seconds or --epochs: give one of them"),
        ("mask_ratoi", {}, "there is no study 'mask_ratoi'; did you mean mask-ratio? The studies are decoder-depth, "),
        ("why", {}, "there is no study 'why'. The studies are "),
        ("information-density", {}, "needs images and texts: call unveil.images_vs_words"),
        ("mask-ratio", {"mask_ratio": 0.5}, "the study mask-ratio varies mask_ratio itself: leave --mask-ratio out"),
        ("epochs", {"seconds": 5.0}, "give --epochs, and leave --seconds out"),
        ("label-fraction", {"finetune": {"labels": 10}}, "label-fraction varies labels itself: leave --finetune.labels out"),
        ("label-fraction", {"with_finetune": False}, "label-fraction is about fine-tuning: leave --no-with-finetune out"),
        ("partial", {"with_finetune": False}, "partial is about fine-tuning: leave --no-with-finetune out"),
        ("mask_ratio=0.5,0.75", {"mask_ratio": 0.9}, "the study varies mask_ratio itself: leave --mask-ratio out"),
        ("mask_ratio=0.5,0.75", {"mae": {"mask_ratio": 0.1}}, "the study varies mask_ratio itself: leave --mae.mask-ratio out"),
        ("epochs=1,2", {"epochs": 5.0}, "the study varies epochs itself: leave --epochs out"),
        ("epochs=1,2", {"seconds": 5.0}, "the study varies the epochs, which --seconds would choose: leave --seconds out"),
        ("mask-ratio", {"method": "bert"}, "learns from text: use --method mae"),
    ],
)
def test_mistakes_are_found_at_once(what: str, options: dict[str, Any], message: str, images: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match=re.escape(message)):
        unveil.study(what, images, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_all_studies_have_one_page(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: STUDIES[name] for name in ("masked-loss", "mask-token")}
    monkeypatch.setattr("unveil.experiments.all_studies.STUDIES", few)
    folder = tmp_path / "all"
    options = {"epochs": 0.5, "seeds": (0,), **TINY, "loss_on_all": True}  # which masked-loss ignores
    unfinished, usual = list[str](), all_studies.write_all_studies
    monkeypatch.setattr(all_studies, "OVERVIEW_EVERY", 0.0)
    monkeypatch.setattr(all_studies, "write_all_studies", lambda *given: (unfinished.extend(given[2]), usual(*given)))
    found = unveil.study("all", images, out=folder, **options)
    page = (folder / "report.html").read_text()
    assert "Of 2 findings of the paper, 0 hold here, 0 do not, and 2 cannot be told." in page
    assert "Unfinished" not in page
    assert unfinished == [f"Unfinished: {done} of 6 runs {'has' if done == 1 else 'have'} finished." for done in range(1, 6)]
    assert all(f"<h3>{name}: cannot be told</h3>" in page for name in few)
    assert all((folder / name / "report.html").is_file() and f'href="{name}/report.html"' in page for name in few)

    # The loss on all patches is both a setting of masked-loss and the default here, so it is trained once.
    runs = {path.name for path in (folder / "mask-token").iterdir() if path.is_dir()}
    assert runs == {"mae-with-tokens-seed0", "mae-with-tokens-seed0-finetune"}
    assert 'href="../masked-loss/mae-all-patches-seed0/report.html"' in (folder / "mask-token" / "report.html").read_text()
    (alone,) = unveil.study("mask-token", images, out=tmp_path / "alone", **options)
    assert isinstance(alone, PaperStudyResult)
    assert isinstance(found[1], PaperStudyResult)
    for one, again in zip(found[1].points, alone.points, strict=True):
        assert all(one.figures[each] == again.figures[each] for each in ("linear", "finetune"))

    # If the run that they share fails, no other takes its place: both pages say that its results are missing.
    shared = folder / "masked-loss" / "mae-all-patches-seed0"
    shared.rename(tmp_path / "away")
    shared.write_text("in the way")
    with pytest.raises(FailedRunsError, match=r"^1 of 6 runs failed: masked-loss/mae-all-patches-seed0 "):
        unveil.study("all", images, out=folder, **options)
    assert {path.name for path in (folder / "mask-token").iterdir() if path.is_dir()} == runs
    for name, setting in (("masked-loss", "all patches"), ("mask-token", "without tokens")):
        page = (folder / name / "report.html").read_text()
        assert f"Without results: {setting}." in page
        assert re.search(r"1 of 4 runs failed: mae-(all-patches|without-tokens)-seed0 ", page)
    told = json.loads((folder / "study.json").read_text())
    assert (told["finished"], told["runs"]) == (5, 6)
    shared.unlink()
    (tmp_path / "away").rename(shared)
    again_all = unveil.study("all", images, out=folder, **options)
    assert [result.points for result in again_all] == [result.points for result in found]


def test_runs_with_a_budget_in_seconds_are_not_shared(images: str, tmp_path: Path) -> None:
    """`study all --seconds` took a run of so many seconds for one with the default epochs."""
    plans = [
        plan_study(STUDIES[name], "mae", images, tmp_path / name, {"seeds": (0,), "with_finetune": False, **given})
        for name, given in (("decoder-depth", {"seconds": 9.0}), ("masked-loss", {"seconds": 9.0}), ("epochs", {}))
    ]
    _, timed, untimed = comparisons = [plan.comparison for plan in plans]
    assert not any(with_same_runs(each, comparisons[:i]).elsewhere for i, each in enumerate(comparisons))
    same = with_same_runs(untimed, [replace(timed, config=untimed.config)])
    assert list(same.elsewhere) == ["mae-the-epochs-seed0"]


def test_options_of_fine_tuning_are_left_out_of_the_studies_that_vary_them() -> None:
    """The words of docs/studies.md; at 09c84d7, `study all` was refused with one, and ignored the other."""
    options = {"finetune": {"blocks": 2.0, "labels": 10, "epochs": 1.0}}
    found = {name: applicable(STUDIES[name], options)["finetune"] for name in ("partial", "label-fraction", "target")}
    assert found["partial"] == {"labels": 10, "epochs": 1.0}
    assert found["label-fraction"] == {"blocks": 2.0, "epochs": 1.0}
    assert found["target"] == options["finetune"]


def test_the_list_and_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["study", "--list"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert shown.strip() == list_studies()
    assert all(name in shown and study.source in shown and study.question in shown for name, study in STUDIES.items())
    for name in ("study images-vs-words", "study information-density"):
        assert verb_name([*name.split(), "photos", "corpus"]) == "study information-density"
