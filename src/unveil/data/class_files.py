"""Files with the names of the classes of masks: one name per line, or with the value or the colour of each.

classes.txt        road                        names of the values 0, 1, 2, ...
classes.txt        1<tab>person<tab>...        the value, the name, and columns that are not used; commas do as well
colors.txt         128 64 128 road             the colour and the name, in either order, separated by spaces, tabs or commas
"""

import re
from pathlib import Path

from unveil.data.archives import Archive, Shards
from unveil.data.mask_values import Colour, MaskNames
from unveil.data.pixels import IGNORE
from unveil.errors import UnveilError

NAMES = ("classes.txt", "classes.csv", "classes.tsv")
COLOURS = ("colors.txt", "colours.txt", "label_colors.txt", "class_dict.csv", "labelmap.txt", "colors.csv", "colours.csv")
"""Names of files with colours, in capitals or not; the first one that there is has priority over `NAMES`."""
LIMIT = 2**20
"""Maximum number of bytes of such a file."""


def names_of_classes(archive: Archive, data: str) -> MaskNames:
    """The names of the classes, from a file in DATA or, for an archive, beside it; none if there is no such file.

    Raises:
        UnveilError: If the file cannot be understood.
    """
    for wanted in (*COLOURS, *NAMES):
        found = text_of(archive, data, wanted)
        if found is not None:
            file, text = found
            lines = [line.strip() for line in text.strip().splitlines()]
            if "" in lines or not lines:
                raise UnveilError(f"{data}: {file} has {len(lines)} lines, and an empty one: expected one class per line")
            parsed = with_colours(lines, file, data) if wanted in COLOURS else with_values(lines, file, data)
            return refuse_repeated(parsed, data)
    return MaskNames()


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
    """The names of lines that are names, or a value, a tab or a comma, and a name."""
    between = "\t" if all("\t" in line for line in lines) else "," if all("," in line for line in lines) else ";"
    rows = [[cell.strip() for cell in line.split(between)] for line in lines]
    if all(len(row) > 1 and row[0].isdigit() and row[1] for row in rows):
        values = tuple(int(row[0]) for row in rows)
        if max(values) > IGNORE or len(set(values)) < len(values):
            wrong = next((value for value in values if value > IGNORE or values.count(value) > 1), 0)
            raise UnveilError(f"{data}: {file} has the value {wrong} twice, or above {IGNORE}: expected one line for each value")
        return MaskNames(file, tuple(row[1] for row in rows), values)
    if len(lines) > IGNORE:
        raise UnveilError(f"{data}: {file} has {len(lines)} lines: expected one name per line, and 1 to {IGNORE} names")
    return MaskNames(file, tuple(lines))


def with_colours(lines: list[str], file: str, data: str) -> MaskNames:
    """The names of lines with a colour each; the first line may be a head."""
    rows, names, colours = lines, list[str](), list[Colour]()
    for number, line in enumerate(rows):
        found = colour_line(line)
        if found is None and number == 0:
            continue  # name,r,g,b
        if found is None:
            raise UnveilError(f"{data}: line {number + 1} of {file} is {line!r}: expected a colour and a name, as in 1 2 3 road")
        names.append(found[0])
        colours.append(found[1])
    if len(set(colours)) < len(colours):
        twice = next(colour for colour in colours if colours.count(colour) > 1)
        raise UnveilError(f"{data}: {file} has the colour {twice} twice: expected another colour for each class")
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
