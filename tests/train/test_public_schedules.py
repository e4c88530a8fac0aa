"""Schedules of learning rate, weight decay and momentum, and clipping, against the formulas of the public code of each recipe.

MAE: util/lr_sched.py; DINO: utils.cosine_scheduler and utils.clip_gradients; MoCo v3: adjust_learning_rate and
adjust_moco_momentum; SimMIM: a multi-step schedule with timm's warm-up; BEiT: run_beit_pretraining.py, as DINO; the Transformer:
section 5.3; BERT: linear warm-up and decay. In the warm-up all of them have i / w where we have (i + 1) / w.
"""

import math

import pytest
import torch
from torch import nn

from unveil.blocks.ema import cosine_to_one
from unveil.methods import method_defaults
from unveil.tasks import task_defaults
from unveil.tasks.finetune import Finetune
from unveil.train.optim import OptimConfig, clip_gradients

PER_EPOCH = 50
"""Steps of an epoch."""


def config(defaults: dict[str, object], **changes: object) -> OptimConfig:
    """The optimiser of a recipe."""
    known = OptimConfig.__dataclass_fields__
    return OptimConfig(**{k: v for k, v in {**defaults, **changes}.items() if k in known})


def check(optim: OptimConfig, epochs: int, batch_size: int, public) -> None:
    """Equal to a public schedule of the epoch, as a fraction, after the warm-up, and one step ahead of it before."""
    total = epochs * PER_EPOCH
    warmup = round(optim.warmup_ratio * total)
    assert warmup > 0
    for step in range(0, total, 7):
        found, _ = optim.at(step, total, batch_size)
        assert found == pytest.approx(public((step + (step < warmup)) / PER_EPOCH), rel=1e-9), step


def half_cycle(epoch: float, *, lr: float, min_lr: float, warmup: int, epochs: int) -> float:
    """MAE's adjust_learning_rate."""
    if epoch < warmup:
        return lr * epoch / warmup
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def test_mae_pretraining():
    lr = 1.5e-4 * 4096 / 256
    check(config(method_defaults("mae")), 800, 4096, lambda e: half_cycle(e, lr=lr, min_lr=0.0, warmup=40, epochs=800))
    assert config({}) == OptimConfig(base_lr=1.5e-4, beta1=0.9, beta2=0.95, weight_decay=0.05, warmup_ratio=0.05)


def test_mae_finetuning():
    optim = config(Finetune.PAPER)
    check(optim, 100, 1024, lambda e: half_cycle(e, lr=4e-3, min_lr=1e-6, warmup=5, epochs=100))
    assert optim.at(100 * PER_EPOCH, 100 * PER_EPOCH, 1024)[0] == pytest.approx(1e-6)
    assert (optim.beta2, optim.weight_decay, optim.layer_decay) == (0.999, 0.05, 0.75)


def test_mae_linear_probe():
    optim = config(task_defaults("linear"), optimizer="lars", base_lr=0.1, warmup_epochs=10).resolve_warmup(90)
    check(optim, 90, 16384, lambda e: half_cycle(e, lr=6.4, min_lr=0.0, warmup=10, epochs=90))


def test_mae_from_scratch():
    """Appendix A.2: 20 of 300 epochs of warm-up."""
    optim = config(method_defaults("supervised"), warmup_epochs=20).resolve_warmup(300)
    check(optim, 300, 4096, lambda e: half_cycle(e, lr=1.6e-3, min_lr=0.0, warmup=20, epochs=300))
    assert method_defaults("supervised")["warmup_ratio"] == pytest.approx(20 / 300, abs=5e-4)
    assert (optim.beta2, optim.weight_decay, optim.layer_decay) == (0.95, 0.3, 1.0)


def cosine_scheduler(base: float, final: float, epoch: float, epochs: int, warmup: int = 0) -> float:
    """DINO's, for the learning rate, the weight decay and the teacher's momentum."""
    if epoch < warmup:
        return base * epoch / warmup
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def test_dino():
    optim, total = config(method_defaults("dino")), 100 * PER_EPOCH
    check(optim, 100, 1024, lambda e: cosine_scheduler(5e-4 * 1024 / 256, 1e-6, e, 100, 10))
    for step in range(0, total, 9):
        decay, momentum = optim.at(step, total, 1024)[1], cosine_to_one(0.996, step / total)
        assert decay == pytest.approx(cosine_scheduler(0.04, 0.4, step / PER_EPOCH, 100), rel=1e-9)
        assert momentum == pytest.approx(cosine_scheduler(0.996, 1.0, step / PER_EPOCH, 100), rel=1e-12)
    assert (optim.clip_grad, optim.clip_mode, optim.beta2) == (3.0, "parameter", 0.999)


