"""A saved listing is used if it is surely right, and ignored otherwise."""

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unveil.data import saved_listing, tar
from unveil.data.archives import open_archive
from unveil.data.saved_listing import cache_folder
from unveil.data.tar import Tar

COUNT = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNVEIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with each tar whose headers are read."""
    found: list[Path] = []
    walk = Tar._list
    monkeypatch.setattr(Tar, "_list", lambda self, *args: found.append(self._bytes._path) or walk(self, *args))  # type: ignore[func-returns-value]
    return found


def write(path: Path, count: int = COUNT, *, letter: str = "a", mode: str = "w", old: bool = True) -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for number in range(count):
            raw = f"{letter}{number:07}".encode()
            member = tarfile.TarInfo(f"{number % 5}/caf\udce9 {letter}{number:05}.jpg")
            member.size = len(raw)
            file.addfile(member, io.BytesIO(raw))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "x"
        file.addfile(link)
    if old:
        settle(path)
    return path


def settle(path: Path, seconds: float = 100) -> None:
    """Sets the time of a file back. The time of its last change of any kind cannot be set, so tests do not wait for it."""
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture(autouse=True)
def small_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_listing, "SETTLED_SECONDS", -10)
    monkeypatch.setattr(saved_listing, "WORTH_SAVING", 20)


def facts(path: Path) -> tuple[object, ...]:
    found = open_archive(path)
    return (
        list(found.names),
        list(found.sizes),
        [found.read(index) for index in range(0, len(found.names), 50)],
        dict(found.refused),
    )


def saved(cache: Path) -> list[Path]:
    return [each for each in cache.rglob("*") if each.is_file()]


def test_a_saved_listing_gives_the_same_files(tmp_path: Path, cache: Path, walks: list[Path]) -> None:
    path = write(tmp_path / "a.tar")
    first = facts(path)
    assert len(walks) == 1
    assert len(saved(cache)) == 1
    assert facts(path) == first
    assert len(walks) == 1
    assert first[3] == {"link.jpg": "a link in a tar"}
    assert isinstance(open_archive(path).sizes[0], int)  # and no number of NumPy, which JSON refuses


def test_another_tar_at_the_same_place_is_read(tmp_path: Path, walks: list[Path]) -> None:
    path = write(tmp_path / "a.tar")
    before = facts(path)
    status = path.stat()
    write(path, letter="b")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    after = facts(path)
    assert len(walks) == 2
    assert after != before
    assert "b00000" in after[0][0]  # type: ignore[index]


def test_a_sample_of_the_headers_is_compared(tmp_path: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a file system reports the same times for another tar of the same size."""
    monkeypatch.setattr(saved_listing, "_identity", lambda status: [status.st_size])
    path = write(tmp_path / "a.tar")
    before = facts(path)
    write(path, letter="b")
    assert facts(path) != before
    assert len(walks) == 2


@pytest.mark.parametrize("change", [lambda path: write(path, 5, letter="c", mode="a"), lambda path: settle(path, 50)])
def test_a_tar_that_has_changed_is_read(tmp_path: Path, walks: list[Path], change: Callable[[Path], object]) -> None:
    path = write(tmp_path / "a.tar")
    before = facts(path)
    change(path)
    assert (facts(path) == before) == (len(open_archive(path).names) == COUNT)
    assert len(walks) == 2


def test_a_damaged_listing_is_ignored_and_replaced(tmp_path: Path, cache: Path, walks: list[Path]) -> None:
    path = write(tmp_path / "a.tar")
    right = facts(path)
    (place,) = saved(cache)
    raw = place.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", raw[:-1], raw[: len(raw) // 2], raw + b"\0", bytes(len(raw))]
    places = rng.integers(0, len(raw), 40).tolist() + list(range(60))
    damaged += [raw[:at] + bytes([raw[at] ^ 1 << int(rng.integers(8))]) + raw[at + 1 :] for at in places]
    for number, each in enumerate(damaged):
        place.write_bytes(each)
        assert facts(path) == right
        assert len(walks) == 2 + number
        assert place.read_bytes() == raw


def test_what_another_version_saved_is_ignored(tmp_path: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tar")
    right = facts(path)
    monkeypatch.setattr(saved_listing, "VERSION", saved_listing.VERSION + 1)
    assert facts(path) == right
    assert len(walks) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, cache: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar")
    cache.write_bytes(b"a file in the place of the folder")
    assert facts(path) == facts(path)
    monkeypatch.delenv("UNVEIL_CACHE")
    monkeypatch.setattr(saved_listing, "cache_folder", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    facts(path)
    assert len(walks) == 3


def test_small_fresh_and_compressed_tars_are_not_saved(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts(write(tmp_path / "small.tar", 10))
    facts(write(tmp_path / "packed.tar.gz", mode="w:gz"))
    monkeypatch.setattr(saved_listing, "SETTLED_SECONDS", 3)
    facts(write(tmp_path / "fresh.tar"))
    assert saved(cache) == []


def test_shards_and_links_share_one_listing(tmp_path: Path, cache: Path, walks: list[Path]) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        write(tmp_path / "data" / f"train-{number}.tar", letter="abc"[number])
    from unveil.data.sources import open_source

    names = open_source(tmp_path / "data").names
    assert len(saved(cache)) == len(walks) == 3
    (tmp_path / "link.tar").symlink_to(tmp_path / "data" / "train-0.tar")
    facts(tmp_path / "link.tar")
    assert open_source(tmp_path / "data").names == names
    assert len(walks) == 3


def test_where_listings_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("UNVEIL_CACHE", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "x"
    monkeypatch.delenv("UNVEIL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "unveil"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "unveil"


def test_a_tar_that_changes_while_it_is_listed_is_not_saved(
    tmp_path: Path, cache: Path, walks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tar")
    save = tar.save_listing

    def late(place: Path, file: saved_listing.OpenFile, listing: saved_listing.Listing) -> None:
        os.utime(place)
        save(place, file, listing)

    monkeypatch.setattr(tar, "save_listing", late)
    first = facts(path)
    assert facts(path) == first
    assert len(walks) == 2
