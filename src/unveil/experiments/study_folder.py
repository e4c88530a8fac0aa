"""The folder of a study, which holds one study only."""

from pathlib import Path

from unveil.errors import UnveilError
from unveil.json_files import read_json


def check_folder(folder: Path, key: str, name: str) -> None:
    """Raises `UnveilError` if a folder has the results of another study, which would be overwritten.

    Args:
        folder: The folder, which need not exist.
        key: What `study.json` calls its subject: "study" for a study of the paper, "option" for the values of an option.
        name: The subject.
    """
    path = folder / "study.json"
    if not path.is_file():
        return
    found = read_json(path)
    known = {each: found.get(each) for each in ("study", "option")} if isinstance(found, dict) else {}
    other = next((value for each, value in known.items() if value and (each, value) != (key, name)), None)
    if other is not None:
        raise UnveilError(f"{folder} has the results of another study, {other}: choose another --out")
