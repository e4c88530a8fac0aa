"""Images that cannot be read, from the start or during a run: the same results in memory and on demand, and nothing unsaid."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unveil
from tests.processes import Command
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.errors import UnveilError
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

TINY: dict[str, Any] = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "batch_size": 8,
    "epochs": 3.0,
    "device": "cpu",
    "precision": "float32",
    "log_every": 1,
    "num_evals": 2,
}
BROKEN = 10  # every tenth file
TIMES = ("seconds", "cost", "run", "command", "started", "config", "checksum")
"""What differs between two runs that give the same."""

STEPS: dict[str, Any] = {"epochs": 2.0, "batch_size": 8}
PROBES: dict[str, dict[str, Any]] = {
    "quick": {},
    "sgd": {"protocol": "sgd", **STEPS},
    "knn": {"kind": "knn"},
    "partial": {"kind": "partial", **STEPS},
    "views": {"views": True, **STEPS},
}


def write_images(folder: Path, count: int = 60, broken: int = BROKEN) -> Path:
    """Two classes of images; one in `broken` is damaged, if that is not 0."""
    chance = np.random.default_rng(0)
    for i in range(count):
        file = folder / ("cold", "warm")[i % 2] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = chance.integers(0, 120, (20, 20 + i % 3, 3), dtype=np.uint8)
        pixels[..., 2 * (i % 2)] += 60
        Image.fromarray(pixels).save(file)
        if broken and i % broken == 3:
            file.write_bytes(file.read_bytes()[: 60 if i % 4 else 0])
    return folder


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the limit of images in memory."""
    return lambda limit: monkeypatch.setitem(ImageDataset.__init__.__kwdefaults__, "memory", limit)


def broken_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.png") if path.stat().st_size <= 60}


def outcome(folder: Path) -> dict[str, Any]:
    """The results of a run or a probe, without times and paths."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key not in TIMES}


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_pretraining_gives_the_same_in_memory_and_on_demand(
    tmp_path: Path, memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images")
    said = {}
    for limit in (MEMORY, 0):
        memory(limit)
        unveil.pretrain(str(images), out=tmp_path / f"run{limit}", **TINY)
        said[limit] = capsys.readouterr().err
    kept, fresh = tmp_path / f"run{MEMORY}", tmp_path / "run0"
    assert same_weights(kept, fresh)
    assert outcome(kept) == outcome(fresh)
    results = outcome(kept)
    assert results["images"] == 54  # a tenth of all 60 is held out
    assert results["skipped"] == sum(results["unreadable"].values()) == 6
    assert results["judged_on"]["train"] == 54 - results["unreadable"]["train"]
    assert results["judged_on"]["test"] == 6 - results["unreadable"]["test"]
    assert (kept / "skipped.txt").read_text() == (fresh / "skipped.txt").read_text()
    assert {line.split("\t")[0] for line in (kept / "skipped.txt").read_text().splitlines()} == broken_names(images)
    unveil.report(kept)
    page = (kept / "report.html").read_text(encoding="utf-8")
    roles = " and ".join(f"{count} in the {name} set" for name, count in results["unreadable"].items() if count)
    assert f"6 files were skipped. Of the images, {roles}: training replaced them by others, evaluations left them out." in page
    for text in said.values():
        assert "6 files could not be used" in text
        assert "could not be read: training replaced them by others, evaluations left them out" in text


def test_probes_and_fine_tuning_give_the_same_in_memory_and_on_demand(tmp_path: Path, memory: Callable[[int], None]) -> None:
    images = write_images(tmp_path / "images")
    run = unveil.pretrain(str(write_images(tmp_path / "good", 20, 0)), out=tmp_path / "run", **TINY).path
    hardware = {"device": "cpu", "precision": "float32"}
    unreadable = broken_names(images)
    for limit in (MEMORY, 0):
        memory(limit)
        for name, more in PROBES.items():
            unveil.probe(run, str(images), out=tmp_path / f"{name}{limit}", **(hardware | more))
        unveil.finetune(run, str(images), out=tmp_path / f"tuned{limit}", labels=30, **STEPS, **hardware)
    for name in (*PROBES, "tuned"):
        kept, fresh = tmp_path / f"{name}{MEMORY}", tmp_path / f"{name}0"
        a, b = outcome(kept), outcome(fresh)
        if name in ("quick", "sgd", "knn"):  # these read every image of the train set
            assert sum(a["unreadable"].values()) == 6
        assert a == b, name
        written = rows(kept / "predictions.csv")
        assert written == rows(fresh / "predictions.csv")
        assert not {row[0] for row in written} & unreadable
        assert len(written) == 1 + a["score"]["count"] == 1 + 6 - a["unreadable"]["test"]
    assert same_weights(tmp_path / f"tuned{MEMORY}", tmp_path / "tuned0")


def lose_from(step: int, lose: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls `lose` before the samples of a step are read."""
    real, done = unveil.data.loader.ImageLoader.share, []

    def share(loader: Any, at: int, share: int, shares: int) -> Any:
        if at >= step and not done:
            done.append(at)
            lose()
        return real(loader, at, share, shares)

    monkeypatch.setattr("unveil.data.loader.ImageLoader.share", share)


