"""BERT as `BertForMaskedLM`, `BertForPreTraining` or `BertModel` of transformers: config.json, model.safetensors, vocab.txt.

Loading does not need transformers.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.atomic_files import write_text
from unveil.errors import UnveilError
from unveil.interop.config_from_tensors import mlp_ratio
from unveil.interop.configs import checked
from unveil.interop.encoder_only import encoder_of, encoder_only, has_encoder
from unveil.interop.files import read_folder, write_tensors
from unveil.interop.formats import Contents
from unveil.interop.silence import silenced
from unveil.interop.state_dict_map import (
    BlockNames,
    StateDictMap,
    TensorName,
    block_map,
    build_and_load,
    fits,
    to_state_dict,
    weight_and_bias,
)
from unveil.interop.verify_export import Verification, random_texts, relative_difference
from unveil.json_files import LARGEST, read_json, read_regular
from unveil.learner import Learner, Task
from unveil.methods.bert import BERT, BERTConfig
from unveil.models.bert import TextConfig, TextEncoder
from unveil.train.checkpoint import Tensors
from unveil.train.terminal import print_to_stderr

BLOCK: BlockNames = {
    "attention.query_key_value": tuple(f"attention.self.{name}" for name in ("query", "key", "value")),
    "attention.out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
    "norm2": "output.LayerNorm",
}
TIED = {
    "cls.predictions.decoder.weight": "{}embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}
"""Tensors that a file holds twice: the second name, and the first name."""
NOT_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")


class TransformersModel(NamedTuple):
    """The exported part of a learner."""

    architecture: str
    state: Tensors


def matches(contents: Contents) -> bool:
    """Whether contents are in this format."""
    return contents.kind == "folder" and contents.facts.get("model_type") == "bert"


def map_of(depth: int, prefix: str, *, word_head: bool, pairs: bool) -> StateDictMap:
    """The map of tensor names.

    Args:
        depth: Blocks of the encoder.
        prefix: Prefix of their names in the encoder.
        word_head: Whether there is a head that predicts words.
        pairs: Whether there is a pooler, and a next-sentence head.
    """
    names: StateDictMap = {
        "encoder.words.weight": TensorName((f"{prefix}embeddings.word_embeddings.weight",)),
        "encoder.positions": TensorName((f"{prefix}embeddings.position_embeddings.weight",)),
        "encoder.segments": TensorName((f"{prefix}embeddings.token_type_embeddings.weight",)),
    }
    names |= weight_and_bias("encoder.norm", f"{prefix}embeddings.LayerNorm")
    names |= block_map("encoder.transformer.blocks", f"{prefix}encoder.layer", depth, BLOCK)
    if word_head:
        names |= weight_and_bias("dense", "cls.predictions.transform.dense")
        names |= weight_and_bias("norm", "cls.predictions.transform.LayerNorm")
        names["bias"] = TensorName(("cls.predictions.bias",))
    if pairs:
        names |= weight_and_bias("pooler", f"{prefix}pooler.dense") | weight_and_bias("follows", "cls.seq_relationship")
    return names


def load(folder: str | Path, *, say: Callable[[str], None] = print_to_stderr) -> Learner:
    """Loads the BERT of a folder, or only the encoder of a `BertModel`, in eval mode.

    A pooler without a next-sentence head is ignored, since our models do not use it.

    Raises:
        UnveilError: If our model does not support the config, the vocabulary is missing, or a tensor is missing or unexpected.
    """
    folder = Path(folder)
    facts = read_json(folder / "config.json")
    state = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in read_folder(folder, "transformers' BERT").items()
        if not name.endswith(NOT_WEIGHTS)
    }
    prefix = "bert." if any(name.startswith("bert.") for name in state) else ""
    for second, first in TIED.items():
        tied = state.get(first.format(prefix))
        if second in state and tied is not None and not torch.equal(state.pop(second), tied):
            raise UnveilError(f"{folder}: {second} differs from {first.format(prefix)}, but our model ties the two")
    config = text_config_from(facts, folder)
    word_head, pairs = "cls.predictions.bias" in state, "cls.seq_relationship.weight" in state
    if not pairs:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{prefix}pooler.")}

    def build() -> Learner:
        if word_head:
            return BERT.build(config, BERTConfig(next_sentence=pairs))
        return encoder_only(TextEncoder(config), str(folder))

    def names(learner: Learner) -> StateDictMap:
        return map_of(config.depth, prefix, word_head=word_head, pairs=pairs and word_head)

    learner, matched = build_and_load(build, names, state, folder)
    kind = "BertForPreTraining" if pairs else "BertForMaskedLM" if word_head else "BertModel, no word head"
    say(f"{folder}: {matched} of {matched} tensors matched (transformers, {kind})")
    return learner


def text_config_from(facts: Mapping[str, Any], folder: Path) -> TextConfig:
    """Converts the config of transformers, whose defaults are those of BERT-base, to ours.

    Raises:
        UnveilError: If our model does not support the config.
    """
    act, positions = facts.get("hidden_act", "gelu"), facts.get("position_embedding_type", "absolute")
    if act != "gelu" or positions != "absolute" or facts.get("is_decoder") or facts.get("add_cross_attention"):
        found = f"{act} and {positions} positions{', and is a decoder' if facts.get('is_decoder') else ''}"
        raise UnveilError(f"{folder} has {found}: expected an encoder with gelu and absolute positions")
    width, vocabulary = facts.get("hidden_size", 768), vocabulary_of(folder)
    size = facts.get("vocab_size", 30522)
    if len(vocabulary) != size:
        raise UnveilError(f"{folder} has {len(vocabulary):,} tokens in its vocabulary, but {size:,} in its config.json")
    tokenizer = folder / "tokenizer_config.json"
    config = TextConfig(
        width=width,
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        vocabulary=vocabulary,
        length=facts.get("max_position_embeddings", 512),
        segments=facts.get("type_vocab_size", 2),
        lower=read_json(tokenizer).get("do_lower_case", True) if tokenizer.is_file() else True,
        mlp_ratio=mlp_ratio(facts.get("intermediate_size", 3072), width),
        dropout=facts.get("hidden_dropout_prob", 0.1),
        eps=facts.get("layer_norm_eps", 1e-12),
    )
    return checked(config)


def vocabulary_of(folder: Path) -> tuple[str, ...]:
    """The word pieces in the order of their ids, from vocab.txt or tokenizer.json."""
    if (folder / "vocab.txt").is_file():
        return tuple(read_regular(folder / "vocab.txt", LARGEST).decode("utf-8").rstrip("\n").split("\n"))
    if (folder / "tokenizer.json").is_file():
        ids = read_json(folder / "tokenizer.json")["model"]["vocab"]
        return tuple(sorted(ids, key=lambda piece: int(ids[piece])))
    raise UnveilError(f"{folder} has neither vocab.txt nor tokenizer.json, but a BERT cannot be used without its vocabulary")


@singledispatch
def transformers_model(learner: Learner) -> TransformersModel:
    """The exported part of a learner: its encoder, and the heads of BERT."""
    return encoder_model(learner)


def encoder_model(learner: Learner) -> TransformersModel:
    """Only the encoder of a learner."""
    encoder = encoder_of(learner)
    names = map_of(encoder.config.depth, "", word_head=False, pairs=False)
    return TransformersModel("BertModel", to_state_dict(encoder_only(encoder), names, (1, 1)))


@transformers_model.register
def _(learner: BERT) -> TransformersModel:
    names = map_of(learner.encoder.config.depth, "bert.", word_head=True, pairs=learner.pairs)
    if not fits(learner, names):  # a subclass with more tensors
        return encoder_model(learner)
    return TransformersModel("BertForPreTraining" if learner.pairs else "BertForMaskedLM", to_state_dict(learner, names, (1, 1)))


def config_json(config: TextConfig, architecture: str) -> dict[str, Any]:
    return {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": len(config.vocabulary),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
        "max_position_embeddings": config.length,
        "type_vocab_size": config.segments,
        "layer_norm_eps": config.eps,
        "pad_token_id": config.token_id("[PAD]"),
        "tie_word_embeddings": True,
    }


def writes(learner: Learner) -> bool:
    """Whether a learner has a text encoder. A BERT is exported with its heads."""
    return has_encoder(learner) and isinstance(learner.encoder, TextEncoder)


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes `model.safetensors`, `vocab.txt`, `tokenizer_config.json` and `config.json`.

    Raises:
        UnveilError: For a task, since this format cannot represent its head.
    """
    if isinstance(learner, Task):
        raise UnveilError(
            f"this format cannot represent the head of a {type(learner).__name__}: export the run that it started from, or export "
            f"it as safetensors"
        )
    folder, model, config = Path(folder), transformers_model(learner), learner.encoder.config
    write_tensors(folder / "model.safetensors", model.state)
    write_text(folder / "vocab.txt", "\n".join(config.vocabulary) + "\n")
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": config.lower, "model_max_length": config.length}
    write_text(folder / "tokenizer_config.json", json.dumps(tokenizer, indent=2) + "\n")
    write_text(folder / "config.json", json.dumps(config_json(config, model.architecture), indent=2) + "\n")
    return folder


