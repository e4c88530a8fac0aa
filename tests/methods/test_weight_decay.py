"""Which parameters decay: the modules say so themselves, and it is what one rule for all of them used to say."""

import copy
from typing import Any

import pytest
import torch

from unveil.data.augment import AugmentConfig
from unveil.learner import Learner
from unveil.methods import METHODS, method_class, modality_of_method
from unveil.models.bert import MODELS as TEXT_MODELS
from unveil.models.bert import TextConfig, TextEncoder
from unveil.models.seq2seq import MODELS as SEQ2SEQ_MODELS
from unveil.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.tasks import TASKS, task_class
from unveil.text.wordpiece import SPECIAL
from unveil.train.optim import OptimConfig, build_optimizer


def shape(kind: type, **options: Any) -> Any:
    """The config of the nano model."""
    width, depth, heads = (MODELS if kind is ViTConfig else TEXT_MODELS)["vit-nano" if kind is ViTConfig else "bert-nano"]
    inputs = {"image_size": (16, 16), "patch_size": (4, 4)} if kind is ViTConfig else {"vocabulary": (*SPECIAL, "a", "##b")}
    return kind(width=width, depth=depth, heads=heads, **inputs, **options)


def learners() -> dict[str, Learner]:
    """Every method and task, and the options that give it other parameters."""
    torch.manual_seed(0)
    made: dict[str, Learner] = {}
    variants: dict[str, list[dict[str, Any]]] = {
        "mae": [{"mask_tokens_in_encoder": True}],
        "beit": [{"positions": "learned", "relative_bias": "block"}],
        "bert": [{"next_sentence": True}],
        "mocov3": [{"train_patches": True}],
    }
    for name in METHODS.names:
        for options in ({}, *variants.get(name, [])):
            kind = method_class(name)
            augment = AugmentConfig() if modality_of_method(name) == "images" else None
            learner = kind.build(shape(kind.EncoderConfig), kind.Config(**options), augment)
            learner.set_classes(["cat", "dog"])
            made[f"{name} {options}"] = learner
    images = {"learned": ViT(shape(ViTConfig, positions="learned", relative_bias="shared")), "sincos": ViT(shape(ViTConfig))}
    texts = {"bert": TextEncoder(shape(TextConfig))}
    width, depth, heads, ratio = SEQ2SEQ_MODELS["nano"]
    translator = Seq2Seq(Seq2SeqConfig(words=20, width=width, depth=depth, heads=heads, mlp_ratio=ratio))
    encoders: dict[str, dict[str, Any]] = {"text-classification": texts, "translation": {"seq2seq": translator}}
    for name in TASKS.names:
        for label, encoder in encoders.get(name, images).items():
            kind = task_class(name)
            augment = AugmentConfig() if name not in encoders else None
            made[f"{name} {label}"] = kind.build(copy.deepcopy(encoder), kind.Config(), augment, ["cat", "dog"])
    return made


@pytest.fixture(scope="module")
def every() -> dict[str, Learner]:
    return learners()


def test_the_decayed_parameters_are_those_of_the_old_rule(every: dict[str, Learner]) -> None:
    exempt = set()
    for name, learner in every.items():
        trained = {key: p for key, p in learner.named_parameters() if p.requires_grad}
        old = {key for key, p in trained.items() if p.ndim > 1 and not key.endswith("positions")}
        groups = build_optimizer(learner, OptimConfig()).param_groups
        decayed = {id(p) for group in groups if group["decays"] for p in group["params"]}
        assert {key for key, p in trained.items() if id(p) in decayed} == old, name
        exempt |= {key for key, p in trained.items() if p.ndim > 1} - old
    assert exempt == {"encoder.positions", "student.positions", "decoder_positions"}


def test_exempt_names_are_parameters(every: dict[str, Learner]) -> None:
    for name, learner in every.items():
        known = {key for key, _ in learner.named_parameters()}
        missing = {key for key in learner.no_weight_decay() if key not in known}
        assert all(key.endswith("positions") for key in missing), name  # a ViT without positions has no such parameter
