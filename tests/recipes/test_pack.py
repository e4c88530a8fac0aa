"""`unveil pack`: killed at any moment it goes on, and what it writes depends on the images and the settings alone."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unveil
from tests.data.test_pack_reader import photo, write_set
from unveil import cli
from unveil.data import pack_writer as packing
from unveil.data.pack_reader import FACTS, UNFINISHED, seal, unseal
from unveil.data.sources import open_parts, open_roles, open_source
from unveil.errors import UnveilError
from unveil.folder_lock import locked
from unveil.recipes import pack as recipe

SMALL = {"side": 24, "shard_bytes": 2500, "workers": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("images") / "set", 4)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a pack that was made in one go."""
    return files_of(unveil.pack(data, tmp_path_factory.mktemp("packs") / "whole", **SMALL))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_the_same_bytes_for_any_number_of_workers(data: Path, tmp_path: Path, store: str) -> None:
    one, four = (unveil.pack(data, tmp_path / str(n), **SMALL | {"workers": n, "store": store}) for n in (1, 4))
    assert files_of(one) == files_of(four)
    assert len(files_of(one)) > 5


KILLS = """
import os, signal, sys
from pathlib import Path
import unveil.recipes.pack as recipe
from unveil.data import pack_writer as packing

data, root = Path(sys.argv[1]), Path(sys.argv[2])

def run(out, fatal):
    # In a process of its own, which is killed at the n-th of its reads, writes and renames; how it ended, and how many there were.
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        counted = os.read(reader, 100)
        os.close(reader)
        return os.waitpid(child, 0)[1], int(counted or 0)
    events = 0
    def watch(home, name):
        real = getattr(home, name)
        def call(*values, **named):
            nonlocal events
            events += 1
            if events == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*values, **named)
        setattr(home, name, call)
    calls = (os, "fsync"), (os, "replace"), (os, "unlink"), (packing, "encode"), (packing.ShardWriter, "add"), (os, "mkdir")
    for home, name in calls:
        watch(home, name)
    recipe.pack(data, out, side=24, shard_bytes=2500, workers=1)
    os.write(writer, str(events).encode())
    os._exit(0)

def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}

status, events = run(root / "whole", 0)
assert status == 0 and events > 40, (status, events)
wanted = files(root / "whole")
every = int(os.environ.get("UNVEIL_TEST_EVERY", "6"))  # 1 takes two minutes
for fatal in range(1, events + 1, every):
    out = root / str(fatal)
    assert run(out, fatal)[0] == signal.SIGKILL, fatal
    assert run(out, 0)[0] == 0, fatal
    assert files(out) == wanted, fatal
fatal, times = 1, 0
while run(root / "often", fatal)[0] == signal.SIGKILL:
    fatal, times = fatal + 4, times + 1
assert times > 5, times
assert run(root / "often", 0)[0] == 0
assert files(root / "often") == wanted
print("KILLED", events)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_moment(data: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    """At every sixth moment, or at each of them with UNVEIL_TEST_EVERY=1."""
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(data), str(tmp_path)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "KILLED" in done.stdout
    assert files_of(tmp_path / "whole") == whole


def test_killed_from_outside(tmp_path: Path) -> None:
    """The command itself, killed when its first shards are there."""
    chance = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    for i in range(400):
        Image.fromarray(photo(chance, 96, 128)).save(tmp_path / "set" / f"{i}.png")
    options = {"side": 64, "shard_bytes": 20_000}
    argv = [sys.executable, "-m", "unveil", "pack", str(tmp_path / "set"), str(tmp_path / "out"), "--side", "64"]
    argv += ["--shard-bytes", "20000", "--workers", "1"]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "out" / "shard-00001.bin").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (tmp_path / "out" / UNFINISHED).exists()
    with pytest.raises(UnveilError, match="is an incomplete pack: run the same `unveil pack` command"):
        open_source(tmp_path / "out")
    unveil.pack(str(tmp_path / "set"), tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == files_of(unveil.pack(str(tmp_path / "set"), tmp_path / "again", **options))


def stopped(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    """A pack that was stopped when it had so many shards."""
    finish = packing.ShardWriter.finish

    def fails(self: packing.ShardWriter, stop: int) -> packing.Shard:
        if self.number == after:
            raise KeyboardInterrupt
        return finish(self, stop)

    with monkeypatch.context() as patch:
        patch.setattr(packing.ShardWriter, "finish", fails)
        with pytest.raises(KeyboardInterrupt):
            unveil.pack(data, out, **SMALL)


def test_finished_shards_are_never_decoded_again(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(data, tmp_path / "out", monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("shard-*")}
    assert len(before) == 2
    first = packing.finished_shards(tmp_path / "out")[-1].stop
    assert first > 1
    read: list[int] = []
    real = packing.encode_or_reason

    def watched(sources: object, item: int, *, config: packing.PackConfig) -> packing.Stored | str:
        read.append(item)
        return real(sources, item, config=config)

    monkeypatch.setattr(packing, "encode_or_reason", watched)
    unveil.pack(data, tmp_path / "out", **SMALL)
    assert sorted(read) == list(range(first, 13))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files_of(tmp_path / "out") == whole


@pytest.mark.parametrize("name", ["shard-00001.bin", ".rows-00001.json"])
def test_a_damaged_part_of_an_unfinished_pack_is_made_again(
    name: str, data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(data, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / name).write_bytes((tmp_path / "out" / name).read_bytes()[:-1])
    unveil.pack(data, tmp_path / "out", **SMALL)
    assert files_of(tmp_path / "out") == whole


def test_files_that_go_bad_while_it_is_stopped_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    for i in range(9):
        Image.fromarray(photo(np.random.default_rng(i), 24, 24)).save(tmp_path / "set" / f"{i}.bmp")
    monkeypatch.setattr("unveil.data.source.SAMPLED_FILES", 2)  # the contents of the first and of the last file
    stopped(tmp_path / "set", tmp_path / "out", monkeypatch)
    first = packing.finished_shards(tmp_path / "out")[-1].stop
    for i in range(first, 8):
        path = tmp_path / "set" / f"{i}.bmp"
        path.write_bytes(bytes(path.stat().st_size))  # of the same size: the same fingerprint
    monkeypatch.setattr("unveil.data.source.SAMPLED_FILES", 9)
    with pytest.raises(UnveilError, match=r"is an incomplete pack of another command \(data train_fingerprint: was '2:"):
        unveil.pack(tmp_path / "set", tmp_path / "out", **SMALL)
    monkeypatch.setattr("unveil.data.source.SAMPLED_FILES", 2)
    source = open_source(unveil.pack(tmp_path / "set", tmp_path / "out", **SMALL, verify=True))
    assert list(source.skipped) == [f"{i}.bmp" for i in range(first, 8)]


def test_the_name_of_data_does_not_matter(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(data, tmp_path / "out", monkeypatch)
    moved = data.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    try:
        unveil.pack("./moved/", tmp_path / "out", **SMALL)
    finally:
        moved.rename(data)
    assert "train/cat/0.png" in open_source(tmp_path / "out").names


def test_a_pack_of_an_earlier_version_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(data, tmp_path / "out", monkeypatch)
    begun = unseal(tmp_path / "out" / UNFINISHED)
    for split, files in (("train", "train"), ("test", "val")):  # SHA-256 of names and sizes
        digest = hashlib.sha256()
        for path in sorted(each for each in (data / files).rglob("*") if each.suffix in (".png", ".jpg", ".bmp")):
            digest.update(f"{path.relative_to(data)}\0{path.stat().st_size}\n".encode())
        begun["data"][f"{split}_fingerprint"] = digest.hexdigest()
    del begun["sha256"]
    (tmp_path / "out" / UNFINISHED).write_bytes(seal(begun))
    unveil.pack(data, tmp_path / "out", **SMALL)
    assert "train/cat/0.png" in open_source(tmp_path / "out").names


def test_every_split_is_packed(tmp_path: Path) -> None:
    folders = ("train/a", "train/b", "validation/a", "validation/b", "test/a", "test/b", "unlabeled", "extra")
    for number, folder in enumerate(folders):
        (tmp_path / "set" / folder).mkdir(parents=True)
        Image.fromarray(photo(np.random.default_rng(number), 24, 24)).save(tmp_path / "set" / folder / "1.png")
    before = open_roles(tmp_path / "set", unlabeled=True)
    after = open_roles(unveil.pack(tmp_path / "set", tmp_path / "out", store="raw"), unlabeled=True)
    for old, new in ((before.train, after.train), (before.test, after.test), (before.validation, after.validation)):
        assert old is not None
        assert new is not None
        assert list(old.names) == list(new.names)
        assert old.labels.tolist() == new.labels.tolist()
        assert old.classes == new.classes


def test_the_same_command_again_says_that_it_is_done(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = unveil.pack(data, tmp_path / "out", **SMALL)
    said = capfd.readouterr().err
    assert "8 train, 4 test images" in said
    assert "2 files could not be used: see" in said
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    (out / ".rows-00000.json").write_text("left by a kill")
    assert unveil.pack(data, out, **SMALL | {"workers": 3}) == out
    assert "is complete already" in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_command_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(data, tmp_path / "begun", monkeypatch)
    unveil.pack(data, tmp_path / "done", **SMALL)
    more = write_set(tmp_path / "more", 3)
    for out, told in ((tmp_path / "begun", "is an incomplete pack of another command"), (tmp_path / "done", "exists already")):
        before = files_of(out)
        with pytest.raises(
            UnveilError, match=rf"{told}.*\(side: was 24, is 25; quality: was 90, is 80\): use the same data and options"
        ):
            unveil.pack(data, out, **SMALL | {"side": 25, "quality": 80})
        with pytest.raises(UnveilError, match="store: was 'jpeg', is 'raw'; quality: was 90, is None"):
            unveil.pack(data, out, **SMALL, store="raw")
        with pytest.raises(UnveilError, match=r"data train: was 9, is 7; data train_finger"):
            unveil.pack(more, out, **SMALL)
        assert files_of(out) == before


def test_nothing_else_is_written_into(data: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years")
    with pytest.raises(UnveilError, match="taken exists already and is not a pack: choose another OUT"):
        unveil.pack(data, taken, **SMALL)
    with pytest.raises(UnveilError, match=r"thesis.txt exists already and is a file"):
        unveil.pack(data, taken / "thesis.txt", **SMALL)
    assert files_of(taken) == {"thesis.txt": b"years"}
    for inside in (data, data / "train", data / "new" / "pack"):
        with pytest.raises(UnveilError, match="unveil never writes into DATA"):
            unveil.pack(data, inside, **SMALL)
    assert not (data / "new").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (unveil.pack(data, empty, **SMALL) / FACTS).is_file()


def test_a_full_disk_ends_it_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: packing.ShardWriter, item: int, image: packing.Stored) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(packing.ShardWriter, "add", full)
        with pytest.raises(UnveilError, match=r"cannot write into .*out: No space left on device .*; run the same command again"):
            unveil.pack(data, tmp_path / "out", **SMALL)
    unveil.pack(data, tmp_path / "out", **SMALL)
    assert files_of(tmp_path / "out") == whole


def test_two_at_once_are_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "packing into"), pytest.raises(UnveilError, match=r"another process \(pid .* is packing into"):
        unveil.pack(data, tmp_path / "out", **SMALL)
    unveil.pack(data, tmp_path / "out", **SMALL)


@pytest.mark.parametrize(
    ("array", "options", "told"),
    [
        (np.zeros((3, 8, 8), np.uint16), {}, "have 16 bits, but JPEG has 8: use --store raw"),
        (np.zeros((3, 8, 8, 5), np.uint8), {}, "have 5 channels, but JPEG has 1 or 3: use --store raw"),
        (np.zeros((3, 8, 8, 5), np.uint8), {"store": "raw", "channels": 3}, "can be packed; the first: has 5 channels, expected 3"),
        (np.zeros((3, 8, 8), np.uint8), {"side": 0}, "side is 0, expected an integer from 1 to 16,384"),
        (np.zeros((3, 8, 8), np.uint8), {"quality": 101}, "quality is 101, expected an integer from 1 to 100"),
        (np.zeros((3, 8, 8), np.uint8), {"store": "png"}, "store is 'png', expected one of jpeg, raw"),
        (np.zeros((3, 8, 8), np.uint8), {"shard_byte": 1}, "there is no option 'shard_byte'; did you mean shard_bytes?"),
    ],
)
def test_what_cannot_be_meant(array: np.ndarray, options: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError) as caught:
        unveil.pack(array, tmp_path / "out", **options)
    assert told in str(caught.value)
    assert not list(tmp_path.rglob("*.*"))


def test_without_a_readable_image(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(UnveilError, match="none of the 1 files"):
        unveil.pack(tmp_path / "set", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: dict[str, bytes]) -> None:
    def main(*argv: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["pack", *argv])
        return caught.value.code, capsys.readouterr().err

    out = str(tmp_path / "out")
    code, said = main(str(data), out, "--side", "24", "--shard-bytes", "2500", "--verify")
    assert code == 0
    assert "is undamaged" in said
    assert files_of(tmp_path / "out") == whole
    assert main(out, "--verify")[0] == 0
    code, said = main(out)
    assert code == 1
    assert said.startswith("unveil: OUT is missing")
    code, said = main(str(tmp_path), "--verify")
    assert code == 1
    assert said == f"unveil: {tmp_path} is not a pack: it has no {FACTS}\n"
    shard = tmp_path / "out" / "shard-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    code, said = main(out, "--verify")
    assert code == 1
    assert len(said.splitlines()) == 1


def test_lines_tell_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 6, 12, 18, 24])
    monkeypatch.setattr(recipe.time, "monotonic", lambda: next(clock))
    said: list[str] = []
    progress = recipe.progress_lines(said.append)
    for done in (100, 220, 340, 460):
        progress(done, 1000)
    assert said == ["packed 220 of 1,000 images, 10 images/s, 78 s left", "packed 460 of 1,000 images, 15 images/s, 36 s left"]


def test_a_run_says_that_a_pack_is_too_small_for_its_crops(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": "vit-nano", "image_size": 24, "patch_size": 6, "batch_size": 4, "epochs": 1.0, "device": "cpu"}
    for side, says in ((24, True), (62, False)):  # a crop of 24 px with a fifth of the area needs 24 / (0.2 * 3 / 4) ** 0.5
        packed = unveil.pack(data, tmp_path / f"pack-{side}", side=side)
        unveil.pretrain(packed, out=tmp_path / f"run-{side}", num_evals=0, **options)
        sentence = f"{packed} has images of 24 px on the short side, so random crops may be enlarged"
        assert (open_parts(packed).source("train", "test").shrunk_to == 24) == says
        assert (sentence in " ".join("".join(capsys.readouterr()).split())) == says


def test_training_from_a_raw_pack_is_training_from_the_folder(data: Path, tmp_path: Path) -> None:
    """Where nothing had to be shrunk, the losses are the same to the last bit, and what was skipped is told again."""
    options = {
        "model": "vit-nano",
        "image_size": (16,),
        "patch_size": (4,),
        "batch_size": 4,
        "epochs": 1.0,
        "device": "cpu",
        "precision": "float32",
        "log_every": 1,
        "num_evals": 1,
    }
    packed = unveil.pack(data, tmp_path / "pack", store="raw")
    runs = [unveil.pretrain(str(each), out=tmp_path / f"run-{each.name}", **options) for each in (data, packed)]
    losses = [[line["loss"] for line in run.log if "loss" in line] for run in runs]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    assert runs[0].results["held_out"] == runs[1].results["held_out"]
    skipped = [(run.path / "skipped.txt").read_text() for run in runs]
    assert skipped[0] == skipped[1]
    assert json.loads((runs[1].path / "run.json").read_text())["data"]["name"] == str(packed)