def take_away(folder: Path, names: list[str]) -> Callable[[], None]:
    def lose() -> None:
        (folder.parent / "away").mkdir()
        for i, name in enumerate(names):
            (folder / name).rename(folder.parent / "away" / f"{i}")

    return lose


def bring_back(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        (folder.parent / "away" / f"{i}").rename(folder / name)


def every_name(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


@pytest.mark.parametrize("loss", ["vanish", "truncate"])
def test_a_run_stops_when_its_images_vanish_and_resumes_when_they_are_back(
    loss: str, tmp_path: Path, memory: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """39 of 40 files deleted in flight used to end with exit code 0, and a model of one image."""
    monkeypatch.setattr("unveil.data.retries.PAUSES", (0.0, 0.01))
    images = write_images(tmp_path / "images", 40, 0)
    undisturbed = unveil.pretrain(str(images), out=tmp_path / "whole", **TINY).path
    memory(0)
    names = every_name(images)[1:]
    contents = {name: (images / name).read_bytes() for name in names}

    def truncate() -> None:
        for name in names:
            (images / name).write_bytes(contents[name][: len(contents[name]) // 2])

    with monkeypatch.context() as patch:
        lose_from(5, take_away(images, names) if loss == "vanish" else truncate, patch)
        with pytest.raises(UnveilError, match=r"of 36 training images \(.*%\) have become unreadable since the start") as caught:
            unveil.pretrain(str(images), out=tmp_path / "run", **TINY)
    assert "Step 5 is saved: the same command resumes" in str(caught.value)
    assert str(caught.value).count("\n") == 0
    run = Run(tmp_path / "run")
    assert run.checkpoints().steps()[-1] == 5
    assert not run.results
    assert "an image cannot be read: " in capsys.readouterr().err
    assert (run.path / "skipped.txt").read_text().count("\n") >= 1
    if loss == "vanish":
        bring_back(images, names)
    else:
        for name, content in contents.items():
            (images / name).write_bytes(content)
    resumed = unveil.pretrain(str(images), out=tmp_path / "run", **TINY).path
    assert same_weights(undisturbed, resumed)  # no step was trained on substitutes


def test_a_share_that_is_away_for_a_moment_changes_nothing(
    tmp_path: Path, memory: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(tmp_path / "images", 40, 0)
    undisturbed = unveil.pretrain(str(images), out=tmp_path / "whole", **TINY).path
    memory(0)
    pauses: list[float] = []

    def back_after_two(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            (tmp_path / "elsewhere").rename(images)

    monkeypatch.setattr("unveil.data.retries.time.sleep", back_after_two)
    lose_from(4, lambda: images.rename(tmp_path / "elsewhere"), monkeypatch)
    run = unveil.pretrain(str(images), out=tmp_path / "run", **TINY)
    assert len(pauses) >= 2
    assert same_weights(undisturbed, run.path)
    assert run.results["skipped"] == 0
    assert not (run.path / "skipped.txt").exists()
    assert "cannot be read" not in capsys.readouterr().err


def test_a_few_lost_images_are_replaced_and_said(
    tmp_path: Path, memory: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unveil.data.retries.PAUSES", (0.0, 0.0))
    images = write_images(tmp_path / "images", 60, 0)
    memory(0)
    names = every_name(images)[10:40]
    lose_from(5, take_away(images, names), monkeypatch)
    run = unveil.pretrain(str(images), out=tmp_path / "run", max_unreadable=0.9, **TINY)
    said = capsys.readouterr().err
    assert "an image cannot be read: " in said
    assert "10 of 60 images cannot be read (16.7%), the last one is " in said
    assert "30 files could not be used" in said
    assert run.results["skipped"] == sum(run.results["unreadable"].values()) == 30
    assert {line.split("\t")[0] for line in (run.path / "skipped.txt").read_text().splitlines()} == set(names)
    judged = run.results["judged_on"]
    assert judged["train"] + judged["test"] == 30


def test_embed_writes_a_row_for_every_image_of_every_split(
    tmp_path: Path, memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a folder with splits, only the training split was written, without a word."""
    images = write_images(tmp_path / "plain", 12, 0)
    run = unveil.pretrain(str(images), out=tmp_path / "run", **TINY).path
    data = tmp_path / "data"
    for number, split in enumerate(("train", "val", "test")):
        shutil.copytree(images, data / split)
        (data / split / "cold" / "000.png").write_bytes(b"")
        for name in every_name(data / split)[: 2 * number]:
            if name != "cold/000.png":
                (data / split / name).unlink()
    expected = [name for name in every_name(data) if not name.endswith("cold/000.png")]
    for limit in (MEMORY, 0):
        memory(limit)
        for suffix in ("npz", "parquet"):
            out = unveil.embed(run, str(data), out=tmp_path / f"{limit}.{suffix}", device="cpu", precision="float32")
            if suffix == "npz":
                found = {key: value.tolist() for key, value in np.load(out).items()}
            else:
                from pyarrow import parquet

                found = parquet.read_table(out).to_pydict()
            assert sorted(found["path"]) == expected
            assert [path.split("/")[0] for path in found["path"]] == found["split"]
            assert [path.split("/")[1] for path in found["path"]] == found["label"]
            assert set(found["split"]) == {"train", "val", "test"}
            said = capsys.readouterr().err
            assert said.count("skipped ") == 3
            counts = {split: found["split"].count(split) for split in ("train", "val", "test")}
            assert f"{len(expected)} images ({', '.join(f'{count} of {split}' for split, count in counts.items())})" in said
    one = unveil.embed(run, str(images), out=tmp_path / "one.npz", device="cpu", precision="float32")
    plain = np.load(one)
    assert "split" not in plain
    rows_of = dict(zip(plain["path"].tolist(), plain["embedding"], strict=True))
    whole = np.load(tmp_path / "0.npz")
    for path, row in zip(whole["path"].tolist(), whole["embedding"], strict=True):
        np.testing.assert_allclose(row, rows_of[path.split("/", 1)[1]], atol=1e-5)


def test_reconstruct_leaves_unreadable_images_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = unveil.pretrain(str(write_images(tmp_path / "good", 20, 0)), out=tmp_path / "run", **TINY).path
    images = write_images(tmp_path / "images", 6, 5)
    unveil.reconstruct(run, str(images), out=tmp_path / "figure.png")
    assert "1 of 6 images cannot be read, and are left out" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [MEMORY, 0])
def test_a_test_set_that_cannot_be_read_at_all(
    limit: int, tmp_path: Path, memory: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pre-training is not lost for it, and a probe says so."""
    images = write_images(tmp_path / "images", 20, 0)
    reference = unveil.pretrain(str(images), out=tmp_path / "reference", **TINY).path
    held_out = {row[0] for row in rows(unveil_probe(reference, images, tmp_path / "first") / "predictions.csv")[1:]}
    for name in held_out:
        (images / name).write_bytes(b"\xff\xd8\xff junk")
    memory(limit)
    run = unveil.pretrain(str(images), out=tmp_path / "run", **TINY)
    assert run.results["unreadable"] == {"train": 0, "test": 2}
    assert run.results["held_out"] == {}
    assert "features" not in run.results
    assert run.results["spread"]["encoder"]["rank_me"] > 1
    assert "2 of 2 test images could not be read" in capsys.readouterr().err
    with pytest.raises(UnveilError, match=r"none of the 2 labelled test images of|none of 2 images of .* can be read; the first"):
        unveil_probe(run.path, images, tmp_path / "second")


def unveil_probe(run: Path, images: Path, out: Path) -> Path:
    unveil.probe(run, str(images), kind="knn", device="cpu", precision="float32", out=out)
    return out


def test_a_run_of_an_earlier_version_does_not_go_on_with_another_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Callable[[int], None]
) -> None:
    """Its held-out images were chosen among the readable ones only."""
    images = write_images(tmp_path / "images")

    def stop(*_: Any) -> None:
        raise UnveilError("stopped by the test")

    with monkeypatch.context() as patch:
        lose_from(5, stop, patch)
        memory(0)
        with pytest.raises(UnveilError, match="stopped by the test"):
            unveil.pretrain(str(images), out=tmp_path / "run", **TINY)
    assert Run(tmp_path / "run").checkpoints().steps()
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"format": 2, "checksum": None}))
    memory(MEMORY)
    with pytest.raises(UnveilError, match="was begun by an earlier version of unveil, which left 6 unreadable images out"):
        unveil.pretrain(str(images), out=tmp_path / "run", **TINY)
    memory(0)  # on demand, it numbered all images
    unveil.pretrain(str(images), out=tmp_path / "run", **TINY)


def lose_images() -> None:
    """From step 6 on, the process whose rank is LOSE in the environment cannot read any image. Images are read on demand."""
    kwdefaults: dict[str, Any] = ImageDataset.__init__.__kwdefaults__
    kwdefaults["memory"] = 0
    unveil.data.retries.PAUSES = (0.0,)
    real = unveil.data.loader.ImageLoader.share

    def gone(index: int) -> Any:
        raise OSError(116, "Stale file handle")

    def share(loader: Any, step: int, *others: int) -> Any:
        if os.environ["LOSE"] == os.environ["RANK"] and step >= 6:
            loader.dataset.source = replace(loader.dataset.source, reader=gone)
        return real(loader, step, *others)

    unveil.data.loader.ImageLoader.share = share  # type: ignore[method-assign]


def test_two_processes_stop_together_when_one_loses_its_images(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 40, 0)
    options = [word for key, value in TINY.items() for word in (f"--{key.replace('_', '-')}", str(value).strip("(),"))]

    def start(out: str, lose: str) -> tuple[int | None, str]:
        command = Command(["pretrain", str(images), *options, "--out", str(tmp_path / out)], 2, {"LOSE": lose}, lose_images)
        said, _ = command.communicate()
        return command.returncode, said

    code, said = start("run", "1")
    assert code == 1, said
    assert "another process cannot read its samples. Step 6 is saved: the same command resumes from there." in said
    assert "training images" in said
    assert "have become unreadable since the start" in said
    assert "Traceback" not in said
    assert Run(tmp_path / "run").checkpoints().steps()[-1] == 6
    assert "cannot be read: Stale file handle" in (tmp_path / "run" / "skipped.txt").read_text()  # the main process was told
    code, said = start("run", "none")  # tests/train/test_resume.py compares the weights of resumed runs
    assert code == 0, said
