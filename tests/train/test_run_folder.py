"""Run folders: new, resumed, foreign, damaged, and written by earlier versions."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from unveil.errors import UnveilError
from unveil.train import run_folder
from unveil.train.run_folder import HARMLESS, Run, commit, open_run

CONFIG = {"epochs": 3, "image_size": (8, 8), "log_every": 10, "accum_steps": 1}
DATA = {"name": "photos", "fingerprint": "abc"}


def opened(
    path: Path, kind: str = "pretrain", config: dict = CONFIG, data: dict = DATA, write: bool = True
) -> tuple[Run, list[str]]:
    said: list[str] = []
    return open_run(path, kind, config, data, write=write, say=said.append), said


def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    file, git = tmp_path / "code.py", ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    file.write_text("1")
    assert commit(file) is None  # no checkout
    subprocess.run([*git, "init", "-q"], check=True)
    assert commit(file) is None  # not of the checkout: installed inside it
    subprocess.run([*git, "add", "code.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "a"], check=True)
    found = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert commit(file) == found
    file.write_text("2")
    assert commit(file) == f"{found}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit(file) is None  # no git


def test_a_new_run_writes_its_receipt_and_opens_again(tmp_path):
    run, said = opened(tmp_path / "a" / "run")
    assert run.config == {**CONFIG, "image_size": [8, 8]}
    facts = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert facts["kind"] == "pretrain"
    assert facts["data"] == DATA
    assert {"command", "commit", "started", "versions", "hardware", "world_size"} <= facts.keys()
    assert facts["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    again, said_again = opened(tmp_path / "a" / "run")
    assert again.facts | {"checksum": facts["checksum"]} == facts
    assert not said
    assert not said_again
    assert os.fspath(run) == str(run) == str(run.path)  # a run is taken where a path is expected
    assert run.results == {}
    run.write_results({"knn": 0.5})
    assert Run(run.path).results == {"knn": 0.5}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert opened(empty)[0].path == empty  # an empty folder will do


def test_other_settings_are_refused_with_the_difference(tmp_path):
    opened(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UnveilError) as caught:
        opened(tmp_path / "run", config={**CONFIG, "epochs": 4, "log_every": 1, "flip": True})
    assert str(caught.value).splitlines()[1:-1] == [
        "  config epochs: was 3, is 4",
        "  config flip: was None, is True",
        "  config log_every: was 10, is 1",
    ]
    assert str(caught.value).splitlines()[-1] == (
        "Use the old settings to resume it, or choose another --out; to go on with another length, rate or precision, add "
        f"--resume-from {tmp_path / 'run'}."
    )
    with pytest.raises(UnveilError, match="data fingerprint: was 'abc', is 'xyz'"):
        opened(tmp_path / "run", data={**DATA, "fingerprint": "xyz"})
    with pytest.raises(UnveilError, match="is a pretrain run, not a finetune run"):
        opened(tmp_path / "run", kind="finetune")
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_harmless_changes_are_allowed_and_said(tmp_path):
    more = dict.fromkeys(HARMLESS - CONFIG.keys(), "x")
    opened(tmp_path / "run", config=CONFIG | more)
    (tmp_path / "run" / "checkpoints").mkdir()
    changed = {**CONFIG, "log_every": 1, "accum_steps": 2, **dict.fromkeys(more, "y")}
    _, said = opened(tmp_path / "run", config=changed)
    assert len(said) == 1
    for name in HARMLESS:
        assert f"  config {name}: was " in said[0]


def test_harmless_options_that_an_earlier_version_did_not_have_are_not_mentioned(tmp_path):
    opened(tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    assert not opened(tmp_path / "run", config=CONFIG | dict.fromkeys(HARMLESS - CONFIG.keys(), "x"))[1]


def test_a_start_that_was_refused_does_not_lock_the_folder(tmp_path):
    opened(tmp_path / "run")
    corrected, said = opened(tmp_path / "run", config={**CONFIG, "epochs": 4})
    assert corrected.config["epochs"] == 4
    assert not said


def test_another_spelling_of_a_path_is_no_change(tmp_path, monkeypatch):
    """The encoder of a fine-tuning run, as `runs/a`, `./runs/a/`, or its absolute path."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    opened(tmp_path / "run", config={**CONFIG, "from": "runs/a"})
    (tmp_path / "run" / "checkpoints").mkdir()
    for spelling in ("./runs/a/", str(tmp_path / "runs" / "a")):
        assert not opened(tmp_path / "run", config={**CONFIG, "from": spelling})[1]
    for other in ("runs/b", "runs/c", "scratch"):
        with pytest.raises(UnveilError, match=f"config from: was 'runs/a', is '{other}'"):
            opened(tmp_path / "run", config={**CONFIG, "from": other})


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(UnveilError, match=f"{name} exists and is not a run folder: choose another --out"):
            opened(tmp_path / name)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]
    with pytest.raises(UnveilError, match=r"is not a run folder: it has no run\.json"):
        Run(tmp_path / "photos")
    (tmp_path / "photos" / "run.json").write_text("{")
    with pytest.raises(UnveilError, match=r"run\.json is damaged"):
        Run(tmp_path / "photos")


