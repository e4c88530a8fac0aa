"""The command line: fast help, exit codes, one clear sentence, and only what was given is passed on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unveil
from unveil import cli
from unveil.cli import parse
from unveil.commands import VERBS


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def main(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(argv))
    return caught.value.code


@pytest.mark.parametrize("line", ["--help", "pretrain --help", "probe --help", "--version", "pretrian", "pretrain --nope"])
def test_nothing_imports_torch_before_a_verb_runs(line):
    code = (
        "import sys\nfrom unveil.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    assert 'unveil.cli' in sys.modules\n    print('TORCH' if 'torch' in sys.modules else 'LIGHT', end.code)"
    )
    done = python("-c", code, *line.split())
    assert done.stdout.splitlines()[-1] == f"LIGHT {2 if line in ('pretrian', 'pretrain --nope') else 0}", done.stderr


def test_the_command_itself():
    done = python("-m", "unveil", "--help")
    assert done.returncode == 0
    for name, verb in VERBS.items():
        assert name in done.stdout
        assert verb.says in done.stdout
    done = python("-m", "unveil")
    assert done.returncode == 2


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(name, capsys):
    assert main(*name.split(), "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"unveil {name}" in shown
    assert VERBS[name].says in shown
    for key, argument in VERBS[name].arguments.items():
        assert argument.help[:20] in shown
        if not argument.positional:
            assert f"--{key}" in shown


def test_help_names_the_inputs(capsys):
    assert main("embed", "--help") == 0
    assert "RUN DATA" in capsys.readouterr().out


def test_help_of_pretrain_tells_the_knobs(capsys):
    assert main("pretrain", "--help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("--mask-ratio", "--epochs", "--base-lr", "--crop-scale", "--device", "--image-size", "--flip"):
        assert flag in shown
    assert "Share of patches that is hidden (figure 5). (default: 0.75; 0.6 for the digits)" in shown
    assert "--model {vit-nano,vit-tiny," in shown
    assert "None" not in shown


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["pretrian"], "there is no command 'pretrian'; did you mean pretrain?"),
        (["translate", "--help"], "there is no command 'translate'; did you mean translate train or translate run?"),
        (["zzz"], "there is no command 'zzz'; see unveil --help"),
        (["pretrain", "--mask-ratoi", "0.5"], "--mask-ratio"),
        (["pretrain", "--epochs", "many"], "many"),
        (["pretrain", "--method", "mea"], "mae"),
        (["pretrain", "--target", "sound"], "sound"),
        (["export", "run"], "--to"),
        (["probe"], "A run folder, an exported file"),
    ],
)
def test_usage_errors(argv, sentence, capsys):
    assert main(*argv) == 2
    said = capsys.readouterr()
    assert not said.out
    assert sentence in said.err
    assert "Traceback" not in said.err


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((16, 16, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_failures_say_one_sentence(tmp_path, photos, capsys):
    run = str(tmp_path / "run")
    done = python("-m", "unveil", "pretrain", str(tmp_path / "missing"), "--out", run)
    assert done.returncode == 1
    assert not done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("unveil: ")
    assert "missing" in done.stderr
    cases = {
        (
            "pretrain",
            str(photos),
            "--model",
            "vit-nano",
            "--image-size",
            "16",
            "--patch-size",
            "5",
            "--out",
            run,
        ): "image side 16 is not a multiple of patch 5: use 15 or 20",
        ("probe", str(tmp_path / "missing")): "missing",
    }
    for argv, sentence in cases.items():
        assert main(*argv) == 1
        said = capsys.readouterr().err
        assert said.startswith("unveil: ")
        assert sentence in said
        assert len(said.splitlines()) == 1
    assert sorted(path.name for path in photos.iterdir()) == ["0.png", "1.png", "2.png", "3.png"]


def test_failures_in_process(monkeypatch, capsys):
    def fails(error: BaseException) -> tuple[int, str]:
        def function(**_: object) -> None:
            raise error

        monkeypatch.setattr("unveil.recipes.look.report", function)
        code = main("report", "run")
        return code, capsys.readouterr().err

    assert fails(unveil.UnveilError("it is broken")) == (1, "unveil: it is broken\n")
    assert fails(FileNotFoundError(2, "No such file or directory", "x.png")) == (1, "unveil: x.png: No such file or directory\n")
    code, said = fails(KeyboardInterrupt())
    assert code == 1
    assert "the same command goes on" in said
    with pytest.raises(ZeroDivisionError):  # a fault of our own keeps its traceback
        fails_raw(monkeypatch)


def fails_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unveil.recipes.look.report", lambda **_: 1 / 0)
    cli.main(["report", "run"])


def test_only_what_was_given_is_passed_on():
    given = {"data": "photos", "method": "mae", "model": None, "out": None}
    assert parse("pretrain", VERBS["pretrain"], ["photos"]) == given
    assert parse("pretrain", VERBS["pretrain"], []) == {**given, "data": "digits"}
    argv = "photos --epochs 3 --no-flip --base-lr=0.1 --image-size 32 48 --decoder_depth 2 --compile".split()
    assert parse("pretrain", VERBS["pretrain"], argv) == {
        **given,
        "epochs": 3.0,
        "flip": False,
        "base_lr": 0.1,
        "image_size": (32, 48),
        "decoder_depth": 2,
        "compile": True,
    }
    default = ["photos", "--mask-ratio", "0.75"]  # a default that is given counts as given
    assert parse("pretrain", VERBS["pretrain"], default) == {**given, "mask_ratio": 0.75}
    assert parse("probe", VERBS["probe"], ["run", "--kind", "knn"]) == {
        "run": "run",
        "data": None,
        "test": None,
        "out": None,
        "kind": "knn",
    }
    assert parse("export", VERBS["export"], ["run", "--to", "timm"]) == {"run": "run", "to": "timm", "out": None}


def test_the_options_reach_the_function(monkeypatch):
    seen = {}
    monkeypatch.setattr("unveil.recipes.pretrain.pretrain", lambda **options: seen.update(options))
    assert main("pretrain", "photos", "--epochs", "2", "--out", "here") == 0
    assert seen == {"data": "photos", "method": "mae", "model": None, "out": "here", "epochs": 2.0}


def test_a_process_that_lost_another_says_so_in_a_sentence():
    gloo = RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5000. This is typically\nmore")
    said = cli.plain(gloo)
    assert said.startswith("lost touch with another process of this run (Connection closed by peer [127.0.0.1]:5000): torchrun")
    assert cli.plain(RuntimeError("a fault of our own")) is None
