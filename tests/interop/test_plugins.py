"""Methods and tasks from outside of the package: saved, loaded, exported, and never imported unless the user said so."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interop.conftest import SHAPE, perturbed
from unveil import plugins
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import model_files
from unveil.interop.encoder_only import EncoderOnly
from unveil.interop.formats import FORMATS
from unveil.interop.load import load
from unveil.learner import Learner
from unveil.methods import METHODS, method_class
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.recipes.export import export
from unveil.tasks import task_class
from unveil.train.checkpoint import Checkpoints

SOURCE = """
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unveil.data.augment import Augment
from unveil.learner import Method, Step, Task
from unveil.metrics import ClassificationMetric
from unveil.methods.mae import MAE
from unveil.models.vit import ViT
from unveil.tasks.finetune import Finetune

Path(__file__).with_name("executed").touch()


@dataclass(frozen=True, kw_only=True)
class Options:
    size: int = 3
    folder: Path = Path("some/folder")


class Regress(Method):
    Config = Options

    def __init__(self, encoder, config, augment=None):
        super().__init__()
        self.encoder, self.config, self.augmentation = encoder, config, augment
        self.head = nn.Linear(encoder.config.width, config.size)

    @classmethod
    def build(cls, encoder, config, augment):
        return cls(ViT(encoder), config, Augment(augment, encoder.image_size, encoder.mean, encoder.std))

    def forward(self, batch):
        return Step(self.head(self.encoder.features(batch.images)).square().mean(), {})


class Segment(Task):
    Config = Options

    def __init__(self, encoder, config, classes):
        super().__init__()
        self.encoder, self.config, self.classes = encoder.requires_grad_(False), config, classes
        self.head = nn.Linear(encoder.config.width, len(classes))

    @classmethod
    def build(cls, encoder, config, augment, classes):
        return cls(encoder, config, classes)

    def forward(self, batch):
        raise NotImplementedError

    def predict(self, batch):
        return self.head(self.encoder(batch.images)[:, 1:])

    def metric(self):
        return ClassificationMetric(len(self.classes))


class WiderMAE(MAE):
    def __init__(self, *args):
        super().__init__(*args)
        self.extra = nn.Linear(4, 4)


class SameMAE(MAE):
    pass


class SameFinetune(Finetune):
    pass


class NoLearner:
    pass
"""


@pytest.fixture
def plugin(tmp_path: Path, no_trust: None) -> Path:
    """A file that leaves a file `executed` beside it when it is imported."""
    (tmp_path / "code").mkdir()
    path = tmp_path / "code" / "plugin.py"
    path.write_text(SOURCE)
    return path


def method(plugin: Path, name: str) -> Learner:
    kind = method_class(f"{plugin}:{name}")
    config = (
        kind.Config(size=5, folder=Path("other/folder")) if name == "Regress" else kind.Config(decoder_width=32, decoder_heads=2)
    )
    torch.manual_seed(0)
    return perturbed(kind.build(ViTConfig(**SHAPE), config, AugmentConfig(crop_scale=0.3)))


def task(plugin: Path, name: str) -> Learner:
    kind = task_class(f"{plugin}:{name}")
    torch.manual_seed(0)
    return perturbed(kind.build(ViT(ViTConfig(**SHAPE)), kind.Config(), AugmentConfig(), ["cat", "dog", "cow"]))


def same(a: Learner, b: Learner) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def silent(text: str) -> None:
    pass


@pytest.mark.parametrize("name", ["Regress", "WiderMAE"])
def test_method_round_trip(name: str, plugin: Path, tmp_path: Path) -> None:
    learner = method(plugin, name)
    model_files.save(learner, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (facts["method"], facts["class"]) == (name.lower(), f"{plugin}:{name}")
    again = load(tmp_path / "run", say=silent)
    assert type(again) is type(learner)
    assert same(again, learner)
    assert again.config == learner.config  # a path comes back as a path
    assert again.augmentation.config == learner.augmentation.config


@pytest.mark.parametrize("name", ["Segment", "SameFinetune"])
def test_task_round_trip(name: str, plugin: Path, tmp_path: Path) -> None:
    learner = task(plugin, name)
    model_files.save(learner, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (facts["task"], facts["class"], facts["classes"]) == (name.lower(), f"{plugin}:{name}", ["cat", "dog", "cow"])
    again = load(model_files.export(learner, tmp_path / "task.safetensors"), say=silent)
    assert type(again) is type(learner)
    assert same(again, learner)
    assert (again.config, list(again.classes)) == (learner.config, ["cat", "dog", "cow"])


QUESTIONS = """
import json, sys
from pathlib import Path
from unveil.errors import UnveilError
from unveil.interop.load import load

