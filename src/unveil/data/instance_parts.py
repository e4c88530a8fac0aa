"""The parts of images with objects, whose masks are drawn as class maps: see `unveil.data.instance_map`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from unveil.data.instance_map import InstanceMap
from unveil.data.mask_meaning import Meaning, Survey, meaning_of
from unveil.data.mask_values import KnownMasks, MaskConfig, MaskNames
from unveil.data.objects import Objects
from unveil.data.parts import DataParts
from unveil.data.pixels import IGNORE
from unveil.data.source import Source, version_2
from unveil.errors import UnveilError
from unveil.plain_text import count_of

BACKGROUND = "background"


def instance_parts(parts: DataParts, config: MaskConfig, known: KnownMasks | None = None) -> DataParts:
    """Images with objects as images with class maps. The classes are the background, and those of the objects of all parts.

    Args:
        parts: The images with objects.
        config: What is no class; the values are 0 for the background, and 1, 2, 3, ... for the classes of objects.
        known: The masks of the train set, for a test set.

    Raises:
        UnveilError: If there are no masks, there are too many classes, or the train set has other ones.
    """
    sources = {name: parts.source(name) for name in parts.names}
    if not any(source.objects is not None and source.objects.segments is not None for source in sources.values()):
        raise UnveilError(
            f"the objects of {parts.name} have boxes and no masks: --instances draws masks (polygons or run lengths). If DATA "
            "has class maps, leave it out"
        )
    found = dict.fromkeys(name for source in sources.values() for name in source.classes)
    names = [BACKGROUND, *(name for name in found if name != BACKGROUND)]
    if len(names) > IGNORE:
        raise UnveilError(
            f"{parts.name} has {len(names) - 1} classes of objects: expected at most {IGNORE - 1} beside the background"
        )
    if known is None:
        told = MaskNames("the annotations", tuple(names), tuple(range(len(names))))
        meaning = meaning_of(Survey({}, {}, 0, False), told, config, parts.name)
    else:
        lost = next((name for name in found if name not in (*known.classes, *config.ignore)), None)
        if lost is not None:
            raise UnveilError(
                f"{parts.name} has objects of the class {lost!r}, which {known.data} lacks: --ignore {lost} leaves it out"
            )
        meaning = Meaning(known.values, list(known.classes), ())
    makers = {name: partial(_with_maps, source, meaning) for name, source in sources.items()}
    return replace(parts, makers=makers)


def _with_maps(source: Source, meaning: Meaning) -> Source:
    """A source of images with objects as one of images with class maps."""
    objects = source.objects
    assert objects is not None
    number = {name: i for i, name in enumerate(meaning.classes)}
    table = np.array([number.get(name, IGNORE) for name in source.classes], np.uint8)
    return replace(
        source,
        classes=meaning.classes,
        objects=None,
        map_reader=partial(InstanceMap, objects, table, number.get(BACKGROUND, IGNORE)),
        mask_values=meaning.values,
        fingerprint=version_2(source.fingerprint, "class maps", *meaning.classes),
        notes=(*source.notes, *meaning.notes, *_notes(source.name, objects)),
    )


def _notes(name: str, objects: Objects) -> Sequence[str]:
    """What is drawn."""
    segments = objects.segments or [None] * len(objects.labels)
    boxes, crowds = sum(segment is None for segment in segments), int(objects.crowd.sum())
    unclear = [f"{count_of(boxes, 'object')} with only a box"] if boxes else []
    unclear += [count_of(crowds, "crowd")] if crowds else []
    rest = f"; the pixels of {' and '.join(unclear)} have no class" if unclear else ""
    return (f"{name}: drew the masks of objects as class maps, smaller ones over larger ones{rest}",)
