"""DINO and MoCo v3 against slow loops written from the papers' pseudo-code, on one and on two processes."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.processes import FORKS
from unveil.blocks.distributed import RunningBatchNorm, SyncBatchNorm, all_gather_with_grad, global_row_ids
from unveil.blocks.ema import cosine_to_one, ema_copy, ema_update
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.methods.dino import DINO, Crops, DINOConfig
from unveil.methods.mocov3 import MoCoV3, MoCoV3Config
from unveil.models.vit_config import ViTConfig
from unveil.train.optim import OptimConfig, build_optimizer

VIT = ViTConfig(width=48, depth=1, heads=3, image_size=(16, 16), patch_size=(4, 4))
BATCH, STEPS = 6, 3


def dino(**options: Any) -> DINO:
    torch.manual_seed(0)
    config = {"prototypes": 32, "local_crops": 3, "temperature_warmup": 0.5, "frozen": 0.0, "momentum": 0.9} | options
    return DINO.build(VIT, DINOConfig(**config), AugmentConfig())


def mocov3(**options: Any) -> MoCoV3:
    torch.manual_seed(0)
    return MoCoV3.build(VIT, MoCoV3Config(**{"hidden": 24} | options), AugmentConfig())


def raw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def shared(crops: Tensor, rank: int, world: int) -> Tensor:
    """The images of one of many processes, of crops (n, B, ...)."""
    return crops.chunk(world, dim=1)[rank].contiguous()


def dino_steps(rank: int = 0, world: int = 1) -> list[dict[str, Tensor]]:
    """Three steps of SGD on a process's share of the images, gradients averaged by hand; what there is after each."""
    learner, seen = dino(), []
    weights = [p for p in learner.parameters() if p.requires_grad]
    for step in range(STEPS):
        large, small = raw(2, BATCH, 3, 16, 16) + step, raw(3, BATCH, 3, 8, 8) - step
        loss = learner(Crops(shared(large, rank, world), shared(small, rank, world))).loss
        descend(weights, loss, world)
        learner.after_step((step + 1) / STEPS)
        weight = learner.head.layers[0].weight.detach().clone()
        seen.append({"loss": average(loss, world), "centre": learner.centre.clone(), "weight": weight})
    return seen


def mocov3_steps(rank: int = 0, world: int = 1) -> list[dict[str, Tensor]]:
    learner, seen = mocov3(), []
    weights = [p for p in learner.parameters() if p.requires_grad]
    for step in range(STEPS):
        loss = learner(shared(raw(2, BATCH, 3, 16, 16) + step, rank, world)).loss
        descend(weights, loss, world)
        learner.after_step((step + 1) / STEPS)
        weight = learner.projection[0].weight.detach().clone()
        seen.append({"loss": average(loss, world), "weight": weight, "norm": learner.projection[1].bias.detach().clone()})
    return seen


def average(x: Tensor, world: int) -> Tensor:
    return all_gather_with_grad(x.detach()[None]).mean() if world > 1 else x.detach()


def descend(weights: list[torch.nn.Parameter], loss: Tensor, world: int) -> None:
    """A step of SGD, with gradients as DDP averages them."""
    for weight, gradient in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        if world > 1:
            dist.all_reduce(gradient)
        weight.data -= 0.1 * gradient / world


def norm_slowly(x: Tensor, layer: Any) -> Tensor:
    columns = []
    for column in x.T:
        mean = column.sum() / len(column)
        variance = ((column - mean) ** 2).sum() / len(column)
        columns.append((column - mean) / (variance + 1e-5).sqrt())
    out = torch.stack(columns, dim=1)
    return out if layer.weight is None else out * layer.weight + layer.bias


def through(x: Tensor, layers: Any) -> Tensor:
    """A projection or prediction of MoCo v3, layer by layer."""
    for layer in layers:
        x = norm_slowly(x, layer) if isinstance(layer, SyncBatchNorm) else layer(x)
    return x


