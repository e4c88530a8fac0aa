"""`unveil predict`, from image files on: the same scores as fine-tuning and timm, and the same bytes after a kill."""

import csv
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from tests.processes import Command
from unveil.errors import UnveilError
from unveil.runs import streamed
from unveil.runs.parts_on_disk import PartsOnDisk, unfinished

pytestmark = pytest.mark.usefixtures("without_reports")

TINY = {
    "model": "vit-nano",
    "image_size": (16,),
    "patch_size": (4,),
    "batch_size": 8,
    "epochs": 2.0,
    "device": "cpu",
    "precision": "float32",
}
TUNE = {"epochs": 12.0, "batch_size": 6, "device": "cpu", "layer_decay": 1.0, "base_lr": 0.02, "mixup": 0.0, "cutmix": 0.0}
CLASSES = ("=sum", "cat, small", "d\u00f6g")


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Images of three classes with awkward names, sizes and modes: grey, transparent, 16 bits, turned by EXIF, palettes."""
    chance = np.random.default_rng(seed)
    for i in range(count):
        for channel, name in enumerate(CLASSES):
            height, width = chance.integers(17, 60, 2)
            pixels = chance.integers(0, 90, (height, width, 3), dtype=np.uint8)
            pixels[: height // 2, :, channel] += 150
            image, path = Image.fromarray(pixels), folder / name / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if i % 6 == 1:
                image.convert("RGBA").save(path)
            elif i % 6 == 2:
                image.convert("L").save(path)
            elif i % 6 == 3:
                exif = Image.Exif()
                exif[0x0112] = 6
                image.save(path.with_suffix(".jpg"), exif=exif)
            elif i % 6 == 4:
                Image.fromarray(pixels[..., channel].astype(np.uint16) * 257).save(path)
            elif i % 6 == 5:
                image.quantize(32).save(path)
            else:
                image.save(path)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", 6, 0)
    write_images(folder / "test", 7, 1)
    (folder / "test" / CLASSES[2] / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unveil.pretrain(str(data), out=tmp_path_factory.mktemp("runs") / "run", **TINY).path


@pytest.fixture(scope="module")
def tuned(run: Path, data: Path) -> Path:
    """Trained in bfloat16: its test scores are computed in float32 all the same."""
    return unveil.finetune(run, str(data), precision="bfloat16", **TUNE).path


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "PART_ROWS", 4)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def softmax(values: list[float]) -> np.ndarray:
    powers = np.exp(np.array(values) - max(values))
    return powers / powers.sum()


def compare_with_run(predicted: list[dict[str, str]], written: list[dict[str, str]], prefix: str = "") -> None:
    """Each row of a run's predictions.csv has the same label and probabilities in the table."""
    found = {row["path"]: row for row in predicted}
    assert written
    for row in written:
        mine = found[prefix + row["file"]]
        assert mine["label"] == row["predicted"]
        assert float(mine["probability"]) == pytest.approx(float(row["probability"]), abs=1e-5)
        names = [name.removeprefix("score ") for name in row if name.startswith("score ")]
        shares = softmax([float(row[f"score {name}"]) for name in names])
        assert [float(mine[f"p({name})"]) for name in names] == pytest.approx(shares, abs=1e-5)


def test_scores_are_those_of_finetune(tuned: Path, data: Path, tmp_path: Path) -> None:
    out = unveil.predict(tuned, str(data), split="test", scores=True, out=tmp_path / "a.csv", device="cpu")
    written = rows_of(tuned / "predictions.csv")
    assert len(written) == 21
    compare_with_run(rows_of(Path(str(out))), written)
    scores = np.array([[float(value) for name, value in row.items() if name.startswith("score")] for row in written])
    assert scores.std(axis=0).min() > 0.05  # a model that says the same of every image would agree with anything


def test_scores_are_those_of_timm(tuned: Path, data: Path, tmp_path: Path) -> None:
    import timm
    from timm.data import create_transform, resolve_data_config

    exported = unveil.export(tuned, to="timm", out=tmp_path / "timm")
    model = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config(model=model))
    table = unveil.predict(tuned, str(data / "test"), scores=True, device="cpu")
    again = unveil.predict(exported, str(data / "test"), scores=True, device="cpu")
    names, compared = json.loads((tmp_path / "timm" / "config.json").read_text())["label_names"], 0
    for row, other in zip(table.rows(), again.rows(), strict=True):
        assert other["path"] == row["path"]
        assert other["label"] == row["label"]
        with Image.open(data / "test" / row["path"]) as image:
            if image.mode in ("RGBA", "I;16") or image.getexif().get(0x0112, 1) != 1:
                continue  # timm neither turns nor blends nor scales them
            with torch.no_grad():
                shares = model(transform(image.convert("RGB"))[None])[0].softmax(0).tolist()
        compared += 1
        assert row["label"] == names[int(np.argmax(shares))]
        assert [row[f"p({name})"] for name in names] == pytest.approx(shares, abs=1e-5)
        assert [other[f"p({name})"] for name in names] == pytest.approx(shares, abs=1e-5)
    assert compared >= 12


