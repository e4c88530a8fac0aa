"""The features of a frozen teacher as a second target of MAE and SimMIM."""

import copy
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.test_table import BATCH, CPU, EXACT, OPTIM, SAMPLES, STEPS, Few, Losses
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.taught import Taught
from unveil.errors import UnveilError
from unveil.learner import Method
from unveil.methods import method_class
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.runs.teacher import Teacher, TeacherWeights
from unveil.train.checkpoint import Checkpoints
from unveil.train.loop import train
from unveil.train.parallel import HardwareConfig
from unveil.train.recipe import Recipe, TrainConfig

STUDENT = ViTConfig(width=96, depth=2, heads=3, image_size=(16, 24), patch_size=(4, 4), mean=(0.5, 0.5, 0.5), std=(0.5, 0.4, 0.3))
TEACHER = ViTConfig(width=32, depth=2, heads=2, image_size=(32, 32), patch_size=(8, 8), positions="learned")
RECORD = '{"width": 32}'


def teacher_weights(**options: Any) -> TeacherWeights:
    torch.manual_seed(5)
    encoder = ViT(ViTConfig(**{**TEACHER.__dict__, **options})).eval()
    return TeacherWeights("the teacher", encoder, {})


def built(name: str, weight: float | None = 0.5, **options: Any) -> Method:
    torch.manual_seed(0)
    kind = method_class(name)
    if weight is not None:
        options |= {"teacher": RECORD, "teacher_weight": weight}
    learner = kind.build(STUDENT, kind.Config(**options), AugmentConfig())
    if weight is not None:
        learner.augmentation = Taught(learner.augmentation, Teacher(teacher_weights(), STUDENT, EXACT, CPU))
    return learner


def batch_of(learner: Method) -> Batch:
    with torch.no_grad():
        batch: Batch = learner.augment(Few().share(0, 0, 1))
    return batch


def run(learner: Method, hardware: HardwareConfig = EXACT, folder: Path | None = None, until: int = STEPS, parts: int = 1):
    losses = Losses(until)
    config = TrainConfig(epochs=STEPS * BATCH / SAMPLES, batch_size=BATCH, log_every=1, accum_steps=parts, save_seconds=0.0)
    kept = None if folder is None else Checkpoints(folder)
    with suppress(TimeoutError):
        train(learner, Few(), Recipe(config, OPTIM, hardware, CPU), checkpoints=kept, sinks=[losses])
    return list(losses), {key: value.detach().clone() for key, value in learner.state_dict().items()}


def slow_feature_loss(learner: Any, images: Tensor, keep: Tensor, hide: Tensor, name: str) -> float:
    """One image and one patch at a time, with the teacher called on that image alone."""
    weights = teacher_weights().encoder.resized((32, 48))  # 4 x 6 patches of 8 px
    mean, std = torch.tensor(STUDENT.mean)[:, None, None], torch.tensor(STUDENT.std)[:, None, None]
    of_teacher, std_of_teacher = (torch.tensor(each)[:, None, None] for each in (TEACHER.mean, TEACHER.std))
    distances = []
    for image, kept, hidden in zip(images, keep, hide, strict=True):
        plain = image * std + mean  # pixels between 0 and 1
        resized = torch.nn.functional.interpolate(plain[None], (32, 48), mode="bicubic", antialias=True)
        tokens = weights((resized - of_teacher) / std_of_teacher)[0, 1:]
        if name == "mae":
            own = learner.encoder(image[None], kept[None])[0, 1:]
        else:
            mask = torch.zeros(24, dtype=torch.bool)
            mask[hidden] = True
            own = learner.encoder(image[None], hidden=mask[None], mask_token=learner.mask_token)[0, 1:][kept]
        for i, patch in enumerate(kept.tolist()):
            wanted, found = tokens[patch], learner.feature_target.projection(own[i])
            wanted = (wanted - wanted.mean()) / (wanted.var(unbiased=False) + 1e-5).sqrt()
            distances.append(1 - float(found @ wanted / found.norm() / wanted.norm()))
    return sum(distances) / len(distances)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_the_loss_is_that_of_a_slow_computation(name: str) -> None:
    learner = built(name, weight=0.7).eval()
    batch = batch_of(learner)
    keep, hide = learner.mask(batch.keys)
    with torch.no_grad():
        step = learner(batch)
        slow = slow_feature_loss(learner, batch.images, keep, hide, name)
        alone = built(name, weight=None).eval()(batch)  # the same random weights, without a teacher
    assert float(step.metrics["feature_loss"]) == pytest.approx(slow, abs=1e-5)
    assert torch.equal(step.metrics["reconstruction_loss"], alone.loss)
    assert float(step.loss) == pytest.approx(float(alone.loss) + 0.7 * slow, abs=1e-5)


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_a_weight_of_0_is_the_method_without_a_teacher(name: str) -> None:
    """Bit by bit: the random weights of the projection are drawn last."""
    losses, state = run(built(name, weight=None))
    found, taught = run(built(name, weight=0.0))
    assert found == losses
    assert {key for key in taught if key not in state} == {f"feature_target.projection.{end}" for end in ("weight", "bias")}
    assert all(torch.equal(value, taught[key]) for key, value in state.items())