def test_moco_v3():
    optim, total = config(method_defaults("mocov3"), warmup_epochs=40).resolve_warmup(300), 300 * PER_EPOCH
    check(optim, 300, 4096, lambda e: half_cycle(e, lr=1.5e-4 * 4096 / 256, min_lr=0.0, warmup=40, epochs=300))
    for step in range(0, total, 9):
        epoch = step / PER_EPOCH
        assert cosine_to_one(0.99, step / total) == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi * epoch / 300)) * (1 - 0.99))
    assert method_defaults("mocov3")["warmup_ratio"] == pytest.approx(40 / 300, abs=0.005)


def test_simmim():
    """ViT-B: 1e-4 for a batch of 512, and a tenth of it from epoch 700 of 800. Its warm-up begins at 5e-7, ours at 0."""
    lr, optim = 1e-4 * 2048 / 512, config(method_defaults("simmim"))
    check(optim, 800, 2048, lambda e: lr * e / 10 if e < 10 else lr * (0.1 if e >= 700 else 1.0))
    assert (optim.beta2, optim.clip_grad, optim.weight_decay) == (0.999, 5.0, 0.05)


def test_beit():
    """Table 13: 10 of 800 epochs of warm-up, 1.5e-3 for a batch of 2048; the public code ends at 1e-5."""
    optim = config(method_defaults("beit"))
    check(optim, 800, 2048, lambda e: cosine_scheduler(1.875e-4 * 8, 1e-5, e, 800, 10))
    assert (optim.beta2, optim.clip_grad, optim.weight_decay) == (0.98, 3.0, 0.05)


def test_the_transformer():
    """Section 5.3, with its largest value as the peak."""
    width, warmup, total = 512, 4000, 100_000
    peak = (width * warmup) ** -0.5
    optim = config(task_defaults("translation"), base_lr=peak, warmup_ratio=warmup / total)
    for step in range(1, total, 777):
        formula = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert optim.at(step - 1, total, 256)[0] == pytest.approx(formula, rel=1e-9)
    assert (optim.beta2, optim.eps, optim.weight_decay) == (0.98, 1e-9, 0.0)


def test_bert():
    """Linear warm-up, then linear decay to 0; see docs/fidelity.md for what differs in the other settings."""
    optim = config(method_defaults("bert"), base_lr=1e-4, warmup_ratio=0.01)
    for step in (0, 99, 100, 5000, 9999):
        public = 1e-4 * ((step + 1) / 100 if step < 100 else (10_000 - step) / 9900)
        assert optim.at(step, 10_000, 256)[0] == pytest.approx(public, rel=1e-9)


def test_the_floor_is_no_higher_than_the_peak():
    optim = OptimConfig(base_lr=1e-7, min_lr=1e-6, warmup_ratio=0.0)
    assert [optim.at(step, 10, 256)[0] for step in (0, 5, 10)] == pytest.approx([1e-7] * 3)


def test_each_parameter_is_clipped_by_its_own_norm():
    """DINO's utils.clip_gradients, one parameter at a time."""
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2))
    generator = torch.Generator().manual_seed(0)
    for i, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=generator) * 4 ** (i - 2)
    model[2].bias.grad = None
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    total = math.sqrt(sum(float(grad.square().sum()) for grad in before if grad is not None))
    assert float(clip_gradients(model, 3.0, "parameter")) == pytest.approx(total)
    clipped = 0
    for p, grad in zip(model.parameters(), before, strict=True):
        if grad is None:
            assert p.grad is None
            continue
        factor = 3.0 / (float(grad.norm()) + 1e-6)
        clipped += factor < 1
        torch.testing.assert_close(p.grad, grad * factor if factor < 1 else grad)
    assert 0 < clipped < 5
