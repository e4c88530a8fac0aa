"""A sample of the images of a source, from which the settings of a dataset follow."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from unveil.data.faults import Fault
from unveil.data.images import read_image
from unveil.data.pixels import Pixels, ShrinkTo, Unreadable
from unveil.data.source import Source
from unveil.errors import UnveilError


def sample_images(
    source: Source, count: int, *, shrink_to: ShrinkTo | None, max_pixels: int, faults: dict[int, Fault] | None = None
) -> list[Pixels]:
    """Up to `count` readable images, evenly spaced in a source. Images that cannot be read are added to `faults`.

    Raises:
        UnveilError: If none can be read.
    """
    images: list[Pixels] = []
    total, faults = len(source), {} if faults is None else faults
    for i in dict.fromkeys([*np.linspace(0, total - 1, min(count, total)).astype(int).tolist(), *range(total)]):
        try:
            images.append(read_image(source.read(i), shrink_to=shrink_to, max_pixels=max_pixels))
        except Unreadable as error:
            faults[i] = Fault(error.reason, may_pass=error.lost)
        if len(images) == min(count, total):
            break
    if not images:
        first, fault = next(iter(faults.items()))
        raise UnveilError(
            f"none of the {total} files of {source.name} can be read as an image; the first: {source.names[first]}: {fault.reason}"
        )
    return images


def common_channels(images: Iterable[Pixels]) -> int:
    """The number of channels of most images; 3 if grey and colour are mixed."""
    counts = Counter(x.shape[2] for x in images)
    return 3 if 3 in counts and set(counts) <= {1, 3, 4} else counts.most_common(1)[0][0]
