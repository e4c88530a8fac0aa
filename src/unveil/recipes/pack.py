"""`unveil pack`: decodes and shrinks every image once, into a few large files that training reads quickly."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from unveil.atomic_files import checksum, free_bytes, spell_size
from unveil.data.dataset import Progress
from unveil.data.image_samples import common_channels, sample_images
from unveil.data.pack_reader import FACTS, FORMAT, SKIPPED, UNFINISHED, Facts, Pack, Split, is_pack, seal, unseal
from unveil.data.pack_writer import LEFTOVERS, PackConfig, cores, finish_pack, pack_shards, sweep, write
from unveil.data.pixels import Unreadable
from unveil.data.sources import Data, Source, open_parts
from unveil.errors import UnveilError
from unveil.folder_lock import LOCK, locked
from unveil.options import configure
from unveil.plain_text import count_of
from unveil.runs.open_data import Say, progress_bar, say_notes
from unveil.train.data_changes import VERSIONED
from unveil.train.terminal import console, has_bars, printer


def pack(data: Data, out: str | Path | None = None, *, verify: bool = False, **options: Any) -> Path:
    """Decodes and shrinks every image of DATA once, into a folder that can be used as DATA. A killed command can be resumed.

    Args:
        data: See `unveil.data.sources.FORMS`. Both its train and its test split are packed.
        out: A new folder, or one that the same command began.
        verify: Read every byte of `out` again and compare checksums. Without `out`, `data` is a pack, and it is verified.
        **options: Fields of `PackConfig`.

    Returns:
        The folder of the pack.

    Raises:
        UnveilError: If `out` holds something else, the store cannot hold the images, or verifying finds a changed byte.
    """
    (config,) = configure(options, PackConfig)
    say = printer(True)
    if out is None:
        if not verify or not isinstance(data, str | Path):
            raise UnveilError("OUT is missing: unveil pack DATA OUT writes a pack, and unveil pack OUT --verify checks one")
        return verify_pack(Path(data), say)
    folder = Path(out)
    parts = open_parts(data)
    roles = parts.roles()
    splits = {"train": roles.train} | ({} if roles.test is None else {"test": roles.test})
    splits |= {} if roles.validation is None else {"val": roles.validation}
    if "unlabeled" in parts.names and "unlabeled" not in roles.splits["train"]:
        splits["unlabeled"] = parts.source("unlabeled")
    say_notes(say, "", *splits.values())
    left_out = len(parts.source()) - sum(map(len, splits.values()))
    if left_out:
        say(f"not packed: {count_of(left_out, 'image')} beside the splits, or of a test split without labels")
    facts = facts_of(splits, config)
    refuse_inside(folder, data)
    if not is_pack(folder):
        refuse_taken(folder)
        for source in splits.values():
            refuse_unsuited(source, config)
    with locked(folder, "packing into"):
        listings = {f"{name}_fingerprint": source.listing_fingerprint for name, source in splits.items()}
        if begin(folder, facts, listings):
            say(f"{folder} is complete already: nothing to do")
        else:
            write_pack(splits, folder, facts, config, say)
        summarise(Pack(folder), say)
    return verify_pack(folder, say) if verify else folder


def facts_of(splits: Mapping[str, Source], config: PackConfig) -> Facts:
    """The data and the settings that determine the content of a pack. They must not change when the command is resumed."""
    settings = {
        key: value for key, value in asdict(config).items() if key != "workers" and (key, config.store) != ("quality", "raw")
    }
    settings = {"pixel_limit" if key == "max_pixels" else key: value for key, value in settings.items()}  # its name on disk
    data: Facts = {"name": splits["train"].name}
    for name, source in splits.items():
        data |= {name: len(source), f"{name}_fingerprint": source.fingerprint}
    return {"format": FORMAT, "data": data, "settings": settings}


def begin(folder: Path, facts: Facts, listings: Mapping[str, str]) -> bool:
    """Marks the folder as the pack of this command. Returns whether the pack is complete already.

    Args:
        folder: The folder of the pack.
        facts: The data and the settings.
        listings: The fingerprints of the data by the formula of earlier versions, in case one of them began the pack.

    Raises:
        UnveilError: If the folder belongs to another command.
    """
    if (folder / FACTS).is_file():
        old = Pack(folder).facts
        refuse_changed_pack(folder, old, by_formula_of(old, facts, listings), "exists already and is a pack of another command")
        sweep(folder)
        return True
    if (folder / UNFINISHED).is_file():
        try:
            begun = unseal(folder / UNFINISHED)
        except (OSError, ValueError) as error:
            raise UnveilError(f"{folder} cannot be resumed ({error}): remove it, or choose another OUT") from None
        refuse_changed_pack(folder, begun, by_formula_of(begun, facts, listings), "is an incomplete pack of another command")
    else:
        refuse_taken(folder)  # check again: now that the folder is locked, no other process writes into it
        write(folder / UNFINISHED, seal(facts))
    return False


def write_pack(splits: Mapping[str, Source], folder: Path, facts: Facts, config: PackConfig, say: Say) -> None:
    """Packs the images that are not packed yet. Raises `UnveilError` if the disk cannot be written."""
    try:
        with progress_bar(splits["train"].name, True, doing="packing") as bar:
            shards = pack_shards(splits, folder, config, bar if has_bars(console(stderr=True)) else progress_lines(say))
        finish_pack(splits, folder, facts, shards)
    except OSError as error:  # from writing: a file that cannot be read is skipped
        fault, free = error.strerror or error, spell_size(free_bytes(folder))
        raise UnveilError(f"cannot write into {folder}: {fault} ({free} are free); run the same command again to resume") from error


def by_formula_of(old: Facts, new: Facts, listings: Mapping[str, str]) -> Facts:
    """The new facts, with the fingerprints by the formula of those in the old facts."""
    earlier = {key: listings[key] for key in listings if key in old["data"] and not str(old["data"][key]).startswith(VERSIONED)}
    return {**new, "data": {**new["data"], **earlier}}


def refuse_changed_pack(folder: Path, old: Facts, new: Facts, what: str) -> None:
    """Raises `UnveilError` with the differences, if the data or the options of two commands differ."""
    if old["format"] != new["format"]:
        raise UnveilError(
            f"{folder} has the format {old['format']!r}, but this version writes {new['format']!r}: choose another OUT"
        )
    changes = [
        f"{'data ' * (group == 'data')}{'max_pixels' if key == 'pixel_limit' else key}: was {old[group].get(key)!r}, "
        f"is {new[group].get(key)!r}"
        for group in ("data", "settings")
        for key in old[group] | new[group]
        if key != "name" and old[group].get(key) != new[group].get(key)
    ]
    if changes:
        raise UnveilError(f"{folder} {what} ({'; '.join(changes)}): use the same data and options, or choose another OUT")


def refuse_taken(folder: Path) -> None:
    """Raises `UnveilError` if the folder is a file, or contains anything other than leftovers of a killed run."""
    if folder.exists() and not folder.is_dir():
        raise UnveilError(f"{folder} exists already and is a file: choose another OUT")
    if folder.is_dir() and not all(name == LOCK or LEFTOVERS.fullmatch(name) for name in os.listdir(folder)):
        raise UnveilError(f"{folder} exists already and is not a pack: choose another OUT")


def refuse_inside(folder: Path, data: Data) -> None:
    """Raises `UnveilError` if the pack would be written into DATA."""
    if not isinstance(data, str | Path):
        return
    home = Path(str(data).removeprefix("hf://")).expanduser()
    if home.is_dir() and folder.resolve().is_relative_to(home.resolve()):
        raise UnveilError(f"{folder} is inside of {data}, and unveil never writes into DATA: choose another OUT")


def refuse_unsuited(source: Source, config: PackConfig) -> None:
    """Raises `UnveilError` if no image of a sample can be read, or if most of them cannot be stored as JPEG files."""
    sample = sample_images(source, 64, shrink_to=config.side, max_pixels=config.max_pixels)
    channels = config.channels or common_channels(sample)
    if config.store == "raw":
        return
    if channels not in (1, 3):
        raise UnveilError(f"the images of {source.name} have {channels} channels, but JPEG has 1 or 3: use --store raw")
    if sum(x.dtype == np.uint16 for x in sample) * 2 > len(sample):
        raise UnveilError(f"the images of {source.name} have 16 bits, but JPEG has 8: use --store raw")


def progress_lines(say: Say, seconds: float = 10.0) -> Progress:
    """Reports progress with a line every few seconds, for use without a terminal."""
    first = -1
    start = last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal first, last
        first = done if first < 0 else first
        now = time.monotonic()
        if now - last > seconds:
            last, rate = now, max(done - first, 1) / (now - start)
            say(f"packed {done:,} of {total:,} images, {rate:,.0f} images/s, {(total - done) / rate:,.0f} s left")

    return progress


def summarise(finished: Pack, say: Say) -> None:
    """Prints the number of images, size and shards of a pack, and how many files were skipped."""
    splits = finished.facts["splits"]
    counts = ", ".join(f"{facts['pictures']:,} {name}" for name, facts in splits.items())
    size = sum(shard["bytes"] for shard in finished.facts["shards"])
    shards = len(finished.facts["shards"])
    say(f"{counts} images, {size / 1e6:,.1f} MB in {count_of(shards, 'shard')}: {finished.folder}")
    skipped = {name for facts in splits.values() for name in facts["skipped"]}
    if skipped:
        say(f"{count_of(len(skipped), 'file')} could not be used: see {finished.folder / SKIPPED}")


def verify_pack(folder: Path, say: Say) -> Path:
    """Reads every byte of a pack. Raises `UnveilError` if one has changed, with the images that are damaged."""
    finished = Pack(folder)
    files = finished.files()
    damaged: list[str] = []
    with ThreadPoolExecutor(cores()) as pool, progress_bar(str(folder), True, doing="checking") as bar:
        sums = pool.map(lambda name: checksum(folder / name), files)
        for done, (name, found) in enumerate(zip(files, sums, strict=True), 1):
            bar(done, len(files))
            if found != files[name]["sha256"]:
                damaged.append(name)
    if damaged:
        images = [name for split in finished.facts["splits"] for name in damaged_images(finished.split(split))]
        names = f" ({', '.join(images[:3])}{', ...' * (len(images) > 3)})" if images else ""
        raise UnveilError(
            f"the pack {folder} is damaged: {', '.join(damaged)}, with {count_of(len(images), 'image')}{names}: "
            f"copy it again, or pack again into another folder"
        )
    say(f"{folder} is undamaged: the checksums of all {len(files):,} files match")
    return folder


def damaged_images(split: Split) -> list[str]:
    """Names of the images whose bytes have changed."""
    names = []
    for number, name in enumerate(split.names):
        try:
            split.read(number)
        except Unreadable:
            if name not in split.skipped:  # those could not be packed
                names.append(name)
    return names