def test_a_kill_while_a_run_begins_can_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "run")
    monkeypatch.undo()
    opened(tmp_path / "run")


def test_other_processes_write_nothing(tmp_path):
    run, _ = opened(tmp_path / "run", write=False)
    assert run.config["epochs"] == 3
    assert not (tmp_path / "run").exists()


def test_results_and_log_are_parsed_once_until_they_change(tmp_path, monkeypatch):
    run, _ = opened(tmp_path / "run")
    parsed: list[str] = []
    for name in ("read_results", "read_log"):
        real = getattr(run_folder, name)
        monkeypatch.setattr(run_folder, name, lambda path, real=real: (parsed.append(path.name), real(path))[1])
    run.write_results({"knn": {"top1": 0.5}})
    log = run.path / "log.jsonl"
    log.write_text('{"step": 1}\n')
    for _ in range(3):
        assert run.results == {"knn": {"top1": 0.5}}
        assert run.log == [{"step": 1}]
    assert parsed == ["results.json", "log.jsonl"]
    run.results["knn"]["top1"] = 9  # a copy: changing it does not change the run
    run.log.append({})
    assert run.results == {"knn": {"top1": 0.5}}
    assert len(run.log) == 1
    run.write_results({"knn": {"top1": 0.6}})
    assert run.results == {"knn": {"top1": 0.6}}
    with log.open("a") as file:  # by another process that trains
        file.write('{"step": 2}\n{"st')
    assert run.log == [{"step": 1}, {"step": 2}]
    log.unlink()
    assert run.log == []


@pytest.mark.parametrize(("text", "reason"), [("{", "it is not valid JSON"), ("[1]", "it holds a JSON list, expected an object")])
@pytest.mark.parametrize("name", ["run.json", "results.json"])
def test_damaged_files_give_one_sentence(tmp_path, name, text, reason):
    run, _ = opened(tmp_path / "run")
    (run.path / name).write_text(text)
    with pytest.raises(UnveilError, match=rf"{name} is damaged: {reason}"):
        print(Run(run.path).results)


def test_microbatches_are_harmless_but_with_dropout(tmp_path):
    """Drop path and mixing draw the same numbers in any number of microbatches; dropout does not."""
    for dropout in (0.0, 0.1):
        folder, config = tmp_path / str(dropout), CONFIG | {"accum_steps": 1, "dropout": dropout}
        open_run(folder, "finetune", config, DATA, write=True, say=print)
        (folder / "checkpoints").mkdir()
        if dropout:
            with pytest.raises(UnveilError, match="config accum_steps: was 1, is 2"):
                open_run(folder, "finetune", config | {"accum_steps": 2}, DATA, write=True, say=print)
        else:
            open_run(folder, "finetune", config | {"accum_steps": 2}, DATA, write=True, say=print)