def test_a_list_with_a_file_that_cannot_be_read(tuned, data, tmp_path, capsys):
    good = sorted(str(path) for path in (data / "test").rglob("*.png"))[:2]
    (tmp_path / "broken.png").write_bytes(b"no image")
    table = unveil.predict(tuned, [good[0], str(tmp_path / "broken.png"), good[1]], device="cpu")
    assert len(table.labels) == 2
    assert list(table.skipped) == [str(tmp_path / "broken.png")]
    assert "1 file could not be read and has no row" in capsys.readouterr().err


def test_formats_hold_the_same(tuned: Path, data: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    outs = [
        unveil.predict(tuned, str(data), top_k=2, out=tmp_path / f"a.{each}", device="cpu") for each in ("csv", "jsonl", "parquet")
    ]
    texts, lines = rows_of(Path(str(outs[0]))), [json.loads(line) for line in Path(str(outs[1])).read_text().splitlines()]
    arrays = parquet.read_table(outs[2]).to_pylist()
    assert list(lines[0]) == ["path", "split", "label", "probability", "label_2", "probability_2"] == list(arrays[0])
    assert len(texts) == len(lines) == len(arrays) == 39
    assert {row["split"] for row in lines} == {"train", "test"}
    for text, line, array in zip(texts, lines, arrays, strict=True):
        assert line["path"] == array["path"] == text["path"].removeprefix("'")
        assert line["label"] == array["label"] == text["label"].removeprefix("'")  # no spreadsheet may run =sum
        assert float(text["probability_2"]) == line["probability_2"] == pytest.approx(array["probability_2"], rel=1e-5)
        assert line["probability"] >= line["probability_2"]
    assert (tmp_path / "a.csv.skipped.txt").read_text().startswith(f"test/{CLASSES[2]}/broken.jpg\t")
    assert not list(tmp_path.glob("*.unfinished"))


class PowerError(Exception):
    """Fails."""


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, call: Callable[[], Any]) -> None:
    """Calls a function whose process loses its power before a further part is complete."""
    real, written = PartsOnDisk.write, []

    def write(disk: PartsOnDisk, number: int, *rest: Any) -> None:
        if len(written) == after:
            disk.path(number).write_bytes(b"half a part")
            raise PowerError
        written.append(number)
        real(disk, number, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(PartsOnDisk, "write", write)
        with pytest.raises(PowerError):
            call()


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "e.npz", "e.parquet"])
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.usefixtures("small_parts")
def test_a_stopped_command_goes_on(
    tuned: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, after: int
) -> None:
    verb = unveil.embed if name.startswith("e") else unveil.predict
    options = {"device": "cpu", "batch_size": 2}
    whole = verb(tuned, str(data), out=tmp_path / "whole" / name, **options)
    out = tmp_path / name
    interrupted(monkeypatch, after, lambda: verb(tuned, str(data), out=out, **options))
    assert not out.exists()
    done = [path.stat().st_mtime_ns for path in sorted(unfinished(out).glob("part-*.json"))]
    assert len(done) == after
    interrupted(monkeypatch, 1, lambda: verb(tuned, str(data), out=out, **options))
    assert [path.stat().st_mtime_ns for path in sorted(unfinished(out).glob("part-*.json"))][:after] == done
    verb(tuned, str(data), out=out, **options)
    assert out.read_bytes() == Path(whole).read_bytes()
    assert out.with_name(f"{name}.skipped.txt").read_text() == (tmp_path / "whole" / f"{name}.skipped.txt").read_text()
    assert not unfinished(out).exists()
    with pytest.raises(UnveilError, match="exists, and is not overwritten"):
        verb(tuned, str(data), out=out, **options)


def slow_small_parts() -> None:
    """Runs in another process."""
    streamed.PART_ROWS = 4
    real = PartsOnDisk.write

    def write(disk: PartsOnDisk, *rest: Any) -> None:
        real(disk, *rest)
        time.sleep(0.3)

    PartsOnDisk.write = write  # type: ignore[method-assign]


def fast_small_parts() -> None:
    """Runs in another process."""
    streamed.PART_ROWS = 4


