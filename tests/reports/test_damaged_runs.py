"""Files of a run folder that hold anything: each reader gives a page, or one sentence that names the file."""

import copy
import json
import shutil
import zipfile
from typing import Any

import numpy as np
import pytest

import unveil
from tests.reports.conftest import RESULTS, TASK_RESULTS, make_mae, write_samples
from unveil.errors import UnveilError
from unveil.reports.comparison import figures_of
from unveil.reports.page import write_page
from unveil.train.run_folder import Run, open_run
from unveil.train.run_schema import reading_results

MORE = {
    "spread": {"encoder": {"feature_deviation": 0.2, "rank_me": 9.0}, "untrained": {"feature_deviation": 0.1, "rank_me": 3.0}},
    "width": 48,
    "bleu": {"test": {"greedy": 20.5, "beam": 21.5}},
    "beams": 4,
    "cost": {"seconds": 12.0, "memory": 1e9, "planned": {"seconds": 11.0, "memory": 1.1e9}},
    "unseen_classes": {"elk": 2},
}
ODD: dict[str, Any] = {
    "list": [],
    "list of lists": [[[]]],
    "number": 3,
    "negative": -1,
    "huge": 10**400,
    "null": None,
    "text": "odd \x1b[31m",
    "object": {},
    "object of objects": {"a": {"b": []}},
    "true": True,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside of a JSON value, with one item for each list."""
    children = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    return [path, *(found for key, child in children for found in places(child, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def read_everything(folder: Any) -> None:
    """What report, compare and resume read."""
    unveil.report(folder)
    run = Run(folder)
    with reading_results(run.path):
        figures_of(run, [run])
    open_run(folder, "pretrain", run.config, run.facts.get("data") or {}, write=True, say=lambda text: None)


@pytest.mark.parametrize("name", ["run.json", "results.json"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_another_value_at_any_place_gives_a_page_or_a_sentence(name, odd, run):
    """Without the images, whose figures would take most of the time and show none of these values."""
    (run.path / "samples.npz").unlink()
    (run.path / "results.json").write_text(json.dumps(RESULTS | TASK_RESULTS | MORE))
    read_everything(run.path)
    whole = json.loads((run.path / name).read_text())
    sentences = []
    for path in places(whole):
        (run.path / name).write_text(json.dumps(replaced(whole, path, odd)))
        try:
            read_everything(run.path)
        except UnveilError as error:
            sentences.append(str(error))
    expected = (str(run.path / name), "different settings", "not a pretrain run")
    assert [each for each in sentences if not any(text in each for text in expected)] == []
    assert len(sentences) >= (1 if odd == {} else 10)


CONTENTS = {
    "empty": b"",
    "cut": b'{"a": ',
    "200,000 brackets": b"[" * 200_000,
    "binary": bytes(range(256)) * 9,
    "another type": b"[]",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("name", ["run.json", "results.json"])
def test_damaged_files_are_named(name, content, run):
    (run.path / name).write_bytes(content)
    with pytest.raises(UnveilError, match=rf"{name} is damaged: ") as caught:
        read_everything(run.path)
    assert "\n" not in str(caught.value)


def test_a_run_json_without_a_kind_is_refused(run):
    (run.path / "run.json").write_text("{}")
    with pytest.raises(UnveilError, match=r"run\.json is damaged: it does not say what kind of run it is"):
        unveil.report(run.path)


@pytest.mark.parametrize(
    "content", [b"true", bytes(100), b"7\n", b'{"step": 9}x\n'], ids=["another type", "zeros", "a number", "more"]
)
def test_the_page_says_that_lines_of_the_log_are_damaged(content, run):
    assert "damaged" not in unveil.report(run.path).read_text()
    with (run.path / "log.jsonl").open("ab") as file:
        file.write(b"\n" + content)
    assert "Not shown: 1 line of " in (page := unveil.report(run.path).read_text())
    assert "log.jsonl is damaged." in page
    (run.path / "log.jsonl").write_bytes(content)
    assert "log.jsonl is damaged." in unveil.report(run.path).read_text()


def test_a_folder_in_place_of_a_file(run):
    for name in ("results.json", "log.jsonl"):
        shutil.copy(run.path / name, run.path / "kept")
        (run.path / name).unlink()
        (run.path / name).mkdir()
        with pytest.raises(UnveilError, match=f"{name} cannot be read: Is a directory"):
            read_everything(run.path)
        (run.path / name).rmdir()
        shutil.move(run.path / "kept", run.path / name)
    read_everything(run.path)


def test_every_cut_of_the_samples_gives_a_page(run):
    whole = (run.path / "samples.npz").read_bytes()
    for length in [*range(0, len(whole), len(whole) // 8), len(whole) - 1]:
        (run.path / "samples.npz").write_bytes(whole[:length])
        assert "samples.npz is damaged" in write_page(Run(run.path), None).read_text()


def test_flipped_bytes_in_the_samples_give_a_page(run):
    whole, random = (run.path / "samples.npz").read_bytes(), np.random.default_rng(0)
    for place in random.integers(0, len(whole), 15):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(random.integers(8))
        (run.path / "samples.npz").write_bytes(flipped)
        write_page(Run(run.path), make_mae() if place % 10 == 0 else None)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"images": np.zeros((0, 3, 16, 16), np.float32)},
        {"images": np.zeros((2, 16), np.float32)},
        {"images": np.array(["a", "b"])},
        {"images": np.zeros((2, 3, 16, 16), complex)},
        {"images": np.zeros((2, 3, 16, 16, 1))},
    ],
)
def test_samples_of_another_kind_are_named(arrays, run):
    np.savez(run.path / "samples.npz", **arrays)
    assert "samples.npz is damaged" in write_page(Run(run.path), make_mae()).read_text()


def test_samples_that_unpack_to_gigabytes_are_not_unpacked(run):
    with zipfile.ZipFile(run.path / "samples.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("images.npy", "w") as file:
        for _ in range(1025):
            file.write(bytes(2**20))
    assert (run.path / "samples.npz").stat().st_size < 2**21
    assert "samples.npz is damaged: it unpacks to 1,074,790,400 bytes" in write_page(Run(run.path), None).read_text()


def test_names_and_maps_that_do_not_fit_are_left_out(run):
    images = np.zeros((2, 3, 16, 16), np.float32)
    maps = {"maps": np.full((2, 9, 9), 7), "predicted": np.zeros((2, 16, 16))}
    np.savez(run.path / "samples.npz", images=images, names=np.array(3), **maps)
    assert "samples.npz is damaged" in write_page(Run(run.path), make_mae()).read_text()  # the names are a single number
    write_samples(run.path)
    assert "Predictions" not in write_page(Run(run.path), make_mae()).read_text()
