"""Writes what a detector finds into a folder.

OUT/detections.json         all images, objects and classes as a COCO dataset, whose annotations have a score: to look at, correct
                            or train on with the tools for COCO
OUT/detections.csv          file,label,score,left,top,width,height: one row for each object
OUT/overlays/street/7.jpg   the image with its objects
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coco_mask
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unveil.atomic_files import remove, replacing, write_text
from unveil.coco_results import coco_entries
from unveil.data.class_map_files import LARGEST_OVERLAY, class_colours, shown, write_picture
from unveil.data.eval_transform import resize
from unveil.data.pixels import Pixels, under_centres
from unveil.data.rle import decoded
from unveil.detections import Detections
from unveil.json_files import read_json
from unveil.plain_text import csv_cell

PARTS = "parts"
"""The folder with one file for each image, while the result is not complete."""
SHOWN_SCORE = 0.5
"""Lowest score of the objects that overlays show."""
FIELDS = ("file", "label", "score", "left", "top", "width", "height")


class DetectionWriter:
    """Writes the objects of each image.

    Args:
        out: The folder.
        classes: The names of the classes.
        category_ids: The id of each class.
        overlays: Whether to write overlays.
        shown_score: Lowest score of the objects that overlays show.
    """

    def __init__(
        self, out: Path, *, classes: Sequence[str], category_ids: Sequence[int], overlays: bool, shown_score: float = SHOWN_SCORE
    ) -> None:
        self.out, self.classes, self.category_ids = out, classes, category_ids
        self.overlays, self.shown_score = overlays, shown_score

    def part_path(self, name: str) -> Path:
        """The objects of an image; `name` is its relative path without its ending."""
        return self.out / PARTS / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether everything about an image was written. Its part is written last."""
        return self.part_path(name).is_file()

    def add(self, name: str, image: Pixels, found: Detections, file: str = "") -> None:
        """Writes the objects and the overlay of an image (H, W, C); `file` is its name in DATA."""
        if self.overlays:
            picture = drawn(image, found.above(self.shown_score), self.classes)
            write_picture(self.out / "overlays" / f"{name}.jpg", Image.fromarray(picture), quality=90)
        height, width = image.shape[:2]
        facts = {"file_name": file or name, "height": height, "width": width}
        entries = coco_entries(0, found, self.category_ids)
        write_text(self.part_path(name), json.dumps({"image": facts, "objects": entries}))

    def close(self) -> str:
        """Joins the parts of all images, in the order of their names. Returns a sentence on what was found."""
        names = dict(zip(self.category_ids, self.classes, strict=True))
        folder = self.out / PARTS
        paths = sorted(folder.rglob("*.json"), key=lambda path: path.relative_to(folder).as_posix())
        with replacing(self.out / "detections.csv") as table, table.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines, lineterminator="\n")  # as in the other files of a prediction
            writer.writerow(FIELDS)
            with replacing(self.out / "detections.json") as fresh, fresh.open("w", encoding="utf-8") as file:
                counts, best = self._write(paths, file, writer, names)
        remove(folder)
        return self.summary(counts, best)

    def summary(self, counts: Mapping[str, int], best: float | None) -> str:
        """A sentence on the objects of each class that overlays show, and the best score of all."""
        if best is None:
            return "no object was found"
        if any(counts.values()):
            found = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            return f"objects with a score of at least {self.shown_score:g}: {found}"
        shown = f"no object has a score of at least {self.shown_score:g} (the best has {best:.2f})"
        return shown + (", so overlays show none: --min-score sets what they show" if self.overlays else "")

    def _write(self, paths: Sequence[Path], file: Any, writer: Any, names: dict[int, str]) -> tuple[dict[str, int], float | None]:
        """The dataset, one image after the other: the annotations of a million images do not fit into memory.

        Returns the number of objects of each class that overlays show, and the best score.
        """
        counts, best = dict.fromkeys(names.values(), 0), None
        file.write('{"categories": ' + json.dumps([{"id": key, "name": name} for key, name in names.items()]) + ',\n"images": [')
        for number, path in enumerate(paths, 1):
            image = {"id": number, **read_json(path)["image"]}
            file.write(("" if number == 1 else ",") + "\n" + json.dumps(image))
        file.write('],\n"annotations": [')
        count = 0
        for number, path in enumerate(paths, 1):
            part = read_json(path)
            for entry in part["objects"]:
                count += 1
                left, top, width, height = entry["bbox"]
                area = float(coco_mask.area(entry["segmentation"])) if "segmentation" in entry else width * height
                whole = {"id": count, **entry, "image_id": number, "area": area, "iscrowd": 0}
                file.write(("" if count == 1 else ",") + "\n" + json.dumps(whole))
                counts[names[entry["category_id"]]] += entry["score"] >= self.shown_score
                best = max(best or 0.0, entry["score"])
                label, score = csv_cell(names[entry["category_id"]]), f"{entry['score']:.6g}"
                sides = [f"{value:.8g}" for value in (left, top, width, height)]
                writer.writerow([csv_cell(part["image"]["file_name"]), label, score, *sides])
        file.write("]}\n")
        return counts, best


def drawn(
    image: Pixels, found: Detections, classes: Sequence[str], *, longest: int = LARGEST_OVERLAY, names: bool = True
) -> NDArray[np.uint8]:
    """An image (H, W, C) with boxes, masks and names of classes; shrunk if it is larger than `longest`.

    Args:
        image: The image.
        found: Objects in its pixels; masks are run lengths, or bool (n, H, W).
        classes: The names of the classes.
        longest: The long side of the result, at most.
        names: Whether to write the class and the score of each object.
    """
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    canvas = resize(shown(image), size).astype(np.float32)
    colours, labels = class_colours(len(classes)).numpy(), found.labels.tolist()
    rows, columns = under_centres(height, size[0]), under_centres(width, size[1])
    for number, mask in enumerate(found.masks if found.masks is not None else ()):
        pixels = decoded(mask, height, width) if isinstance(mask, dict) else np.asarray(mask.cpu())
        inside = pixels[rows[:, None], columns]
        canvas[inside] = 0.5 * canvas[inside] + 0.5 * colours[labels[number]]
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    pen, thick = ImageDraw.Draw(picture), max(2 if max(size) >= 200 else 1, round(max(size) / 400))
    font = ImageFont.load_default(max(10, round(max(size) / 50)))
    objects = zip(found.boxes.tolist(), labels, found.scores.tolist(), strict=True)
    for box, label, score in sorted(objects, key=lambda each: each[2]):  # the best ones on top
        left, top, right, bottom = (value * scale for value in box)
        colour = tuple(colours[label].tolist())
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=thick)
        if names and (right - left > 30 or len(labels) <= 20):  # names of hundreds of cells would hide them
            text = f"{classes[label]} {score:.2f}" if score < 1 else classes[label]
            place = pen.textbbox((left + 1, top), text, font=font)
            pen.rectangle((place[0] - 1, place[1] - 1, place[2] + 1, place[3] + 1), fill=colour)
            pen.text((left + 1, top), text, fill="white" if sum(colour) < 384 else "black", font=font)
    return np.asarray(picture)
