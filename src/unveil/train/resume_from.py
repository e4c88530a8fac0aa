"""Goes on from the newest checkpoint of another run, with another rate, length or precision: `--resume-from RUN`.

The checkpoint and the log are copied into the new run, which then resumes as any run does. So steps, data order and the state of
the optimiser are kept, and the run that it comes from does not change.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.atomic_files import replacing, sync, write_text
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.train.data_changes import data_changes
from unveil.train.run_folder import HARMLESS, Run, config_changes, weight_changes

MAY_CHANGE = HARMLESS | {
    "base_lr",
    "beta1",
    "beta2",
    "clip_grad",
    "clip_mode",
    "compile",
    "epochs",
    "eps",
    "layer_decay",
    "min_lr",
    "precision",
    "resume_from",
    "schedule",
    "warmup_epochs",
    "warmup_ratio",
    "weight_decay",
    "weight_decay_end",
}
"""Options that may differ from the run to go on from. All others determine the model, the data or their order."""


def options_to_keep(path: str | Path | None) -> dict[str, Any]:
    """The options of the run to go on from, which hold unless others are given; {} without such a run."""
    if path is None:
        return {}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in Run(path).config.items()}


def refuse_unlike(
    source: Run, path: Path, kind: str, config: Mapping[str, Any], data: Mapping[str, Any], weights: Mapping[str, Any] | None = None
) -> None:
    """Raises `UnveilError`, with the differences, if a new run cannot go on from the checkpoints of another one.

    Args:
        source: The run to go on from.
        path: The folder of the new run.
        kind: Its kind: "pretrain", "finetune", ...
        config: Its options.
        data: Facts about its data.
        weights: Checksums of the weights that it starts from, as for `open_run`.
    """
    if source.path.resolve() == path.resolve():
        raise UnveilError(f"--resume-from {source.path} is --out itself: leave it out to resume that run, or choose another --out")
    if source.facts["kind"] != kind:
        raise UnveilError(f"{source.path} is a {source.facts['kind']} run: a {kind} run cannot go on from it")
    changes = config_changes(source.config, json.loads(json.dumps(config)))
    lines = data_changes(source.facts["data"], data) + weight_changes(source.facts, weights or {})
    lines += [line for key, line in changes.items() if key not in MAY_CHANGE]
    if lines:
        text = "\n".join(lines)
        raise UnveilError(
            f"a run cannot go on from {source.path} with these differences:\n{text}\nOnly the length, the options of the optimiser "
            f"and the precision may differ."
        )


def copy_newest(source: Run, run: Run, learner: Learner, total: int, say: Callable[[str], None]) -> None:
    """Copies the newest good checkpoint of another run, and the log up to it, unless the run has checkpoints of its own.

    Args:
        source: The run to go on from.
        run: The new run.
        learner: The learner, whose parameters have to be finite.
        total: Steps of the new run.
        say: Prints a message for the user.

    Raises:
        UnveilError: If there is no good checkpoint, or the new run would end before it.
    """
    target = run.checkpoints()
    if target.steps():
        return
    checkpoints = source.checkpoints(warn=say)
    step = checkpoints.newest({name for name, _ in learner.named_parameters()})
    if step is None:
        raise UnveilError(f"{source.path} has no good checkpoint to go on from")
    if step >= total:
        raise UnveilError(f"{source.path} has done {step:,} steps, and this run would have {total:,}: give more --epochs")
    log = source.path / "log.jsonl"
    try:
        if log.is_file():
            write_text(run.path / "log.jsonl", log.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError as error:
        raise UnveilError(f"{error.filename} has just been removed: is {source.path} still being trained?") from None
    with replacing(target.path(step)) as fresh:
        try:
            shutil.copytree(checkpoints.path(step), fresh)
        except FileNotFoundError as error:
            raise UnveilError(f"{error.filename} has just been removed: is {source.path} still being trained?") from None
        for path in fresh.iterdir():
            sync(path)
    say(f"going on from step {step:,} of {source.path}")
