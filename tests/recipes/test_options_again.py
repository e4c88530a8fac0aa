"""Options in and out: `unveil options RUN` prints the command that makes a run again, and `--config` takes options from a file."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unveil
from unveil import cli
from unveil.command_line import form_of, parse_options, with_config
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.json_files import json_text
from unveil.runs.session import Session
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

SMALL = {"model": "vit-nano", "epochs": 1.0, "batch_size": 16}
FOLDER = "Fotos im März/it's $HOME"


class StoppedError(Exception):
    """Training would begin."""


@pytest.fixture
def begun(monkeypatch):
    """Calls that begin a run, but do not train."""
    monkeypatch.setattr(Session, "fit", lambda self, *args, **options: (_ for _ in ()).throw(StoppedError))

    def begin(call, *args, **options):
        with pytest.raises(StoppedError):
            call(*args, **options)
        return Run(options["out"])

    return begin


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with images of two classes, in folders with difficult names, texts, and a run on each."""
    tmp_path, rng = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 6)):
        for name in ("a, b", "ä"):
            (tmp_path / FOLDER / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / FOLDER / split / name / f"{number}.png")
    (tmp_path / "corpus.txt").write_text("\n".join(f"the {word} cat sat on mat {word}" for word in range(300)))
    lines = [f"text {number} of this\t{'ab'[number % 2]}" for number in range(60)]
    (tmp_path / "labelled.tsv").write_text("text\tlabel\n" + "\n".join(lines))
    unveil.pretrain(tmp_path / FOLDER, out=tmp_path / "a source", num_evals=0, decoder_depth=2, **SMALL)
    options = {"epochs": 1, "max_length": 16, "vocabulary_size": 200, "num_evals": 0}
    unveil.pretrain(tmp_path / "corpus.txt", method="bert", model="bert-nano", out=tmp_path / "words", **options)
    return tmp_path


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A working directory of its own with these."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(line):
    """The words of a command line, parsed as the shell and unveil do: what the function is called with."""
    program, name, *argv = shlex.split(line)
    assert program == "unveil"
    verb, rest = with_config(name, VERBS[name], argv)
    return parse_options(name, form_of(name, verb, rest), rest)


def again(line, out, *more):
    """Runs a command line in another folder, up to the first step, and returns its run."""
    with pytest.raises(StoppedError):
        cli.execute([*shlex.split(line)[1:], *more, "--out", str(out)])
    return Run(out)


PRETRAINING = {
    "mae": {"method": "mae"},
    "mae with options": {
        "mask_ratio": 0.61234567890123,
        "decoder_width": 32,
        "decoder_heads": 2,
        "flip": False,
        "image_size": (16, 24),
    },
    "patches": {"patch_size": 5, "base_lr": 1e-7, "weight_decay": 0.0, "compile_mode": "max-autotune"},
    "simmim": {"method": "simmim", "drop_path": 0.2},
    "dino": {"method": "dino", "local_crops": 2, "normalisation": "data", "seed": 3},
}


@pytest.mark.parametrize("case", PRETRAINING)
def test_the_command_of_a_pretraining_run(case, here, begun):
    options = SMALL | PRETRAINING[case]
    run = begun(unveil.pretrain, FOLDER, out=here / "first run", **options)
    line = unveil.command(run)
    found = {key: value for key, value in parsed(line).items() if not (value is None or value is False) or key == "flip"}
    assert found.pop("data") == FOLDER
    given = {"image_size": (20, 20), **{key: (value,) if key == "patch_size" else value for key, value in options.items()}}
    sizes = ("image_size", "patch_size")  # that of the data is always printed, and one that follows from it is not
    assert {k: v for k, v in found.items() if k not in sizes} == {"method": "mae"} | {
        k: v for k, v in given.items() if k not in sizes
    }
    assert again(line, here / "second").config == run.config
    assert again("unveil pretrain", here / "third", "--config", str(run)).config == run.config
    (here / "options.toml").write_text(unveil.command(run, toml=True), encoding="utf-8")
    fourth = again("unveil pretrain", here / "fourth", "--config=options.toml")
    assert fourth.config == run.config
    assert fourth.facts["data"] == run.facts["data"]
    assert begun(unveil.pretrain, config=run, out=here / "fifth").config == run.config


def test_the_command_of_a_run_with_defaults_is_short(here, begun):
    assert unveil.command(begun(unveil.pretrain, out=here / "run")) == "unveil pretrain digits"
    run = begun(unveil.pretrain, "corpus.txt", method="bert", epochs=2, out=here / "bert")
    assert unveil.command(run) == "unveil pretrain corpus.txt --method bert --epochs 2"
    assert again(unveil.command(run), here / "again").config == run.config


def test_weights_to_start_from(here, begun):
    """What may follow from the weights is written out, and the model follows from them."""
    run = begun(unveil.pretrain, FOLDER, init="a source", epochs=2, decoder_depth=1, out=here / "run")
    line = unveil.command(run)
    assert "--init 'a source'" in line
    assert "--decoder-depth 1" in line
    assert "None" not in line
    assert "--model" not in line
    assert again(line, here / "second").config == run.config
    assert again("unveil pretrain --config run", here / "third").config == run.config


