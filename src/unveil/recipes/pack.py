"""Packing: every image decoded and shrunk once, into a few large files that training reads at memory speed."""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from unveil.data.dataset import Progress, common_channels, sample_images
from unveil.data.images import Unreadable
from unveil.data.pack_reader import FACTS, FORMAT, SKIPPED, UNFINISHED, Facts, Pack, Split, is_pack, seal, unseal
from unveil.data.pack_writer import OURS, PackConfig, cores, finish_pack, pack_shards, sweep, write
from unveil.data.sources import Data, Source, open_both
from unveil.errors import UnveilError
from unveil.options import configure
from unveil.runs.open_data import Say, reading
from unveil.train.checkpoint import checksum
from unveil.train.run_folder import tell


def pack(data: Data, out: str | Path | None = None, *, verify: bool = False, **options: Any) -> Path:
    """Decodes and shrinks every image of DATA once, into a folder that stands wherever DATA stands; or goes on after a kill.

    Args:
        data: See `unveil.data.sources.FORMS`. Its train and test split are both packed.
        out: A new folder, or one that the same command began.
        verify: Read every byte of `out` again and compare checksums; without `out`, of `data`, which then is a pack.
        **options: Fields of `PackConfig`.

    Returns:
        The folder of the pack.

    Raises:
        UnveilError: When `out` holds something else, or the images do not suit the store; on verifying, when a byte has changed.
    """
    (how,) = configure(options, PackConfig)
    refuse_senseless(how)
    say = tell(True)
    if out is None:
        if not verify or isinstance(data, np.ndarray):
            raise UnveilError("where to? Give a new folder: unveil pack DATA OUT; or check a pack: unveil pack OUT --verify")
        return check(Path(data), say)
    folder = Path(out)
    train, test = open_both(data)
    splits = {"train": train} | ({} if test is None else {"test": test})
    facts = facts_of(splits, how)
    refuse_inside(folder, data)
    if not is_pack(folder):
        refuse_taken(folder)
        for source in splits.values():
            refuse_unsuited(source, how)
        folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        if begin(folder, facts):
            say(f"{folder} exists already, and is whole: nothing was left to do")
        else:
            write_pack(splits, folder, facts, how, say)
        tell_of(Pack(folder), say)
    return check(folder, say) if verify else folder


def facts_of(splits: Mapping[str, Source], how: PackConfig) -> Facts:
    """What makes one command differ from another."""
    settings = {key: value for key, value in asdict(how).items() if key != "workers" and (key, how.store) != ("quality", "raw")}
    data: Facts = {"name": splits["train"].name}
    for name, source in splits.items():
        data |= {name: len(source), f"{name}_fingerprint": source.fingerprint}
    return {"format": FORMAT, "data": data, "settings": settings}


def begin(folder: Path, facts: Facts) -> bool:
    """Makes the folder that of this command; whether its pack is whole already. Raises `UnveilError` where it is another's."""
    if (folder / FACTS).is_file():
        refuse_changes(folder, Pack(folder).facts, facts, f"{folder} exists already: it is a pack that another command made")
        sweep(folder)
        return True
    if (folder / UNFINISHED).is_file():
        try:
            begun = unseal(folder / UNFINISHED)
        except (OSError, ValueError) as error:
            raise UnveilError(f"{folder} cannot be gone on with ({error}): remove it, or choose another OUT") from None
        refuse_changes(folder, begun, facts, f"{folder} is a pack that another command began")
    else:
        refuse_taken(folder)  # again: now nobody else is writing
        write(folder / UNFINISHED, seal(facts))
    return False


def write_pack(splits: Mapping[str, Source], folder: Path, facts: Facts, how: PackConfig, say: Say) -> None:
    """Packs what is not packed yet. Raises `UnveilError` where the disk does not take it."""
    try:
        with reading(splits["train"].name, True, doing="packing") as bar:
            shards = pack_shards(splits, folder, how, bar if Console(stderr=True).is_terminal else lines(say))
        finish_pack(splits, folder, facts, shards)
    except OSError as error:  # of writing: a file that cannot be read is skipped
        fault = error.strerror or error
        raise UnveilError(f"cannot write into {folder}: {fault}; the same command goes on after the last shard") from error


def refuse_changes(folder: Path, old: Facts, new: Facts, what: str) -> None:
    """Raises `UnveilError` with the difference where two commands differ."""
    if old["format"] != new["format"]:
        raise UnveilError(f"{folder} was begun as {old['format']!r}, and this version writes {new['format']!r}: choose another OUT")
    found = [
        f"{'data ' * (part == 'data')}{key}: was {old[part].get(key)!r}, is {new[part].get(key)!r}"
        for part in ("data", "settings")
        for key in old[part] | new[part]
        if old[part].get(key) != new[part].get(key)
    ]
    if found:
        raise UnveilError(f"{what} ({'; '.join(found)}): give that command, or choose another OUT")


