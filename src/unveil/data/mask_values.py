"""What the values of masks mean: the class of each value or colour, and which of them are no class.

    stored in a mask        0    1    2  ...  255        or a colour, such as (128, 64, 128)
    class of a pixel      none   0    1  ... none        with `reduce_zero`, as for ADE20K

The table is applied once, where a mask is read (`unveil.data.images.read_class_map`), and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unveil.data.pixels import IGNORE, ClassMap, Unreadable

Colour = tuple[int, int, int]
UNKNOWN = -1
"""In a table of classes: a value that is neither a class nor ignored."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What the values of the masks mean."""

    HIDDEN: ClassVar[tuple[str, ...]] = ()
    reduce_zero: bool = False
    """The value 0 of the masks is no class, but "other", as in ADE20K: the classes are 1, 2, 3, ..."""
    ignore: tuple[str, ...] = ()
    """Further values of the masks, or names of classes, that are no class, such as 11 or void. 255 is none in any case."""
    instances: bool = False
    """Draw the masks of objects (COCO json, YOLO polygons) as class maps: small objects over large ones, and crowds as no class.
    What belongs to no object is the class background."""


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


class KnownMasks(NamedTuple):
    """The masks of a train set, whose test set is read in the same way."""

    data: str
    """DATA as the user typed it."""
    classes: list[str]
    values: MaskValues


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
