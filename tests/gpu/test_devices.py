"""What must hold on every device. The same tests run on the CPU, and on a GPU if there is one."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.test_loop import Bare, Numbers, timeless
from unveil.blocks import transformer
from unveil.blocks.fast import choose
from unveil.blocks.fast.cast_together import call_in_half
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import Augment, AugmentConfig
from unveil.data.batch import Batch
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader, stream
from unveil.data.sources import open_source
from unveil.errors import Interrupted
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit_config import ViTConfig
from unveil.train import overlap
from unveil.train.checkpoint import Checkpoints
from unveil.train.log import Meter, Record
from unveil.train.loop import train
from unveil.train.memory_trial import cost_of
from unveil.train.optim import OptimConfig, build_optimizer, clip_gradients
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe, TrainConfig
from unveil.train.recorder import Recorder
from unveil.train.signals import Agreement

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
EXACT = HardwareConfig(precision="float32")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def world(request: pytest.FixtureRequest) -> World:
    return World(torch.device(request.param))


def mae(augment: AugmentConfig | None = None) -> MAE:
    torch.manual_seed(0)
    vit = ViTConfig(width=48, depth=2, heads=3, image_size=(16, 16), patch_size=(4, 4))
    return MAE.build(vit, MAEConfig(decoder_width=48, decoder_depth=2, decoder_heads=3), augment or AugmentConfig())


def batch(count: int = 8, dtype: torch.dtype = torch.float32) -> Batch:
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images.to(dtype), torch.full((count, 2), 16), sample_keys(0, 0, count))


def loader(dtype: type = np.uint8, memory: int = MEMORY) -> ImageLoader:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (24, 18, 20, 3), dtype=dtype)
    return ImageLoader(ImageDataset(open_source(pixels), side=18, memory=memory), batch_size=8, seed=3)


def learn(learner: MAE, images: Batch, world: World, precision: str = "float32") -> tuple[float, Tensor]:
    """The loss, and all gradients in one vector."""
    with autocast(HardwareConfig(precision=precision), world):
        loss = learner.to(world.device).train()(images.to(world.device)).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None]).double().cpu()


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2), ("float16", 5e-3)])
def test_loss_and_gradients_are_those_of_float64_on_the_cpu(world: World, precision: str, tolerance: float) -> None:
    true, slope = learn(mae().double(), batch(dtype=torch.float64), World(torch.device("cpu")))
    loss, gradients = learn(mae(), batch(), world, precision)
    assert loss == pytest.approx(true, rel=tolerance)
    assert (gradients - slope).norm() < tolerance * slope.norm()


def test_compiled_in_one_graph_it_computes_the_same(world: World) -> None:
    """On the CPU the graph is run as it is, since the C++ of a real compiler takes a minute to build."""
    backend = "inductor" if world.device.type == "cuda" else "aot_eager"
    true, slope = learn(mae(), batch(), world)
    learner = mae()
    learner.compile(fullgraph=True, backend=backend)
    loss, gradients = learn(learner, batch(), world)
    assert loss == pytest.approx(true, rel=1e-5)
    assert (gradients - slope).norm() < 1e-5 * slope.norm()
    raw = loader().share(0, 0, 1).to(world.device)
    augment = torch.compile(learner.augment, fullgraph=True, backend=backend)
    tolerance = 0.5 / 255 / 0.2 if world.device.type == "cuda" else 1e-4  # bytes are resized in half precision on a GPU
    torch.testing.assert_close(augment(raw).images, learner.augment(raw).images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("crop", ["resized", "fixed", "none"])
def test_a_batch_is_augmented_as_each_image_alone_on_the_cpu(world: World, crop: str, dtype: type) -> None:
    augment = Augment(AugmentConfig(crop=crop, color_jitter=0.4), (12, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    raw = loader(dtype).share(0, 0, 1)
    raw = raw._replace(sizes=raw.sizes - torch.arange(8)[:, None] % 3)
    alone = [augment(Batch(raw.images[i : i + 1], raw.sizes[i : i + 1], raw.keys[i : i + 1])).images for i in range(8)]
    half = world.device.type == "cuda" and dtype is np.uint8  # computed in half precision: within half a step of a byte
    tolerance = 0.5 / 255 / 0.2 if half else 1e-4
    torch.testing.assert_close(augment(raw.to(world.device)).images.cpu(), torch.cat(alone), rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_on_the_device_equal_those_that_are_read(world: World, dtype: type) -> None:
    read, kept = loader(dtype, memory=0), loader(dtype)
    assert kept.move_to(world.device) == (world.device.type == "cuda")
    for step in range(4):
        given, true = kept.share(step, 1, 2), read.share(step, 1, 2)
        assert given.images.device.type == world.device.type
        for part, other in zip(given[:3], true[:3], strict=True):
            assert torch.equal(part.cpu(), other)


def test_prefetched_batches_arrive_whole(world: World) -> None:
    """If there is a GPU, they wait in page-locked memory."""
    ahead, true = loader(), loader()
    ahead.prefetch = True
    for step, (part,) in stream(ahead, range(6), 0, 1, 1):
        assert part.images.is_pinned() == part.keys.is_pinned() == torch.cuda.is_available()
        for there, here in zip(part.to(world.device)[:3], true.share(step, 0, 1)[:3], strict=True):
            assert there.device.type == world.device.type
            assert torch.equal(there.cpu(), here)


def test_flops_are_counted_alike(world: World) -> None:
    """Fused attention on a GPU recomputes its scores in the backward pass, which is one product more than in the formula."""
    learner = mae()
    learner.augmentation = None  # its products are not part of the formula
    formula = mae_cost(learner.encoder.config, visible=4, width=48, depth=2, predicted=48, batch=10**9).step
    low, high = (cost_of(learner, batch(n), HardwareConfig(precision="bfloat16"), world).flops for n in (2, 6))
    assert (high - low) / 4 == pytest.approx(formula, rel=1e-6 if world.device.type == "cpu" else 0.1)


@pytest.mark.gpu
@NO_GPU
def test_a_stream_of_copies_is_waited_for_and_its_memory_is_not_given_away() -> None:
    """While the GPU is busy for a while, so that both would be noticed."""
    ahead, true = loader(), loader()
    ahead.prefetch = True
    device, side = torch.device("cuda"), torch.randn(4096, 4096, device="cuda")
    kept = []
    for step, (part,) in stream(ahead, range(30), 0, 1, 1, gpu=device):
        assert part.images.is_cuda
        for _ in range(4):
            side = (side @ side).tanh()
        kept.append((part.images.float().mean() + 0 * side[0, 0], true.share(step, 0, 1).images.float().mean()))
    for there, here in kept:
        assert there.item() == pytest.approx(here.item(), rel=1e-5)


class Lines:
    """Keeps the records, and sends a signal after a step."""

    def __init__(self, last: int = 0) -> None:
        self.last, self.lines = last, list[Record]()

    def start(self, first: int) -> None: ...

    def write(self, record: Record) -> None:
        self.lines.append(record)
        if record["step"] == self.last:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self) -> None: ...


def run(world: World, folder: Path, last: int = 0) -> tuple[MAE, list[Record]]:
    """Twelve steps, or up to the step `last`, starting from the newest checkpoint."""
    learner, lines = mae(), Lines(last)
    training = TrainConfig(epochs=4, batch_size=8, log_every=1, num_evals=1)
    recipe = Recipe(training, OptimConfig(base_lr=0.05), EXACT, world)
    train(learner, loader(), recipe, checkpoints=Checkpoints(folder), sinks=[lines])
    return learner, lines.lines


def test_a_stopped_run_ends_like_one_that_was_not_and_logs_its_share_of_the_peak(world: World, tmp_path: Path) -> None:
    """Bit by bit on the CPU. A GPU adds in any order, so there the losses agree to four digits."""
    whole, true = run(world, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(world, tmp_path / "stopped", last=5)
    stopped, lines = run(world, tmp_path / "stopped")
    assert [line["step"] for line in true] == list(range(1, 13))
    first = lines[0]["step"]
    assert first in ((6,) if world.device.type == "cpu" else (6, 7))  # a GPU may be a step ahead of the line that sends the signal
    assert [line["step"] for line in lines] == list(range(first, 13))
    assert all(0 < line["peak_share"] < 1 for line in true + lines)
    assert true[-1]["loss"] < 0.99 * true[0]["loss"]
    exact = world.device.type == "cpu"
    for line, other in zip(lines, true[first - 1 :], strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=0 if exact else 1e-4)
    if exact:
        assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), stopped.state_dict().values(), strict=True))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_what_is_done_at_the_same_time_changes_nothing(world: World, tmp_path: Path, precision: str) -> None:
    """Steps that the GPU drops by itself, lines that are read later, checkpoints of a thread, and copies in their own stream."""
    found = []
    for off in ((), overlap.NAMES):
        numbers, lines = Numbers(broken=(7, 150, 151, 301)), Lines()
        numbers.prefetch, checkpoints = True, Checkpoints(tmp_path / str(len(off)))
        training = TrainConfig(epochs=100, batch_size=8, accum_steps=1, log_every=10, num_evals=2, save_seconds=0.0)
        recipe = Recipe(training, OptimConfig(base_lr=0.03), HardwareConfig(precision=precision), world)
        with overlap.turned_off(*off):
            train(learner := Bare(), numbers, recipe, checkpoints=checkpoints, sinks=[lines])
        manifest = checkpoints.manifest(500)
        found.append((timeless(lines.lines), manifest["skipped"], manifest.get("loss_scale"), learner.state_dict()))
    (*one, state), (*other, same) = found
    assert one == other
    assert one[1]["count"] == 4
    assert len(one[0]) == 50
    assert all(torch.equal(value, same[key]) for key, value in state.items())


def forward(learner: MAE, raw: Batch, meter: Meter, world: World) -> Tensor:
    """The first half of a step, as the loop does it."""
    with torch.no_grad():
        images = learner.augment(raw.to(world.device))
    with autocast(EXACT, world):
        result = learner(images)
    meter.add({"loss": result.loss, **result.metrics})
    return result.loss


def update(learner: MAE, optimizer: torch.optim.Optimizer, meter: Meter) -> None:
    """The end of a step."""
    meter.step({"gradient_norm": clip_gradients(learner, 1.0)}, 8)
    optimizer.step()
    optimizer.zero_grad()


class Copies(TorchDispatchMode):
    """Records copies between devices that make the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        at = {"_to_copy": 6, "copy_": 2}.get(func.overloadpacket.__name__)
        if at is not None:
            free = (kwargs or {}).get("non_blocking", args[at] if len(args) > at else False)
            if not free and len({x.device.type for x in (made, *args) if isinstance(x, Tensor)}) > 1:
                self.waiting.append(str(func))
        return made


