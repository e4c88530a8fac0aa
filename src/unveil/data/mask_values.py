"""What the values of masks mean: the class of each value or colour, and which of them are no class.

    stored in a mask        0    1    2  ...  255        or a colour, such as (128, 64, 128)
    class of a pixel      none   0    1  ... none        with `reduce_zero`, as for ADE20K

The table is applied once, where a mask is read (`unveil.data.images.read_class_map`), and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.pixels import IGNORE, ClassMap, Unreadable
from unveil.errors import UnveilError
from unveil.plain_text import count_of

Colour = tuple[int, int, int]
VOID = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown", "undefined"})
"""Names of what is seldom meant as a class."""
NOTHING = VOID | {"other", "others", "background"}
"""Names of the value 0 in files whose next name is that of the value 1."""
UNKNOWN = 256
"""In a table of classes: a value that is neither a class nor ignored."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What the values of the masks mean."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()
    reduce_zero: bool = False
    """The value 0 of the masks is no class, but "other", as in ADE20K: the classes are 1, 2, 3, ..."""
    ignore: tuple[str, ...] = ()
    """Further values of the masks, or names of classes, that are no class, such as 11 or void. 255 is none in any case."""


PLAIN = MaskConfig()
"""Values are classes, except 255."""


class MaskValues(NamedTuple):
    """The classes of masks, by what is stored for them."""

    stored: tuple[int, ...]
    """The value of each class in the masks; of colour masks, its number."""
    colours: tuple[Colour, ...] = ()
    """The colour of each class: in the masks if they are colour masks, else in their palette; empty if none is known."""
    in_colour: bool = False
    """Whether a pixel of a mask is a colour, and not a value."""
    ignored: tuple[int, ...] = (IGNORE,)
    """The values that are no class; of colour masks, their colours as 65536 R + 256 G + B."""

    def classes_of(self, mask: NDArray[np.generic]) -> ClassMap:
        """The class of each pixel (H, W) as uint8, `IGNORE` for none.

        Args:
            mask: What is stored: values (H, W) from 0 to 255, or colours (H, W, 3).

        Raises:
            Unreadable: If a value, or a colour, is neither a class nor ignored.
        """
        codes = colour_codes(mask) if self.in_colour else mask
        numbers = codes_of(self)
        known = np.array([*numbers, *self.ignored])
        classes = np.array([*range(len(numbers)), *(IGNORE for _ in self.ignored)], np.int64)
        if not self.in_colour:
            table = np.full(256, UNKNOWN, np.int64)
            table[known] = classes
            found = table[mask]
        else:
            order = np.argsort(known, kind="stable")
            places = np.searchsorted(known[order], codes).clip(0, len(known) - 1)
            found = np.where(known[order][places] == codes, classes[order][places], UNKNOWN)
        if bool((wrong := found == UNKNOWN).any()):
            raise Unreadable(f"mask with {self.spelled(int(codes[wrong][0]))}, which is none of its {len(numbers)} classes")
        result: ClassMap = found.astype(np.uint8)
        return result

    def spelled(self, code: int) -> str:
        """A value or a colour in words."""
        return f"the colour {colour_of(code)}" if self.in_colour else f"the value {code}"


class MaskNames(NamedTuple):
    """The names of classes, as a file has them."""

    file: str = ""
    """The name of the file; "" if there is none."""
    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    """The value of each name; empty if the file has only names, in the order of the values."""
    colours: tuple[Colour, ...] = ()
    """The colour of each name; empty if the file has none."""


class Survey(NamedTuple):
    """What occurs in some masks."""

    first: Mapping[int, str]
    """The values, or the codes of colours, with the name of the first mask that has each."""
    counts: Mapping[int, int]
    """The number of masks that have each."""
    masks: int
    in_colour: bool
    palette: tuple[Colour, ...] = ()
    """The palette of the first mask that has one."""

    def is_frequent(self, unnamed: Sequence[int]) -> bool:
        """Whether values without a name are in more than one mask, and a tenth of them. Otherwise the masks are at fault."""
        most = max((self.counts[value] for value in unnamed), default=0)
        return most > 1 and 10 * most > self.masks


