"""The model files of a translator: `model.safetensors` with the config in its header, and `subwords.json`."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from unveil.atomic_files import write_text
from unveil.errors import UnveilError
from unveil.interop.configs import config_from_json
from unveil.interop.files import read_header, read_tensors, write_tensors
from unveil.interop.state_dict_map import check_names
from unveil.json_files import json_text, read_json
from unveil.models.build_check import check_build, check_shapes, shapes_of
from unveil.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unveil.models.weights import one_line, refuse_non_finite
from unveil.text.bpe import BPETokenizer
from unveil.train.checkpoint import Checkpoints
from unveil.train.terminal import print_to_stderr

FORMAT_NAME = "unveil translator"
"""The value of `format` in `config.json`, and the key of the config in the header of `model.safetensors`."""


def write_config(translator: Seq2Seq, tokenizer: BPETokenizer, folder: Path) -> None:
    """Writes the config and the subwords, with which an unfinished run can translate from its newest checkpoint."""
    write_text(folder / "subwords.json", tokenizer.text)
    write_text(folder / "config.json", json_text({"format": FORMAT_NAME, "translator": asdict(translator.config)}))


def save(translator: Seq2Seq, folder: Path) -> None:
    """Writes the weights, with the config in the header of the file."""
    write_tensors(folder / "model.safetensors", translator.state_dict(), {FORMAT_NAME: json.dumps(asdict(translator.config))})


def load(run: str | os.PathLike[str], *, say: Callable[[str], None] = print_to_stderr) -> tuple[Seq2Seq, BPETokenizer]:
    """Loads the translator of a run folder, in eval mode, and its subwords. An unfinished run uses its newest checkpoint.

    Raises:
        UnveilError: If the folder holds another kind of run, or anything in it is missing or damaged.
    """
    folder = Path(run)
    if not (folder / "subwords.json").is_file():
        raise UnveilError(f"{folder} is not a run of `unveil translate train`: it has no subwords.json")
    path = folder / "model.safetensors"
    if path.is_file():
        config, state = read_header(path, FORMAT_NAME), read_tensors(path)
    else:
        checkpoints = Checkpoints(folder / "checkpoints", warn=say)
        step = checkpoints.newest()
        if step is None:
            raise UnveilError(f"{folder} has no weights yet: neither model.safetensors nor an undamaged checkpoint")
        say(f"{folder} is not finished: using its checkpoint of step {step:,}")
        path, config = checkpoints.path(step), read_json(folder / "config.json").get("translator")
        state = checkpoints.load(step, "model")  # a checkpoint also holds the current weights; only the averaged weights are used
        state = {name.removeprefix("average."): value for name, value in state.items() if name.startswith("average.")}
    try:
        shape = config_from_json(Seq2SeqConfig, config, f"the options of {path}")
        translator = check_build(lambda: Seq2Seq(shape), shapes_of(state), path)
        own = translator.state_dict()
        check_names(own.keys() - state.keys(), state.keys() - own.keys(), len(own), path)
        check_shapes(translator, shapes_of(state), path)
        refuse_non_finite(state, path)
        translator.load_state_dict(state)
    except UnveilError:
        raise
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise UnveilError(f"{path} has values that do not describe a translator: {one_line(error)}") from error
    tokenizer = BPETokenizer.load(folder / "subwords.json")
    if len(tokenizer) != translator.config.words:
        wanted = translator.config.words
        raise UnveilError(
            f"{folder}: subwords.json has {len(tokenizer)} subwords, but the model {wanted}: they belong to different runs"
        )
    return translator.eval(), tokenizer
