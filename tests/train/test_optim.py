"""Weight decay, layer-wise learning rates, warm-up, clipping and LARS."""

import pytest
import torch

from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.learner import Learner
from unveil.methods import METHODS, method_class
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig
from unveil.tasks.linear import Linear
from unveil.text.wordpiece import SPECIAL
from unveil.train.optim import OptimConfig, build_optimizer, clip_gradients, set_lr
from unveil.train.schedule import SCHEDULES

VIT = ViTConfig(width=24, depth=3, heads=3, image_size=(8, 8), patch_size=(4, 4), positions="learned")
LEARNERS = {
    "mae": lambda: MAE.build(VIT, MAEConfig(decoder_width=16, decoder_depth=2, decoder_heads=2), AugmentConfig()),
    "finetune": lambda: Finetune(ViT(VIT), list("abcd"), FinetuneConfig(), AugmentConfig()),
    "linear": lambda: Linear(24, list("abcd"), encoder=ViT(VIT)),
}


def settings(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, object]]:
    """The group of each parameter by name."""
    names = {parameter: name for name, parameter in learner.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in found, "in two groups"
            found[names[parameter]] = group
    return found


@pytest.mark.parametrize("kind", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("name", LEARNERS)
def test_biases_norms_tokens_and_positions_do_not_decay(name, kind):
    learner = LEARNERS[name]()
    groups = settings(learner, build_optimizer(learner, OptimConfig(optimizer=kind, weight_decay=0.3)))
    assert set(groups) == {name for name, p in learner.named_parameters() if p.requires_grad}
    for parameter, group in groups.items():
        weight = parameter.endswith("weight") and "norm" not in parameter
        assert group["weight_decay"] == (0.3 if weight else 0.0), parameter
    exempt = {parameter for parameter, group in groups.items() if not group["weight_decay"]}
    if name == "mae":
        assert {"mask_token", "encoder.class_token", "encoder.positions", "encoder.transformer.norm.weight", "head.bias"} <= exempt
        assert "decoder_positions" not in groups


ENCODERS = {
    "images": {"image_size": (16, 16), "patch_size": (4, 4), "positions": "learned"},
    "text": {"vocabulary": (*SPECIAL, *(f"word{i}" for i in range(20))), "length": 16},
}


@pytest.mark.parametrize("name", METHODS.names)
def test_weight_decay_is_applied_as_in_the_first_version(name):
    """To all matrices that are trained but learned positions; d98af96 recognised these by their name alone."""
    kind = method_class(name)
    options = {"prototypes": 8} if name == "dino" else {"hidden": 8} if name == "mocov3" else {}
    encoder = kind.EncoderConfig(width=48, depth=2, heads=3, **ENCODERS[kind.modality])
    learner = kind.build(encoder, kind.Config(**options), AugmentConfig())
    learner.set_classes(["a", "b"])
    check_decay(learner)


@pytest.mark.parametrize("name", LEARNERS)
def test_weight_decay_of_tasks_is_applied_as_in_the_first_version(name):
    check_decay(LEARNERS[name]())


def check_decay(learner: Learner) -> None:
    for name, group in settings(learner, build_optimizer(learner, OptimConfig())).items():
        assert group["decays"] == (learner.get_parameter(name).ndim > 1 and not name.endswith("positions")), name


def test_layer_decay():
    learner = LEARNERS["finetune"]()
    groups = settings(learner, build_optimizer(learner, OptimConfig(layer_decay=0.5, weight_decay=0.1)))
    for name, group in groups.items():
        depth = 4 if not name.startswith("encoder.") else int(name.split("blocks.")[1][0]) + 1 if "blocks." in name else 0
        assert group["lr_scale"] == pytest.approx(0.5 ** (4 - depth)), name
    assert len({id(group) for group in groups.values()}) == 2 * 5
    plain = build_optimizer(learner, OptimConfig())
    assert {group["lr_scale"] for group in plain.param_groups} == {1.0}
    assert len(plain.param_groups) == 2


def test_set_lr():
    learner = LEARNERS["finetune"]()
    optimizer = build_optimizer(learner, OptimConfig(layer_decay=0.65))
    set_lr(optimizer, 0.02, 0.3)
    decays = set()
    for name, group in settings(learner, optimizer).items():
        depth = learner.layer_of(name)
        assert group["lr"] == pytest.approx(0.02 * 0.65 ** (4 - depth))
        decays.add((group["decays"], group["weight_decay"]))
    assert decays == {(True, 0.3), (False, 0.0)}


def test_weight_decay_follows_half_a_cosine():
    default, dino = OptimConfig(), OptimConfig(weight_decay=0.04, weight_decay_end=0.4)
    assert [default.at(step, 100, 256)[1] for step in (0, 50, 99)] == [0.05] * 3
    assert [dino.at(step, 100, 256)[1] for step in (0, 50, 100)] == pytest.approx([0.04, 0.22, 0.4])


def test_the_learning_rate_of_a_layer_is_its_step():
    """The first step of AdamW moves each number by the learning rate of its group, whatever the gradient."""
    learner = LEARNERS["finetune"]()
    optimizer = build_optimizer(learner, OptimConfig(layer_decay=0.5, weight_decay=0.0))
    set_lr(optimizer, 0.01, 0.0)
    before = {name: p.detach().clone() for name, p in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.randn_like(parameter).sign() * 3
    optimizer.step()
    for name, p in learner.named_parameters():
        step = (p.detach() - before[name]).abs()
        torch.testing.assert_close(step, torch.full_like(step, 0.01 * 0.5 ** (4 - learner.layer_of(name))), rtol=1e-3, atol=1e-6)


def test_the_settings_reach_the_optimizer():
    learner = LEARNERS["linear"]()
    adamw = build_optimizer(learner, OptimConfig(beta1=0.8, beta2=0.7))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["betas"] == (0.8, 0.7)
    assert build_optimizer(learner, OptimConfig(optimizer="sgd", beta1=0.6)).param_groups[0]["momentum"] == 0.6
    assert OptimConfig(base_lr=0.1).peak(4096) == pytest.approx(1.6)
    assert OptimConfig().peak(256) == 1.5e-4


def test_lars_adapts_weights_without_decay_and_leaves_biases():
    torch.manual_seed(0)
    learner = LEARNERS["linear"]()
    optimizer = build_optimizer(learner, OptimConfig(optimizer="lars", weight_decay=0.0, beta1=0.9))
    set_lr(optimizer, 0.1, 0.0)
    weight, bias = learner.head.linear.weight, learner.head.linear.bias
    old_weight, old_bias = weight.detach().clone(), bias.detach().clone()
    weight.grad, bias.grad = torch.randn_like(weight), torch.randn_like(bias)
    optimizer.step()
    trust = 0.001 * old_weight.norm() / weight.grad.norm()
    torch.testing.assert_close(weight.detach(), old_weight - 0.1 * trust * weight.grad, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(bias.detach(), old_bias - 0.1 * bias.grad)
    assert (old_weight - weight.detach()).norm() < 0.01 * (0.1 * weight.grad).norm()  # not plain SGD


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e6])
def test_the_norm_of_all_gradients_and_clipping(clip):
    learner = LEARNERS["linear"]()
    trained = [p for p in learner.parameters() if p.requires_grad]
    for i, parameter in enumerate(trained):
        parameter.grad = torch.full_like(parameter, 0.1 * (i + 1))
    before = [p.grad.clone() for p in trained]
    slowly = sum(float((grad.double() ** 2).sum()) for grad in before) ** 0.5
    assert float(clip_gradients(learner, clip)) == pytest.approx(slowly)
    for parameter, grad in zip(trained, before, strict=True):
        torch.testing.assert_close(parameter.grad, grad * min(1.0, clip / slowly) if clip else grad)


def test_warmup_epochs_override_the_ratio():
    assert OptimConfig(warmup_ratio=0.2).resolve_warmup(10).warmup_ratio == 0.2
    assert OptimConfig(warmup_epochs=4).resolve_warmup(10) == OptimConfig(warmup_ratio=0.4)
    assert OptimConfig(warmup_epochs=0).resolve_warmup(10).warmup_ratio == 0
    for wrong in (10.5, -1):
        with pytest.raises(UnveilError, match=rf"the warm-up takes {wrong:g} epochs, but the run has 10: use --warmup-epochs"):
            OptimConfig(warmup_epochs=wrong).resolve_warmup(10)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_can_be_chosen(schedule):
    config = OptimConfig(schedule=schedule, base_lr=0.1, warmup_ratio=0.1)
    assert [config.at(step, 100, 512)[0] for step in (0, 9)] == pytest.approx([0.02, 0.2])
    assert config.at(99, 100, 512)[0] < 0.1
