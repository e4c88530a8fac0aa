"""The loop with a compiled step: it makes its graphs once, and learns the same."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._dynamo

from tests.gpu.test_devices import NO_GPU, loader
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import ViTConfig
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Record
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.steps import own_gradients
from unveil.train.wrapping import parallelize, records_graphs

CPU = World(torch.device("cpu"))


def mae() -> MAE:
    torch.manual_seed(0)
    vit = ViTConfig(width=24, depth=2, heads=3, image_size=(16, 16), patch_size=(4, 4))
    return MAE.build(vit, MAEConfig(decoder_width=24, decoder_depth=1, decoder_heads=3), AugmentConfig())


def learned(
    hardware: HardwareConfig, accum_steps: int = 2, world: World = CPU, checkpoints: Checkpoints | None = None
) -> tuple[MAE, list[Record], list[int]]:
    """What a run has learned, its log, and the number of graphs that were made after each step."""
    lines, graphs = list[Record](), list[int]()

    class Lines:
        def start(self, first: int) -> None: ...

        def write(self, record: Record) -> None:
            lines.append(record)
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

        def close(self) -> None: ...

    training = TrainConfig(epochs=3, batch_size=8, log_every=1, num_evals=0, accum_steps=accum_steps)
    recipe = Recipe(training, OptimConfig(base_lr=0.02, weight_decay_end=0.4, clip_grad=1.0), hardware, world)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    train(learner := mae(), loader(), recipe, sinks=[Lines()], checkpoints=checkpoints)
    return learner, lines, graphs


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_no_graph_is_made_after_the_first_step(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """The rate, the weight decay, the seeds, the keys and the loss scale change in each step, and none of them is in a graph.

    The graphs run as they are, since the C++ of a real compiler takes a minute to build.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    _, plain, none = learned(HardwareConfig(precision=precision))
    _, lines, graphs = learned(HardwareConfig(precision=precision, compile=True))
    assert not any(none)
    assert graphs[0] >= 2  # the augmentation, and the step
    assert set(graphs) == {graphs[0]}
    assert [line["step"] for line in lines] == [line["step"] for line in plain]
    for line, other in zip(lines, plain, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-5 if precision == "float32" else 2e-2)
        assert line["learning_rate"] == other["learning_rate"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
@pytest.mark.parametrize("accum_steps", [1, 2])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_the_compiler_itself_learns_the_same(kind: str, accum_steps: int, mode: str) -> None:
    """reduce-overhead records CUDA graphs on a GPU. A CPU has none, and compiles C++ for minutes."""
    if kind == "cpu" and "UNVEIL_TEST_COMPILER" not in os.environ:
        pytest.skip("takes minutes: set UNVEIL_TEST_COMPILER=1")
    world = World(torch.device(kind))
    one, plain, _ = learned(HardwareConfig(precision="float32"), accum_steps, world)
    two, lines, _ = learned(HardwareConfig(precision="float32", compile=True, compile_mode=mode), accum_steps, world)
    for line, other in zip(lines, plain, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value, rtol=1e-2, atol=2e-3, msg=key)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_the_mode_reaches_the_compiler(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    asked = []
    monkeypatch.setattr(MAE, "compile", lambda self, **options: asked.append(options))
    hardware = HardwareConfig(compile=True, compile_mode=mode, precision="float32")
    parallelize(mae(), hardware, CPU, loader().share(0, 0, 1))
    assert asked == [{"mode": None if mode == "default" else mode}]
    graphs = mode in ("reduce-overhead", "max-autotune")
    assert records_graphs(hardware, World(torch.device("cuda"))) == graphs
    assert not records_graphs(hardware, CPU)
    if graphs:
        with pytest.raises(UnveilError, match=f"--compile-mode {mode} records the CUDA graphs of a whole model.*: use default or"):
            parallelize(mae(), HardwareConfig(compile=True, compile_mode=mode, parallel="fsdp"), fake_two(monkeypatch), None)


def fake_two(monkeypatch: pytest.MonkeyPatch) -> World:
    """Two processes, of which only the number is looked at."""
    monkeypatch.setattr("unveil.train.wrapping.shard", lambda learner, *_: learner)
    return World(CPU.device, 0, 2)


def test_what_a_replay_overwrites_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As with CUDA graphs: the losses of a microbatch, and its gradients, are overwritten when the next one begins."""
    _, lines, _ = learned(HardwareConfig(precision="float32"), 4)
    seen: list[torch.Tensor] = []
    owned: list[Learner] = []

    def begin() -> None:
        for tensor in seen:
            tensor.data.fill_(float("nan"))
        seen.clear()

    apply = MAE.forward

    def forward(self: MAE, batch: object) -> object:
        step = apply(self, batch)
        loss = step.loss.clone()
        seen.extend([loss.detach(), *(value for value in step.metrics.values())])
        return step._replace(loss=loss)

    def owns(learner: Learner) -> None:
        before = [p.grad for p in learner.parameters() if p.grad is not None]
        own_gradients(learner)
        seen.extend(before)
        owned.append(learner)

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", begin)
    monkeypatch.setattr("unveil.train.steps.records_graphs", lambda *_: True)
    monkeypatch.setattr("unveil.train.steps.own_gradients", owns)
    monkeypatch.setattr(MAE, "forward", forward)
    _, others, _ = learned(HardwareConfig(precision="float32"), 4, checkpoints=Checkpoints(tmp_path))
    assert len(owned) == 9
    assert [line["loss"] for line in others] == [line["loss"] for line in lines]
    assert [line["gradient_norm"] for line in others] == [line["gradient_norm"] for line in lines]