@torch.no_grad()
def verify(learner: Learner, folder: Path) -> Verification:
    """Compares the outputs of the learner with those of transformers, or of our reloaded model without transformers."""
    return verification_of(load(folder, say=lambda text: None), learner, folder)


@singledispatch
def verification_of(again: Learner, learner: Learner, folder: Path) -> Verification:
    """Compares the tokens of an encoder. Dispatches on `again`, the reloaded model, which has a head only if one was exported."""
    ids, real = random_texts(learner.encoder.config)
    return verification_on_texts(folder, "BertModel", ids, real, again.encoder(ids, real=real), learner.encoder(ids, real=real))


@verification_of.register
def _(again: BERT, learner: BERT, folder: Path) -> Verification:
    ids, real = random_texts(learner.encoder.config)
    return verification_on_texts(
        folder, "BertForMaskedLM", ids, real, again.token_logits(ids, real=real), learner.token_logits(ids, real=real)
    )


def verification_on_texts(
    folder: Path, model: str, ids: Int[Tensor, "B T"], real: Bool[Tensor, "B T"], ours: Tensor, wanted: Float[Tensor, "B T _"]
) -> Verification:
    """Compares the outputs without padding: those of a model of transformers, or of ours if transformers is not installed."""
    compared = "tokens of random texts" if model == "BertModel" else "word scores of random texts"
    if importlib.util.find_spec("transformers") is None:
        return Verification(relative_difference(ours[real], wanted[real]), "the reloaded file", compared)
    import transformers

    with silenced():
        theirs: Any = getattr(transformers, model).from_pretrained(folder)
    output = theirs.eval()(ids, attention_mask=real.long())
    found: Tensor = output.last_hidden_state if model == "BertModel" else output.logits
    return Verification(relative_difference(found[real], wanted[real]), "transformers", compared)
