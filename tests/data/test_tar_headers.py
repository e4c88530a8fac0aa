"""The quick walk along the headers of a tar finds what Python's tarfile finds, in any tar."""

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from unveil.data import tar
from unveil.data.tar import Tar
from unveil.data.tar_headers import BATCH, PlainFiles, Window, plain_files
from unveil.errors import UnveilError

Outcome = tuple[object, ...]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
BODY = b"\xff\xd8\xff body of an image"


def write(path: Path, form: str, files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] = lambda member: None) -> Path:
    with tarfile.open(path, "w", format=FORMATS[form]) as file:
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(raw), 1_700_000_000
            change(member)
            file.addfile(member, io.BytesIO(raw))
    return path


def fractional(member: tarfile.TarInfo) -> None:
    """A time that needs a pax header, as `TarFile.add` writes it for each file."""
    member.mtime = 1.5


def outcome(path: Path) -> Outcome:
    """All that a tar gives, or its error."""
    try:
        found = Tar(path)
    except UnveilError as error:
        return (str(error),)
    contents = [found.read(index) for index in range(len(found.names))]
    return (list(found.names), list(found.sizes), contents, dict(found.refused))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Outcome]:
    """`outcome` by tarfile alone."""

    def read(path: Path) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(tar, "plain_files", lambda window, start, end, most: PlainFiles([], [], [], start))
            return outcome(path)

    return read