def test_dino_is_the_slow_loop() -> None:
    """Algorithm 1 of the paper and the schedules of its section 3, one image and one pair of crops at a time."""
    student, found = dino(), dino_steps()
    weights = [p for p in student.parameters() if p.requires_grad]
    teacher, teacher_head = ema_copy(student.student), ema_copy(student.head)
    centre = torch.zeros(32)

    def head(module: Any, tokens: Tensor) -> Tensor:
        x = module.layers(tokens)
        return torch.stack([(x / x.norm()) @ (p / p.norm()) for p in module.prototypes])

    for step in range(STEPS):
        crops = [*(raw(2, BATCH, 3, 16, 16) + step), *(raw(3, BATCH, 3, 8, 8) - step)]
        temperature = 0.04 + 0.03 * min(1, step / STEPS / 0.5)
        total, count, said = torch.zeros(()), 0, []
        for i in range(BATCH):
            with torch.no_grad():
                t = [head(teacher_head, teacher(crop[i : i + 1])[0, 0]) for crop in crops[:2]]
            s = [head(student.head, student.student(crop[i : i + 1], any_size=True)[0, 0]) for crop in crops]
            said += t
            for a, b in ((a, b) for a in range(2) for b in range(5) if a != b):
                wanted = ((t[a] - centre) / temperature).softmax(0)
                total, count = total - (wanted * (s[b] / 0.1).softmax(0).log()).sum(), count + 1
        torch.testing.assert_close(found[step]["loss"], (total / count).detach(), rtol=1e-5, atol=1e-6)
        descend(weights, total / count, 1)
        momentum = 1 - 0.1 * (math.cos(math.pi * (step + 1) / STEPS) + 1) / 2
        with torch.no_grad():
            for slow, fast in ((teacher, student.student), (teacher_head, student.head)):
                for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                    p.copy_(momentum * p + (1 - momentum) * q)
            centre = 0.9 * centre + 0.1 * sum(said) / len(said)
        torch.testing.assert_close(found[step]["centre"], centre, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found[step]["weight"], student.head.layers[0].weight.detach(), rtol=1e-4, atol=1e-6)
    assert (student.head.layers[0].weight - dino().head.layers[0].weight).abs().max() > 1e-3