@pytest.mark.parametrize("options", [{}, {"mask_tokens_in_encoder": True}, {"sampling": "block"}, {"loss_on_all": True}])
def test_it_works_for_every_row_of_the_table_of_mae(options: dict[str, Any]) -> None:
    learner = built("mae", **options)
    batch = batch_of(learner)
    with torch.no_grad():
        step, plain = learner(batch), built("mae", weight=None, **options)(batch)
    assert torch.equal(step.metrics["reconstruction_loss"], plain.loss)
    assert 0 < float(step.metrics["feature_loss"]) < 2


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_gradients_reach_the_encoder_and_the_projection_but_not_the_teacher(name: str) -> None:
    learner = built(name)
    teacher = learner.augmentation.teacher.encoder
    before = copy.deepcopy(teacher.state_dict())
    learner.train()
    learner(batch_of(learner)).metrics["feature_loss"].backward()
    for module in (learner.encoder, learner.feature_target):
        grads = [p.grad for p in module.parameters() if p.requires_grad and p.grad is not None]
        assert any(bool(grad.abs().max() > 0) for grad in grads)
    assert learner.head.weight.grad is None  # of the reconstruction only
    run(learner)
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(value, teacher.state_dict()[key]) for key, value in before.items())
    assert not any("teacher" in key for key in learner.state_dict())
    assert not {p.data_ptr() for p in learner.parameters()} & {p.data_ptr() for p in teacher.parameters()}


def test_the_second_target_is_learnt() -> None:
    """From the features of one batch, repeated: 60 steps bring the cosine far."""
    learner = built("mae", weight=1.0).train()
    batch, optimizer = batch_of(learner), torch.optim.AdamW(learner.parameters(), lr=2e-3)
    first = float(learner(batch).metrics["feature_loss"].detach())
    for _ in range(60):
        optimizer.zero_grad()
        step = learner(batch)
        step.loss.backward()
        optimizer.step()
    assert float(step.metrics["feature_loss"].detach()) < 0.2 * first


@pytest.mark.parametrize("name", ["mae", "simmim"])
def test_a_run_that_was_cut_ends_bit_identical(name: str, tmp_path: Path) -> None:
    losses, state = run(built(name))
    run(built(name), folder=tmp_path, until=3)
    again, resumed = run(built(name), folder=tmp_path)
    assert 0 < len(again) < STEPS
    assert again == losses[-len(again) :]
    assert all(torch.equal(value, resumed[key]) for key, value in state.items())


def test_microbatches_learn_the_same() -> None:
    (one, _), (two, _) = run(built("mae")), run(built("mae"), parts=4)
    assert two == pytest.approx(one, rel=1e-5)


def test_bfloat16_stays_close() -> None:
    (exact, _), (half, _) = run(built("mae")), run(built("mae"), HardwareConfig(device="cpu", precision="bfloat16"))
    assert half == pytest.approx(exact, rel=0.03)


def test_a_compiled_step_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs run as they are, since the C++ of a real compiler takes a minute to build."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    kind = method_class("mae")
    monkeypatch.setattr(kind, "compile", lambda self, mode=None: torch.nn.Module.compile(self, backend="aot_eager"))
    (plain, _), (compiled, _) = (
        run(built("mae")),
        run(built("mae"), HardwareConfig(device="cpu", precision="float32", compile=True)),
    )
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_a_teacher_with_the_images_of_the_student_gets_them_as_they_are() -> None:
    """No rounding comes between: its features are those that it gives the same image."""
    weights = TeacherWeights("itself", ViT(STUDENT).eval(), {})
    images = torch.randn(3, 3, 16, 24)
    found = Teacher(weights, STUDENT, EXACT, CPU)(images)
    with torch.no_grad():
        assert torch.equal(found, weights.encoder(images)[:, 1:])


def test_the_trial_of_a_step_copies_no_teacher() -> None:
    learner = built("mae")
    assert copy.deepcopy(learner).augmentation.teacher is learner.augmentation.teacher


def test_other_channels_are_refused() -> None:
    grey = teacher_weights(channels=1, mean=(0.5,), std=(0.5,))
    with pytest.raises(UnveilError, match="the teacher the teacher takes images with 1 channel, but these have 3: use a teacher"):
        Teacher(grey, STUDENT, EXACT, CPU)


def test_without_its_teacher_a_model_says_so() -> None:
    learner = built("mae")
    batch = batch_of(learner)._replace(features=None)
    with pytest.raises(UnveilError, match="this model was trained with a teacher, which is not saved with it"):
        learner(batch)
    kind = method_class("mae")
    with pytest.raises(UnveilError, match=r"the teacher runs/x is not open: train the model with unveil\.pretrain"):
        kind.build(STUDENT, kind.Config(teacher="runs/x"), AugmentConfig())
