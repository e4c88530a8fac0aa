"""Computes a folder with files for each image: in constant memory, on one or several processes, and resumed where it stopped.

maps.unfinished/manifest.json     what is computed: the model, the data, the options
maps.unfinished/skipped-0.json    what process 0 could not read
maps.unfinished/files/...         the folder, which gets its name when it is complete
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from unveil.atomic_files import move_into_place, remove, write_text
from unveil.errors import UnveilError
from unveil.json_files import json_text, read_json
from unveil.paths import refuse_existing
from unveil.plain_text import printable
from unveil.protocols import FolderWriter
from unveil.runs.parts_on_disk import MANIFEST, PartsOnDisk
from unveil.runs.sample_stream import ImageStream, Span
from unveil.runs.streamed import Job
from unveil.train.parallel import shutdown

SKIPPED = "skipped.txt"
"""The file of the folder that lists what could not be read."""


class FolderOnDisk(PartsOnDisk):
    """An unfinished folder."""

    @property
    def files(self) -> Path:
        """The folder as it will be."""
        return self.folder / "files"

    def clear_if_empty(self) -> None:
        """Removes the manifest if nothing is complete: there is nothing to go on with."""
        if not any(path.is_file() for path in self.files.rglob("*")):
            for path in (self.folder / MANIFEST, self.files, *self.folder.glob("skipped-*.json")):
                remove(path)


@dataclass(frozen=True, kw_only=True)
class FolderJob(Job):
    """A folder to compute.

    Attributes:
        function: What is predicted for each image of a batch on the device.
    """

    stream: ImageStream
    function: Callable[[Any], list[Any]]

    @torch.inference_mode()
    def computed(self, spans: list[Span]) -> Iterator[tuple[Span, Any, Any]]:
        """Each image (H, W, C), and what is predicted for it; None twice if it cannot be read. Reading goes on in between."""
        for span, batch in zip(spans, self.stream.batches(spans, self.hardware, self.world), strict=True):
            if batch is None:
                yield span, None, None
                continue
            (height, width), (found,) = batch.sizes[0].tolist(), self.function(batch)
            yield span, batch.images[0, :, :height, :width].permute(1, 2, 0).cpu().numpy(), found

    @property
    def spans(self) -> list[Span]:
        """One for each image."""
        return [Span(split, index, index + 1) for split, count in self.stream.counts.items() for index in range(count)]

    def in_memory(self) -> tuple[list[str], list[Any], dict[str, str]]:
        """The names of the images, what is predicted for each, and what could not be read.

        Raises:
            NothingReadableError: If none of the images can be read.
        """
        names, found, skipped = list[str](), list[Any](), dict(self.stream.listed)
        with self.progress(0) as advance:
            for span, image, prediction in self.computed(self.spans):
                if image is None:
                    skipped |= dict(self.stream.unreadable(span))
                else:
                    names.append(self.name_of(span))
                    found.append(prediction)
                advance(1)
        self.refuse_nothing(len(found), skipped)
        return names, found, skipped

    def to_folder(self, out: Path, facts: Mapping[str, Any], make: Callable[[Path], FolderWriter]) -> tuple[int, dict[str, str]]:
        """Writes the folder, or what an earlier call has left to do. Every process must call it.

        Args:
            out: The folder.
            facts: See `Job.facts`.
            make: Makes what writes the files into a folder.

        Returns:
            The number of images that were predicted, and what could not be read; of the main process.

        Raises:
            UnveilError: On files of other facts, or if nothing can be read.
        """
        disk, world, spans = FolderOnDisk(out, facts), self.world, self.spans
        names = dict(zip(spans, relative_names([self.name_of(span) for span in spans]), strict=True))
        with self.alone_in(disk) if world.is_main else nullcontext():
            self.open(disk)
            writer, mine = make(disk.files), spans[world.rank :: world.size]
            todo = [span for span in mine if not writer.has(names[span])]
            done, skipped = len(mine) - len(todo), dict[str, str]()
            if done:
                self.say(f"going on with {disk.folder}: {done * world.size:,} of {self.stream.total:,} are done")
            with self.progress(done * world.size) as advance:
                for span, image, prediction in self.computed(todo):
                    if image is None:
                        skipped |= dict(self.stream.unreadable(span))
                    else:
                        writer.add(names[span], image, prediction, self.name_of(span))
                    advance(world.size)
            write_text(disk.folder / f"skipped-{world.rank}.json", json_text(skipped))
            self.wait_for_all()
            found, missing = 0, dict(self.stream.listed)
            if world.is_main:
                for rank in range(world.size):
                    missing |= read_json(disk.folder / f"skipped-{rank}.json")
                found = self.finish(disk, writer, names, missing)
            shutdown(world)
        return found, missing

    def finish(self, disk: FolderOnDisk, writer: FolderWriter, names: Mapping[Span, str], skipped: Mapping[str, str]) -> int:
        """Completes the folder and gives it its name. Returns the number of images that were predicted."""
        done = sum(writer.has(name) for name in names.values())
        unread = sum(self.name_of(span) in skipped for span in names)
        if done + unread < len(names):
            raise UnveilError(
                f"{disk.folder} lacks {len(names) - done - unread:,} of {len(names):,} images: with processes on several machines, "
                "--out must be in a folder that all of them share"
            )
        self.refuse_nothing(done, skipped)
        sentence = writer.close()
        if skipped:
            lines = "".join(f"{printable(name)}\t{printable(reason)}\n" for name, reason in sorted(skipped.items()))
            write_text(disk.files / SKIPPED, lines)
        refuse_existing(disk.out)
        move_into_place(disk.files, disk.out)
        remove(disk.folder)
        if sentence:
            self.say(sentence)
        return done

    def name_of(self, span: Span) -> str:
        """The name of an image."""
        return self.stream.parts[span.split].dataset.names[span.start]


def relative_names(names: list[str]) -> list[str]:
    """Another relative path for each image, without its ending unless it is needed to tell two files apart.

    Of absolute paths, only what they do not share is left. No path leads out of a folder.
    """
    parts = [[part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in ("/", ".", "..")] for name in names]
    if names and all(os.path.isabs(name) for name in names):
        folder = os.path.commonpath([os.path.dirname(name) for name in names])
        parts = [list(PurePosixPath(os.path.relpath(name, folder)).parts) for name in names]
    whole = ["/".join(each) or "image" for each in parts]
    short = [os.path.splitext(name)[0] for name in whole]
    counts = dict[str, int]()
    for name in short:
        counts[name] = counts.get(name, 0) + 1
    found, taken = list[str](), set[str]()
    for stem, name in zip(short, whole, strict=True):
        free, number = (stem if counts[stem] == 1 else name), 1
        while free in taken:
            number += 1
            free = f"{name}-{number}"
        taken.add(free)
        found.append(free)
    return found
