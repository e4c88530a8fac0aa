"""BERT as `BertForMaskedLM`, `BertForPreTraining` or `BertModel` of transformers: config.json, model.safetensors, vocab.txt.

Reading needs no transformers.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from unveil.errors import UnveilError
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.files import Tensors, read_object, read_tensors, tell, write_tensors
from unveil.interop.mae_release import mlp_ratio
from unveil.interop.state_dict_map import Layout, Parts, TensorName, affine, blocks_in, fill, lay_out, stack
from unveil.learner import Learner
from unveil.methods.bert import BERT, BERTConfig
from unveil.models.bert import TextConfig, TextEncoder
from unveil.train.checkpoint import write_whole

PARTS: Parts = {
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
"""Tensors that stand in a file a second time, and where the first one is."""
NO_WEIGHTS = ("embeddings.position_ids", "embeddings.token_type_ids")


def layout_of(depth: int, start: str, *, words: bool, pairs: bool) -> Layout:
    """Where each tensor stands; `start` stands before the encoder's names, and the heads may be missing."""
    layout: Layout = {
        "encoder.words.weight": TensorName((f"{start}embeddings.word_embeddings.weight",)),
        "encoder.positions": TensorName((f"{start}embeddings.position_embeddings.weight",)),
        "encoder.segments": TensorName((f"{start}embeddings.token_type_embeddings.weight",)),
    }
    layout |= affine("encoder.norm", f"{start}embeddings.LayerNorm")
    layout |= stack("encoder.transformer.blocks", f"{start}encoder.layer", depth, PARTS)
    if words:
        layout |= affine("dense", "cls.predictions.transform.dense") | affine("norm", "cls.predictions.transform.LayerNorm")
        layout["bias"] = TensorName(("cls.predictions.bias",))
    return layout | affine("pooler", f"{start}pooler.dense") | affine("follows", "cls.seq_relationship") if pairs else layout


def load(folder: str | Path, *, say: Callable[[str], None] = tell) -> Learner:
    """The BERT of a folder, or the encoder alone of a `BertModel`, in eval mode.

    A pooler without a next-sentence head was not trained for anything that is here, and is left out.

    Raises:
        UnveilError: When the config asks for what our model does not do, the vocabulary is missing, or a tensor is missing or
            left over.
    """
    folder = Path(folder)
    facts = read_object(folder / "config.json")
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise UnveilError(f"{folder} has a config of transformers' BERT, and no model.safetensors (one file, no shards)")
    state = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): tensor
        for name, tensor in read_tensors(files[0]).items()
        if not name.endswith(NO_WEIGHTS)
    }
    start = "bert." if any(name.startswith("bert.") for name in state) else ""
    for again, first in TIED.items():
        other = state.get(first.format(start))
        if again in state and other is not None and not torch.equal(state.pop(again), other):
            raise UnveilError(f"{folder}: {again} differs from {first.format(start)}, and ours is tied to the table of words")
    shape = shape_of(facts, folder)
    words, pairs = "cls.predictions.bias" in state, "cls.seq_relationship.weight" in state
    if not pairs:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(f"{start}pooler.")}
    if words:
        learner: Learner = BERT.build(shape, BERTConfig(next_sentence=pairs))
    else:
        learner = EncoderOnly(TextEncoder(shape), str(folder))
    matched = fill(learner, layout_of(shape.depth, start, words=words, pairs=pairs and words), state, folder)
    kind = "BertForPreTraining" if pairs else "BertForMaskedLM" if words else "BertModel, no word head"
    say(f"{folder}: {matched} of {matched} tensors matched (transformers, {kind})")
    return learner.eval()