def by_tarfile(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as file:
        return {member.name: file.extractfile(member).read() for member in file if member.isreg()}  # type: ignore[union-attr]


NAMES = {
    "short": "train/cat/1.jpg",
    "99 characters": "a/" + "b" * 97,
    "100 characters": "a/" + "b" * 98,
    "with a prefix": "folder/" * 20 + "1.jpg",
    "long": "c" * 90 + "/" + "d" * 200 + ".jpg",
    "not ascii": "Übung/ŝipo.jpg",
    "not utf-8": "caf\udce9/1.jpg",
    "dots": "./a/../b.jpg",
    "hidden": "a/.b.jpg",
    "slash at the end": "e.jpg/",
    "spaces": " a b .jpg ",
    "of macOS": "__MACOSX/a.jpg",
    "line break": "a\nb.jpg",
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", NAMES.values(), ids=list(NAMES))
def test_names_of_all_kinds_are_read_as_by_tarfile(tmp_path: Path, form: str, name: str, plain: Callable[[Path], Outcome]) -> None:
    files = {"a/first.jpg": BODY, name: BODY * 30, "z/last.jpg": b""}
    if form == "ustar":
        try:
            write(tmp_path / "a.tar", form, files)
        except ValueError:
            pytest.skip("too long for this format")
    path = write(tmp_path / "a.tar", form, files)
    assert outcome(path) == plain(path)
    assert {BODY, b""} <= set(outcome(path)[2])  # type: ignore[arg-type]


KINDS: dict[str, Callable[[tarfile.TarInfo], None]] = {
    "a time with a fraction": lambda member: setattr(member, "mtime", 1.5e9 + 0.25),
    "a large user": lambda member: setattr(member, "uid", 3_000_000),
    "a time before 1970": lambda member: setattr(member, "mtime", -1),
    "a link": lambda member: setattr(member, "type", tarfile.SYMTYPE),
    "a pipe": lambda member: setattr(member, "type", tarfile.FIFOTYPE),
    "a folder": lambda member: setattr(member, "type", tarfile.DIRTYPE),
    "an old file": lambda member: setattr(member, "type", tarfile.AREGTYPE),
    "contiguous": lambda member: setattr(member, "type", tarfile.CONTTYPE),
    "an unknown kind": lambda member: setattr(member, "type", b"Z"),
    "a comment": lambda member: setattr(member, "pax_headers", {"comment": "é"}),
    "an attribute": lambda member: setattr(member, "pax_headers", {"SCHILY.xattr.user": "1"}),
    "a size in the pax header": lambda member: setattr(member, "pax_headers", {"size": "5"}),
    "a path in the pax header": lambda member: setattr(member, "pax_headers", {"path": "other.jpg", "mtime": "1.5"}),
    "a sparse name": lambda member: setattr(member, "pax_headers", {"GNU.sparse.name": "other.jpg"}),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_members_of_all_kinds_are_read_as_by_tarfile(
    tmp_path: Path, form: str, kind: str, plain: Callable[[Path], Outcome]
) -> None:
    files = {f"a/{number}.jpg": BODY[: number * 7] for number in range(6)}
    change = lambda member: KINDS[kind](member) if member.name in ("a/2.jpg", "a/3.jpg", "a/5.jpg") else None  # noqa: E731
    try:
        path = write(tmp_path / "a.tar", form, files, change)
    except ValueError:
        pytest.skip("this format has no such member")
    assert outcome(path) == plain(path)


def test_global_headers_are_left_to_tarfile(tmp_path: Path, plain: Callable[[Path], Outcome]) -> None:
    for headers in ({"comment": "a commit"}, {"path": "all.jpg"}, {"mtime": "1"}):
        path = tmp_path / "a.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
            for number in range(5):
                member = tarfile.TarInfo(f"{number}.jpg")
                member.size = number
                file.addfile(member, io.BytesIO(bytes(number)))
        assert outcome(path) == plain(path)


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_tars_give_the_same_files_or_the_same_error(tmp_path: Path, form: str, plain: Callable[[Path], Outcome]) -> None:
    """Bytes of the headers are changed, also with the right checksum, and the tar is cut short."""
    files = {f"a/{number}.jpg": BODY * number for number in range(4)} | {"d/" * 60 + "é.jpg": BODY, "z.jpg": b"z"}
    raw = write(tmp_path / "a.tar", form, files, fractional).read_bytes()
    chosen = random.Random(1)
    path, errors = tmp_path / "b.tar", 0
    for trial in range(600):
        changed = bytearray(raw)
        header = 512 * chosen.randrange(len(raw) // 512)
        place = header + chosen.choice((chosen.randrange(512), chosen.randrange(100, 160)))
        changed[place] = chosen.choice((0, 32, 45, 47, 48, 55, 56, 95, 120, 128, 255, chosen.randrange(256)))
        if trial % 2:
            changed[header + 148 : header + 156] = b" " * 8
            changed[header + 148 : header + 156] = b"%06o\0 " % sum(changed[header : header + 512])
        path.write_bytes(changed if trial % 7 else changed[: chosen.randrange(len(raw))])
        found = outcome(path)
        assert found == plain(path), trial
        errors += len(found) == 1
    assert 50 < errors < 550


@pytest.mark.parametrize("size", [0, 700, 40_000])
def test_several_batches_are_one_list(tmp_path: Path, size: int) -> None:
    count = 2 * BATCH + 5 if size < 1000 else 50
    files = {f"{number % 7}/{number}.jpg": number.to_bytes(4, "big") + bytes(size) for number in range(count)}
    path = write(tmp_path / "a.tar", "pax", files, fractional)
    found = Tar(path)
    assert found.names == sorted(files)
    assert all(found.read(index) == files[found.names[index]] for index in range(0, len(found.names), 97))
    assert by_tarfile(path) == files


def test_usual_tars_are_walked_without_tarfile(tmp_path: Path) -> None:
    for form in FORMATS:
        files = {f"a/{number}.jpg": BODY for number in range(20)} | ({} if form == "ustar" else {"e" * 120: BODY})
        path = write(tmp_path / "a.tar", form, files, fractional if form == "pax" else lambda member: None)

        class Source:
            raw = path.read_bytes()
            size = len(raw)

            def read(self, size: int, offset: int) -> bytes:
                return self.raw[offset : offset + size]

        found = plain_files(Window(Source()), 0, Source.size, 2**30)
        assert found.names == list(files)
        assert not Source.raw[found.next_header :].strip(b"\0")


def test_the_last_of_several_files_of_one_name_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, raw in [("b.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"34")]:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            file.addfile(member, io.BytesIO(raw))
    found = Tar(path)
    assert found.names == ["a.jpg", "b.jpg"]
    assert [found.read(index) for index in range(2)] == [b"2", b"34"]
    assert list(found.sizes) == [1, 2]
