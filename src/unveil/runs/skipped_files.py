"""The files of a run that could not be used: a list in its folder, and messages while it runs."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from unveil.atomic_files import write_text
from unveil.data.dataset import ImageDataset
from unveil.data.faults import Fault
from unveil.data.pixels import LONGEST
from unveil.data.splits import Subset
from unveil.errors import UnveilError
from unveil.plain_text import count_of, printable
from unveil.train.parallel import World
from unveil.train.run_folder import Run

SKIPPED = "skipped.txt"
"""The file in a run folder with the files that could not be used, one "name<TAB>reason" per line."""


def skipped_lines(*subsets: Subset) -> list[str]:
    """A line "name<TAB>reason" for each file that could not be used."""
    found: dict[str, str] = {}
    for subset in subsets:
        found |= dict(subset.dataset.source.skipped) | subset.dataset.skipped
    return [f"{printable(name)}\t{printable(reason)}" for name, reason in sorted(found.items())]


class SkippedFiles:
    """Reports unreadable images as soon as they are noticed, and lists all files that could not be used.

    Every process of a run creates it. The main process learns from the others through the store which images they could not read.

    Args:
        train_set: The images to train on.
        test_set: The images to test on.
        validation_set: The images to evaluate during training, if they are others.
        world: Only the main process prints and writes.
        say: Prints a message for the user.
    """

    def __init__(
        self, train_set: Subset, test_set: Subset, validation_set: Subset | None, world: World, say: Callable[[str], None]
    ) -> None:
        self.subsets = {"train": train_set, "test": test_set} | ({"validation": validation_set} if validation_set else {})
        self.world, self._say = world, say
        self.count = 0
        """The number of files in the list."""
        self.datasets: list[ImageDataset] = list({id(each.dataset): each.dataset for each in self.subsets.values()}.values())
        self._known = sum(dataset.skipped_count for dataset in self.datasets)
        for dataset in self.datasets:
            dataset.on_fault = self._noticed
        if cut := train_set.dataset.cut:
            which = count_of(cut, "image") + ("" if train_set.dataset.in_memory else " in a sample")
            verb = "is" if cut == 1 else "are"
            say(f"{which} {verb} at least {LONGEST} times as long as wide: only the middle of such images is used")

    def write(self, folder: Path) -> None:
        """Writes `skipped.txt` if the list has grown since the last call, and says so.

        Files that an earlier part of the run could not use stay in the list.
        """
        if not self.world.is_main:
            self._send()
            return
        self._receive()
        path = folder / SKIPPED
        earlier = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        found = {line.partition("\t")[0]: line for line in (*earlier, *skipped_lines(*self.subsets.values())) if line}
        if len(found) > self.count:
            self.count = len(found)
            write_text(path, "".join(f"{line}\n" for _, line in sorted(found.items())))
            self._say(f"{count_of(self.count, 'file')} could not be used: see {path}")

    def unreadable(self) -> dict[str, int]:
        """The numbers of unreadable images in the train set and in the test set. Says that evaluations left them out."""
        counts = {name: subset.unreadable for name, subset in self.subsets.items()}
        parts = [f"{count:,} of {count_of(len(self.subsets[name]), f'{name} image')}" for name, count in counts.items() if count]
        if parts:
            self._say(f"{' and '.join(parts)} could not be read: training replaced them by others, evaluations left them out")
        return counts

    def _noticed(self, name: str, reason: str) -> None:
        """Called by any thread that cannot read an image. Reports the 1st, the 10th, the 100th ..."""
        count = sum(dataset.skipped_count for dataset in self.datasets) - self._known
        total = sum(len(dataset) for dataset in self.datasets)
        if not self.world.is_main:
            if count <= 100 or count % 100 == 0:
                self._send()
        elif count == 1:
            self._say(
                f"an image cannot be read: {name}: {reason}. Training replaces such images by others, evaluations leave them out"
            )
        elif str(count).strip("0") == "1":
            self._say(f"{count:,} of {total:,} images cannot be read ({count / total:.1%}), the last one is {name}: {reason}")

    def _send(self) -> None:
        """Tells the main process which images this process cannot read."""
        if self.world.store is not None:
            facts = [[[index, *fault] for index, fault in dataset.faults()] for dataset in self.datasets]
            self.world.store.set(f"unreadable-{self.world.rank}", json.dumps(facts))

    def _receive(self) -> None:
        if self.world.store is None:
            return
        for rank in range(1, self.world.size):
            with suppress(RuntimeError, ValueError):  # the other process may be gone
                if self.world.store.check([f"unreadable-{rank}"]):
                    facts = json.loads(self.world.store.get(f"unreadable-{rank}"))
                    for dataset, rows in zip(self.datasets, facts, strict=True):
                        dataset.add_faults((index, Fault(*fault)) for index, *fault in rows)


def refuse_earlier_numbering(run: Run, *subsets: Subset) -> None:
    """Raises `UnveilError` if a run that an earlier version began would go on with other held-out images.

    Before format 3, images in memory were numbered without the unreadable ones, from which the split and the order of training
    followed.
    """
    datasets = {id(subset.dataset): subset.dataset for subset in subsets}.values()
    unreadable = sum(len(dataset.unreadable) for dataset in datasets if dataset.in_memory)
    if run.facts.get("format", 1) < 3 and unreadable and run.checkpoints().steps():
        raise UnveilError(
            f"{run.path} was begun by an earlier version of unveil, which left {count_of(unreadable, 'unreadable image')} out "
            f"before it chose the images to hold out. To resume would train on some of those: finish it with that version, or "
            f"choose another --out"
        )
