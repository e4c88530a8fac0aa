"""Small data with boxes, in every format, for tests."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unveil.data.objects import Objects
from unveil.data.sources import open_parts
from unveil.data.targets import BoxTargets

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]


def picture(height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def write_image(path: Path, height: int = 20, width: int = 30, seed: int = 0, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(picture(height, width, seed)).save(path, exif=exif) if orientation != 1 else path.write_bytes(
        png(picture(height, width, seed))
    )


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def annotation(id_: int, image: Any = 1, box: Any = (2, 3, 10, 8), category: Any = 3, **other: Any) -> dict[str, Any]:
    return {"id": id_, "image_id": image, "category_id": category, "bbox": list(box), **other}


def coco(annotations: list[dict[str, Any]], images: int = 2, **other: Any) -> dict[str, Any]:
    """COCO json of images of 30 x 20 pixels with the ids 1, 2, ... and the names 1.png, 2.png, ..."""
    listed = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(1, images + 1)]
    return {"images": listed, "annotations": annotations, "categories": CATEGORIES} | other


def write_coco_data(root: Path, content: Any, images: int = 2, file: str = "annotations.json") -> Path:
    for i in range(1, images + 1):
        write_image(root / "images" / f"{i}.png", seed=i)
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return root


def objects_of(data: Any, part: str = "train") -> Objects:
    found = open_parts(data, targets=BoxTargets).makers[part]().objects
    assert found is not None
    return found
