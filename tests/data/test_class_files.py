"""Files with the names of classes: values, colours, heads, and which file counts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.test_mask_parts import maps_of, png, write
from unveil.data.class_files import ClassFiles, with_colours, with_values
from unveil.data.mask_values import MaskNames
from unveil.errors import UnveilError

MASK = np.array([[0, 1, 2]] * 2, np.uint8)


@pytest.mark.parametrize(
    ("text", "names", "values"),
    [
        ("1 road|2 traffic light|0 sky", ("road", "traffic light", "sky"), (1, 2, 0)),
        ("1: road|2: car", ("road", "car"), (1, 2)),
        ("0 - road|1 - car", ("road", "car"), (0, 1)),
        ("1,road,x|2,car,y", ("road", "car"), (1, 2)),
        ("value,class,red|1,road,9|2,car,8", ("road", "car"), (1, 2)),
        ("id;name|3;road|4;car", ("road", "car"), (3, 4)),
        ("road|car", ("road", "car"), ()),
        ("2 euro|5 euro", ("2 euro", "5 euro"), ()),  # the rest does not tell them apart
        ("1 road|car", ("1 road", "car"), ()),
        ("10|20", ("10", "20"), ()),
        ("3d model|2 wheeler", ("3d model", "2 wheeler"), ()),
    ],
)
def test_lines_that_begin_with_a_value(text: str, names: tuple[str, ...], values: tuple[int, ...]) -> None:
    assert with_values(text.split("|"), "classes.txt", "data") == MaskNames("classes.txt", names, values)


def test_colours_in_a_file_of_names() -> None:
    found = with_values(["128 64 128 road", "1 2 3 car"], "classes.txt", "data")
    assert (found.names, found.values, found.colours) == (("road", "car"), (), ((128, 64, 128), (1, 2, 3)))
    for in_colour in (True, False):
        assert ClassFiles(found).of_masks(in_colour) == found


@pytest.mark.parametrize(
    ("parsed", "lines", "message"),
    [
        (with_values, ["1\ta", "300\tb"], "the value 300 above 255: expected"),
        (with_values, ["1\ta", "1\tb"], "the value 1 twice: expected"),
        (with_colours, ["0 0 300 void", "1 1 1 road"], "line 1 of f is '0 0 300 void': expected a colour"),
        (with_colours, ["# name and colour"], "f has 0 colours"),
        (with_colours, [f"{i % 256} {i // 256} 7 c{i}" for i in range(256)], "f has 256 colours: expected 1 to 255"),
    ],
)
def test_lines_that_cannot_be_used(parsed: Any, lines: list[str], message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        parsed(lines, "f", "data")


def test_255_colours_are_the_most() -> None:
    lines = [f"{i} 0 7 c{i}" for i in range(255)]
    assert len(with_colours(lines, "f", "data").names) == 255


def test_masks_of_values_take_the_names_of_values(tmp_path: Path) -> None:
    data = write(tmp_path / "data", [png(MASK)], sizes=(2, 3))
    (data / "colors.txt").write_text("name r g b\nbike 1 1 1\nsky 9 9 9\nroad 4 4 4\ncar 2 2 2\n")
    assert maps_of(data)[1].classes == ["bike", "sky", "road", "car"]  # no other file
    (data / "classes.txt").write_text("0\troad\n1\tcar\n2\tsky\n")
    (found,), source = maps_of(data)
    assert source.classes == ["road", "car", "sky"]
    assert source.mask_values.colours == ((4, 4, 4), (2, 2, 2), (9, 9, 9))
    assert np.array_equal(found, MASK)
    in_colour = write(
        tmp_path / "colour",
        [png(np.repeat(MASK[..., None], 3, axis=2) * np.array([1, 2, 3], np.uint8)) for _ in range(2)],
        sizes=(2, 3),
    )
    for name in ("classes.txt", "colors.txt"):
        (in_colour / name).write_bytes((data / name).read_bytes())
    (in_colour / "colors.txt").write_text("0 0 0 sea\n1 2 3 hut\n2 4 6 bay\n")
    assert maps_of(in_colour)[1].classes == ["sea", "hut", "bay"]


@pytest.mark.parametrize(
    ("text", "message"), [("road\n\ncar\n", "line 2 of classes.txt is empty"), ("\nroad\ncar\n", "line 1 of"), ("\n", "is empty")]
)
def test_empty_lines_would_shift_names(text: str, message: str, tmp_path: Path) -> None:
    data = write(tmp_path / "data", [png(MASK)], sizes=(2, 3))
    (data / "classes.txt").write_text(text)
    with pytest.raises(UnveilError, match=message):
        maps_of(data)
