"""Looks at masks, to find out which values or colours they have."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.images import read_mask
from unveil.data.mask_meaning import Survey
from unveil.data.mask_values import Colour, colour_codes
from unveil.data.pixels import Unreadable
from unveil.errors import UnveilError
from unveil.plain_text import count_of

SURVEYED = 256
"""Masks that are read when DATA is listed, if its classes are named. Without names, all are."""


class Look(NamedTuple):
    """What one mask has."""

    values: Sequence[int] = ()
    """Its values, or the codes of its colours."""
    in_colour: bool = False
    palette: tuple[Colour, ...] = ()
    reason: str = ""
    """Why it cannot be read."""


def survey_of(read: Callable[[int], bytes], names: Sequence[str], masks: Sequence[int], data: str) -> Survey:
    """What occurs in some masks.

    Args:
        read: Reads the file of a mask by its index.
        names: The names of all files.
        masks: The indices of the masks to look at.
        data: DATA as the user typed it, for messages.

    Raises:
        UnveilError: If none of them can be read.
    """

    def look(index: int) -> Look:
        try:
            mask = read_mask(read(index), name=names[index])
        except Unreadable as error:
            return Look(reason=error.reason)  # told again when its image is read
        except OSError as error:
            return Look(reason=f"cannot be read: {error.strerror}")
        return Look(distinct(mask.pixels), mask.pixels.ndim == 3, mask.palette)

    with ThreadPoolExecutor(thread_name_prefix="masks") as pool:
        looks = list(pool.map(look, masks))
    found = [each for each in looks if not each.reason]
    if not found:
        count = count_of(len(masks), "mask")
        raise UnveilError(
            f"none of the {count} of {data} that were looked at can be read; the first: {names[masks[0]]}: {looks[0].reason}"
        )
    in_colour = 2 * sum(each.in_colour for each in found) > len(found)
    first: dict[int, str] = {}
    counts = Counter[int]()
    for index, each in zip(masks, looks, strict=True):
        grey = in_colour and not each.in_colour  # a colour mask that happens to be grey
        values = [value * 0x010101 for value in each.values] if grey else each.values
        for value in values if in_colour or not each.in_colour else ():
            first.setdefault(value, names[index])
            counts[value] += 1
    palette = next((each.palette for each in found if each.palette), ())
    return Survey(first, counts, len(found), in_colour, palette)


def distinct(mask: NDArray[np.generic]) -> list[int]:
    """The values, or the codes of the colours, of a mask."""
    values: list[int] = np.unique(colour_codes(mask) if mask.ndim == 3 else mask).tolist()
    return values
