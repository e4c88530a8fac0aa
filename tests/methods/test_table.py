"""What every method promises, as one test over the table: exact resume, many processes, bf16, one graph, any channels."""

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.processes import FORKS
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.learner import Learner
from unveil.methods import METHODS, method_class, modality_of_method
from unveil.models.bert import TextConfig
from unveil.models.vit_config import ViTConfig
from unveil.text.wordpiece import SPECIAL, TextBatch
from unveil.train.checkpoint import Checkpoints
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World, autocast
from unveil.train.recipe import Recipe, TrainConfig

STEPS, BATCH, SAMPLES = 4, 8, 24
OPTIM = OptimConfig(base_lr=3e-2, warmup_ratio=0.0, eps=1e-6)
"""No step for a gradient that is pure rounding: that of a key's bias, which softmax does not see."""
CPU, EXACT = World(torch.device("cpu")), HardwareConfig(device="cpu", precision="float32")
SMALL: dict[str, dict[str, Any]] = {
    "beit": {"codebook_size": 16},
    "dvae": {"codebook_size": 16},
    "dino": {"prototypes": 64, "local_crops": 2, "frozen": 0.5},
    "mocov3": {"hidden": 32},
    "supervised": {"drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "erasing": 0.0},
    "bert": {"next_sentence": True},
}
"""Options that make a method small enough for a test, call for more of it, or leave out what draws from a process's generators."""
Seen = tuple[list[float], dict[str, Tensor]]


class Few:
    """A loader of a few random images."""

    samples, batch_size, prefetch = SAMPLES, BATCH, False

    def __init__(self, channels: int = 3) -> None:
        chance = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (SAMPLES, channels, 20, 28), generator=chance, dtype=torch.uint8)

    def share(self, step: int, share: int, shares: int) -> Batch:
        size = BATCH // shares
        first = step * BATCH + share * size
        numbers = torch.arange(first, first + size) % SAMPLES
        return Batch(self.images[numbers], torch.tensor([[20, 28]] * size), sample_keys(0, first, size), ClassTargets(numbers % 3))


class FewTexts:
    """A loader of a few random rows of token ids: two segments each, as for the next-sentence task."""

    samples, batch_size, prefetch = SAMPLES, BATCH, False

    def __init__(self, channels: int = 3) -> None:
        self.ids = torch.randint(len(SPECIAL), 40, (SAMPLES, 24), generator=torch.Generator().manual_seed(0))
        self.ids[:, 0], self.ids[:, [12, -1]] = SPECIAL.index("[CLS]"), SPECIAL.index("[SEP]")

    def share(self, step: int, share: int, shares: int) -> TextBatch:
        size = BATCH // shares
        first = step * BATCH + share * size
        numbers = torch.arange(first, first + size) % SAMPLES
        parts = (torch.arange(24) > 12).long().expand(size, -1)
        return TextBatch(self.ids[numbers], sample_keys(0, first, size), parts, follows=numbers % 2)


LOADERS: dict[type, type[Few] | type[FewTexts]] = {ViTConfig: Few, TextConfig: FewTexts}
"""By the config of the encoder."""


class Losses(list[float]):
    """A log in memory, which can end a run before its time."""

    def __init__(self, until: int) -> None:
        self.until = until

    def start(self, first: int) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        self.append(record["loss"])
        if record["step"] == self.until < STEPS:
            raise TimeoutError

    def close(self) -> None:
        pass


def built(name: str, channels: int = 3) -> Learner:
    """A small learner of a method, always with the same weights; its labels are 0, 1 and 2."""
    torch.manual_seed(0)
    kind, half = method_class(name), (0.5,) * channels
    shapes: dict[type, Any] = {
        ViTConfig: {"image_size": (16, 24), "patch_size": (4, 4), "channels": channels, "mean": half, "std": half},
        TextConfig: {"vocabulary": (*SPECIAL, *(f"word{i}" for i in range(40 - len(SPECIAL)))), "length": 24, "dropout": 0.0},
    }
    shape = kind.EncoderConfig(width=96, depth=2, heads=3, **shapes[kind.EncoderConfig])
    learner = kind.build(shape, kind.Config(**SMALL.get(name, {})), AugmentConfig())
    learner.set_classes(["0", "1", "2"])
    return learner