class Meaning(NamedTuple):
    """What masks mean."""

    values: MaskValues
    classes: list[str]
    notes: tuple[str, ...]
    """Sentences for the user."""


def codes_of(values: MaskValues) -> list[int]:
    """What masks store for each class: values, or the codes of colours."""
    return [code_of(colour) for colour in values.colours] if values.in_colour else list(values.stored)


def code_of(colour: Sequence[int]) -> int:
    """A colour as one number."""
    return (colour[0] << 16) | (colour[1] << 8) | colour[2]


def colour_of(code: int) -> Colour:
    """The colour of a number: see `code_of`."""
    return code >> 16, (code >> 8) & 255, code & 255


def colour_codes(mask: NDArray[np.generic]) -> NDArray[np.int64]:
    """The number of each colour (H, W) of a mask (H, W, 3) of uint8."""
    channels = mask.astype(np.int64)
    codes: NDArray[np.int64] = (channels[..., 0] << 16) | (channels[..., 1] << 8) | channels[..., 2]
    return codes


def meaning_of(survey: Survey, named: MaskNames, config: MaskConfig, data: str) -> Meaning:
    """The classes of masks.

    Args:
        survey: What occurs in them.
        named: The names of the classes.
        config: What is no class.
        data: DATA as the user typed it, for messages.

    Raises:
        UnveilError: If a value has no name, an option names nothing, or fewer than two classes are left.
    """
    found = colour_meaning(survey, named, config, data) if survey.in_colour else value_meaning(survey, named, config, data)
    if len(found.classes) < 2:
        only = f"only one class, {found.classes[0]}" if found.classes else "no class"
        raise UnveilError(f"the masks of {data} have {only}: two classes or more are needed")
    return found._replace(notes=(*found.notes, *notes_of(found, named)))


def value_meaning(survey: Survey, named: MaskNames, config: MaskConfig, data: str) -> Meaning:
    """The classes of masks of values; see `meaning_of`."""
    seen = dict(survey.first)
    binary = set(seen) <= {0, IGNORE} and IGNORE in seen and len(named.names) in (0, 2) and str(IGNORE) not in config.ignore
    if binary:
        pairs = dict(zip((0, IGNORE), named.names or ("0", "255"), strict=True))
    elif named.values:
        pairs = dict(zip(named.values, named.names, strict=True))
    elif named.names:
        first = 1 if config.reduce_zero and named.names[0].lower() not in NOTHING else 0
        pairs = dict(enumerate(named.names, first))
    else:
        largest = max((value for value in seen if value != IGNORE), default=0)
        pairs = {value: str(value) for value in range(largest + 1)}
    ignored = {IGNORE} - ({IGNORE} if binary else set()) | ({0} if config.reduce_zero else set())
    ignored |= ignored_values(config.ignore, pairs, data)
    unnamed = sorted(value for value in seen if value not in pairs and value not in ignored)
    if survey.is_frequent(unnamed):
        value, count = unnamed[0], len(pairs)
        more = f", as {len(unnamed) - 1} other values do" if len(unnamed) > 1 else ""
        raise UnveilError(
            f"{data}: the mask {seen[value]} has the value {value}, but {named.file} names {count} classes, {min(pairs)} to "
            f"{max(pairs)}{more}: add names, or leave values out with --ignore {value}"
        )
    kept = {value: name for value, name in sorted(pairs.items()) if value not in ignored}
    palette = survey.palette
    colours = tuple(palette[value] for value in kept) if palette and max(kept, default=0) < len(palette) else ()
    if named.colours and not binary:
        colour_of_name = dict(zip(named.names, named.colours, strict=True))
        colours = tuple(colour_of_name[name] for name in kept.values())
    distinct = len(set(colours)) == len(colours)
    note = (
        f"the masks of {data} have no other values than 0 and 255, so 255 is taken as a class, and not as pixels without one; "
        "--ignore 255 says otherwise",
    )
    values = MaskValues(tuple(kept), colours if distinct else (), False, tuple(sorted(ignored)))
    return Meaning(values, list(kept.values()), note if binary else ())


