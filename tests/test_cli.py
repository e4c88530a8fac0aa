"""The command line: fast help, exit codes, one clear sentence, and only what was given is passed on."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unveil
from unveil import cli, command_line, plugins
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.paths import TORCHVISION_NAMES, expand_braces, refuse_foreign_folder
from unveil.verbs import METHOD

FORMS = [(*name.split(),) for name in VERBS] + [
    ("pretrain", "--method", "bert"),
    ("pretrain", "--method=dino"),
    ("study", "--method", "wordmae"),
    ("probe", "--kind", "partial"),
]
"""Command lines whose help differs."""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def main(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(argv))
    return caught.value.code


def help_of(capsys: pytest.CaptureFixture[str], *argv: str, everything: bool = False) -> str:
    """The help of a command as one line."""
    assert main(*argv, "--help-all" if everything else "--help") == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def parse(name: str, *argv: str) -> dict[str, object]:
    """What the function of a command is called with."""
    return command_line.parse_options(name, command_line.form_of(name, VERBS[name], argv), argv)


# Speed


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--help", 0),
        ("--version", 0),
        ("pretrain --help", 0),
        ("pretrain --method bert --help-all", 0),
        ("finetune --help", 0),
        ("probe --help-all", 0),
        ("study information-density --help", 0),
        ("pretrian", 2),
        ("pretrain --nope", 2),
        ("pretrain --epochs many", 2),
        ("pretrain wrong/path", 1),
        ("pretrain wrong/path --method bert", 1),
        ("pretrain shards-{000..002}.tar", 1),
        ("pretrain digits --out {file}", 1),
        ("plan digits --out {file}", 1),
        ("compare mae,dino wrong/path", 1),
        ("compare bert wrong/path", 1),
        ("study mask_ratio=0.5 wrong/path", 1),
        ("study information-density wrong/path corpus", 1),
        ("finetune wrong/path", 1),
        ("finetune {file} wrong/path", 1),
        ("fill-mask wrong/path text", 1),
        ("probe wrong/path", 1),
        ("probe {file} --test wrong/path", 1),
        ("embed wrong/path digits", 1),
        ("embed {file} wrong/path", 1),
        ("embed {file} digits --out {file}", 1),
        ("embed {file} digits --out features.txt", 1),
        ("reconstruct wrong/path", 1),
        ("reconstruct {file} --out figure.txt", 1),
        ("export wrong/path --to timm", 1),
        ("export {file} --to timm --out {file}", 1),
        ("pack wrong/path out", 1),
        ("translate train wrong/path", 1),
        ("translate run wrong/path", 1),
        ("report {file}", 1),
    ],
)
def test_wrong_input_is_reported_without_torch(line, code, tmp_path):
    (tmp_path / "file").write_text("nothing")
    program = (
        "import sys\nfrom unveil.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert 'unveil.cli' in sys.modules\n    print('TORCH' if 'torch' in sys.modules else 'LIGHT', end.code)"
    )
    done = python("-c", program, *line.replace("{file}", str(tmp_path / "file")).split())
    assert done.stdout.splitlines()[-1] == f"LIGHT {code}", done.stderr
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("unveil: ")
        assert len(done.stderr.splitlines()) == 1


def processor_seconds(*arguments: str, tries: int = 3) -> float:
    """Processor seconds of the fastest of some runs, since other processes on the machine slow down the clock on the wall."""
    seconds = []
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        python(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_start_up_is_fast():
    assert processor_seconds("-c", "import unveil") - processor_seconds("-c", "pass") < 0.2
    assert processor_seconds("-m", "unveil", "pretrain", "wrong/path") < 1.0


# Help


def test_the_command_itself():
    done = python("-m", "unveil", "--help")
    assert done.returncode == 0
    shown = " ".join(done.stdout.split())
    for name, verb in VERBS.items():
        assert name in shown
        assert verb.summary.splitlines()[0].rstrip(".") in shown
    assert max(map(len, done.stdout.splitlines())) <= 80
    done = python("-m", "unveil")
    assert done.returncode == 2


@pytest.mark.parametrize("argv", FORMS, ids=" ".join)
def test_every_command_has_help(argv, capsys):
    name = command_line.verb_name(argv)
    verb = command_line.form_of(name, VERBS[name], argv)
    shown = help_of(capsys, *argv)
    assert f"unveil {name}" in shown
    assert " ".join(verb.summary.split()) in shown
    for key, argument in verb.arguments.items():
        assert argument.help[:12] in shown
        assert argument.positional or f"--{key.replace('_', '-')}" in shown
    assert "None" not in shown
    assert ("--trust PATH" in shown) == ("run" in verb.arguments and name != "translate run")


@pytest.mark.parametrize("argv", FORMS, ids=" ".join)
@pytest.mark.parametrize("wanted", ["--help", "--help-all"])
def test_help_fits_into_80_columns(argv, wanted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(*argv, wanted) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("argv", FORMS, ids=" ".join)
def test_help_shows_at_most_30_options(argv, capsys):
    name = command_line.verb_name(argv)
    verb = command_line.form_of(name, VERBS[name], argv)
    groups, _ = command_line.groups_of(verb, argv)
    options = [option for group in groups.values() for option in group]
    every = len(options) + len(verb.arguments) + verb.has_trust
    visible = every - sum(option.hidden for option in options)
    assert visible <= 30
    some, all_ = help_of(capsys, *argv), help_of(capsys, *argv, everything=True)
    for option in options:
        flag = f"--{option.name.replace('_', '-')} "
        assert flag in all_.replace(",", " ")
        assert (flag in some.replace(",", " ")) == (not option.hidden)
    assert (f"unveil {name} --help-all lists all {every} options." in some) == (visible < every)
    assert "--help-all" not in all_


def test_help_names_the_inputs(capsys):
    assert "RUN DATA" in help_of(capsys, "embed")


def test_help_of_pretrain(capsys):
    shown = help_of(capsys, "pretrain")
    for flag in ("--mask-ratio", "--epochs", "--base-lr", "--crop-scale", "--device", "--image-size", "--flip", "--warmup-epochs"):
        assert flag in shown
    for flag in ("--eps", "--beta1", "--keep-checkpoints", "--tracker", "--decoder-heads", "--held-out", "--layer-decay"):
        assert flag not in shown
        assert flag in help_of(capsys, "pretrain", everything=True)
    assert "Share of the patches that is masked (figure 5). (default: 0.75; 0.6 for digits)" in shown
    assert "--model {vit-nano,vit-tiny," in shown


def test_help_shows_the_defaults_of_method_and_task(capsys):
    assert "(default: 0.004" not in help_of(capsys, "pretrain")
    assert "scaled by batch size / 256. (default: 0.0005)" in help_of(capsys, "pretrain", "--method", "dino")
    assert "--local-crops" in help_of(capsys, "pretrain", "--method", "dino")
    assert "Passes over the data. (default: 90.0)" in help_of(capsys, "probe")
    assert "Passes over the data. (default: 50.0)" in help_of(capsys, "probe", "--kind", "partial")
    assert "Passes over the data. (default: that of each method)" in help_of(capsys, "compare")
    assert "--mixup" in help_of(capsys, "finetune")
    assert "--blocks" in help_of(capsys, "finetune", "--task", "partial")


# Usage


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["pretrian"], "there is no command 'pretrian'; did you mean pretrain?"),
        (["translate", "--help"], "there is no command 'translate'; did you mean translate train or translate run?"),
        (["fill", "run", "text"], "there is no command 'fill'; did you mean fill-mask?"),
        (["why"], "there is no command 'why'; did you mean study information-density?"),
        (["evaluate"], "did you mean probe?"),
        (["zzz"], "there is no command 'zzz'; see unveil --help"),
        (["pretrain", "--mask-ratoi", "0.5"], "pretrain has no option --mask-ratoi; did you mean --mask-ratio"),
        (["pretrain", "--learning-rate", "1"], "did you mean --base-lr (the peak learning rate for a batch of 256"),
        (["pretrain", "--lr=1"], "pretrain has no option --lr; did you mean --base-lr"),
        (
            ["finetune", "run", "--task", "regression", "--blocks", "1"],
            "finetune --task regression has no option --blocks; unveil finetune --task regression --help-all lists its options",
        ),
        (["pretrain", "--blr", "1"], "--base-lr"),
        (["pretrain", "--workers", "1"], "--workers; the number of reading threads is chosen automatically"),
        (["pretrain", "--num_workers", "1"], "--num_workers; the number of reading threads is chosen automatically"),
        (["pretrain", "--wd", "1"], "did you mean --weight-decay?"),
        (["pretrain", "--accumulate", "1"], "did you mean --accum-steps?"),
        (["pretrain", "--accum_iter", "1"], "did you mean --accum-steps?"),
        (["pretrain", "--clip", "1"], "did you mean --clip-grad?"),
        (["pretrain", "--recompute"], "did you mean --grad-checkpointing?"),
        (["pretrain", "--gradient-checkpointing"], "did you mean --grad-checkpointing?"),
        (["pretrain", "--img-size", "224"], "did you mean --image-size?"),
        (["pretrain", "--output_dir", "x"], "did you mean --out?"),
        (["pretrain", "--gpus", "2"], "start one process per GPU with torchrun"),
        (["pretrain", "--data-path", "x"], "pretrain has no option --data-path; did you mean DATA?"),
        (["pretrain", "--data", "x"], "pretrain has no option --data; did you mean DATA?"),
        (["probe", "--neighbors", "2"], "did you mean --neighbours?"),
        (["pretrain", "--epochs", "many"], "many"),
        (["pretrain", "--method", "mea"], "there is no method 'mea'; did you mean mae?"),
        (["pretrain", "--method", "mine.py"], "mine.py names a file but no class: write mine.py:MyClass"),
        (["pretrain", "--method", "no/mine.py:A"], "no/mine.py cannot be read: No such file"),
        (["finetune", "run", "--task", "partil"], "there is no task 'partil'; did you mean partial?"),
        (["plan", "--method", "bert"], "plan needs a method for images, but bert learns from text"),
        (["pretrain", "--target", "sound"], "sound"),
        (["embed", "run", "data", "--compile"], "embed does not use --compile: nothing is trained"),
        (["embed", "run", "data", "--parallel=fsdp"], "embed does not use --parallel: every process has the whole model"),
        (["probe", "run", "--save_seconds", "3"], "probe does not use --save_seconds: a probe saves no checkpoints"),
        (["compare", "mae", "--seed", "3"], "compare does not use --seed: a comparison has several seeds: give --seeds"),
        (["embed", "run", "data", "--trust"], "--trust needs a file or a module"),
        (["export", "run"], "--to"),
        (["probe"], "A run folder, an exported file"),
    ],
)
def test_usage_errors(argv, sentence, capsys):
    assert main(*argv) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert sentence in " ".join(printed.err.replace("│", " ").split())
    assert "Traceback" not in printed.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_failures_are_one_sentence(tmp_path, photos, capsys):
    run = str(tmp_path / "run")
    done = python("-m", "unveil", "pretrain", str(tmp_path / "missing"), "--out", run)
    assert done.returncode == 1
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("unveil: ")
    assert "missing" in done.stderr
    sizes = ["--model", "vit-nano", "--image-size", "16", "--patch-size", "5"]
    cases = {
        ("pretrain", str(photos), *sizes, "--out", run): "image side 16 is not a multiple of patch 5: use 15 or 20",
        ("pretrain", str(photos), "--out", str(photos)): "photos exists and is not a run folder: choose another --out",
        ("probe", str(tmp_path / "missing")): "missing",
        ("probe", str(tmp_path / "photo")): f"did you mean {photos}?",
        ("embed", str(photos), str(photos), "--out", "x.txt"): "x.txt ends in .txt: use .npz or .parquet",
        ("report", str(photos)): f"{photos} is not a run folder: it has no run.json",
    }
    for argv, sentence in cases.items():
        assert main(*argv) == 1
        said = capsys.readouterr().err
        assert said.startswith("unveil: ")
        assert sentence in said
        assert len(said.splitlines()) == 1
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("argv", [("pretrain", "{missing}"), ("pretrain", "digits", "--model", "vit-nano", "--out", "{taken}")])
def test_the_early_sentence_is_that_of_the_function(argv, tmp_path, photos, capsys):
    argv = [word.format(missing=tmp_path / "missing", taken=photos) for word in argv]
    assert main(*argv) == 1
    early = capsys.readouterr().err
    options = parse(argv[0], *argv[1:])
    with pytest.raises(unveil.UnveilError) as caught:
        unveil.pretrain(**options)
    assert early == f"unveil: {caught.value}\n"


def test_failures_in_process(monkeypatch, capsys):
    monkeypatch.setattr("unveil.cli.check_paths", lambda *_: None)

    def fails(error: BaseException) -> tuple[int, str]:
        def function(**_: object) -> None:
            raise error

        monkeypatch.setattr("unveil.recipes.report.report", function)
        code = main("report", "run")
        return code, capsys.readouterr().err

    assert fails(unveil.UnveilError("it is broken")) == (1, "unveil: it is broken\n")
    assert fails(FileNotFoundError(2, "No such file or directory", "x.png")) == (1, "unveil: x.png: No such file or directory\n")
    code, said = fails(KeyboardInterrupt())
    assert code == 130
    assert said == "unveil: stopped: run the same command to start again\n"
    assert fails(unveil.errors.Interrupted("it is saved", 15)) == (143, "unveil: it is saved\n")
    monkeypatch.setattr("unveil.recipes.report.report", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        cli.main(["report", "run"])


def test_a_process_that_lost_another_is_reported_in_a_sentence():
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5000. This is typically\nmore")
    sentence = cli.plain(gloo)
    assert sentence.startswith("lost contact with another process (Connection closed by peer [127.0.0.1]:5000); torchrun restarts")
    assert cli.plain(RuntimeError("a bug")) is None


# What is passed on


def test_too_little_memory_and_too_few_threads_are_a_sentence():
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")):
        assert cli.plain(error).startswith("out of memory: use a smaller --batch-size")
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, np.uint8)
    assert cli.plain(caught.value).startswith("out of memory")
    assert cli.plain(RuntimeError("can't start new thread")).startswith("the system allows no further thread")


def test_only_what_was_given_is_passed_on():
    given = {"data": "photos", "method": "mae", "model": None, "out": None, "resume_from": None, "extend": False}
    given |= {"config": None}
    assert parse("pretrain", "photos") == given
    assert parse("pretrain") == {**given, "data": "digits"}
    argv = "photos --epochs 3 --no-flip --base-lr=0.1 --image-size 32 48 --decoder_depth 2 --compile --warmup_epochs 2".split()
    assert parse("pretrain", *argv) == {
        **given,
        "epochs": 3.0,
        "flip": False,
        "base_lr": 0.1,
        "image_size": (32, 48),
        "decoder_depth": 2,
        "compile": True,
        "warmup_epochs": 2.0,
    }
    assert parse("pretrain", "photos", "--mask-ratio", "0.75") == {**given, "mask_ratio": 0.75}  # a default counts if it is given
    assert parse("pretrain", "photos", "--eps", "1e-6") == {**given, "eps": 1e-6}  # as does what --help hides
    run = {"run": "run", "data": None, "test": None, "out": None}
    assert parse("probe", "run", "--kind", "knn") == {**run, "kind": "knn"}
    run |= {"resume_from": None, "extend": False, "config": None}
    assert parse("finetune", "run") == {**run, "task": None}
    assert parse("finetune", "run", "--task", "partial", "--blocks", "2") == {**run, "task": "partial", "blocks": 2.0}
    hub = {"licence": None, "push": None, "public": False}
    assert parse("export", "run", "--to", "timm") == {"run": "run", "to": "timm", "out": None} | hub
    assert parse("pretrain", "corpus", "--method", "bert", "--max-length", "64") == {
        **given,
        "data": "corpus",
        "method": "bert",
        "max_length": 64,
    }


def test_options_of_one_method():
    argv = (
        "mae-pixel,bert photos --mae-pixel.target pixel --bert.max-length 32 --finetune.labels 5 --epochs 2 --bert.model bert-tiny"
    )
    options = parse("compare", *argv.split())
    assert options["mae-pixel"] == {"target": "pixel"}
    assert options["bert"] == {"max_length": 32, "model": "bert-tiny"}
    assert options["finetune"] == {"labels": 5}
    assert options["epochs"] == 2.0
    with pytest.raises(cli.UsageError, match=r"pretrain has no option --taget; did you mean --target\?"):
        parse("compare", "mae", "--mae.taget", "pixel")
    tuned = parse("compare", "mae", "photos", "--finetune.task", "multilabel", "--finetune.test", "others")
    assert tuned["finetune"] == {"task": "multilabel", "test": "others"}
    for option in ("--mae.out", "--finetune.out=x", "--finetune.resume-from"):  # they were left out without a word
        with pytest.raises(UnveilError, match=f"^{option.partition('=')[0]} cannot be given for some of the runs: leave it out$"):
            parse("compare", "mae", "photos", option, *(() if "=" in option else ("x",)))


def test_the_form_of_a_command_follows_the_run(tmp_path):
    assert command_line.form_of("finetune", VERBS["finetune"], [str(tmp_path)]) is VERBS["finetune"]
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert command_line.form_of("finetune", VERBS["finetune"], [str(tmp_path), "x"]) is VERBS["finetune"].forms["text"]
    for verb in VERBS.values():
        if METHOD in verb.configs.values() and verb.forms:
            assert command_line.form_of("pretrain", verb, ["x", "--method", "wordmae"]) is verb.forms["text"]
    compare = VERBS["compare"]
    forms = {"bert,wordmae-low": "text", "mae,bert": "images", "mae": "images", "nothing": "images"}
    for named, form in forms.items():
        assert command_line.form_of("compare", compare, [named, "x"]) is {"images": compare, **compare.forms}[form]
    assert command_line.form_of("compare", compare, []) is compare
    assert parse("compare", "bert,wordmae", "corpus", "--model", "bert-nano")["model"] == "bert-nano"


def test_the_options_reach_the_function(monkeypatch, photos):
    seen = {}
    monkeypatch.setattr("unveil.recipes.pretrain.pretrain", lambda **options: seen.update(options))
    assert main("pretrain", str(photos), "--epochs", "2", "--out", "here") == 0
    given = {
        "data": str(photos),
        "method": "mae",
        "model": None,
        "out": "here",
        "resume_from": None,
        "extend": False,
        "config": None,
        "epochs": 2.0,
    }
    assert seen == given


def test_trust_is_handled_for_every_command_with_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(plugins, "_trusted", set())
    for name in ("a.py", "b.py"):
        (tmp_path / name).touch()
    words = ["run", "--trust", str(tmp_path / "a.py"), "data", f"--trust={tmp_path / 'b.py'}:Class", "--trust", "package.module"]
    options = parse("embed", *words)
    assert options == {"run": "run", "data": "data", "out": None}
    assert plugins._trusted == {str(tmp_path / "a.py"), str(tmp_path / "b.py"), "package.module"}
    with pytest.raises(cli.UsageError, match="pretrain has no option --trust"):
        parse("pretrain", "photos", "--trust", "a.py")


# Paths


def test_the_names_of_data_sets_are_those_that_can_be_opened():
    from unveil.data.named_datasets import TORCHVISION_SETS

    assert set(TORCHVISION_NAMES) == set(TORCHVISION_SETS)


def test_braces():
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain") == ["plain"]


@pytest.mark.parametrize(
    ("files", "refused"), [([], False), (["plan.json"], False), (["run.json", "x"], False), (["x"], True), ([".run.json-1"], False)]
)
def test_a_run_folder_may_hold_a_plan(tmp_path, files, refused):
    refuse_foreign_folder(tmp_path / "new")
    for name in files:
        (tmp_path / name).write_text("{}")
    if refused:
        with pytest.raises(unveil.UnveilError, match="exists and is not a run folder: choose another --out"):
            refuse_foreign_folder(tmp_path)
    else:
        refuse_foreign_folder(tmp_path)


def test_an_option_of_a_plug_in_may_not_shadow_a_built_in_one(tmp_path, capsys):
    source = (Path(__file__).parents[1] / "examples" / "custom_method.py").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(source.replace("noise: float", "epochs: float").replace("config.noise", "config.epochs"))
    with pytest.raises(SystemExit) as stop:
        cli.main(["pretrain", "--method", f"{tmp_path / 'mine.py'}:Denoise", "--help"])
    assert stop.value.code == 2
    assert "the option 'epochs' of this class is an option of unveil pretrain already" in capsys.readouterr().err