def test_a_kill_and_two_processes_leave_the_same_bytes(tuned: Path, data: Path, tmp_path: Path) -> None:
    common = [str(tuned), str(data), "--device", "cpu", "--batch-size", "2", "--out"]

    def done(words: list[str], processes: int) -> None:
        command = Command(words, processes, prepare=fast_small_parts)
        said, _ = command.communicate()
        assert command.returncode == 0, said

    done(["predict", *common, str(tmp_path / "whole.csv")], 1)
    killed = tmp_path / "killed.csv"
    command = Command(["predict", *common, str(killed)], prepare=slow_small_parts)
    while len(list(unfinished(killed).glob("part-*.json"))) < 3:
        assert command.poll() is None
        time.sleep(0.02)
    command.kill()
    with pytest.raises(AssertionError):
        assert command.communicate()[0] is None
    assert not killed.exists()
    done(["predict", *common, str(killed)], 2)
    assert killed.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    for processes, name in ((1, "one.npz"), (2, "two.npz")):
        done(["embed", *common, str(tmp_path / name)], processes)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert np.load(tmp_path / "two.npz")["path"].shape == (39,)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_something_else_are_refused(
    tuned: Path, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "images", tmp_path / "a.jsonl"
    shutil.copytree(data / "test", folder)
    interrupted(monkeypatch, 1, lambda: unveil.predict(tuned, str(folder), out=out, device="cpu", batch_size=2))
    begun = sorted(unfinished(out).iterdir())
    with pytest.raises(UnveilError, match="begun with --top-k 1, not 2: run the command as before"):
        unveil.predict(tuned, str(folder), out=out, device="cpu", batch_size=2, top_k=2)
    other = unveil.finetune(run, str(data), out=tmp_path / "other", seed=1, **{**TUNE, "epochs": 1.0}).path
    with pytest.raises(UnveilError, match="begun with another model"):
        unveil.predict(other, str(folder), out=out, device="cpu", batch_size=2)
    (folder / CLASSES[1] / "new.png").write_bytes((folder / CLASSES[1] / "00.png").read_bytes())
    with pytest.raises(UnveilError, match="begun with other data"):
        unveil.predict(tuned, str(folder), out=out, device="cpu", batch_size=2)
    assert sorted(unfinished(out).iterdir()) == begun
    (folder / CLASSES[1] / "new.png").unlink()
    part = next(unfinished(out).glob("part-000000"))
    part.write_bytes(part.read_bytes().replace(b"path", b"patj"))
    with pytest.raises(UnveilError, match="is damaged and was discarded: run the same command"):
        unveil.predict(tuned, str(folder), out=out, device="cpu", batch_size=2)
    unveil.predict(tuned, str(folder), out=out, device="cpu", batch_size=2)
    assert out.read_text().count("\n") == 21


def test_what_is_in_the_way_is_kept(tuned: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv.unfinished").mkdir()
    (tmp_path / "a.csv.unfinished" / "mine.txt").write_text("mine")
    with pytest.raises(UnveilError, match=r"holds mine\.txt, which is no part of a table"):
        unveil.predict(tuned, str(data), out=tmp_path / "a.csv", device="cpu")
    (tmp_path / "b.csv.skipped.txt").write_text("mine")
    with pytest.raises(UnveilError, match=r"b\.csv\.skipped\.txt exists, and is not overwritten"):
        unveil.predict(tuned, str(data), out=tmp_path / "b.csv", device="cpu")
    assert not (tmp_path / "b.csv.unfinished").exists()
    assert (tmp_path / "b.csv.skipped.txt").read_text() == (tmp_path / "a.csv.unfinished" / "mine.txt").read_text() == "mine"


def test_nothing_readable(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    for i in range(3):
        (tmp_path / "bad" / f"{i}.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    with pytest.raises(UnveilError, match="none of the 3 files"):
        unveil.predict(tuned, str(tmp_path / "bad"), out=tmp_path / "a.csv", device="cpu")


def test_a_model_without_a_head_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    sentence = "is an encoder without a head.*unveil finetune .* or `unveil probe"
    for model in (run, run / "encoder.safetensors"):
        with pytest.raises(UnveilError, match=sentence):
            unveil.predict(model, str(data), out=tmp_path / "a.csv", device="cpu")
    with pytest.raises(UnveilError, match="has no head"):
        unveil.load(run).predict_images([data / "test" / CLASSES[1] / "00.png"])
    with pytest.raises(UnveilError, match=r"ends in \.npz: use \.csv, \.parquet or \.jsonl"):
        unveil.predict(run, str(data), out=tmp_path / "a.npz")


def test_more_labels_than_classes_are_refused(tuned: Path, data: Path) -> None:
    with pytest.raises(UnveilError, match=r"top_k is 4, but .* has 3 classes: use 1 to 3"):
        unveil.predict(tuned, str(data), top_k=4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "class"},
        {"pool": "both"},
        {"protocol": "sgd", "epochs": 5.0},
        {"views": True, "epochs": 2.0},
        {"kind": "partial", "epochs": 2.0},
        {"kind": "partial", "blocks": 0.0, "epochs": 2.0},
    ],
    ids=["quick", "class", "both", "sgd", "views", "partial", "0 blocks"],
)
def test_a_probe_labels_images(run: Path, data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    unveil.probe(run, str(data), out=tmp_path / "probe", compare=False, device="cpu", precision="float32", **options)
    out = unveil.predict(tmp_path / "probe", str(data), split="test", scores=True, out=tmp_path / "a.csv", device="cpu")
    compare_with_run(rows_of(Path(str(out))), rows_of(tmp_path / "probe" / "predictions.csv"))


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_a_probe_of_a_fine_tuned_model_keeps_its_norm(tuned: Path, data: Path, tmp_path: Path, pool: str) -> None:
    unveil.probe(tuned, str(data), out=tmp_path / "probe", pool=pool, compare=False, device="cpu", precision="float32")
    out = unveil.predict(tmp_path / "probe", str(data), split="test", scores=True, out=tmp_path / "a.csv", device="cpu")
    compare_with_run(rows_of(Path(str(out))), rows_of(tmp_path / "probe" / "predictions.csv"))
    again = unveil.probe(tmp_path / "probe", str(data), out=tmp_path / "again", compare=False, device="cpu", precision="float32")
    assert again["score"]["count"] == 21  # a probe of a probe sees the same features


def test_a_knn_probe_is_refused(run: Path, data: Path, tmp_path: Path) -> None:
    unveil.probe(run, str(data), kind="knn", neighbours=3, out=tmp_path / "knn", compare=False, device="cpu")
    with pytest.raises(UnveilError, match="is a k-NN probe, which has no head to load: use a linear probe"):
        unveil.predict(tmp_path / "knn", str(data), device="cpu")


def test_a_supervised_run_labels_images(data: Path, tmp_path: Path) -> None:
    supervised = unveil.pretrain(str(data), method="supervised", out=tmp_path / "run", **TINY).path
    table = unveil.predict(supervised, str(data / "test"), scores=True, device="cpu")
    assert set(table.labels) <= set(CLASSES)
    assert sum(table[f"p({name})"] for name in CLASSES) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("to", ["timm", "safetensors"])
def test_class_names_travel(tuned: Path, data: Path, tmp_path: Path, to: Any) -> None:
    table = unveil.predict(tuned, str(data / "test"), scores=True, device="cpu")
    exported = unveil.export(tuned, to=to, out=tmp_path / ("x.safetensors" if to == "safetensors" else "x"))
    again = unveil.predict(exported, str(data / "test"), scores=True, device="cpu")
    assert list(again) == list(table)
    assert again.labels == table.labels
    np.testing.assert_allclose(again.probabilities, table.probabilities, atol=1e-5)


def test_images_in_python(tuned: Path, data: Path) -> None:
    """Paths, Pillow images, arrays and tensors of the same files give the same scores, alone or in any batch."""
    model, paths = unveil.load(tuned), sorted((data / "test").rglob("00.png"))
    images = [Image.open(path) for path in paths]
    arrays = [np.asarray(image) for image in images]
    tensors = [torch.from_numpy(array.copy()).permute(2, 0, 1) for array in arrays]
    of_files = unveil.predict(tuned, str(data / "test"), device="cpu")
    at = [of_files["path"].tolist().index(path.relative_to(data / "test").as_posix()) for path in paths]
    for given in (paths, [str(path) for path in paths], images, arrays, tensors):
        found = model.predict_images(given, top_k=2, scores=True)
        np.testing.assert_allclose(found.scores, of_files.scores[at], atol=1e-5)
        assert found.labels == [of_files.labels[i] for i in at]
        np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-6)
        listed = unveil.predict(tuned, given, device="cpu")
        np.testing.assert_allclose(listed.scores, of_files.scores[at], atol=1e-5)
        one = model.predict_images(given[:1])
        np.testing.assert_allclose(one.scores, of_files.scores[at[:1]], atol=1e-5)
    assert listed["path"].tolist() == ["image-000000", "image-000001", "image-000002"]
    odd = [path for path in sorted((data / "test").rglob("*.*")) if path.name != "broken.jpg"]
    np.testing.assert_allclose(model.predict_images(odd, batch_size=5).scores, of_files.scores, atol=1e-5)
    assert "<table>" in found._repr_html_()


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([np.zeros((3, 20, 30), np.uint8)], r"channels first: use array\.transpose\(1, 2, 0\)"),
        ([torch.zeros(20, 30, 3, dtype=torch.uint8)], r"channels last: use tensor\.movedim\(-1, 0\)"),
        ([np.full((20, 30, 3), 200.0)], "floats from 200 to 200, but they are read from 0"),
        ([np.zeros((20, 30, 3), np.int64)], "values of int64, whose white is unknown"),
        ([np.zeros((2, 20, 30, 3), np.uint8)], r"has the shape \(2, 20, 30, 3\)"),
        (np.zeros((20, 30, 3), np.uint8), "takes several images: give a list"),
        ("photo.png", "takes several images: give a list"),
        (["no/photo.png"], r"no/photo\.png: cannot be opened"),
        ([7], "image 0 is a int"),
        ([], "was given no images"),
    ],
)
def test_other_images_are_refused(tuned: Path, images: Any, sentence: str) -> None:
    with pytest.raises(UnveilError, match=sentence):
        unveil.load(tuned).predict_images(images)