def loader_of(name: str, channels: int = 3) -> Few | FewTexts:
    """A loader of what a method learns from."""
    return LOADERS[method_class(name).EncoderConfig](channels)


def trained(name: str, folder: Path | None = None, until: int = STEPS, world: World = CPU) -> Seen:
    """Four steps in the loop, or fewer of them: each loss, and all tensors at the end."""
    learner, losses = built(name), Losses(until)
    config = TrainConfig(epochs=STEPS * BATCH / SAMPLES, batch_size=BATCH, log_every=1, accum_steps=1, save_seconds=0.0)
    kept = None if folder is None else Checkpoints(folder)
    with suppress(TimeoutError):
        train(learner, loader_of(name), Recipe(config, OPTIM, EXACT, world), checkpoints=kept, sinks=[losses])
    return list(losses), {key: value.detach().clone() for key, value in learner.state_dict().items()}


def prepared(name: str, channels: int = 3) -> tuple[Learner, Any]:
    """A learner before its first step, and an augmented batch."""
    learner = built(name, channels)
    with torch.no_grad():
        batch = learner.augment(loader_of(name, channels).share(0, 0, 1))
        learner.prepare(batch)
    return learner, batch


@pytest.mark.parametrize("name", METHODS.names)
def test_a_run_that_was_cut_ends_bit_identical(name: str, tmp_path: Path) -> None:
    losses, state = trained(name)
    assert len(losses) == STEPS
    trained(name, tmp_path, until=3)
    assert Checkpoints(tmp_path).newest() in (1, 2)
    again, resumed = trained(name, tmp_path)
    assert again == losses[-len(again) :]
    assert state.keys() == resumed.keys()
    for key, value in state.items():
        assert torch.equal(value, resumed[key]), key


def on_one_of_two(rank: int, store: str, found: Any) -> None:
    """What one of two processes sees of every method."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name in METHODS.names:
        losses, state = trained(name, world=World(torch.device("cpu"), rank, 2))
        if rank == 0:
            found.put((name, losses, {key: value.numpy() for key, value in state.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """The same runs on two processes under DDP."""
    store = str(tmp_path_factory.mktemp("two") / "store")
    found = FORKS.Queue()
    processes = [FORKS.Process(target=on_one_of_two, args=(rank, store, found), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    seen = [found.get(timeout=240) for _ in METHODS.names]
    for process in processes:
        process.join(60)
    return {name: (losses, {key: torch.from_numpy(value) for key, value in state.items()}) for name, losses, state in seen}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names)
def test_two_processes_learn_what_one_does(name: str, on_two: dict[str, Seen]) -> None:
    (losses, state), (shared, other) = trained(name), on_two[name]
    torch.testing.assert_close(torch.tensor(shared), torch.tensor(losses), rtol=1e-4, atol=1e-6)
    for key, value in state.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=2e-3, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", METHODS.names)
def test_half_precision_comes_near(name: str, half: str) -> None:
    learner, batch = prepared(name)
    losses = []
    for precision in ("float32", half):
        learner.zero_grad()
        torch.manual_seed(1)
        with autocast(HardwareConfig(device="cpu", precision=precision), CPU):
            loss = learner(batch).loss
        loss.backward()
        losses.append(loss.detach())
    assert all(p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in learner.parameters())
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=3e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS.names)
def test_a_step_is_one_graph(name: str) -> None:
    learner, batch = prepared(name)
    torch._dynamo.reset()
    compiled = torch.compile(learner, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    loss = compiled(batch).loss
    loss.backward()
    gradients = {key: p.grad.clone() for key, p in learner.named_parameters() if p.grad is not None}
    learner, batch = prepared(name)
    torch.manual_seed(1)
    plain = learner(batch).loss
    plain.backward()
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
    for key, p in learner.named_parameters():
        assert (p.grad is None) == (key not in gradients), key
        if p.grad is not None:
            torch.testing.assert_close(gradients[key], p.grad, rtol=1e-3, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in METHODS.names if modality_of_method(name) == "images"])
def test_any_number_of_channels(name: str, channels: int) -> None:
    learner, batch = prepared(name, channels)
    loss = learner(batch).loss
    loss.backward()
    assert loss.isfinite()
    used = [p.grad for p in learner.parameters() if p.requires_grad]
    assert used
    assert all(grad is not None and grad.isfinite().all() for grad in used)
