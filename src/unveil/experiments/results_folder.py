"""The folder of a study, a comparison or a verdict, which holds the results of one of them only."""

from pathlib import Path

from unveil.errors import UnveilError
from unveil.json_files import read_json

FILES = {"study": "study.json", "comparison": "compare.json", "verdict": "verdict.json", "run": "run.json"}
"""The file that tells what a folder is of."""


def refuse_other_results(folder: Path, kind: str, subject: tuple[str, str] | None = None) -> None:
    """Raises `UnveilError` if a folder has other results, which would be overwritten.

    Args:
        folder: The folder, which need not exist.
        kind: A key of `FILES`.
        subject: Of a study: ("study", name) for a study of the paper, ("option", name) for the values of an option.
    """
    if other := next((name for name, file in FILES.items() if name != kind and (folder / file).is_file()), None):
        raise UnveilError(f"{folder} is the folder of a {other}: choose another --out")
    path = folder / FILES[kind]
    if subject is None or not path.is_file():
        return
    try:
        found = read_json(path)
    except UnveilError:  # damaged: it is written again from the runs
        return
    known = [(key, found.get(key)) for key in ("study", "option")] if isinstance(found, dict) else []
    other = next((str(name) for key, name in known if name and (key, name) != subject), None)
    if other is not None:
        raise UnveilError(f"{folder} has the results of another study, {other}: choose another --out")