def shape_of(facts: Mapping[str, Any], folder: Path) -> TextConfig:
    """Our config from that of transformers; what it leaves out is BERT-base. Raises `UnveilError`."""
    act, places = facts.get("hidden_act", "gelu"), facts.get("position_embedding_type", "absolute")
    if act != "gelu" or places != "absolute" or facts.get("is_decoder") or facts.get("add_cross_attention"):
        found = f"{act} and {places} positions{', and is a decoder' if facts.get('is_decoder') else ''}"
        raise UnveilError(f"{folder} has {found}: expected an encoder with gelu and absolute positions")
    width, vocabulary = facts.get("hidden_size", 768), vocabulary_of(folder)
    size = facts.get("vocab_size", 30522)
    if len(vocabulary) != size:
        raise UnveilError(f"{folder} has {len(vocabulary):,} pieces in its vocabulary, and config.json says {size:,}")
    tokens = folder / "tokenizer_config.json"
    return TextConfig(
        width=width,
        depth=facts.get("num_hidden_layers", 12),
        heads=facts.get("num_attention_heads", 12),
        vocabulary=vocabulary,
        length=facts.get("max_position_embeddings", 512),
        segments=facts.get("type_vocab_size", 2),
        lower=read_object(tokens).get("do_lower_case", True) if tokens.is_file() else True,
        mlp_ratio=mlp_ratio(facts.get("intermediate_size", 3072), width),
        dropout=facts.get("hidden_dropout_prob", 0.1),
        eps=facts.get("layer_norm_eps", 1e-12),
    )


def vocabulary_of(folder: Path) -> tuple[str, ...]:
    """The pieces by number, from vocab.txt, or from tokenizer.json."""
    if (folder / "vocab.txt").is_file():
        return tuple((folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n"))
    if (folder / "tokenizer.json").is_file():
        numbers = read_object(folder / "tokenizer.json")["model"]["vocab"]
        return tuple(sorted(numbers, key=lambda piece: int(numbers[piece])))
    raise UnveilError(f"{folder} has neither vocab.txt nor tokenizer.json: without its words a BERT cannot be used")


def state_of(learner: Learner) -> Tensors:
    """The tensors of a BERT or of an `EncoderOnly`, under the names of transformers."""
    words = isinstance(learner, BERT)
    depth = blocks_in(learner.state_dict(), "encoder.transformer.blocks.")
    pairs = isinstance(learner, BERT) and learner.pairs
    return lay_out(learner, layout_of(depth, "bert." if words else "", words=words, pairs=pairs), (1, 1))


def describe(learner: Learner) -> dict[str, Any]:
    """The config of transformers."""
    shape: TextConfig = learner.encoder.config
    pairs = isinstance(learner, BERT) and learner.pairs
    name = "BertForPreTraining" if pairs else "BertForMaskedLM" if isinstance(learner, BERT) else "BertModel"
    return {
        "architectures": [name],
        "model_type": "bert",
        "vocab_size": len(shape.vocabulary),
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": int(shape.width * shape.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": shape.dropout,
        "attention_probs_dropout_prob": shape.dropout,
        "max_position_embeddings": shape.length,
        "type_vocab_size": shape.segments,
        "layer_norm_eps": shape.eps,
        "pad_token_id": shape.number("[PAD]"),
        "tie_word_embeddings": True,
    }


def export(learner: Learner, folder: str | Path) -> Path:
    """Writes `model.safetensors`, `vocab.txt`, `tokenizer_config.json` and `config.json`.

    Raises:
        UnveilError: For a fine-tuned model, whose head transformers' BERT has no place for.
    """
    if not isinstance(learner, BERT | EncoderOnly):
        kind = type(learner).__name__
        raise UnveilError(f"transformers' BERT has no place for a {kind}: export the run before tuning, or --to safetensors")
    folder, shape = Path(folder), learner.encoder.config
    write_tensors(folder / "model.safetensors", state_of(learner))
    write_whole(folder / "vocab.txt", "\n".join(shape.vocabulary) + "\n")
    words = {"tokenizer_class": "BertTokenizer", "do_lower_case": shape.lower, "model_max_length": shape.length}
    write_whole(folder / "tokenizer_config.json", json.dumps(words, indent=2) + "\n")
    write_whole(folder / "config.json", json.dumps(describe(learner), indent=2) + "\n")
    return folder
