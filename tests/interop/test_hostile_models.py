"""Configs and checkpoints that were damaged or made to do harm: one sentence that names the path, little memory, no code run.

Each case runs in a process of its own, which is stopped if it takes long.
"""

import argparse
import io
import json
import os
import pickle
import resource
import signal
import struct
import traceback
import zipfile
from dataclasses import asdict, fields, replace
from functools import partial

import pytest
import timm  # noqa: F401 (which `unveil.load` imports for such models; its memory is not that of a model)
import torch
from safetensors.torch import save_file

from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import (
    mae_release,
    model_files,
    timm_vit,
    transformers_beit,
    transformers_bert,
    transformers_vit,
    transformers_vit_mae,
    translator_files,
)
from unveil.interop.encoder_only import encoder_only
from unveil.interop.load import load
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.methods.bert import BERT, BERTConfig
from unveil.methods.dino import DINO, DINOConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.bert import TextConfig
from unveil.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.models.weights import CHECKSUM, read_weights
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.text.wordpiece import SPECIAL

MEGABYTES, SECONDS = 300, 20
VIT = ViTConfig(width=192, depth=2, heads=3, image_size=(32, 32), patch_size=(8, 8))
TEXT = TextConfig(width=48, depth=2, heads=3, vocabulary=(*SPECIAL, "a", "b", "##c"), length=16)


def mae():
    return MAE.build(VIT, MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2), AugmentConfig())


def beit():
    return BEiT.build(VIT, BEiTConfig(codebook_size=8, relative_bias="block"), AugmentConfig())


def encoder():
    vit = ViTConfig(
        width=192, depth=2, heads=3, image_size=(32, 32), patch_size=(8, 8), positions="learned", mlp="swiglu", registers=2
    )
    return encoder_only(ViT(replace(vit, layer_scale=0.1, mlp_ratio=128 / 192)))


def text_model():
    return BERT.build(TEXT, BERTConfig())


def finetuned():
    return Finetune.build(ViT(VIT), FinetuneConfig(), AugmentConfig(), ("a", "b"))


def dino():
    return DINO.build(VIT, DINOConfig(prototypes=16), AugmentConfig())


