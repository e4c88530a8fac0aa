"""A table that is computed part by part and joined at the end, so that it can be resumed, and needs the memory of one part.

    photos.csv.unfinished/manifest.json     what is computed: the model, the data, the options
    photos.csv.unfinished/part-000007       the rows of a part
    photos.csv.unfinished/part-000007.json  their number, their checksum, and what could not be read; written last

Parts have fixed borders and each is computed in the same batches, whichever process does it and whenever. So the joined table
has the same bytes after a kill, and from several processes. It appears under its name when it is complete.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unveil.atomic_files import LEFTOVER, remove, replacing, sweep, write_text
from unveil.errors import UnveilError
from unveil.folder_lock import LOCK
from unveil.json_files import json_text, read_json
from unveil.paths import refuse_existing
from unveil.plain_text import printable
from unveil.predictions import Columns
from unveil.runs.table_formats import TableFormat, format_of

MANIFEST = "manifest.json"
VERSION = 1


def unfinished(out: Path) -> Path:
    """The folder of the parts of a table."""
    return out.with_name(f"{out.name}.unfinished")


def skipped_list(out: Path) -> Path:
    """The file beside a table that lists what could not be read."""
    return out.with_name(f"{out.name}.skipped.txt")


@dataclass(frozen=True)
class PartsOnDisk:
    """The parts of an unfinished table.

    Args:
        out: The final file.
        facts: The model, the data and the options, by name, as JSON values. Parts of other facts are refused.
    """

    out: Path
    facts: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return unfinished(self.out)

    @property
    def format(self) -> TableFormat:
        return format_of(self.out)

    def open(self) -> bool:
        """Begins, or goes on with what a stopped command has left. Returns whether there was something.

        Raises:
            UnveilError: If the final file exists, the folder holds something else, or parts of another model, data or options.
        """
        refuse_existing(self.out)
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            others = [each.name for each in self.folder.iterdir()] if self.folder.exists() else []
            foreign = [name for name in others if name != LOCK and not LEFTOVER.fullmatch(name)]
            if foreign:
                raise UnveilError(f"{self.folder} holds {foreign[0]}, which is no part of a table: choose another --out")
            refuse_existing(skipped_list(self.out))
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(manifest, json_text({"format": VERSION, **self.facts}))
            return False
        found, wanted = read_json(manifest), json.loads(json.dumps({"format": VERSION, **self.facts}))
        if found != wanted:
            raise UnveilError(
                f"{self.folder} was begun with {difference(found, wanted)}: run the command as before to go on, choose another "
                f"--out, or remove the folder to start again"
            )
        sweep(self.folder)
        return True

    def clear_if_empty(self) -> None:
        """Removes the manifest if no part is complete: there is nothing to go on with."""
        if not any(self.folder.glob("part-*.json")):
            for path in (self.folder / MANIFEST, *self.folder.glob("part-*")):
                remove(path)

    def path(self, number: int) -> Path:
        """The rows of a part."""
        return self.folder / f"part-{number:06d}"

    def is_done(self, number: int) -> bool:
        """Whether a part is complete."""
        return self.path(number).with_suffix(".json").is_file() and self.path(number).is_file()

    def write(self, number: int, columns: Columns, skipped: Sequence[tuple[str, str]]) -> None:
        """Writes a part: its rows, and the names and reasons of what could not be read."""
        raw = self.format.encode(columns) if columns else b""
        with replacing(self.path(number), len(raw)) as fresh:
            fresh.write_bytes(raw)
        rows = len(next(iter(columns.values()), ()))
        facts = {"rows": rows, "columns": list(columns), "crc32": zlib.crc32(raw), "skipped": [list(each) for each in skipped]}
        write_text(self.path(number).with_suffix(".json"), json_text(facts))

    def facts_of(self, number: int) -> dict[str, Any]:
        """What is recorded of a part."""
        return read_json(self.path(number).with_suffix(".json"))

    def verified(self, number: int) -> Path:
        """The rows of a part. Raises `UnveilError`, and removes the part, if it is damaged."""
        path, found = self.path(number), 0
        with path.open("rb") as file:
            while block := file.read(2**20):
                found = zlib.crc32(block, found)
        if found != self.facts_of(number)["crc32"]:
            remove(path.with_suffix(".json"))
            raise UnveilError(f"{path} is damaged and was discarded: run the same command to compute it again")
        return path

    def refuse_missing(self, count: int) -> None:
        """Raises `UnveilError` unless all parts are there."""
        missing = sum(not self.is_done(number) for number in range(count))
        if missing:
            raise UnveilError(
                f"{self.folder} lacks {missing:,} of {count:,} parts: with processes on several machines, --out must be in a "
                f"folder that all of them share"
            )

    def join(self, count: int, rows: int, skipped: Mapping[str, str]) -> None:
        """Writes the final table from all parts, and the list of what could not be read if there is any. Removes the parts.

        Args:
            count: The number of parts.
            rows: The number of their rows, at least one.
            skipped: What could not be read, by name, with the reason.

        Raises:
            UnveilError: If a part is damaged, or the final file exists by now.
        """
        full = [number for number in range(count) if self.facts_of(number)["rows"]]
        paths = [self.verified(number) for number in full]
        refuse_existing(self.out)
        if skipped:
            lines = "".join(f"{printable(name)}\t{printable(reason)}\n" for name, reason in sorted(skipped.items()))
            write_text(skipped_list(self.out), lines)
        with replacing(self.out) as fresh:
            self.format.join(fresh, self.facts_of(full[0])["columns"], rows, paths)
        remove(self.folder)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What differs between the facts of the parts and those of this command, in words."""
    if found.get("format") != wanted["format"] or found.get("verb") != wanted.get("verb"):
        return f"unveil {found.get('verb')} of another version" if found.get("verb") == wanted.get("verb") else "another command"
    words = [text for name, text in (("model", "another model"), ("data", "other data")) if found.get(name) != wanted.get(name)]
    before, now = found.get("options", {}), wanted.get("options", {})
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    words += [f"--{name.replace('_', '-')} {before.get(name)}, not {now.get(name)}" for name in changed]
    return " and ".join(words) or "other settings"
