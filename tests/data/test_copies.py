"""Exact copies are found in any form of DATA, and never count as unseen."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil.data.copies import copies_of, copies_of_tests
from unveil.data.parts import Roles
from unveil.data.sources import open_roles, open_source
from unveil.errors import UnveilError
from unveil.recipes.pack import pack
from unveil.runs.open_data import open_subsets

pytestmark = pytest.mark.usefixtures("without_reports")

OPTIONS = {"model": "vit-nano", "image_size": 16, "patch_size": 8, "epochs": 1, "batch_size": 8, "device": "cpu"}


def write(folder, count, seed=0, *, copied=True):
    """Images in two classes, of which every one has a copy under another name; sizes of files differ and coincide."""
    draw = np.random.default_rng(seed)
    for i in range(count):
        target = folder / "ab"[i % 2] / f"{i:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (12 + i % 3, 16, 3), dtype=np.uint8)).save(target)
        if copied:
            shutil.copy(target, target.with_name(f"copy of {target.name}"))
    return folder


def by_hand(source, rows, among):
    """The copies, by comparing every pair of files."""
    contents = [source.read(i) for i in range(len(source))]
    same = [[np.array_equal(contents[i], contents[j]) for j in rows] for i in among]
    return {int(among[i]) for i, row in enumerate(same) if any(row)}


@pytest.mark.parametrize("form", ["folder", "tar", "zip", "pack", "paths", "images", "array"])
def test_copies_in_any_form_of_data(form, tmp_path):
    folder = write(tmp_path / "pics", 12)
    paths = sorted(str(path) for path in folder.rglob("*.png"))
    if form == "folder":
        data = folder
    elif form in ("tar", "zip"):
        data = shutil.make_archive(str(tmp_path / "pics"), form, folder)
    elif form == "pack":
        data = pack(folder, tmp_path / "pack")
    elif form == "paths":
        data = paths
    elif form == "images":
        data = [Image.open(path) for path in paths]
    else:
        data = np.stack([np.asarray(Image.open(path).resize((16, 16))) for path in paths])
    source = open_source(str(data) if form in ("folder", "tar", "zip", "pack") else data)
    assert len(source) == 24
    rows, among = np.arange(0, 6), np.arange(6, 24)
    found = copies_of(source, rows, source, among)
    assert set(found) == by_hand(source, rows, among)
    assert found
    assert all(np.array_equal(source.read(copy), source.read(original)) for copy, original in found.items())


def test_files_of_one_size_are_no_copies(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.bmp").write_bytes(b"")
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(tmp_path / f"{i}.bmp")
    (tmp_path / "7.png").write_bytes(b"")
    (tmp_path / "8.png").write_bytes(b"")
    source = open_source(str(tmp_path))
    assert copies_of(source, np.array([0, 6]), source, np.array([1, 2, 3, 4, 5, 7])) == {}


def roles_of(path) -> Roles:
    return open_roles(str(path))


def test_no_copy_of_a_held_out_image_is_trained_on(tmp_path):
    roles = roles_of(write(tmp_path / "pics", 40))
    options = {"side": 16, "channels": 3, "max_pixels": 10**6, "most": 1000, "show": False}
    opened = open_subsets(roles, **options)
    before = open_subsets(roles, **options, leave_out_copies=False)
    assert torch.equal(opened.test.indices, before.test.indices)  # the same test images as of earlier versions
    held = {roles.train.read(i) for i in opened.test.indices.tolist()}
    assert not any(roles.train.read(i) in held for i in opened.train.indices.tolist())
    left_out = set(before.train.indices.tolist()) - set(opened.train.indices.tolist())
    assert all(roles.train.read(i) in held for i in left_out)
    count = len(left_out)
    assert count > 3
    assert opened.note == f"left out {count} training images that are exact copies of held-out ones"
    assert before.note == ""


def test_nothing_but_copies_is_a_sentence():
    roles = open_roles(np.zeros((20, 8, 8, 3), np.uint8))
    with pytest.raises(
        UnveilError, match="each image of array is an exact copy of one of the 2 images held out for the test, so none"
    ):
        open_subsets(roles, side=8, channels=3, max_pixels=10**6, most=1000, show=False)


def test_copies_between_splits_of_the_user_are_said_and_kept(tmp_path):
    write(tmp_path / "pics" / "train", 20, copied=False)
    write(tmp_path / "pics" / "test", 8, seed=1, copied=False)
    shutil.copy(tmp_path / "pics/train/a/000.png", tmp_path / "pics/test/a/leaked.png")
    roles = roles_of(tmp_path / "pics")
    opened = open_subsets(roles, side=16, channels=3, max_pixels=10**6, most=1000, show=False)
    assert len(opened.train) == 20
    assert opened.note == (
        "1 of 9 test images is an exact copy of a training image: the results are too good (unveil doctor lists them)"
    )


def test_of_a_large_test_set_some_are_looked_for(tmp_path, monkeypatch):
    write(tmp_path / "pics" / "train", 20, copied=False)
    shutil.copytree(tmp_path / "pics" / "train", tmp_path / "pics" / "test")
    roles = roles_of(tmp_path / "pics")
    assert copies_of_tests(roles.test, roles.train) == (20, 20)
    monkeypatch.setattr("unveil.data.copies.MOST_READ", 8)
    shared, checked = copies_of_tests(roles.test, roles.train)
    assert shared == checked < 20


def test_commands_say_it_and_the_run_goes_on(tmp_path, capsys):
    folder = write(tmp_path / "pics", 40)
    run = unveil.pretrain(folder, out=tmp_path / "run", **OPTIONS)
    said = capsys.readouterr().err
    assert said.count("that are exact copies of held-out ones") == 1
    trained = run.results["judged_on"]["train"]
    assert f"on {trained} images of" in said
    assert trained < 72
    unveil.probe(run, kind="knn", compare=False, out=tmp_path / "probe")
    assert f"left out {72 - trained} training images that are exact copies" in capsys.readouterr().err
    tuned = unveil.finetune(run, out=tmp_path / "tuned", epochs=1, device="cpu", validation=0.3)
    assert tuned.results["trained_on"] + tuned.results["validated_on"] < trained  # some were copies of validation images


def test_a_run_of_an_earlier_version_keeps_its_images(tmp_path, capsys):
    folder = write(tmp_path / "pics", 40)
    run = unveil.pretrain(folder, out=tmp_path / "run", leave_out_copies=False, **OPTIONS)
    assert run.results["judged_on"]["train"] == 72
    assert "exact copies" not in capsys.readouterr().err


def test_a_share_that_leaves_nothing_is_a_sentence(tmp_path):
    folder = write(tmp_path / "pics", 10, copied=False)
    run = unveil.pretrain(folder, out=tmp_path / "run", **OPTIONS)
    with pytest.raises(UnveilError, match=r"^validation is 0\.99: no images would be left to train on"):
        unveil.finetune(run, out=tmp_path / "tuned", validation=0.99, device="cpu")
