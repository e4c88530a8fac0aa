"""The cost of a step, and the number of microbatches that fit into memory."""

import copy
import itertools

import pytest
import torch
from torch import nn

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.train import memory_trial
from unveil.train.memory_trial import LiveTensors, cost_of, fit_batch_in_memory, matrix_peak, memory_of
from unveil.train.parallel import HardwareConfig, World

CPU, EXACT = World(torch.device("cpu")), HardwareConfig(device="cpu", precision="float32")
MB = 2**20


class Chain(Learner):
    """Three squares of a (B, 2^18) float image: 1 MB per sample each. The inputs are kept for the backward pass."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        x = batch.images * self.weight
        return Step((x.square().square().square()).sum(), {})


def batch(count: int) -> Batch:
    return Batch(torch.rand(count, 2**18), torch.ones(count, 2, dtype=torch.int64), sample_keys(0, 0, count))


def test_live_tensors_are_counted_and_views_are_not():
    with LiveTensors() as live:
        a = torch.zeros(2**18)  # 1 MB
        b = a[:100].view(10, 10)
        a.add_(1)
        c = a + 1
        assert live.now == 2 * MB
        del c
        assert live.now == MB
        del a
        assert live.now == MB  # the view holds it
        del b
    assert live.now == 0
    assert live.peak == 2 * MB


def test_a_step_costs_what_it_keeps_for_the_backward_pass():
    low, high = (cost_of(Chain(), batch(n), EXACT, CPU).memory for n in (2, 6))
    each = (high - low) / 4
    assert 4 * MB <= each <= 7 * MB  # x, its squares, and gradients on the way


@pytest.mark.parametrize(("fitting", "accum_steps"), [(99, 1), (12, 1), (11, 2), (6, 2), (5, 3), (3, 4), (1, 12), (0, 12)])
def test_the_fewest_microbatches_that_fit(fitting, accum_steps):
    learner = Chain()
    each = (cost_of(learner, batch(6), EXACT, CPU).memory - cost_of(learner, batch(2), EXACT, CPU).memory) / 4
    memory = int((fitting + 0.5) * each / 0.6)  # 60 % of it is for the samples
    assert fit_batch_in_memory(learner, batch(12), 12, 0, EXACT, CPU, memory=memory).accum_steps == accum_steps


def test_the_gradients_of_a_large_model_do_not_hide_the_cost_of_samples():
    """With few samples the peak is at the end, in the gradients, so the slope must come from what is kept for the backward pass."""
    learner = mae(grad_checkpointing=False)
    few, many = (Batch(torch.randn(n, 3, 32, 32), torch.full((n, 2), 32), sample_keys(0, 0, n)) for n in (6, 96))
    each = cost_of(learner, many, EXACT, CPU).memory / 96
    model = 4 * sum(p.numel() * p.element_size() for p in learner.parameters())
    assert fit_batch_in_memory(learner, few, 96, 0, EXACT, CPU, memory=int((model + 96 * each * 1.2) / 0.6)).accum_steps == 1
    assert fit_batch_in_memory(learner, few, 96, 0, EXACT, CPU, memory=int((model + 96 * each * 0.8) / 0.6)).accum_steps == 2


def test_a_given_number_is_used_and_must_divide():
    assert fit_batch_in_memory(Chain(), batch(12), 12, 3, EXACT, CPU, memory=1).accum_steps == 3
    with pytest.raises(UnveilError, match="is not a multiple of 5"):
        fit_batch_in_memory(Chain(), batch(12), 12, 5, EXACT, CPU)


def mae(grad_checkpointing: bool) -> MAE:
    torch.manual_seed(0)
    vit = ViTConfig(width=48, depth=8, heads=3, image_size=(32, 32), patch_size=(4, 4), grad_checkpointing=grad_checkpointing)
    return MAE(ViT(vit), MAEConfig(decoder_width=48, decoder_depth=1, decoder_heads=3))


def test_grad_checkpointing_saves_memory_and_the_trial_leaves_no_trace():
    images = Batch(torch.randn(6, 3, 32, 32), torch.full((6, 2), 32), sample_keys(0, 0, 6))
    learner = mae(grad_checkpointing=False)
    before, chance = copy.deepcopy(learner.state_dict()), torch.get_rng_state()
    plain = cost_of(learner, images, EXACT, CPU).memory
    assert cost_of(mae(grad_checkpointing=True), images, EXACT, CPU).memory < 0.6 * plain
    assert all(torch.equal(before[name], value) for name, value in learner.state_dict().items())
    assert all(p.grad is None for p in learner.parameters())
    assert torch.equal(chance, torch.get_rng_state())


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda loss: None, "Chain.forward returned NoneType, expected unveil.learner.Step"),
        (lambda loss: (loss, {}), "Chain.forward returned tuple, expected unveil.learner.Step"),
        (lambda loss: Step(1.5, {}), "a loss that is a float, expected a tensor with one number"),
        (lambda loss: Step(loss.repeat(3), {}), "a loss of the shape .3,., expected a tensor with one number"),
        (lambda loss: Step(loss.detach(), {}), "a loss without a gradient"),
        (lambda loss: Step(loss, {"accuracy": 0.5}), "the metric 'accuracy', which is no tensor with one number"),
        (lambda loss: Step(loss, {"loss": loss}), "the metric 'loss', which is the name of the loss itself"),
    ],
)
def test_a_forward_pass_that_is_no_step_is_refused(monkeypatch, result, message):
    """Such as of a plug-in. A metric named loss would replace the loss in the log, and in the check that it is finite."""
    monkeypatch.setattr(Chain, "forward", lambda self, batch: result((batch.images * self.weight).sum()))
    with pytest.raises(UnveilError, match=message):
        cost_of(Chain(), batch(2), EXACT, CPU)


def test_a_machine_has_some_memory(monkeypatch):
    whole = memory_of(torch.device("cpu"))
    assert whole > 2**28
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory_of(torch.device("cpu")) == whole // 2


def test_flops_of_a_sample_are_those_of_the_formula():
    learner, half = mae(grad_checkpointing=False), HardwareConfig(device="cpu", precision="bfloat16")
    images = Batch(torch.randn(12, 3, 32, 32), torch.full((12, 2), 32), sample_keys(0, 0, 12))
    trial = fit_batch_in_memory(learner, images, 12, 0, half, CPU)
    formula = mae_cost(learner.encoder.config, visible=16, width=48, depth=1, predicted=48, batch=10**9)
    assert trial.flops == pytest.approx(formula.step, rel=1e-6)


def test_a_peak_is_measured_once():
    first = matrix_peak(torch.device("cpu"), "float32")
    assert 1e8 < first < 1e15
    assert matrix_peak(torch.device("cpu"), "float32") == first


def test_the_peak_of_a_cpu_is_that_of_cpu_time(monkeypatch):
    """Otherwise other programs make it small, and a run later reaches more than 100 % of it."""
    ticks = itertools.count()
    monkeypatch.setattr(memory_trial.time, "process_time", lambda: float(next(ticks)))
    monkeypatch.setattr(memory_trial.time, "perf_counter", lambda: pytest.fail("wall-clock time"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert matrix_peak.__wrapped__(torch.device("cpu"), "float32") == 3 * 2 * 1024**3