def test_pandas_takes_a_table(tuned: Path, data: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = unveil.predict(tuned, str(data / "test"), device="cpu")
    frame = pandas.DataFrame(table)
    assert list(frame.columns) == ["path", "label", "probability"] == list(table.to_pandas().columns)
    assert frame["label"].tolist() == table.labels


def test_texts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    chance = np.random.default_rng(0)
    words = {"good": "fine nice warm bright".split(), "bad": "dull cold slow grey".split()}
    for label, own in words.items():
        for i in range(30):
            path = tmp_path / "texts" / label / f"{i:02d}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("the film was " + " ".join(chance.choice(own, 12)))
    tiny = {"epochs": 2.0, "batch_size": 8, "device": "cpu", "precision": "float32"}
    run = unveil.pretrain(
        str(tmp_path / "texts"), method="bert", model="bert-nano", max_length=16, vocabulary_size=200, out=tmp_path / "run", **tiny
    ).path
    tuned = unveil.finetune(run, str(tmp_path / "texts"), test=str(tmp_path / "texts"), **{**tiny, "epochs": 6.0}).path
    out = unveil.predict(tuned, str(tmp_path / "texts"), out=tmp_path / "a.csv", device="cpu")
    found, written = rows_of(Path(str(out))), rows_of(tuned / "predictions.csv")
    assert [row["path"] for row in found[:2]] == ["bad/00.txt", "bad/01.txt"]
    assert [row["label"] for row in found] == [row["predicted"] for row in written]
    assert [float(row["probability"]) for row in found] == pytest.approx([float(row["probability"]) for row in written], abs=1e-5)
    table = unveil.predict(tuned, ["the film was nice", "the film was dull"], device="cpu")
    assert table["text"].tolist() == ["the film was nice", "the film was dull"]
    with pytest.raises(UnveilError, match="takes no images"):
        unveil.load(tuned).predict_images(["a.png"])


@pytest.mark.parametrize("name", ["a.npz", "a.parquet"])
def test_tokens_of_embed(run: Path, data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both poolings side by side, and the earlier spelling; written in one part and in many."""
    from pyarrow import parquet

    def rows(out: Path) -> np.ndarray:
        if out.suffix == ".npz":
            return np.load(out)["embedding"]
        return np.array(parquet.read_table(out)["embedding"].to_pylist(), dtype=np.float32)

    options = {"device": "cpu", "batch_size": 4}
    mean, first, both = (
        rows(unveil.embed(run, str(data), out=tmp_path / each / name, tokens=each, **options)) for each in ("mean", "class", "both")
    )
    np.testing.assert_array_equal(both, np.concatenate([mean, first], axis=1))
    whole = unveil.embed(run, str(data), out=tmp_path / "whole" / name, tokens="patch", **options)
    monkeypatch.setattr(streamed, "PART_ROWS", 4)
    parts = unveil.embed(run, str(data), out=tmp_path / "parts" / name, pool="patches", **options)
    assert rows(whole).shape == (39, 16, 96)
    assert whole.read_bytes() == parts.read_bytes()
    np.testing.assert_allclose(rows(whole).mean(axis=1), mean, atol=1e-5)
    with pytest.raises(UnveilError, match="pool is the earlier name of tokens"):
        unveil.embed(run, str(data), out=tmp_path / "x.npz", pool="mean", tokens="mean")
