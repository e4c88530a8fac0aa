from typing import Any

from unveil.data.parts import DataParts


def python_object_parts(data: Any) -> DataParts:
    raise NotImplementedError
