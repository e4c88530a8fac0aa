"""Makes a run longer in its own folder: `--extend`, with more `--epochs`.

Training goes on from the newest checkpoint, with its optimiser, data order and steps. The learning rate, which has fallen, warms up
again and then follows its schedule to the new end: a warm restart (Loshchilov and Hutter, 2016). `run.json` records where, so that
the rate is still a function of the step alone. Results of the earlier length are kept in `history/`.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unveil.atomic_files import replacing, sync, write_text
from unveil.errors import UnveilError
from unveil.json_files import json_text, read_json
from unveil.train.recipe import Recipe
from unveil.train.run_folder import Run, refuse_changes
from unveil.train.schedule import Restart

KEY = "extensions"
"""The list in `run.json` of what the run was before it was made longer."""
HISTORY = "history"
KEPT = (".csv", ".html", ".npz")
"""Files of results, besides `results.json`."""
DECAYS = {"cosine": "half a cosine", "linear": "a line", "inverse_sqrt": "1 / sqrt(step)", "multistep": "a step in the last eighth"}
"""How the learning rate falls, in words."""


def extended(
    path: Path,
    kind: str,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    weights: Mapping[str, Any],
    *,
    write: bool,
    say: Callable[[str], None],
) -> Run | None:
    """Makes a run longer; None if there is nothing to do: no step was done yet, or this length was asked for before.

    Args:
        path: The folder of the run.
        kind: Its kind.
        config: Its options, with more epochs.
        data: Facts about its data.
        weights: Checksums of the weights of other runs.
        write: Whether this process writes the folder. The others know from the same files what it writes.
        say: Prints a message for the user.

    Raises:
        UnveilError: If anything but the epochs has changed, they are not more, or there is no checkpoint. Then nothing is written.
    """
    if not (path / "run.json").is_file() or not any((path / name).exists() for name in ("checkpoints", "results.json")):
        return None
    run, epochs = Run(path), config["epochs"]
    before = run.config.get("epochs", epochs)
    if epochs == before and run.facts.get(KEY):
        return None
    plain = json.loads(json.dumps({"kind": kind, "config": {**config, "epochs": before}, "data": data, **weights}))
    refuse_changes(run, plain, say)
    if epochs <= before:
        raise UnveilError(
            f"{path} is a run of {before:g} epochs, and --epochs is {epochs:g}: to extend it, give more than {before:g}"
        )
    checkpoints = run.checkpoints(warn=say)
    step = checkpoints.newest()
    if step is None:
        raise UnveilError(f"{path} has no good checkpoint to go on from: train it again in another --out")
    restart = Restart(step, int(checkpoints.manifest(step)["total"]), float(before))
    length, extensions = {"epochs": epochs}, [*(run.facts.get(KEY) or []), restart._asdict()]
    if write:
        keep_results(path, before)
        raw = read_json(path / "run.json")  # of any version; its format stays
        write_text(path / "run.json", json_text({**raw, KEY: extensions, "config": {**raw["config"], **length}}))
    return Run(path, {**run.facts, KEY: extensions, "config": {**run.config, **length}})


def keep_results(path: Path, epochs: float) -> None:
    """Copies the results of a finished run to `history/epochs-<n>`, and then removes those that the longer run will write.

    The model stays where it is until the longer one is trained. If this is cut short, the old command evaluates the model again.
    """
    names = [each.name for each in path.iterdir() if each.is_file() and (each.suffix in KEPT or each.name == "results.json")]
    if "results.json" not in names:
        return
    kept = path / HISTORY / f"epochs-{epochs:g}"
    if not kept.exists():  # a call that was cut short has copied them
        with replacing(kept) as fresh:
            fresh.mkdir()
            for name in names:
                shutil.copy2(path / name, fresh / name)
                sync(fresh / name)
    for name in ("results.json", "report.html"):
        (path / name).unlink(missing_ok=True)


def restarts_of(run: Run) -> tuple[Restart, ...]:
    """Where a run was made longer. Raises `UnveilError` if the record in its `run.json` is damaged."""
    found = []
    for entry in run.facts.get(KEY) or []:
        step, total, epochs = (entry.get(name) for name in Restart._fields)
        if not (isinstance(step, int) and isinstance(total, int) and isinstance(epochs, int | float) and 0 <= step <= total):
            raise UnveilError(f"{run.path / 'run.json'} is damaged: {KEY} has {entry!r}, expected a step, a total and epochs")
        found.append(Restart(step, total, float(epochs)))
    return tuple(found)


def restart_sentence(recipe: Recipe, total: int) -> str:
    """What the learning rate does in the new part of a run that was made longer, with numbers.

    Raises:
        UnveilError: If the run has no step more than before.
    """
    step, old, epochs = recipe.restarts[-1]
    if total <= step:
        raise UnveilError(f"{recipe.training.epochs:g} epochs are {total:,} steps, and {step:,} are done: give more --epochs")
    first, last, optim = recipe.part_of(total - 1, total)
    warmup = round(optim.warmup_ratio * (last - first))
    earlier = f"the earlier run of {epochs:g} epochs{'' if step == old else f', which was planned for {old:,}'}"
    rise = f"up to {optim.peak(recipe.training.batch_size):.3g} over {warmup:,} step{'s' * (warmup != 1)}"
    return (
        f"extended: steps 0 to {step:,} are {earlier}; then the learning rate warms {rise}, and falls by "
        f"{DECAYS[optim.schedule]} to {recipe.at(total - 1, total)[0]:.3g} at step {total:,}"
    )
