"""Archives that are broken, odd, or unpack to gigabytes."""

import bz2
import gzip
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.hostile_bytes import GIB, MIB, png, special, tar_gz_of_zeros, tar_of, zip_of, zip_of_zeros

GOOD = {f"good/{name}.png": png(seed=number) for number, name in enumerate("abc")}
"""Images that nothing is wrong with."""
CANARY = Path(tempfile.gettempdir()) / "canary-of-faults"
"""Where a member with an absolute path would be written."""


def as_file(name: str, data: Callable[[], bytes]) -> Callable[[Path], str]:
    def build(home: Path) -> str:
        (home / name).write_bytes(data())
        return name

    return build


def archives() -> dict[str, Callable[[Path], str]]:
    good = list(GOOD.items())

    def info(name: str, **facts: object) -> tarfile.TarInfo:
        member = tarfile.TarInfo(name)
        for key, value in facts.items():
            setattr(member, key, value)
        return member

    def long_names() -> bytes:
        block = tarfile.TarInfo("x" * 200).tobuf(tarfile.GNU_FORMAT)[:1024]
        return block * 5000 + tar_of(good)

    def pax_headers() -> bytes:
        member = info("y", pax_headers={"comment": "x" * 100})
        block = member.tobuf(tarfile.PAX_FORMAT)[:1024]
        return block * 5000 + tar_of(good)

    def encrypted() -> bytes:
        raw = bytearray(zip_of(good))
        for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
            at = raw.find(mark)
            while at >= 0:
                raw[at + offset] |= 1
                at = raw.find(mark, at + 4)
        return bytes(raw)

    def shards(home: Path) -> str:
        for number in range(300):
            (home / f"s-{number:04d}.tar").write_bytes(tar_of([(f"{number}.png", png(seed=number % 5))]))
        return "s-{0000..0299}.tar"

    def nested() -> bytes:
        inner = zip_of([("0.png", bytes(10 * MIB))])
        for _ in range(5):
            inner = zip_of([(f"{i}.zip", inner) for i in range(10)])
        return zip_of([*good, ("bomb.zip", inner)])

    files: dict[str, Callable[[], bytes]] = {
        "zeros.zip": lambda: zip_of_zeros([f"{i}.png" for i in range(4)], GIB - 1),
        "zeros_without_suffix.zip": lambda: zip_of_zeros([f"{i}" for i in range(4)], GIB - 1),
        "lies_small.zip": lambda: zip_of_zeros(["a.png", "b.png"], 600 * MIB, said=1000),
        "lies_large.zip": lambda: zip_of_zeros(["a.png", "b.png"], MIB, said=GIB - 1),
        "overlap.zip": lambda: zip_of_zeros([f"{i}.png" for i in range(2000)], 100 * MIB, overlap=True),
        "nested.zip": nested,
        "up.zip": lambda: zip_of([*good, ("../../canary", b"x"), (str(CANARY), b"x"), ("../up.png", png())]),
        "encrypted.zip": encrypted,
        "lzma.zip": lambda: zip_of(good, method=zipfile.ZIP_LZMA),
        "cut.zip": lambda: zip_of(good)[:-30],
        "cut_inside.zip": lambda: zip_of(good)[:1500] + zip_of(good)[1600:],
        "many.zip": lambda: zip_of([(f"{i}.png", b"") for i in range(20_000)] + good),
        "comment.zip": lambda: zip_of(good, comment=b"PK\5\6" * 16_000),
        "long_name.zip": lambda: zip_of([*good, ("n" * 65_000 + ".png", png())]),
        "same_names.zip": lambda: zip_of([("a.png", png(seed=1)), ("a.png", b"no image")]),
        "control.zip": lambda: zip_of([*good, ("\x1b[31mred\x07.png", b"no image")]),
        "huge_numbers.zip": lambda: zip_of(good)[:-12] + b"\xff" * 12,
        "no_files.zip": lambda: zip_of([]),
        "zeros.tar.gz": lambda: tar_gz_of_zeros(GIB - MIB, png()),
        "many_zeros.tar.gz": lambda: tar_gz_of_zeros(8 * GIB - MIB, png()),
        "zeros.tar.xz": lambda: lzma.compress(tar_of([*good, ("z.png", bytes(200 * MIB))]), preset=0),
        "zeros.tar.bz2": lambda: bz2.compress(tar_of([*good, ("z.png", bytes(100 * MIB))]), 9),
        "cut.tar.gz": lambda: gzip.compress(tar_of(good))[:-100],
        "garbage_after.tar.gz": lambda: gzip.compress(tar_of(good)) + b"garbage" * 100,
        "up.tar": lambda: tar_of([*good, ("../../canary", b"x"), (str(CANARY), b"x"), ("../up.png", png())]),
        "links.tar": lambda: tar_of(
            [*good, *((special(f"{kind!r}.png", kind, "/etc/passwd"), b"") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE))]
        ),
        "devices.tar": lambda: tar_of(
            [*good, *((special(f"{kind!r}.png", kind), b"") for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE))]
        ),
        "long_names.tar": long_names,
        "pax_headers.tar": pax_headers,
        "cut.tar": lambda: tar_of(good)[:2000],
        "no_end.tar": lambda: tar_of(good).rstrip(b"\0"),
        "negative.tar": lambda: tar_of(good)[:124] + b"\xff" * 12 + tar_of(good)[136:],
        "huge_member.tar": lambda: info("h.png", size=8 * GIB).tobuf() + bytes(1024),
        "same_names.tar": lambda: tar_of([("a.png", png(seed=1)), ("a.png", b"no image")]),
        "bytes_in_names.tar": lambda: tar_of([*good, (os.fsdecode(b"caf\xe9.png"), b"no image")], format=tarfile.GNU_FORMAT),
        "no_files.tar": lambda: tar_of([]),
        "text.tar": lambda: b"not a tar\n" * 100,
        "zeros_only.tar": lambda: bytes(100_000),
        "shards.tar": lambda: tar_of(
            [("0.png", png()), ("0.json", b"[" * 200_000), ("1.png", png(seed=1)), ("1.cls", b"9" * 5000)]
        ),
        "compressed.tar.zst": lambda: b"\x28\xb5\x2f\xfd" + bytes(100),
        "archive.rar": lambda: b"Rar!\x1a\7\1\0" + bytes(100),
        "archive.7z": lambda: b"7z\xbc\xaf\x27\x1c" + bytes(100),
    }
    return {"300 shards, 256 descriptors": shards} | {name: as_file(name, data) for name, data in files.items()}
