"""One process, many under DDP and many under FSDP2 learn the same, also when one of them is killed."""

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from tests.train.conftest import finish, records, start, start_torchrun
from tests.train.test_resume import wait_for_step
from unveil.blocks.transformer import Block, TransformerConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.train import overlap, parallel
from unveil.train.parallel import HardwareConfig, World, fresh_store, full_tensor, full_tensor_on_main, join_processes
from unveil.train.wrapping import compile_limits, parallelize, shard

PROCESSES = int(os.environ.get("UNVEIL_TEST_PROCESSES", "2"))
KILLS = int(os.environ.get("UNVEIL_TEST_KILLS", "1"))


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on one process, on one in four microbatches, and on many by DDP and by FSDP2, in two microbatches each."""
    folder = tmp_path_factory.mktemp("runs")
    for pair in (("single", "accumulated"), ("ddp",), ("fsdp",)):
        started = [start(images, folder / way, *options(way), processes=1 if len(pair) > 1 else PROCESSES) for way in pair]
        for process in started:
            finish(process)
    return folder


def options(way: str) -> list[str]:
    accum_steps = {"single": "1", "accumulated": "4"}.get(way, "2")
    return [
        "--epochs",
        f"{5.5 * max(1, KILLS - 1)}",
        "--accum-steps",
        accum_steps,
        "--parallel",
        "fsdp" if way == "fsdp" else "ddp",
    ]


@pytest.mark.slow
def test_one_process_ddp_and_fsdp_log_the_same_loss(runs: Path) -> None:
    """Losses and gradients to five digits; the gradients because AdamW would not notice if they were twice as long."""
    seen = {way: np.array([(line["loss"], line["gradient_norm"]) for line in records(runs / way)]) for way in os.listdir(runs)}
    assert len(seen) == 4
    assert len(seen["single"]) >= 20
    assert seen["single"][0, 0] > 1.01 * seen["single"][-1, 0]
    for way in ("ddp", "fsdp", "accumulated"):
        np.testing.assert_allclose(seen[way][:, 0], seen["single"][:, 0], rtol=1e-5, err_msg=way)
        np.testing.assert_allclose(seen[way][:, 1], seen["single"][:, 1], rtol=1e-3, err_msg=way)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp"] if "UNVEIL_TEST_KILLS" in os.environ else ["fsdp"])
def test_a_killed_process_changes_nothing(runs: Path, images: Path, tmp_path: Path, way: str) -> None:
    """SIGKILL to one of many at random moments: torchrun starts all again, and the end is the same, bit for bit."""
    out, chance = tmp_path / "killed", random.Random(way)
    agent = start_torchrun(images, out, *options(way), processes=PROCESSES, restarts=KILLS)
    for kill in range(KILLS):
        lines = records(out)
        wait_for_step(agent, out, (lines[-1]["step"] if lines else 0) + chance.randint(3, 8))
        workers = psutil.Process(agent.pid).children()
        assert len(workers) == PROCESSES, "the run ended before it could be killed: make it longer"
        chance.choice(workers).kill()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive, f"kill {kill}: the others hang"
    said = finish(agent)
    assert said.count("resuming from step") == KILLS
    expected, found = (load_file(folder / "model.safetensors") for folder in (runs / way, out))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    logs = ([(line["step"], line["loss"]) for line in records(folder)] for folder in (runs / way, out))
    assert next(logs) == next(logs)


def test_restarted_processes_do_not_read_what_dead_ones_have_left() -> None:
    """The store of torchrun outlives the processes, but a start does not read what an earlier one has written."""
    shared, world = dist.HashStore(), 3
    shared.set("hello-1", "dead")  # came in an earlier start, and was killed
    for _ in range(2):
        with ThreadPoolExecutor(world) as pool:
            stores = list(pool.map(lambda rank: fresh_store(shared, rank, world), range(world), timeout=20))
        assert not stores[1].check(["address"])
        stores[0].set("address", "here")
        assert stores[1].get("address") == stores[2].get("address") == b"here"


class Stack(Learner):
    """Two blocks and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList(Block(TransformerConfig(width=16, depth=2, heads=2)) for _ in range(2))
        self.head = torch.nn.Linear(16, 4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch: torch.Tensor) -> Step:
        self.seen += 1
        for block in self.blocks:
            batch = block(batch)
        return Step(self.head(batch).float().square().mean(), {})


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_matrices_are_gathered_in_bfloat16_and_the_gradients_are_those_of_autocast() -> None:
    """FSDP2 gathers what autocast would cast anyway; norms and biases stay in float32."""
    plain, other = Stack(), Stack()
    sharded = shard(other, list(other.blocks), "bfloat16")
    seen = []
    sharded.blocks[0].register_forward_pre_hook(
        lambda block, _: seen.extend((block.mlp[0].weight.dtype, block.mlp[0].bias.dtype))  # after the hook that gathers them
    )
    batch = torch.randn(4, 5, 16)
    for learner in (plain, sharded):
        with torch.autocast("cpu", torch.bfloat16):
            loss = learner(batch).loss
        loss.backward()
    assert seen == [torch.bfloat16, torch.float32]
    for (name, one), (_, two) in zip(plain.named_parameters(), sharded.named_parameters(), strict=True):
        assert two.grad.full_tensor().dtype == torch.float32
        assert torch.equal(one.grad, two.grad.full_tensor()), name
        assert torch.equal(one.detach(), full_tensor_on_main(two)), name


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("ahead", [True, False])
def test_a_block_gathers_the_weights_of_the_next_one(monkeypatch: pytest.MonkeyPatch, ahead: bool) -> None:
    """Of its own stack, since an encoder may not be followed by what stands after it in the file."""

    class Two(Learner):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Stack(), Stack()

        def forward(self, batch: torch.Tensor) -> Step:
            return Step(self.first(batch).loss + 2 * self.second(batch).loss, {})

    asked, module, plain, two = [], FSDPModule, Two(), Two()
    original = module.set_modules_to_forward_prefetch

    def ask(self: torch.nn.Module, modules: list[torch.nn.Module]) -> None:
        asked.append((self, modules))
        original(self, modules)

    monkeypatch.setattr(module, "set_modules_to_forward_prefetch", ask)
    stacks = (two.first, two.second)
    with overlap.turned_off(*([] if ahead else ["gather"])):
        shard(two, [block for stack in stacks for block in stack.blocks], "float32")
    assert asked == ([(stack.blocks[0], [stack.blocks[1]]) for stack in stacks] if ahead else [])
    batch = torch.randn(4, 5, 16)
    for learner in (plain, two):
        learner(batch).loss.backward()
    for (name, one), (_, other) in zip(plain.named_parameters(), two.named_parameters(), strict=True):
        assert torch.equal(one.grad, full_tensor(other.grad)), name