def colour_meaning(survey: Survey, named: MaskNames, config: MaskConfig, data: str) -> Meaning:
    """The classes of colour masks; see `meaning_of`."""
    if config.reduce_zero:
        raise UnveilError(
            f"--reduce-zero is for masks of values, but those of {data} are colours: leave colours out with --ignore and a name"
        )
    if named.colours:
        pairs = {code_of(colour): name for colour, name in zip(named.colours, named.names, strict=True)}
        unnamed = sorted(code for code in survey.first if code not in pairs)
        if survey.is_frequent(unnamed):
            code = unnamed[0]
            raise UnveilError(
                f"{data}: the mask {survey.first[code]} has the colour {colour_of(code)}, which {named.file} does not name: add "
                f"a line {' '.join(map(str, colour_of(code)))} and a name"
            )
    else:
        pairs = {code: spelled_colour(code) for code in sorted(survey.first)}
        if len(pairs) > IGNORE:
            code, file = list(survey.first.items())[IGNORE]
            raise UnveilError(
                f"{data}: the masks have more than {IGNORE} colours, such as {colour_of(code)} of {file}: they were smoothed, or "
                "saved as JPEG. Give masks of one colour for each class, and their colours and names in a file colors.txt"
            )
    numbers = {name: code for code, name in pairs.items()}
    unknown = [name for name in config.ignore if name not in numbers]
    if unknown:
        raise UnveilError(f"--ignore {unknown[0]}: {data} has no such class. Its classes are {listed(list(numbers))}")
    ignored = tuple(numbers[name] for name in config.ignore)
    kept = {code: name for code, name in pairs.items() if code not in ignored}
    values = MaskValues(tuple(range(len(kept))), tuple(colour_of(code) for code in kept), True, ignored)
    found = () if named.colours else (f"took the {len(kept)} colours of the masks as classes: colors.txt can name them",)
    return Meaning(values, list(kept.values()), found)


def ignored_values(ignore: Sequence[str], pairs: Mapping[int, str], data: str) -> set[int]:
    """The values that `--ignore` says, as numbers or as names of classes."""
    numbers, found = {name: value for value, name in pairs.items()}, set()
    for each in ignore:
        if each in numbers:
            found.add(numbers[each])
        elif each.isdigit() and int(each) <= IGNORE:
            found.add(int(each))
        else:
            raise UnveilError(
                f"--ignore {each}: {data} has no such class. Give a value from 0 to 255, or one of {listed(list(pairs.values()))}"
            )
    return found


def notes_of(found: Meaning, named: MaskNames) -> list[str]:
    """What the classes are, and which of them may be none."""
    values, classes = found.values, found.classes
    what = "" if values.in_colour else f", {values.stored[0]} = {classes[0]} to {values.stored[-1]} = {classes[-1]}"
    codes = [str(colour_of(code)) if values.in_colour else str(code) for code in values.ignored]
    without = f"; without a class: {', '.join(codes)}" if codes else ""
    notes = [f"{count_of(len(classes), 'class', 'classes')} in the masks{what}{without}"]
    notes += [
        f"the class {name!r} is learned like the others: --ignore {name} leaves it out" for name in classes if name.lower() in VOID
    ]
    return notes


def spelled_colour(code: int) -> str:
    """The name of a colour that no file names."""
    return f"#{code:06x}"


def listed(names: Sequence[str]) -> str:
    """Up to ten names, separated by commas."""
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)
