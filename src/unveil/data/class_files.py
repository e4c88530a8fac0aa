"""Files with the names of the classes of masks: one name per line, or with the value or the colour of each.

classes.txt        road                        names of the values 0, 1, 2, ...
classes.txt        1<tab>person<tab>...        the value, the name, and columns that are not used; commas do as well
classes.txt        1 person, or 1: person      the value and the name
colors.txt         128 64 128 road             the colour and the name, in either order, separated by spaces, tabs or commas
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from unveil.data.archives import Archive, Shards
from unveil.data.mask_values import Colour, MaskNames
from unveil.data.pixels import IGNORE
from unveil.errors import UnveilError

NAMES = ("classes.txt", "classes.csv", "classes.tsv")
COLOURS = ("colors.txt", "colours.txt", "label_colors.txt", "class_dict.csv", "labelmap.txt", "colors.csv", "colours.csv")
"""Names of files with colours, in capitals or not."""
LIMIT = 2**20
"""Maximum number of bytes of such a file."""
_NUMBERED = re.compile(r"(\d+)(?:\s*[:=]\s*|\s+-\s+|\s+)(\S.*)")
"""A line with a value and a name, as in `1 person`, `1: person` or `1 - person`."""
_COLOUR_FIRST = re.compile(r"(?:\d{1,3}[\s,;]+){3}[^\d\s].*")
"""A line with a colour and a name, as in `128 64 128 road`."""


class ClassFiles(NamedTuple):
    """The names of classes in the files of DATA: the first file of `NAMES`, and the first one of `COLOURS`."""

    named: MaskNames = MaskNames()
    coloured: MaskNames = MaskNames()

    @property
    def exist(self) -> bool:
        """Whether there is any such file."""
        return bool(self.named.names or self.coloured.names)

    def of_masks(self, in_colour: bool) -> MaskNames:
        """The names for colour masks, or for masks of values.

        The lines of a file of colours are in any order, so its names are those of the values 0, 1, 2, ... only if no other file
        tells them. Then it still has the colours of the palette.
        """
        if in_colour:
            return self.coloured if self.coloured.names else self.named
        if not self.named.names:
            return self.coloured
        if self.named.colours:
            return self.named
        colours = dict(zip(self.coloured.names, self.coloured.colours, strict=True))
        known = tuple(colours[name] for name in self.named.names) if set(self.named.names) <= colours.keys() else ()
        return self.named._replace(colours=known)


def class_files(archive: Archive, data: str) -> ClassFiles:
    """The names of the classes, from files in DATA or, for an archive, beside it.

    Raises:
        UnveilError: If a file cannot be understood.
    """
    return ClassFiles(first_of(NAMES, with_values, archive, data), first_of(COLOURS, with_colours, archive, data))


def first_of(wanted: Sequence[str], parsed: Callable[[list[str], str, str], MaskNames], archive: Archive, data: str) -> MaskNames:
    """The names in the first of several files that there is; none if there is none."""
    found = next((each for each in (text_of(archive, data, name) for name in wanted) if each is not None), None)
    if found is None:
        return MaskNames()
    file, text = found
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines or not lines:
        where = f"line {lines.index('') + 1} of {file} is empty" if lines else f"{file} is empty"
        raise UnveilError(f"{data}: {where}: expected one class per line")
    return refuse_repeated(parsed(lines, file, data), data)


def text_of(archive: Archive, data: str, wanted: str) -> tuple[str, str] | None:
    """The name and the text of a file of DATA, the outermost one of this name; None if there is none."""
    files = sorted(
        (name.count("/"), index) for index, name in enumerate(archive.names) if name.rpartition("/")[2].lower() == wanted
    )
    if files:
        raw = archive.read_text(files[0][1], data, LIMIT)
        return archive.names[files[0][1]], raw.decode("utf-8-sig", "replace")
    path = beside(archive, data)
    if path is None:
        return None
    file = next((each for each in sorted(path.iterdir()) if each.name.lower() == wanted and each.is_file()), None)
    if file is None:
        return None
    if file.stat().st_size > LIMIT:
        raise UnveilError(f"{file} has {file.stat().st_size:,} bytes, expected names of classes in at most {LIMIT:,}")
    return str(file), file.read_text("utf-8-sig", "replace")


def beside(archive: Archive, data: str) -> Path | None:
    """The folder of an archive or of shards; None for a folder of images, which is an archive of its own."""
    path = Path(data).expanduser()
    if isinstance(archive, Shards) and path.is_dir():
        return path
    return path.parent if path.is_file() else None


def with_values(lines: list[str], file: str, data: str) -> MaskNames:
    """The names of lines that are names, or a value and a name; with values, the first line may be a head. Colours do as well."""
    if all(map(_COLOUR_FIRST.fullmatch, lines)):
        return with_colours(lines, file, data)
    rows = numbered_rows(lines) or (numbered_rows(lines[1:]) if is_head(lines[0]) and re.search(r"[\t,;]", lines[0]) else None)
    if rows is None:
        if len(lines) > IGNORE:
            raise UnveilError(f"{data}: {file} has {len(lines)} lines: expected one name per line, and 1 to {IGNORE} names")
        return MaskNames(file, tuple(lines))
    values = tuple(value for value, _ in rows)
    wrong = next((value for value in values if value > IGNORE or values.count(value) > 1), None)
    if wrong is not None:
        what = f"above {IGNORE}" if wrong > IGNORE else "twice"
        raise UnveilError(f"{data}: {file} has the value {wrong} {what}: expected one line for each value from 0 to {IGNORE}")
    return MaskNames(file, tuple(name for _, name in rows), values)


def numbered_rows(lines: list[str]) -> list[tuple[int, str]] | None:
    """The value and the name of each line; None if any line has none, so that each line is a name."""
    between = next((each for each in "\t,;" if all(each in line for line in lines)), None)
    if between is not None:
        rows = [[cell.strip() for cell in line.split(between)] for line in lines]
        if lines and all(is_number(row[0]) and row[1] for row in rows):
            return [(int(row[0]), row[1]) for row in rows]
    found = [_NUMBERED.fullmatch(line) for line in lines]
    pairs = [(int(each[1]), each[2]) for each in found if each]
    distinct = all(len(set(column)) == len(lines) for column in zip(*pairs, strict=True))  # "2 euro", "5 euro" are names
    return pairs if pairs and len(pairs) == len(lines) and distinct else None


def is_number(text: str) -> bool:
    """Whether a text is a whole number that a mask may have, or one a little too large."""
    return text.isascii() and text.isdigit() and len(text) < 10


def is_head(line: str) -> bool:
    """Whether a line may be the head of a table, such as name,r,g,b: it has no digit."""
    return not re.search(r"\d", line)


def with_colours(lines: list[str], file: str, data: str) -> MaskNames:
    """The names of lines with a colour each; the first line may be a head."""
    names, colours = list[str](), list[Colour]()
    for number, line in enumerate(lines):
        found = colour_line(line)
        if found is None and number == 0 and is_head(line):
            continue  # name,r,g,b
        if found is None:
            raise UnveilError(
                f"{data}: line {number + 1} of {file} is {line!r}: expected a colour (three numbers from 0 to 255) and a name, "
                "as in 1 2 3 road"
            )
        names.append(found[0])
        colours.append(found[1])
    if len(set(colours)) < len(colours):
        twice = next(colour for colour in colours if colours.count(colour) > 1)
        raise UnveilError(f"{data}: {file} has the colour {twice} twice: expected another colour for each class")
    if not 1 <= len(names) <= IGNORE:
        raise UnveilError(f"{data}: {file} has {len(names)} colours: expected 1 to {IGNORE}, one for each class")
    return MaskNames(file, tuple(names), (), tuple(colours))


def colour_line(line: str) -> tuple[str, Colour] | None:
    """The name and the colour of a line; None if it has none. In CVAT's labelmap.txt, `name:r,g,b:parts:actions`."""
    number = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
    before, after = re.fullmatch(rf"{number}[\s,;:]+(\S.*)", line), re.fullmatch(rf"(\S.*?)[\s,;:]+{number}(?::.*)?", line)
    if before:
        red, green, blue, name = before.groups()
    elif after:
        name, red, green, blue = after.groups()
    else:
        return None
    colour = int(red), int(green), int(blue)
    return (name.strip(), colour) if max(colour) <= 255 else None


def refuse_repeated(found: MaskNames, data: str) -> MaskNames:
    """Raises `UnveilError` if two classes have the same name."""
    twice = next((name for name in found.names if found.names.count(name) > 1), None)
    if twice is not None:
        raise UnveilError(f"{data}: {found.file} has the name {twice!r} twice: expected another name for each class")
    return found