FINETUNING = {
    "auto": {},
    "auto with options": {"epochs": 7.0, "labels": 12, "validation": 0.25, "patience": 3},
    "paper": {"recipe": "paper", "batch_size": 16},
    "scratch": {"scratch": True, "epochs": 3.0},
    "test": {"test": f"{FOLDER}/test", "split": "train"},
    "linear": {"task": "partial", "blocks": 2.0},
}


@pytest.mark.parametrize("case", FINETUNING)
def test_the_command_of_a_finetuning_run(case, here, begun):
    run = begun(unveil.finetune, "a source", FOLDER, out=here / "tuned", **FINETUNING[case])
    lines = [unveil.command(run)]
    count = 12 if "labels" in FINETUNING[case] else 40
    (run.path / "results.json").write_text(json_text({"trained_on": count}))  # as the end of the run does
    lines.append(unveil.command(run))
    assert len(lines[1]) <= len(lines[0])
    given = FINETUNING[case].items()
    assert dict(given).items() <= parsed(lines[1]).items()
    expected = {"run": "a source", "data": FOLDER} | FINETUNING[case]
    assert {k: v for k, v in parsed(lines[1]).items() if not (v is None or v is False)} == expected
    for number, line in enumerate(lines):
        assert again(line, here / f"again {number}").config == run.config
    assert again("unveil finetune", here / "third", "--config", str(run)).config == run.config
    (here / "a source").rename(here / "elsewhere")  # it cannot be seen any more what follows from it
    assert {"run": "a source"}.items() <= parsed(unveil.command(run)).items()
    (here / "elsewhere").rename(here / "a source")


def test_the_command_of_a_run_on_labelled_texts(here, begun):
    run = begun(unveil.finetune, "words", "labelled.tsv", epochs=2, out=here / "tuned")
    line = unveil.command(run)
    assert again(line, here / "second").config == run.config
    assert again("unveil finetune --config tuned", here / "third").config == run.config
    assert shlex.split(line)[:4] == ["unveil", "finetune", "words", "labelled.tsv"]


def test_a_run_of_an_array_says_so(here, begun, capsys):
    run = begun(unveil.pretrain, np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), np.uint8), out=here / "run", **SMALL)
    assert cli.execute(["options", "run"]) == 0
    said = capsys.readouterr()
    assert shlex.split(said.out)[:3] == ["unveil", "pretrain", "DATA"]
    assert "an array in memory, which it does not record: give DATA" in said.err
    assert cli.execute(["pretrain", "--config", "run"]) == 2
    assert "run was trained on an array in memory" in capsys.readouterr().err
    assert not (here / "runs").exists()  # it is not trained on the digits instead
    with pytest.raises(UnveilError, match="an array in memory"):
        unveil.pretrain(config=run)
    assert again("unveil pretrain", here / "other", FOLDER, "--config", "run").config == run.config
    (here / "o.toml").write_text(unveil.command(run, toml=True))
    assert "data" not in tomllib.loads((here / "o.toml").read_text())


def test_the_data_is_found_from_another_folder(here, begun, monkeypatch, tmp_path_factory):
    run = begun(unveil.pretrain, FOLDER, out=here / "run", **SMALL)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert parsed(unveil.command(run))["data"] == str(here / FOLDER)
    assert again(unveil.command(run), here / "again").config == run.config


def test_what_is_given_comes_first(here, begun):
    run = begun(unveil.pretrain, FOLDER, out=here / "run", method="simmim", mask_ratio=0.4, seed=5, flip=False, **SMALL)
    (here / "o.toml").write_text('mask-ratio = 0.3\nimage_size = 16\nmethod = "simmim"\nmodel = "vit-nano"\nflip = false\nseed = 5')
    changed = again("unveil pretrain", here / "a", "digits", "--config", "run", "--seed", "6", "--flip").config
    assert (changed["seed"], changed["flip"], changed["mask_ratio"]) == (6, True, 0.4)
    changed = again("unveil pretrain", here / "b", FOLDER, "--config", "o.toml", "--mask-ratio=0.5").config
    assert (changed["seed"], changed["flip"], changed["mask_ratio"], changed["image_size"]) == (5, False, 0.5, [16, 16])
    changed = begun(unveil.pretrain, config="o.toml", data=FOLDER, mask_ratio=0.5, out=here / "c").config
    assert (changed["seed"], changed["flip"], changed["mask_ratio"], changed["image_size"]) == (5, False, 0.5, [16, 16])
    assert run.config["mask_ratio"] == 0.4