def test_a_process_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parallel.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "5")
    with pytest.raises(UnveilError, match=r"process 5 .* finds 4, so use --nproc-per-node 4"):
        join_processes(HardwareConfig())


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("", "WORLD_SIZE is '' in the environment, expected a number of processes"),
        ("two", "WORLD_SIZE is 'two' in the environment, expected a number of processes"),
        ("0", "WORLD_SIZE is '0' in the environment, expected a number of processes"),
        ("2", "WORLD_SIZE is 2 in the environment, but RANK and MASTER_PORT are not set: start with torchrun"),
    ],
)
def test_half_of_the_variables_of_torchrun_are_refused(size: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers and images of clusters set some of them for every job."""
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(UnveilError, match=message):
        join_processes(HardwareConfig(device="cpu"))


@pytest.mark.usefixtures("group")
def test_the_first_step_sums_gradients_in_the_order_of_all_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a resumed run would drift from one that was never stopped, where three or more processes sum."""
    learner = Stack()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    few = Batch(torch.randn(4, 5, 16), torch.ones(4, 2), torch.arange(4))
    monkeypatch.setattr(Stack, "augment", lambda self, batch: batch.images)
    model = parallelize(learner, HardwareConfig(precision="float32"), World(torch.device("cpu"), 0, 2), few)
    assert all(p.grad is None for p in learner.parameters())
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert model.reducer._rebuild_buckets()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_blocks_are_compiled_without_patching_them(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """The graphs run as they are, since the C++ of a real compiler takes a minute to build."""
    limit, world = torch._dynamo.config.recompile_limit, World(torch.device("cpu"), 0, 2)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(Stack, "augment", lambda self, batch: batch.images)
    few = Batch(torch.randn(4, 5, 16), torch.ones(4, 2), torch.arange(4))
    plain, learner = Stack(), Stack()
    model = parallelize(learner, hardware := HardwareConfig(precision="float32", compile=True, parallel=way), world, few)
    assert not any("forward" in module.__dict__ or "augment" in module.__dict__ for module in learner.modules())
    counters = torch._dynamo.utils.counters
    counters.clear()
    plain(few.images).loss.backward()
    with compile_limits(learner, hardware, world):
        assert torch._dynamo.config.recompile_limit >= max(limit, 12)
        for _ in range(2):
            learner.zero_grad()
            model(few.images).loss.backward()
    assert torch._dynamo.config.recompile_limit == limit
    assert counters["stats"]["unique_graphs"] >= 1
    for (name, one), (_, two) in zip(plain.named_parameters(), learner.named_parameters(), strict=True):
        torch.testing.assert_close(full_tensor(two.grad), one.grad, rtol=1e-5, atol=1e-7, msg=name)
