"""A step in 1, 2 and 4 microbatches: the same gradients for every method and task, with all of its noise, or a sentence."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.methods.test_table import SMALL, loader_of
from tests.methods.test_table import built as built_method
from tests.tasks.test_table import CLASSES, TEXT, VIT, Images, Texts
from tests.tasks.test_table import SMALL as SMALL_HEADS
from tests.tasks.test_translate import learner as translator
from tests.tasks.test_translate import loader as pairs
from unveil.blocks.microbatches import microbatch, rand_rows
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.methods import METHODS
from unveil.models.bert import TextEncoder
from unveil.models.vit import ViT
from unveil.tasks import TASKS, task_class
from unveil.tasks.partial import PartialConfig, PartialFinetune
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig

CPU, EXACT = torch.device("cpu"), HardwareConfig(device="cpu", precision="float32")


def method_and_loader(name: str) -> tuple[Learner, Any]:
    return built_method(name), loader_of(name)


def task_and_loader(name: str) -> tuple[Learner, Any]:
    """A task by its whole recipe: drop path, mixup, CutMix, RandAugment and erasing. Only dropout is off."""
    if name == "translation":
        return translator(0.0), pairs(8)
    torch.manual_seed(0)
    kind = task_class(name)
    small = {key: value for key, value in (SMALL_HEADS | {"dropout": 0.0}).items() if key in kind.Config.__dataclass_fields__}
    encoder: Any = TextEncoder(TEXT) if kind.modality == "text" else ViT(VIT)
    augment = None if kind.modality == "text" else AugmentConfig()
    task = kind.build(encoder, kind.Config(**small), augment, CLASSES)
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    return task, (Texts if kind.modality == "text" else Images)(kind.TargetType)


def gradients(made: Callable[[], tuple[Learner, Any]], accum_steps: int) -> dict[str, Tensor]:
    """The gradients of the first step of the loop."""
    learner, loader = made()
    names = {p: name for name, p in learner.named_parameters()}
    found: dict[str, Tensor] = {}

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found.update({names[p]: p.grad.clone() for p in parameters if p.grad is not None})

    config = TrainConfig(epochs=loader.batch_size / loader.samples, batch_size=loader.batch_size, accum_steps=accum_steps)
    hook = register_optimizer_step_pre_hook(note)
    try:
        train(learner, loader, Recipe(config, OptimConfig(optimizer="sgd"), EXACT, World(CPU)))
    finally:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("kind", "name"), [*(("method", name) for name in METHODS.names), *(("task", name) for name in TASKS.builtin)]
)
def test_gradients_do_not_depend_on_the_number_of_microbatches(kind, name, monkeypatch):
    monkeypatch.setitem(SMALL, "supervised", {})  # with its noise, as BEiT

    def made() -> tuple[Learner, Any]:
        return (method_and_loader if kind == "method" else task_and_loader)(name)

    whole = gradients(made, 1)
    assert sum(float(grad.abs().sum()) for grad in whole.values()) > 0
    for parts in (2, 4):
        if made()[0].needs_whole_batch:
            with pytest.raises(UnveilError, match=f"a step cannot be computed in {parts} microbatches: leave --accum-steps out"):
                gradients(made, parts)
            continue
        found = gradients(made, parts)
        assert found.keys() == whole.keys()
        for key, grad in whole.items():
            torch.testing.assert_close(found[key], grad, rtol=1e-4, atol=1e-6 + 1e-5 * float(grad.abs().max()), msg=key)


def linear_probe(name: str) -> tuple[Learner, Any]:
    """The two probes whose head has a batch norm."""
    if name == "linear":
        return task_and_loader(name)
    torch.manual_seed(0)
    config = PartialConfig(blocks=0, mixup=0.0, cutmix=0.0, drop_path=0.0)
    return PartialFinetune.build(ViT(VIT), config, AugmentConfig(), CLASSES), Images(ClassTargets)


def test_the_refused_are_those_that_compare_or_normalise():
    refused = {name for name in METHODS.names if method_and_loader(name)[0].needs_whole_batch}
    assert refused == {"mocov3"}
    assert {name for name in TASKS.builtin if task_and_loader(name)[0].needs_whole_batch} == {"linear", "detect"}
    with pytest.raises(UnveilError, match="a step cannot be computed in 2 microbatches"):
        gradients(lambda: linear_probe("partial"), 2)


def test_views_of_a_sample_get_their_own_numbers():
    """Six samples in two views, such as the two large crops of DINO."""

    def drawn(count: int) -> Tensor:
        parts = []
        for number in range(count):
            torch.manual_seed(3)
            with microbatch(number, count, 6 // count, CPU):
                parts.append(rand_rows(12 // count, CPU).reshape(2, -1))
        return torch.cat(parts, dim=1)

    torch.manual_seed(3)
    plain = torch.rand(12).reshape(2, 6)
    assert all(torch.equal(drawn(count), plain) for count in (1, 2, 3, 6))
    with microbatch(0, 2, 5, CPU):
        assert rand_rows(7, CPU).shape == (7,)  # no number of views


class Noisy(Learner):
    """Dropout of ones: what is kept, sample by sample."""

    def __init__(self, dropout: torch.nn.Module) -> None:
        super().__init__()
        self.dropout, self.weight, self.seen = dropout, torch.nn.Parameter(torch.ones(())), list[Tensor]()

    def forward(self, batch: Batch) -> Step:
        kept = self.dropout(torch.ones(len(batch.keys), 64, 1, 1)) * self.weight
        self.seen.append(kept.detach())
        return Step(kept.mean(), {})


@pytest.mark.parametrize("dropout", [torch.nn.Dropout(0.5), torch.nn.Dropout2d(0.5)])
def test_microbatches_do_not_share_their_dropout(dropout: torch.nn.Module):
    """With dropout the generator goes on, since the same state would drop the same values in each microbatch."""
    learner, loader = Noisy(dropout), Images(ClassTargets)
    config = TrainConfig(epochs=loader.batch_size / loader.samples, batch_size=8, accum_steps=2)
    train(learner, loader, Recipe(config, OptimConfig(optimizer="sgd"), EXACT, World(CPU)))
    first, second = learner.seen[-2:]
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["linear", "partial"])
def test_batch_norm_of_one_image_is_refused(name):
    learner, loader = linear_probe(name)
    with pytest.raises(UnveilError, match="batch norm needs at least 2 samples in a batch, but the batch has 1: use a larger"):
        learner.train()(learner.augment(loader.share(0, 0, 8)))
    learner.eval()(learner.augment(loader.share(0, 0, 8))._replace(targets=ClassTargets(torch.tensor([1]))))


def test_moco_refuses_a_batch_of_one():
    learner, loader = method_and_loader("mocov3")
    with pytest.raises(UnveilError, match="batch norm needs at least 2 samples"):
        learner.train()(learner.augment(loader.share(0, 0, 8)))