MODELS = {
    "mae": (mae, model_files.save),
    "beit": (beit, model_files.save),
    "bert": (text_model, model_files.save),
    "finetune": (finetuned, model_files.save),
    "dino": (dino, model_files.save),
    "timm": (finetuned, timm_vit.export),
    "timm-registers": (encoder, timm_vit.export),
    "transformers-dinov2": (encoder, transformers_vit.export),
    "transformers-mae": (mae, transformers_vit_mae.export),
    "transformers-beit": (beit, transformers_beit.export),
    "transformers-bert": (text_model, transformers_bert.export),
}
"""What each kind of folder holds, and the function that writes it."""
ODD_VALUES = (10**9, 10**30, -1, 0, 1e300, "many", None, [], {}, [1, 2, 3], True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind, as earlier versions wrote them: without a checksum, which would refuse every change of config.json."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, (build, write) in MODELS.items():
        write(build(), root / name)
        without_checksum(root / name / "model.safetensors")
        config = json.loads((root / name / "config.json").read_text())
        config.pop("checksum", None)
        (root / name / "config.json").write_text(json.dumps(config))
    return root


def without_checksum(path):
    tensors, metadata = read_weights(path)
    save_file(tensors, path, metadata={key: value for key, value in metadata.items() if key != CHECKSUM})


def outcomes(path, prepare=(lambda: None,), load=load):
    """Loads a path after each preparation, all in one process of its own.

    Returns for each: "loaded", a sentence, or a traceback; and the memory above that at the start, in MB.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        torch.set_num_threads(1)  # the threads of the parent are not there after a fork, and OpenMP would wait for them
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for each in prepare:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(SECONDS)
            try:
                each()
                load(path, say=lambda text: None)
                found = "loaded"
            except UnveilError as error:
                found = f"refused: {error}"
            except BaseException:
                found = traceback.format_exc()
            megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            os.write(writer, json.dumps([found, megabytes]).encode() + b"\n")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answers = [json.loads(line) for line in pipe]
    os.waitpid(child, 0)
    assert len(answers) == len(prepare), f"case {len(answers)} took more than {SECONDS} s, or was killed"
    return answers


def check(path, answer=None, *, may_load=False):
    found, megabytes = answer or outcomes(path)[0]
    assert megabytes < MEGABYTES
    if found == "loaded":
        assert may_load, "loaded"
        return found
    assert found.startswith("refused: "), found
    assert str(path) in found
    assert "\n" not in found
    assert "weights_only" not in found
    return found


def leaves(value, where=()):
    """The places of all numbers, strings and lists of numbers in JSON."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, (*where, key))
    else:
        yield where


@pytest.mark.parametrize("name", MODELS)
def test_odd_values_in_config_json(folders, tmp_path, name):
    source, target = folders / name, tmp_path / name
    target.mkdir()
    for each in source.iterdir():
        if each.name != "config.json":
            os.link(each, target / each.name)
    config = json.loads((source / "config.json").read_text())
    cases = [
        (where, value)
        for number, where in enumerate(leaves(config))
        for value in (10**9, ODD_VALUES[number % len(ODD_VALUES)], ODD_VALUES[(number * 7 + 3) % len(ODD_VALUES)])
    ]

    def change(where, value):
        changed = owner = json.loads(json.dumps(config))
        for key in where[:-1]:
            owner = owner[key]
        owner[where[-1]] = value
        (target / "config.json").write_text(json.dumps(changed))

    answers = outcomes(target, [partial(change, *case) for case in cases])
    loaded = []
    for case, answer in zip(cases, answers, strict=True):
        try:
            if check(target, answer, may_load=True) == "loaded":
                loaded.append(case)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from None
    sizes = ("depth", "width", "hidden_size", "num_hidden_layers", "decoder_depth", "image_size", "num_channels", "img_size")
    assert not [each for each in loaded if each[0][-1] in sizes and each[1] == 10**9]


def deep(count, opening="["):
    return opening.encode() * count


def test_odd_values_in_a_translator(tmp_path):
    config = Seq2SeqConfig(words=20, width=32, depth=2, heads=2, longest=16)
    tensors = Seq2Seq(config).state_dict()
    (tmp_path / "subwords.json").write_text("{}")

    def change(name, value):
        note = json.dumps({**asdict(config), name: value})
        save_file(tensors, tmp_path / "model.safetensors", metadata={translator_files.FORMAT_NAME: note})

    cases = [(field.name, value) for field in fields(config) for value in ODD_VALUES]
    for case, answer in zip(
        cases, outcomes(tmp_path, [partial(change, *case) for case in cases], load=translator_files.load), strict=True
    ):
        found = check(tmp_path, answer)
        if case[0] not in ("dropout", "longest", "heads", "mlp_ratio") or case[1] == 10**9:
            assert "subwords.json" not in found, case  # the model is refused before its vocabulary


CONFIGS = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "a string": b'"unveil"',
    "binary": bytes(range(256)) * 40,
    "utf-16": '{"format": "unveil"}'.encode("utf-16"),
    "cut": b'{"format": "unveil", "encoder": {"wid',
    "deep lists": deep(200_000),
    "deep objects": b'{"a":' * 100_000,
    "a deep value": b'{"format": "unveil", "encoder": ' + deep(50_000) + b"]" * 50_000 + b"}",
    "another type": b'{"format": ["unveil"], "encoder": 3}',
    "no encoder": b'{"format": "unveil", "format_version": 2, "modality": "images", "method": "mae"}',
    "a list for an object": b'{"format": "unveil", "format_version": 2, "modality": "images", "method": "mae", "encoder": [1]}',
    "a version of another type": b'{"format": "unveil", "format_version": "two"}',
    "a large number": b'{"format": "unveil", "format_version": ' + b"9" * 10_000 + b"}",
    "NaN": b'{"format": "unveil", "format_version": NaN}',
    "a method of another type": b'{"format": "unveil", "format_version": 2, "modality": "images", "method": {"a": 1}}',
    "transformers": b'{"model_type": ["vit_mae"]}',
    "timm": b'{"architecture": 3, "model_args": [], "pretrained_cfg": null}',
    "large": b'{"a": "' + b"x" * 70_000_000 + b'"}',
}