marker, trusted, *paths = sys.argv[1:]
answers = []
for trust in (None, trusted):
    for path in paths:
        try:
            answer = type(load(path, trust=trust, say=lambda text: None)).__name__
        except UnveilError as error:
            answer = str(error)
        answers.append((answer, Path(marker).exists()))
print(json.dumps(answers))
"""


def test_another_process_imports_nothing_unasked(plugin: Path, tmp_path: Path) -> None:
    learner = method(plugin, "Regress")
    model_files.save(learner, tmp_path / "run")
    model_files.export(learner, tmp_path / "model.safetensors")
    model_files.write_config(learner, tmp_path / "unfinished")
    Checkpoints(tmp_path / "unfinished" / "checkpoints").save(3, {"model": learner.state_dict()}, {})
    model_files.save(task(plugin, "Segment"), tmp_path / "task")
    marker = plugin.with_name("executed")
    marker.unlink()
    paths = [str(tmp_path / name) for name in ("run", "model.safetensors", "unfinished", "task")]
    command = [sys.executable, "-c", QUESTIONS, str(marker), str(plugin), *paths]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=False)
    assert found.returncode == 0, found.stderr
    answers = json.loads(found.stdout)
    for path, kind, (answer, executed) in zip(paths, ["method 'regress'"] * 3 + ["task 'segment'"], answers[:4], strict=True):
        assert answer.startswith(f"{path} needs the {kind} from {plugin}, which is not part of unveil")
        assert f"--trust {plugin}" in answer
        assert not executed
    assert answers[4:] == [["Regress", True]] * 3 + [["Segment", True]]


def config_for(folder: Path, **facts: Any) -> Path:
    folder.mkdir(exist_ok=True)
    encoder = {"width": 48, "depth": 1, "heads": 3, "image_size": [8, 8], "patch_size": [4, 4]}
    content = {"format": "unveil", "format_version": 2, "modality": "images", "encoder": encoder, "options": {}, **facts}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    return folder


@pytest.mark.parametrize("kind", ["method", "task"])
def test_a_name_is_never_taken_for_a_path(kind: str, plugin: Path, tmp_path: Path) -> None:
    for name in (f"{plugin}:Regress", str(plugin), "os:system", ["mae"], None):
        with pytest.raises(UnveilError, match=f"needs the {kind} .*, which is not installed"):
            load(config_for(tmp_path / "run", **{kind: name}))
    assert not plugin.with_name("executed").exists()
    assert not plugins._trusted


@pytest.mark.parametrize("path", ["os", 3, ["os:system"], ""])
def test_a_class_that_is_no_path_is_refused(path: Any, tmp_path: Path, no_trust: None) -> None:
    with pytest.raises(UnveilError, match="as the class of its method, expected"):
        load(config_for(tmp_path / "run", method="mae", **{"class": path}))


def test_what_is_no_method_is_refused_even_if_trusted(plugin: Path, tmp_path: Path) -> None:
    for trust, path, kind, base in (
        ("os", "os:system", "method", "Method"),
        ("os", "os:environ", "task", "Task"),
        ("unveil.learner", "unveil.learner:Learner", "method", "Method"),
        (str(plugin), f"{plugin}:NoLearner", "method", "Method"),
        (str(plugin), f"{plugin}:Segment", "method", "Method"),
        (str(plugin), f"{plugin}:Regress", "task", "Task"),
    ):
        with pytest.raises(UnveilError, match=f"{path}' as the class of its {kind}, which is not a subclass of .*{base}"):
            load(config_for(tmp_path / "run", **{kind: "x", "class": path}), trust=trust)


def test_an_untrusted_module_is_refused(tmp_path: Path, no_trust: None) -> None:
    with pytest.raises(UnveilError, match="needs the method 'x' from os, which is not part of unveil"):
        load(config_for(tmp_path / "run", method="x", **{"class": "os:system"}))


def test_a_file_that_is_gone_or_broken_is_one_sentence(plugin: Path, tmp_path: Path) -> None:
    folder = config_for(tmp_path / "run", method="x", **{"class": f"{plugin}:Regress"})
    plugin.write_text("import no_such_module_anywhere")
    with pytest.raises(
        UnveilError, match="cannot be imported for its class Regress: ModuleNotFoundError: No module named"
    ) as caught:
        load(folder, trust=plugin)
    assert "\n" not in str(caught.value)
    plugin.unlink()
    with pytest.raises(UnveilError, match="does not exist, so it cannot be trusted"):
        load(folder, trust=plugin)


def test_installed_plugins_need_no_trust(tmp_path: Path, no_trust: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "installed_plugin_for_tests.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    path = "installed_plugin_for_tests:Regress"
    monkeypatch.setitem(METHODS.__dict__, "installed", {"regress": path})
    kind = method_class("regress")
    learner = kind.build(ViTConfig(**SHAPE), kind.Config(), AugmentConfig())
    model_files.save(learner, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (facts["method"], facts["class"]) == ("regress", path)
    plugins._trusted.clear()
    assert same(load(tmp_path / "run", say=silent), learner)
    monkeypatch.setitem(METHODS.__dict__, "installed", {})
    with pytest.raises(UnveilError, match="needs the method 'regress' from installed_plugin_for_tests"):
        load(tmp_path / "run")


@pytest.mark.parametrize("to", dict.fromkeys(each.to for each in FORMATS))
@pytest.mark.parametrize("name", ["Regress", "Segment"])
def test_encoders_of_plugins_are_exported(name: str, to: str, plugin: Path, tmp_path: Path, logged: list[str]) -> None:
    learner = task(plugin, name) if name == "Segment" else method(plugin, name)
    model_files.save(learner, tmp_path / "run")
    out = export(tmp_path / "run", to=to, say=logged.append)  # type: ignore[arg-type]
    assert "agrees on the" in logged[-1]
    if to == "onnx":
        return
    again = load(out, heads=3) if to == "mae" else load(out)
    images = torch.randn(2, 3, 32, 32)
    assert type(again) is (type(learner) if to == "safetensors" else EncoderOnly)
    torch.testing.assert_close(again.encoder(images), learner.encoder(images))


@pytest.mark.parametrize("to", ["transformers", "mae"])
def test_subclasses_with_tensors_of_their_own_go_out_as_their_encoder(
    to: str, plugin: Path, tmp_path: Path, logged: list[str]
) -> None:
    learner = method(plugin, "WiderMAE")
    model_files.save(learner, tmp_path / "run")
    out = export(tmp_path / "run", to=to, say=logged.append)  # type: ignore[arg-type]
    assert ("agrees on the features and tokens" if to == "mae" else "agrees on the tokens") in logged[-1]
    assert type(load(out, heads=3) if to == "mae" else load(out)) is EncoderOnly


def test_subclasses_that_fit_are_exported_whole(plugin: Path, tmp_path: Path, logged: list[str]) -> None:
    model_files.save(method(plugin, "SameMAE"), tmp_path / "mae")
    assert type(load(export(tmp_path / "mae", to="transformers", say=logged.append))).__name__ == "MAE"
    assert "transformers agrees on the tokens and reconstructions" in logged[-1]
    model_files.save(task(plugin, "SameFinetune"), tmp_path / "finetune")
    assert type(load(export(tmp_path / "finetune", to="timm", say=logged.append))).__name__ == "Finetune"
    assert "timm agrees on the features and class scores" in logged[-1]


def test_a_subclass_of_the_encoder_is_not_saved_as_a_plain_one(plugin: Path, tmp_path: Path) -> None:
    class OtherViT(ViT):
        pass

    learner = method(plugin, "Regress")
    learner.encoder = OtherViT(ViTConfig(**SHAPE))
    model_files.save(learner, tmp_path)
    assert not (tmp_path / "encoder.safetensors").exists()


def test_what_cannot_be_saved_says_why(plugin: Path, tmp_path: Path) -> None:
    learner = method(plugin, "Regress")
    learner.config = {"size": 3}
    with pytest.raises(UnveilError, match=r"the config of Regress cannot be saved: it is .*, expected an instance of a dataclass"):
        model_files.save(learner, tmp_path)
    learner = EncoderOnly(ViT(ViTConfig(**SHAPE)))
    learner.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnveilError, match="EncoderOnly cannot be saved: it has weights outside of its encoder"):
        model_files.save(learner, tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
