"""Finds out what the values or the colours of masks mean, from what occurs in them, a file with names, and the options."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unveil.data.mask_values import Colour, KnownMasks, MaskConfig, MaskNames, MaskValues, code_of, codes_of, colour_of
from unveil.data.pixels import IGNORE
from unveil.errors import UnveilError
from unveil.plain_text import count_of

VOID = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown", "undefined"})
"""Names of what is seldom meant as a class."""
NOTHING = VOID | {"other", "others", "background"}
"""Names of the value 0 in files whose next name is that of the value 1."""


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
    if len(found.classes) > IGNORE:  # class numbers are bytes, and 255 is none
        raise UnveilError(f"the masks of {data} have {len(found.classes)} classes: expected at most {IGNORE}")
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
    elif named.names:
        pairs = values_of_names(named, config)
    else:
        largest = max((value for value in seen if value != IGNORE), default=0)
        pairs = {value: str(value) for value in range(largest + 1)}
    ignored = {IGNORE} - ({IGNORE} if binary else set()) | ({0} if config.reduce_zero else set())
    ignored |= ignored_values(config.ignore, pairs, data)
    unnamed = sorted(value for value in seen if value not in pairs and value not in ignored)
    if survey.is_frequent(unnamed):
        value, count = unnamed[0], len(pairs)
        rest = len(unnamed) - 1
        more = f"; {count_of(rest, 'other value')} {'has' if rest == 1 else 'have'} no name either" if rest else ""
        raise UnveilError(
            f"{data}: the mask {seen[value]} has the value {value}, but {named.file} names {count_of(count, 'class', 'classes')}, "
            f"{min(pairs)} to {max(pairs)}{more}: add names, or leave values out with --ignore {value}"
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


def values_of_names(named: MaskNames, config: MaskConfig) -> dict[int, str]:
    """The name of each value, from a file that has names."""
    if named.values:
        return dict(zip(named.values, named.names, strict=True))
    first = 1 if config.reduce_zero and named.names[0].lower() not in NOTHING else 0
    return dict(enumerate(named.names, first))


def meaning_like(known: KnownMasks, survey: Survey, named: MaskNames, config: MaskConfig, data: str) -> Meaning:
    """The classes of the masks of a test set, which are those of its train set, whatever occurs in it.

    Raises:
        UnveilError: If a file names them otherwise, or they have values that are none in the train set.
    """
    values, codes = known.values, codes_of(known.values)
    if survey.in_colour and not values.in_colour:
        raise UnveilError(f"the masks of {data} are colours, but those of {known.data} are values: give masks of one kind")
    told = dict[int, str]()
    if values.in_colour:
        told = {code_of(colour): name for colour, name in zip(named.colours, named.names, strict=False)}
    elif named.names and tuple(codes) != (0, IGNORE):  # binary masks, whose second name is that of 255
        told = values_of_names(named, config)
    name_of, code_of_name = dict(zip(codes, known.classes, strict=True)), dict(zip(known.classes, codes, strict=True))
    for code, name in told.items():
        if code not in values.ignored and name_of.get(code) != name and known.classes != list(map(str, codes)):
            there = f"has {values.spelled(code_of_name[name])} for it" if name in code_of_name else "lacks it"
            raise UnveilError(
                f"the masks of {data} have {values.spelled(code)} for the class {name!r}, but {known.data} {there}: give both "
                "the same classes.txt"
            )
    grey = values.in_colour and not survey.in_colour
    found = {code * 0x010101 if grey else code: code for code in survey.first}
    unnamed = sorted(code for code in found if code not in codes and code not in values.ignored)
    if survey.is_frequent([found[code] for code in unnamed]):
        raise UnveilError(
            f"{data}: the mask {survey.first[found[unnamed[0]]]} has {values.spelled(unnamed[0])}, which is none of the "
            f"{count_of(len(codes), 'class', 'classes')} of {known.data}: give masks with the same values"
        )
    return Meaning(values, list(known.classes), ())


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