@pytest.mark.parametrize("name", CONFIGS)
def test_odd_config_json(folders, tmp_path, name):
    os.link(folders / "mae" / "model.safetensors", tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(CONFIGS[name])
    check(tmp_path)


def safetensors_file(header, body=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


def tensor(shape, start, end, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a length of 2**63": struct.pack("<Q", 2**63) + b"{}",
    "a length of 99 MB": struct.pack("<Q", 99_000_000) + b"{}",
    "deep": safetensors_file(b'{"a":' * 100_000),
    "a deep note": safetensors_file({"__metadata__": {"unveil": "[" * 100_000}}),
    "a note of another type": safetensors_file({"__metadata__": {"unveil": "3"}}),
    "a note without a model": safetensors_file({"__metadata__": {"unveil": '{"format": "unveil"}'}}),
    "a tensor of 4e18 values": safetensors_file({"a": tensor([2**31, 2**31], 0, 4)}, b"1234"),
    "a shape that overflows": safetensors_file({"a": tensor([2**63, 4], 0, 4)}, b"1234"),
    "offsets outside": safetensors_file({"a": tensor([1000], 0, 4000)}, b"1234"),
    "offsets backwards": safetensors_file({"a": tensor([1], 4, 0)}, b"1234"),
    "overlapping tensors": safetensors_file({"a": tensor([1], 0, 4), "b": tensor([1], 0, 4)}, b"1234"),
    "an unknown type": safetensors_file({"a": tensor([1], 0, 4, "F33")}, b"1234"),
    "a body without tensors": safetensors_file({}, b"1234"),
    "no tensors": safetensors_file({}),
    "names of the release": safetensors_file({"pos_embed": tensor([1, 0, 0], 0, 0), "cls_token": tensor([0], 0, 0)}),
    "a wide embedding": safetensors_file(
        {"patch_embed.proj.weight": tensor([2**20, 1, 1, 1], 0, 2**22), "cls_token": tensor([1, 1, 0], 2**22, 2**22)}
        | {"pos_embed": tensor([1, 2, 0], 2**22, 2**22)}
        | {f"blocks.{i}.a": tensor([0], 2**22, 2**22) for i in range(200)},
        bytes(2**22),
    ),
    "many channels": safetensors_file(
        {"patch_embed.proj.weight": tensor([1, 2**20, 1, 1], 0, 2**22), "cls_token": tensor([1, 1, 1], 0, 0)}, bytes(2**22)
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_odd_safetensors(tmp_path, name):
    (tmp_path / "x.safetensors").write_bytes(HEADERS[name])
    check(tmp_path / "x.safetensors")


class Call:
    """Unpickles into the result of a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def saved(content, **options):
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def deflated(raw, method=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return stream.getvalue()


def release():
    state = mae_release.state_of(mae())
    return dict(state)


def nested(count):
    value = []
    for _ in range(count):
        value = [value]
    return value


def raw_pickle(body):
    return b"\x80\x02" + body + b"."


def marked(marker):
    return f"open({str(marker)!r}, 'w').write('run')"


CHECKPOINTS = {
    "os.system": lambda m: saved({"model": Call(os.system, f"touch {m}")}),
    "os.system in a pickle": lambda m: pickle.dumps({"model": Call(os.system, f"touch {m}")}, protocol=2),
    "protocol 4": lambda m: pickle.dumps({"model": Call(os.system, f"touch {m}")}, protocol=4),
    "protocol 5 in a zip": lambda m: saved({"model": Call(os.system, f"touch {m}")}, pickle_protocol=5),
    "the old format": lambda m: saved({"model": Call(os.system, f"touch {m}")}, _use_new_zipfile_serialization=False),
    "eval": lambda m: saved({"model": release(), "epoch": Call(eval, marked(m))}),
    "exec": lambda m: saved({"epoch": Call(exec, marked(m))}),
    "open": lambda m: saved({"epoch": Call(open, str(m), "w")}),
    "__import__": lambda m: saved({"epoch": Call(__import__, "antigravity")}),
    "torch.load": lambda m: saved({"epoch": Call(torch.load, "other.pth")}),
    "getattr": lambda m: saved({"epoch": Call(getattr, "x", "upper")}),
    "a module": lambda m: raw_pickle(b"cposix\nsystem\n"),
    "a module with odd letters": lambda m: raw_pickle(b"cpo\x1b[31msix\nsystem\n"),
    "an instance": lambda m: saved({"epoch": Call(torch.nn.Linear, 2, 2)}),
    "a large buffer": lambda m: saved({"epoch": Call(bytearray, 10**10)}),
    "deflated": lambda m: deflated(saved({"model": {"a": torch.zeros(2**26)}})),
    "lzma": lambda m: deflated(saved({"model": {"a": torch.zeros(2**20)}}), zipfile.ZIP_LZMA),
    "strides of 0": lambda m: saved({"model": release() | {"pos_embed": torch.zeros(1, 1, 1).expand(1, 400_000_001, 192)}}),
    "a wide model of strides": lambda m: saved({"model": release() | {"patch_embed.proj.bias": torch.zeros(1).expand(10**9)}}),
    "a sparse tensor": lambda m: saved({"model": {"a": torch.sparse_coo_tensor(size=(10**6, 10**6))}}),
    "a meta tensor": lambda m: saved({"model": {"a": torch.empty(10**9, device="meta")}}),
    "deep lists": lambda m: raw_pickle(b"]" * 100_000 + b"a" * 99_999),
    "deep lists in a zip": lambda m: saved({"model": nested(400)}),
    "a long text": lambda m: raw_pickle(b"X\xff\xff\xff\x7fabc"),
    "a large memo": lambda m: raw_pickle(b"]r\xff\xff\xff\x7f"),
    "other keys": lambda m: saved({"a" * 100_000: 1}),
    "numbers for names": lambda m: saved({"model": {1: torch.zeros(1)}}),
    "a list": lambda m: saved([1, 2, 3]),
    "cut": lambda m: saved({"model": release()})[:20_000],
    "cut at its start": lambda m: saved({"model": release()})[:100],
    "without the pickle": lambda m: saved({"model": release()}).replace(b"data.pkl", b"data.pkx"),
    "a flipped byte": lambda m: flipped(saved({"model": release()})),
    "an empty zip": lambda m: b"PK\x05\x06" + bytes(18),
    "other shapes": lambda m: saved({"model": release() | {"blocks.0.mlp.fc1.bias": torch.zeros(7)}}),
    "no patches": lambda m: saved({"model": release() | {"pos_embed": torch.zeros(1, 0, 192)}}),
    "NaN": lambda m: saved({"model": {name: value * float("nan") for name, value in release().items()}}),
    "infinite": lambda m: saved({"model": {name: value / 0 for name, value in release().items()}}),
    "whole numbers": lambda m: saved({"model": {name: value.long() for name, value in release().items()} | {"x": torch.zeros(1)}}),
}


def flipped(raw):
    place = len(raw) // 2
    return raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_hostile_checkpoint(tmp_path, name):
    marker = tmp_path / "executed"
    (tmp_path / "x.pth").write_bytes(CHECKPOINTS[name](marker))
    sentence = check(tmp_path / "x.pth")
    assert not marker.exists()
    if "system" in name or "protocol" in name or "old format" in name:
        assert "it holds the function posix.system, which loading would run. Nothing was run" in sentence


def test_checkpoint_with_the_usual_extras_is_loaded(tmp_path):
    content = {"model": release(), "epoch": 799, "args": argparse.Namespace(lr=1e-3, output_dir="x"), "scaler": {"scale": 1.0}}
    torch.save(content, tmp_path / "x.pth")
    load(tmp_path / "x.pth", decoder_heads=2)


@pytest.mark.parametrize("where", ["the model", "config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_at_once(folders, tmp_path, where, kind):
    path = {"the model": tmp_path / "x", "config.json": tmp_path / "config.json"}.get(where, tmp_path / "model.safetensors")
    if where == "model.safetensors":
        os.link(folders / "timm" / "config.json", tmp_path / "config.json")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    check(tmp_path / "x" if where == "the model" else tmp_path)