def refuse_taken(folder: Path) -> None:
    """Raises `UnveilError` where the folder holds anything, or is none."""
    if folder.exists() and not folder.is_dir():
        raise UnveilError(f"{folder} exists already and is a file: choose another OUT")
    if folder.is_dir() and not all(OURS.fullmatch(name) for name in os.listdir(folder)):
        raise UnveilError(f"{folder} exists already and is no pack: choose another OUT")


def refuse_inside(folder: Path, data: Data) -> None:
    """Raises `UnveilError` where the pack would be written into DATA."""
    if isinstance(data, np.ndarray):
        return
    home = Path(str(data).removeprefix("hf://")).expanduser()
    if home.is_dir() and folder.resolve().is_relative_to(home.resolve()):
        raise UnveilError(f"{folder} lies in {data}, and nothing is ever written into DATA: choose another OUT")


def refuse_senseless(how: PackConfig) -> None:
    """Raises `UnveilError` for a knob that cannot be meant."""
    for name, least in {"side": 1, "quality": 1, "channels": 0, "pixel_limit": 1, "shard_bytes": 1, "workers": 0}.items():
        if getattr(how, name) < least:
            raise UnveilError(f"{name} is {getattr(how, name)}: use {least} or more")
    if how.store not in ("jpeg", "raw"):
        raise UnveilError(f"store is {how.store!r}: use jpeg or raw")
    if how.quality > 100:
        raise UnveilError(f"quality is {how.quality}: use 1 to 100")


def refuse_unsuited(source: Source, how: PackConfig) -> None:
    """Raises `UnveilError` where no image of a sample can be read, or most would not fit into JPEG files."""
    sample = sample_images(source, 64, shrink_to=how.side, pixel_limit=how.pixel_limit)
    channels = how.channels or common_channels(sample)
    if how.store == "raw":
        return
    if channels not in (1, 3):
        raise UnveilError(f"the images of {source.name} have {channels} channels, and JPEG holds 1 or 3: use --store raw")
    if sum(x.dtype == np.uint16 for x in sample) * 2 > len(sample):
        raise UnveilError(f"the images of {source.name} have 16 bits, and JPEG holds 8: use --store raw")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps others out of the folder while this process writes. Raises `UnveilError` where another one does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UnveilError(f"another process is packing into {folder}: let it end, or stop it") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(handle)


def lines(say: Say, seconds: float = 10.0) -> Progress:
    """Says now and then how far it is."""
    first = -1
    start = last = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal first, last
        first = done if first < 0 else first
        now = time.monotonic()
        if now - last > seconds:
            last, rate = now, max(done - first, 1) / (now - start)
            say(f"packed {done:,} of {of:,} images, {rate:,.0f} a second, {(of - done) / rate:,.0f} s left")

    return progress


def tell_of(made: Pack, say: Say) -> None:
    """Says what a pack holds, and what it could not take."""
    splits = made.facts["splits"]
    counts = ", ".join(f"{facts['dataset']:,} {name}" for name, facts in splits.items())
    size = sum(shard["bytes"] for shard in made.facts["shards"])
    shards = len(made.facts["shards"])
    say(f"{counts} images, {size / 1e6:,.1f} MB in {shards:,} shard{'s' * (shards > 1)}: {made.folder}")
    left_out = {name for facts in splits.values() for name in facts["skipped"]}
    if left_out:
        say(f"{len(left_out):,} file{'s' * (len(left_out) > 1)} could not be used: see {made.folder / SKIPPED}")


def check(folder: Path, say: Say) -> Path:
    """Reads every byte of a pack. Raises `UnveilError` where one has changed, with the images that are damaged."""
    made = Pack(folder)
    files = made.files()
    wrong: list[str] = []
    with ThreadPoolExecutor(cores()) as pool, reading(str(folder), True, doing="checking") as bar:
        for done, (name, found) in enumerate(zip(files, pool.map(lambda name: checksum(folder / name), files), strict=True), 1):
            bar(done, len(files))
            if found != files[name]["sha256"]:
                wrong.append(name)
    if wrong:
        dataset = [name for split in made.facts["splits"] for name in damaged(made.split(split))]
        named = ", ".join(dataset[:3]) + (", ..." if len(dataset) > 3 else "")
        count = f"{len(dataset):,} image{'s' * (len(dataset) != 1)}" + (f" ({named})" if named else "")
        raise UnveilError(
            f"the pack {folder} is damaged: {', '.join(wrong)}, with {count}: copy it again, or pack again into another folder"
        )
    say(f"every byte of {folder} is as it was written: {len(files):,} files")
    return folder


def damaged(split: Split) -> list[str]:
    """The images whose bytes have changed."""
    found = []
    for number, name in enumerate(split.names):
        try:
            split.read(number)
        except Unreadable:
            found.append(name)
    return found