def test_mocov3_is_the_slow_loop() -> None:
    """Algorithm 1 of the paper, one query and one key at a time; the momentum encoder moves before each step but the first."""
    learner, found = mocov3(), mocov3_steps()
    weights = [p for p in learner.parameters() if p.requires_grad]
    slow_encoder, slow_projection = ema_copy(learner.encoder), ema_copy(learner.projection)
    for step in range(STEPS):
        crops = raw(2, BATCH, 3, 16, 16) + step
        if step:
            momentum = 1 - 0.01 * (math.cos(math.pi * step / STEPS) + 1) / 2
            with torch.no_grad():
                for slow, fast in ((slow_encoder, learner.encoder), (slow_projection, learner.projection)):
                    for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                        p.copy_(momentum * p + (1 - momentum) * q)
        q1, q2 = (through(through(learner.encoder(x)[:, 0], learner.projection), learner.prediction) for x in crops)
        with torch.no_grad():
            k1, k2 = (through(slow_encoder(x)[:, 0], slow_projection) for x in crops)
        loss = torch.zeros(())
        for queries, keys in ((q1, k2), (q2, k1)):
            for i in range(BATCH):
                scores = [(queries[i] / queries[i].norm()) @ (k / k.norm()) / 0.2 for k in keys]
                loss = loss - 2 * 0.2 * (scores[i] - sum(score.exp() for score in scores).log()) / BATCH
        torch.testing.assert_close(found[step]["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
        descend(weights, loss, 1)
        weight = learner.projection[0].weight.detach()
        torch.testing.assert_close(found[step]["weight"], weight, rtol=1e-3, atol=1e-5)  # few rows magnify rounding
    assert (weight - mocov3().projection[0].weight).abs().max() > 1e-2


def everywhere(rank: int, world: int) -> dict[str, Tensor]:
    """What gather and batch norm say to a process, and the gradients of a mean over processes."""
    x = raw(8, 5).chunk(world)[rank].clone().requires_grad_()
    norm = SyncBatchNorm(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1, 2, 5))
    weigh = raw(8, 5).roll(3, 0)
    y = norm(x)
    rows = all_gather_with_grad(y)
    loss = (y * weigh.chunk(world)[rank]).sum() / len(y) + (rows.square() * weigh).mean() * (1 + rank)
    loss.backward()
    assert x.grad is not None
    kept = RunningBatchNorm(5, eps=1e-6)  # of a probe's head, from one row in each process
    scores = kept(raw(8, 5)[4 * rank : 4 * rank + 1])
    running = {"kept": all_gather_with_grad(scores), "mean": kept.running_mean, "variance": kept.running_var}
    return running | {
        "y": all_gather_with_grad(y.detach()),
        "rows": rows.detach(),
        "gradient": all_gather_with_grad(x.grad) / world,
    }


def on_one_of_two(rank: int, store: str, found: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    seen = (dino_steps(rank, 2), mocov3_steps(rank, 2), [everywhere(rank, 2)], global_row_ids(3, torch.device("cpu")))
    if rank:
        found.put([[{key: x.numpy() for key, x in each.items()} for each in steps] for steps in seen[:3]] + [seen[3].numpy()])
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the second of two processes sees."""
    store = str(tmp_path_factory.mktemp("two") / "store")
    found = FORKS.Queue()
    processes = [FORKS.Process(target=on_one_of_two, args=(rank, store, found), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    seen = found.get(timeout=240)
    for process in processes:
        process.join(60)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(("place", "steps"), [(0, dino_steps), (1, mocov3_steps)])
def test_two_processes_see_one_batch(on_two: Any, place: int, steps: Any) -> None:
    for ours, theirs in zip(steps(), on_two[place], strict=True):
        for key, value in ours.items():
            torch.testing.assert_close(torch.tensor(theirs[key]), value, rtol=1e-3, atol=1e-5, msg=f"{key} differs")


@pytest.mark.slow
def test_batch_norm_and_gather_over_two_processes(on_two: Any) -> None:
    """Against one process that has all rows, and torch's own batch norm. The losses' mean is what is descended."""
    theirs = {key: torch.from_numpy(value) for key, value in on_two[2][0].items()}
    x, weigh = raw(8, 5).requires_grad_(), raw(8, 5).roll(3, 0)
    norm = torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(1, 2, 5))
    y = norm(x)
    ((y * weigh).sum() / 8 + (1 + 2) / 2 * (y.square() * weigh).mean()).backward()
    torch.testing.assert_close(theirs["y"], y.detach())
    torch.testing.assert_close(theirs["rows"], y.detach())
    torch.testing.assert_close(theirs["gradient"], x.grad)
    kept = torch.nn.BatchNorm1d(5, affine=False, eps=1e-6)
    torch.testing.assert_close(theirs["kept"], kept(raw(8, 5)[[0, 4]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs["mean"], kept.running_mean)
    torch.testing.assert_close(theirs["variance"], kept.running_var)
    assert on_two[3].tolist() == [3, 4, 5]


def test_batch_norm_alone_is_that_of_torch() -> None:
    x = raw(8, 5) * 3 + 100
    torch.testing.assert_close(SyncBatchNorm(5)(x), torch.nn.BatchNorm1d(5)(x), rtol=1e-4, atol=1e-4)
    assert SyncBatchNorm(5)(x.bfloat16()).dtype == torch.float32
    assert not list(SyncBatchNorm(5, affine=False).parameters())


def test_a_slow_copy_follows() -> None:
    torch.manual_seed(0)
    fast = torch.nn.Linear(3, 2)
    slow = ema_copy(fast)
    before = slow.weight.clone()
    fast.weight.data += 1
    ema_update(slow, fast, 0.75)
    torch.testing.assert_close(slow.weight, before + 0.25)
    ema_update(slow, fast, 1.0)
    torch.testing.assert_close(slow.weight, before + 0.25)
    assert not slow.weight.requires_grad
    assert [cosine_to_one(0.996, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.996, 0.998, 1.0])


def test_dino_keeps_to_its_schedules() -> None:
    """The teacher's temperature rises over its share of the run, and then stays; the prototypes begin to learn after theirs."""
    learner, crops = dino(frozen=0.3), Crops(raw(2, BATCH, 3, 16, 16), None)
    first, temperatures, learned = learner.head.prototypes.detach().clone(), [], []
    optimizer = build_optimizer(learner, OptimConfig(weight_decay=0.1))
    for step in range(10):
        temperatures.append(float(learner.temperature))
        learner(crops).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step((step + 1) / 10)
        directions = torch.nn.functional.normalize(learner.head.prototypes.detach())
        learned.append(bool((directions - torch.nn.functional.normalize(first)).abs().max() > 1e-6))
    assert learned == [False] * 3 + [True] * 7
    assert temperatures == pytest.approx([0.04, 0.046, 0.052, 0.058, 0.064] + [0.07] * 5)


def test_parts_of_a_step_share_one_centre() -> None:
    """A batch in two parts is the batch in one: the centre moves after the step, by all parts."""
    large, small = raw(2, BATCH, 3, 16, 16), raw(3, BATCH, 3, 8, 8)
    whole, parts = dino(), dino()
    loss = whole(Crops(large, small)).loss
    halves = [parts(Crops(shared(large, i, 2), shared(small, i, 2))).loss for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, loss)
    whole.after_step(0.1)
    parts.after_step(0.1)
    torch.testing.assert_close(parts.centre, whole.centre)
    whole.eval()(Crops(large, small))  # a look on the side is no part of a step
    assert not whole.output_sum.any()


def test_the_patch_projection_of_mocov3_stays_at_random() -> None:
    frozen, trained = mocov3(), mocov3(train_patches=True)
    assert not any(p.requires_grad for p in frozen.encoder.embed.parameters())
    assert all(p.requires_grad for p in trained.encoder.embed.parameters())
    assert mocov3().needs_whole_batch


def test_images_of_another_size_ask_for_it() -> None:
    with pytest.raises(UnveilError, match="the model takes"):
        dino().encoder(raw(2, 3, 8, 8))
    assert dino().encoder(raw(2, 3, 8, 12), any_size=True).shape == (2, 7, 48)
    with pytest.raises(UnveilError, match="not a multiple of patch 4"):
        dino().encoder(raw(2, 3, 9, 8), any_size=True)
