"""A translator in a run folder: `model.safetensors` with its config in the header, and `subwords.json` beside it."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from unveil.errors import UnveilError
from unveil.interop.configs import configured
from unveil.interop.files import read_note, read_object, read_tensors, tell, write_tensors
from unveil.interop.state_dict_map import refuse_difference
from unveil.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unveil.text.bpe import BPETokenizer
from unveil.train.checkpoint import Checkpoints, write_whole

NOTE = "unveil translator"


def begin(translator: Seq2Seq, words: BPETokenizer, folder: Path) -> None:
    """Writes the config and the sub-words: from then on the run can translate, from its newest checkpoint."""
    write_whole(folder / "subwords.json", words.text)
    write_whole(folder / "config.json", json.dumps({"format": NOTE, "translator": asdict(translator.config)}, indent=1) + "\n")


def save(translator: Seq2Seq, folder: Path) -> None:
    """Writes the weights, with the config in the header of the file."""
    write_tensors(folder / "model.safetensors", translator.state_dict(), {NOTE: json.dumps(asdict(translator.config))})


def load(run: str | Path, *, say: Callable[[str], None] = tell) -> tuple[Seq2Seq, BPETokenizer]:
    """The translator of a run folder, in eval mode, and its sub-words; of one that is not finished, from its newest checkpoint.

    Raises:
        UnveilError: When the folder is of another kind of run, or something in it is missing or damaged.
    """
    folder = Path(run)
    if not (folder / "subwords.json").is_file():
        raise UnveilError(f"{folder} is no run of `unveil translate train`: it has no subwords.json")
    path = folder / "model.safetensors"
    if path.is_file():
        config, state = read_note(path, NOTE), read_tensors(path)
    else:
        checkpoints = Checkpoints(folder / "checkpoints", warn=say)
        step = checkpoints.newest()
        if step is None:
            raise UnveilError(f"{folder} has no weights yet: neither model.safetensors nor a whole checkpoint")
        say(f"{folder} is not finished: using its checkpoint of step {step:,}")
        path, config = checkpoints.path(step), read_object(folder / "config.json").get("translator")
        state = checkpoints.load(step, "model")
        state = {name.removeprefix("average."): value for name, value in state.items() if name.startswith("average.")}
    translator = Seq2Seq(configured(Seq2SeqConfig, config, f"the config of {path}"))
    words, own = BPETokenizer.load(folder / "subwords.json"), translator.state_dict()
    refuse_difference(own.keys() - state.keys(), state.keys() - own.keys(), len(own), path)
    if len(words) != translator.config.words:
        wanted = translator.config.words
        raise UnveilError(f"{folder}: subwords.json has {len(words)} words and the model {wanted}: they are of two runs")
    translator.load_state_dict(state)
    return translator.eval(), words