def test_the_options_of_a_method_are_for_that_method(here, begun, capsys):
    begun(unveil.pretrain, FOLDER, out=here / "run", mask_ratio=0.4, decoder_depth=1, **SMALL)
    other = again("unveil pretrain", here / "a", "--config", "run", "--method", "simmim").config
    assert (other["method"], other["mask_ratio"], other["epochs"]) == ("simmim", 0.6, 1.0)
    said = " ".join(capsys.readouterr().err.split())
    assert "options of mae are not taken from run for another method" in said
    assert "mask_ratio" in said
    assert begun(unveil.pretrain, config="run", method="simmim", out=here / "b").config == other
    same = again("unveil pretrain", here / "c", "--config", "run", "--method", "mae").config
    assert (same["mask_ratio"], same["decoder_depth"]) == (0.4, 1)


def test_an_older_run_is_migrated(here, begun):
    run = begun(unveil.pretrain, FOLDER, out=here / "run", grad_checkpointing=True, **SMALL)
    facts = json.loads((run.path / "run.json").read_text())
    config = facts["config"]
    for old, new in (("recompute", "grad_checkpointing"), ("clip", "clip_grad"), ("monitor_times", "num_evals")):
        config[old] = config.pop(new)
    for new in ("clip_mode", "normalisation", "crop_from", "min_lr"):
        del config[new]
    del facts["checksum"], facts["format"]
    (run.path / "run.json").write_text(json.dumps(facts))
    assert "--grad-checkpointing" in unveil.command(run.path)
    assert "--crop-from shrunk" in unveil.command(run.path)
    found = again("unveil pretrain", here / "again", "--config", "run").config
    assert (found["grad_checkpointing"], found["crop_from"]) == (True, "shrunk")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr = 0.1", "o.toml has the option 'lr', which unveil pretrain does not have; did you mean base_lr"),
        ("mask_ratio = 'much'", "o.toml: mask_ratio is 'much', expected a number"),
        ("mask_ratio = 1.5", "o.toml: mask_ratio is 1.5, expected a number"),
        ("method = 'maee'", "there is no method 'maee'; did you mean mae?"),
        ("model = 'vit-enormous'", "o.toml: model is 'vit-enormous': did you mean vit-nano?"),
        ("out = 'runs/a'", "o.toml has the option 'out': an earlier run is never written to"),
        ("run = 'runs/a'", "o.toml has the option 'run', which this command does not have"),
        ("[mae]\nmask_ratio = 0.5", "o.toml has a table 'mae': expected options only"),
        ("mask-ratio = 0.5\nmask_ratio = 0.5", "o.toml has the option 'mask_ratio' twice"),
        ("mask_ratio 0.5", "o.toml is not valid TOML"),
        ("data = 3", "o.toml has data = 3: expected a text in quotes"),
        ("method = 'evil.py:Method'", "o.toml names the method evil.py:Method, which is not part of unveil"),
    ],
)
def test_files_that_cannot_be_used(text, said, here, capsys):
    (here / "evil.py").write_text("raise SystemExit('imported')\nclass Method: pass")
    (here / "o.toml").write_text(text)
    try:
        code = cli.execute(["pretrain", "--config", "o.toml", "--out", "new"])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert code == 2
    assert said in " ".join((captured.err + captured.out).replace("│", " ").split())
    assert not (here / "new").exists()


def test_paths_that_are_no_file_of_options(here, begun, capsys):
    begun(unveil.pretrain, FOLDER, out=here / "run", **SMALL)
    for words, said in (
        (["pretrain", "--config"], "--config needs one run folder, run.json or TOML file"),
        (["pretrain", "--config", "run", "--config", "run"], "--config needs one run folder"),
        (["pretrain", "--config", "nothing"], "nothing does not exist: expected a run folder, its run.json, or a TOML file"),
        (["pretrain", "--config", FOLDER], "has no run.json"),
        (["finetune", "--config", "run"], "run is a run of unveil pretrain, whose options are not those of unveil finetune"),
        (["pretrain", "--config", f"{FOLDER}/train/ä/0.png"], "is damaged"),
    ):
        assert cli.execute(words) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(UnveilError, match="nothing does not exist"):
        unveil.finetune("run", config="nothing")


def test_help_shows_the_values_of_the_file(here, begun, capsys):
    begun(unveil.pretrain, FOLDER, out=here / "run", mask_ratio=0.42, **SMALL)
    with pytest.raises(SystemExit):
        cli.execute(["pretrain", "--config", "run", "--help"])
    assert "0.42" in capsys.readouterr().out


def test_a_class_from_outside_is_not_imported_unasked(here, begun, capsys):
    source = Path(unveil.__file__).parents[2] / "examples" / "custom_method.py"
    (here / "mine.py").write_text(source.read_text().split("if __name__")[0])
    name = next(line.split()[1].split("(")[0] for line in source.read_text().splitlines() if "(Method)" in line)
    run = begun(unveil.pretrain, FOLDER, method=f"mine.py:{name}", out=here / "run", **SMALL)
    line = unveil.command(run)  # in this process it is trusted already
    assert f"--method {here}/mine.py:{name}" in line
    assert cli.execute(["pretrain", "--config", "run"]) == 2
    assert f"if you trust it, add --method {here}/mine.py:{name}" in capsys.readouterr().err
    assert again("unveil pretrain --config run", here / "again", "--method", f"mine.py:{name}").config == run.config
