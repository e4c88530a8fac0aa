from unveil.data.object_parts import ImageFinder, Part


def yolo_parts(finder: ImageFinder) -> dict[str, Part] | None:
    return None
