"""Augmentation by a function of the user, `augment=`, in a run: what is recorded of it, and where it is called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unveil.data.own_augment import OwnAugment
from unveil.data.taught import Taught
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.run_folder import Run

KEY = "augment"
"""The name of the option, also in the config of `run.json`."""
OWN_CODE = "own code: "


def own_augment(options: Mapping[str, Any]) -> tuple[OwnAugment | None, dict[str, Any]]:
    """The function among the options, `augment`, and the other options. Raises `UnveilError` if it is no function."""
    rest = dict(options)
    function = rest.pop(KEY, None)
    return (None if function is None else OwnAugment(function)), rest


def refuse_without(own: OwnAugment | None, *runs: str | Path | None) -> None:
    """Raises `UnveilError` if a run that is resumed, or gone on from, was trained with such a function and there is none now."""
    for folder in runs:
        if own is None and folder is not None and (Path(folder) / "run.json").is_file():
            recorded = str(Run(folder).config.get(KEY) or "")
            if recorded:
                name = recorded.removeprefix(OWN_CODE)
                raise UnveilError(
                    f"{folder} is a run with augment={name}, own code, which run.json cannot hold: resume it in Python, with the "
                    "same augment="
                )


def recorded(own: OwnAugment | None) -> dict[str, str]:
    """What `run.json` records among the options."""
    return {} if own is None else {KEY: OWN_CODE + own.name}


def attach(own: OwnAugment | None, learner: Learner, *, compiled: bool) -> None:
    """Lets the augmentation of a learner call a function of the user.

    All samples that a process has in a step are augmented together, so the function draws the same numbers in any number of
    microbatches; only methods that compare views call it for each view of a microbatch.

    Args:
        own: The function.
        learner: The learner.
        compiled: Whether the augmentation is compiled; the function is not.

    Raises:
        UnveilError: If the learner has another augmentation than those of unveil.
    """
    if own is None:
        return
    held = getattr(learner, "augmentation", None)
    held = held.augmentation if isinstance(held, Taught) else held
    if held is None or not hasattr(held, "own"):
        raise UnveilError(
            f"{type(learner).__name__} has no augmentation of images that augment= can follow: leave it out, or change its augment"
        )
    held.own = own.uncompiled() if compiled else own
    if getattr(held, "returns_batch", True):
        learner.augments_whole_batch = True
