"""Checks the entries of COCO json, from a file or given in Python. What is wrong is said with the entry and the field."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, NoReturn

from unveil.data.object_rows import Row
from unveil.data.rle import Segment
from unveil.errors import UnveilError

NUMBERS = {int, float}
"""Types of numbers in JSON; a boolean is none."""
HUGE = 2**31
"""No coordinate is larger."""
POLYGON = 6
"""Minimum numbers of a polygon: three points."""
NO_PARENT = (None, "", "none")
"""Supercategories of a category that is below no other one."""
ID = "a whole number or a text"


class CocoEntries:
    """Checks entries; `where` is the file, or else what has them, for messages."""

    def __init__(self, where: str) -> None:
        self.where = where

    def categories(self, entries: Sequence[Mapping[str, Any]], used: Set[Any]) -> tuple[list[str], list[Any]]:
        """The names of the classes, and their ids; `used` are the ids that objects have."""
        above = {each.get("supercategory") for each in entries if isinstance(each.get("supercategory"), str)}
        names, ids = dict[str, Any](), dict[Any, str]()
        for i, each in enumerate(entries):
            id_, name = each.get("id"), each.get("name")
            if not is_id(id_):
                self.fail(f"entry {i} of categories", "id", id_, ID)
            if not isinstance(name, str) or not name.strip():
                self.fail(f"category {id_}", "name", name, "a text")
            name = name.strip()
            if id_ in ids:
                raise UnveilError(f"{self.where}: two categories have the id {id_}: {ids[id_]} and {name}")
            if name in names:
                raise UnveilError(f"{self.where}: two categories have the name {name}: those with the ids {names[name]} and {id_}")
            ids[id_] = name
            project = name in above and each.get("supercategory") in NO_PARENT  # Roboflow lists the name of the project as well
            if id_ in used or not project:
                names[name] = id_
        if not names:
            raise UnveilError(f"{self.where}: the field categories is empty")
        return list(names), list(names.values())

    def row(self, name: str, each: Mapping[str, Any], place: int, label: int) -> Row:
        """An object, called `name`, of the image at a place."""
        box, area, crowd = each.get("bbox"), each.get("area"), each.get("iscrowd", 0)
        segment = self._segment(name, each.get("segmentation"))
        if not isinstance(box, list) or len(box) != 4 or not set(map(type, box)) <= NUMBERS or max(map(abs, box)) > HUGE:
            self.fail(name, "bbox", box, "[left, top, width, height] in pixels")
        if area is not None and (type(area) not in NUMBERS or not 0 <= area <= HUGE**2):
            self.fail(name, "area", area, "a number of pixels")
        if crowd not in (0, 1, None):
            self.fail(name, "iscrowd", crowd, "0 or 1")
        left, top, width, height = map(float, box)
        corners = (left, top, left + width, top + height)
        return Row(place, label, corners, name, bool(crowd), float("nan") if area is None else float(area), segment)

    def _segment(self, name: str, value: Any) -> Segment | None:
        if value is None or value in ([], {}):
            return None
        if isinstance(value, dict):
            size, counts = value.get("size"), value.get("counts")
            if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
                self.fail(name, "segmentation.size", size, "[height, width]")
            if not isinstance(counts, str | list) or not counts:
                self.fail(name, "segmentation.counts", counts, "run lengths, as a list or as a text")
            return {"size": size, "counts": counts}
        if isinstance(value, list) and set(map(type, value)) <= NUMBERS:
            value = [value]  # one polygon without the list around it
        if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
            self.fail(name, "segmentation", value, "polygons [[x, y, x, y, ...], ...] or run lengths")
        for polygon in value:
            if len(polygon) % 2 or not set(map(type, polygon)) <= NUMBERS:
                self.fail(name, "segmentation", polygon, "polygons of numbers x, y, x, y, ...")
        drawn = [polygon for polygon in value if len(polygon) >= POLYGON]
        return drawn or None  # a point or a line has no pixels

    def fail(self, entry: str, field: str, value: Any, expected: str) -> NoReturn:
        """Raises `UnveilError` for a field of an entry."""
        shown = "is missing" if value is None else f"is {str(value)[:80]}"
        raise UnveilError(f"{self.where}: {field} of {entry} {shown}: expected {expected}")


def is_id(value: Any) -> bool:
    """Whether a value can be the id of an image or a category."""
    return isinstance(value, int | str) and not isinstance(value, bool)