def test_nothing_in_a_step_waits_for_a_gpu() -> None:
    """On a fake GPU, with tensors that have no values and cannot be read; the backward pass is left out."""
    world = World(torch.device("cuda", 0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        with world.device:
            learner = mae(AugmentConfig(color_jitter=0.4)).train()
        images = torch.zeros(8, 3, 18, 20, dtype=torch.uint8)
        raw = Batch(images, torch.ones(8, 2, dtype=torch.int64), torch.arange(8))
        optimizer, meter = build_optimizer(learner, OptimConfig()), Meter(world)
        with Copies() as copies:
            forward(learner, raw, meter, world)
            for parameter in learner.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            update(learner, optimizer, meter)
        assert copies.waiting == []
        with Copies() as copies:
            raw.images.to(world.device)
        assert copies.waiting == ["aten._to_copy.default"]  # so a copy that waits would be noticed


@pytest.mark.gpu
@NO_GPU
def test_nothing_in_a_whole_step_waits_for_the_gpu() -> None:
    """CUDA itself would raise an error."""
    world, images = World(torch.device("cuda")), loader()
    images.prefetch = True
    learner = mae(AugmentConfig(color_jitter=0.4)).to(world.device).train()
    optimizer, meter = build_optimizer(learner, OptimConfig()), Meter(world)
    for step, (raw,) in stream(images, range(4), 0, 1, 1):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step makes what is made once
        try:
            forward(learner, raw, meter, world).backward()
            update(learner, optimizer, meter)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@NO_GPU
def test_a_gpu_drops_a_bad_step_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as when the host waits in each step to see whether it is finite."""
    states, lagged = [], []
    follow = Recorder.follow
    monkeypatch.setattr(Recorder, "follow", lambda self, *step: (lagged.append(1), follow(self, *step))[1])
    for slow in (True, False):
        with monkeypatch.context() as patch:
            if slow:
                patch.setattr(Agreement, "slow", property(lambda _: True, lambda *_: None), raising=False)
            training = TrainConfig(epochs=100, batch_size=8, accum_steps=1, log_every=50, num_evals=0)
            recipe = Recipe(training, OptimConfig(base_lr=0.3), EXACT, World(torch.device("cuda")))
            learner, checkpoints = Bare(), Checkpoints(tmp_path / str(slow))
            train(learner, Numbers(broken=(7, 150, 151, 301)), recipe, checkpoints=checkpoints)
            assert checkpoints.manifest(500)["skipped"]["count"] == 4
        assert (len(lagged) > 100) == (not slow)
        states.append(learner.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.gpu
@NO_GPU
def test_weights_cast_together_give_the_bits_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on a CPU, for all kinds of blocks: tests/blocks/fast/test_cast_together.py."""
    world, calls = World(torch.device("cuda")), []
    monkeypatch.setattr(
        transformer,
        "call_in_half",
        lambda block, *args, **options: calls.append(call_in_half(block, *args, **options)) or calls[-1],
    )
    with choose.turned_off("cast_together"):
        loss, gradients = learn(mae(), batch(), world, "bfloat16")
    assert not calls
    with choose.turned_off():
        again, same = learn(mae(), batch(), world, "bfloat16")
    assert len(calls) == 3  # two blocks of the encoder, and the second one of the decoder
    assert again == loss
    torch.testing.assert_close(same, gradients, rtol=1e-5, atol=1e-6)  # sums of positions have no fixed order
