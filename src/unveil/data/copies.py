"""Exact copies: files with the same bytes, or arrays with the same pixels. They make a test set look easier than it is."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from unveil.data.image_list import checksum
from unveil.data.pixels import Unreadable
from unveil.data.source import Source, evenly_spaced

MOST_CHECKED, MOST_READ = 1000, 20_000
"""Test images of a user that are looked for, and files that may have to be read for that."""
Indices = NDArray[np.int64]


def copies_of(wanted: Source, rows: Indices, source: Source, among: Indices) -> dict[int, int]:
    """Which images of `source` are exact copies of wanted ones. Only files whose sizes occur in both are read.

    Args:
        wanted: Images, of which `rows` are looked for.
        rows: Their indices.
        source: The images to search, which may be the same source.
        among: Indices of the images to search. None of them is one of `rows` of the same source.

    Returns:
        The index of a wanted image, by the index of its copy. Nothing is found if a source does not know the sizes of its files.
    """
    if wanted.sizes is None or source.sizes is None:
        return {}
    shared = np.intersect1d(wanted.sizes[rows], source.sizes[among])
    shared = shared[shared > 0]
    known = {digest: index for index, digest in digests(wanted, rows[np.isin(wanted.sizes[rows], shared)])}
    candidates = among[np.isin(source.sizes[among], shared)]
    return {index: known[digest] for index, digest in digests(source, candidates) if digest in known}


def copies_within(source: Source, rows: Indices) -> dict[int, int]:
    """Which of these images are exact copies of an earlier one: the index of the first, by the index of its copy."""
    if source.sizes is None:
        return {}
    sizes = source.sizes[rows]
    size, count = np.unique(sizes, return_counts=True)
    repeated = rows[np.isin(sizes, size[(count > 1) & (size > 0)])]
    first, found = dict[str, int](), dict[int, int]()
    for index, digest in digests(source, repeated):
        if first.setdefault(digest, index) != index:
            found[index] = first[digest]
    return found


def copies_of_tests(test: Source, train: Source) -> tuple[int, int]:
    """How many test images are exact copies of training images, and how many were looked for: some of a large set."""
    rows = checked_rows(test, np.arange(len(test)), train)
    return len(copies_of(train, np.arange(len(train)), test, rows)), len(rows)


def checked_rows(test: Source, rows: Indices, train: Source) -> Indices:
    """Those of `rows` to look for, evenly spaced: not all of them if many files of the train set would have to be read.

    All of them, if a source does not know the sizes of its files, since then nothing is read.
    """
    if test.sizes is None or train.sizes is None:
        return rows
    for count in (MOST_CHECKED // 2**i for i in range(9)):  # down to 3
        some = np.array(evenly_spaced(rows.tolist(), count), dtype=np.int64)
        if np.isin(train.sizes, test.sizes[some]).sum() <= MOST_READ:
            break
    return some


def digests(source: Source, indices: Indices) -> Iterator[tuple[int, str]]:
    """The index and a checksum of each image that can be read."""

    def digest(index: int) -> str:
        try:
            return checksum(source.read(index))
        except Unreadable:
            return ""

    with ThreadPoolExecutor(16, thread_name_prefix="copies") as pool:
        for index, found in zip(indices.tolist(), pool.map(digest, indices.tolist()), strict=True):
            if found:
                yield index, found
