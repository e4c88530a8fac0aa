"""What the public code of each method builds and steps, where it is easy to get wrong; docs/fidelity.md has the whole list."""

import math
from dataclasses import replace

import pytest
import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.blocks.targets import PCATarget, TokenTarget
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.methods import method_class, method_defaults
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.methods.dino import DINO, DINOConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.methods.mocov3 import MoCoV3, MoCoV3Config
from unveil.methods.simmim import SimMIM, SimMIMConfig
from unveil.models.dvae import DiscreteVAE, DVAETokenizer
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.options import configure
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig

VIT = ViTConfig(width=96, depth=3, heads=3, image_size=(16, 16), patch_size=(4, 4))
CPU = World(torch.device("cpu"))


class Images:
    """A loader of random images."""

    samples, batch_size, prefetch = 16, 8, False

    def share(self, step: int, share: int, shares: int) -> Batch:
        size = self.batch_size // shares
        first = step * self.batch_size + share * size
        images = torch.randint(0, 256, (size, 3, 20, 20), generator=torch.Generator().manual_seed(first), dtype=torch.uint8)
        return Batch(images, torch.full((size, 2), 20), sample_keys(0, first, size))


@pytest.mark.parametrize("method", [SimMIM, BEiT])
def test_simmim_and_beit_have_relative_positions_layer_scale_and_drop_path(method):
    """SimMIM's ViT-B: USE_SHARED_RPB, no APE, INIT_VALUES 0.1, DROP_PATH_RATE 0.1. BEiT's is the same."""
    vit = method.build(VIT, method.Config(), AugmentConfig()).encoder
    assert vit.positions is None
    assert len(vit.relative) == 1
    assert vit.relative[0].table.shape == (7 * 7 + 3, 3)
    assert [block.branch1.drop_path for block in vit.transformer.blocks] == pytest.approx([0.0, 0.05, 0.1])
    assert all((block.branch2.scale == 0.1).all() for block in vit.transformer.blocks)
    plain = method.build(
        VIT, method.Config(relative_bias="none", positions="sincos", layer_scale=None, drop_path=0), AugmentConfig()
    )
    assert plain.encoder.config == VIT


def test_the_crops_of_the_papers():
    scales = {name: method_defaults(name).get("crop_scale", AugmentConfig().crop_scale) for name in ("mae", "simmim", "beit")}
    assert scales == {"mae": 0.2, "simmim": 0.67, "beit": 0.08}


def test_moco_v3_starts_as_its_public_code():
    """vits.py: q, k and v are Xavier-uniform by themselves, other matrices too, the class token has a deviation of 1e-6."""
    torch.manual_seed(0)
    learner = MoCoV3.build(replace(VIT, width=192), MoCoV3Config(hidden=16), AugmentConfig(crop="resized"))
    for block in learner.encoder.transformer.blocks:
        for part in block.attention.query_key_value.weight.chunk(3):
            bound = math.sqrt(6 / (192 + 192))
            assert 0.99 * bound < part.abs().max() <= bound
            assert float(part.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert block.attention.out.weight.abs().max() <= math.sqrt(6 / 384)
        assert not block.attention.query_key_value.bias.any()
    assert float(learner.encoder.class_token.std()) == pytest.approx(1e-6, rel=0.2)
    bound = math.sqrt(6 / (3 * 4 * 4 + 192))  # of the patch projection
    assert 0.98 * bound < learner.encoder.embed.weight.abs().max() <= bound
    for slow, fast in zip(learner.slow_encoder.parameters(), learner.encoder.parameters(), strict=True):
        assert torch.equal(slow, fast)


def dino(**options: object) -> DINO:
    torch.manual_seed(0)
    config = DINOConfig(**{"prototypes": 32, "local_crops": 2, **options})
    return DINO.build(VIT, config, AugmentConfig(crop="resized", crop_scale=0.4))


def test_dino_drops_paths_of_the_student_alone():
    learner = dino()
    assert [block.branch1.drop_path for block in learner.student.transformer.blocks] == pytest.approx([0.0, 0.05, 0.1])
    assert [block.branch1.drop_path for block in learner.encoder.transformer.blocks] == [0.0] * 3
    assert learner.encoder.config.drop_path == 0.0
    assert learner.student.positions.requires_grad
    assert float(learner.student.positions.std()) == pytest.approx(0.02, rel=0.1)
    for student, teacher in zip(learner.student.parameters(), learner.encoder.parameters(), strict=True):
        assert torch.equal(student, teacher)
        assert not teacher.requires_grad


@pytest.mark.parametrize("frozen", [0.5, 0.0])
def test_frozen_prototypes_are_left_alone(frozen):
    """cancel_gradients_last_layer: without a gradient, AdamW applies no weight decay either."""
    learner, seen = dino(frozen=frozen, local_crops=0), []

    class Steps:
        def start(self, first: int) -> None: ...

        def close(self) -> None: ...

        def write(self, record: dict[str, float]) -> None:
            seen.append(learner.head.prototypes.detach().clone())

    before = learner.head.prototypes.detach().clone()
    optim = OptimConfig(base_lr=0.1, warmup_ratio=0.0, weight_decay=0.4, clip_grad=3.0, clip_mode="parameter")
    training = TrainConfig(epochs=2.0, batch_size=8, log_every=1, num_evals=0)
    train(learner, Images(), Recipe(training, optim, HardwareConfig(device="cpu", precision="float32"), CPU), sinks=[Steps()])
    assert [torch.equal(each, before) for each in seen] == ([True, True, False, False] if frozen else [False] * 4)


def test_prototypes_start_as_a_linear_layer_of_torch():
    torch.manual_seed(0)
    prototypes = dino(prototypes=500).head.prototypes.detach()
    bound = 1 / math.sqrt(256)
    assert 0.99 * bound < prototypes.abs().max() <= bound


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_targets_are_exact_under_autocast():
    """In bfloat16 the principal components had an error of 0.3 %, and 0.8 % of the tokens of a dVAE were others."""
    torch.manual_seed(0)
    hide = torch.arange(16).expand(64, -1)
    pca, tokens = PCATarget((4, 4), 3, 8), TokenTarget(DVAETokenizer(DiscreteVAE(VIT, 64), VIT.grid))
    pca.prepare(images(64))
    for target in (pca, tokens):
        exact = target(images(64), hide)
        with torch.autocast("cpu", torch.bfloat16):
            found = target(images(64), hide)
        assert found.dtype == exact.dtype
        assert torch.equal(found, exact)


@pytest.mark.parametrize("width", [128, 256])
def test_decoder_widths_of_table_1b(width):
    mae = MAE.build(VIT, MAEConfig(decoder_width=width, decoder_depth=1), AugmentConfig())
    assert mae.decoder.blocks[0].attention.heads == 16
    assert (mae.config.decoder_width, mae.config.decoder_depth, mae.config.decoder_heads) == (width, 1, 16)
    assert torch.isfinite(mae.loss(images()))


@pytest.mark.parametrize("target", ["pixel", "normalised", "pca", "token"])
def test_a_ratio_of_0_learns_from_all_patches(target):
    """The held-out error is that of all patches too: there are no masked ones."""
    mae = MAE.build(
        VIT, MAEConfig(mask_ratio=0, loss_on_all=True, target=target, codebook_size=8, decoder_depth=1), AugmentConfig()
    )
    batch = Batch(images(), torch.full((4, 2), 16), torch.arange(4))
    mae.prepare(batch)
    step, found = mae.eval()(batch), mae.validation_metrics(batch)
    assert torch.isfinite(step.loss)
    if target == "pixel":
        assert found["held_out_error"] == pytest.approx(float(step.loss), rel=1e-4)
    elif target == "token":
        assert found["held_out_loss"] == pytest.approx(float(step.loss), rel=1e-4)
    if target != "token":
        patches = images().reshape(4, 3, 4, 4, 4, 4)
        mean = patches.mean(dim=(3, 5), keepdim=True)  # of each channel of a patch
        assert found["patch_mean_error"] == pytest.approx(float((patches - mean).square().mean()), rel=1e-4)
        assert mae.reconstruct(images()).pixels.shape == images().shape


def test_every_default_is_an_option():
    for name in ("mae", "simmim", "beit", "dino", "mocov3", "supervised"):
        configure(dict(method_defaults(name)), method_class(name).Config, AugmentConfig, TrainConfig, OptimConfig)


def test_encoders_of_all_methods_can_be_resized():
    for method, options in ((SimMIM, SimMIMConfig()), (BEiT, BEiTConfig()), (DINO, DINOConfig(prototypes=8))):
        learner = method.build(VIT, options, AugmentConfig(crop="resized", crop_scale=0.4))
        encoder = learner.encoder.eval()
        other = encoder.resized((32, 16)).eval()
        x = torch.randn(2, 3, 32, 16)
        torch.testing.assert_close(other(x), encoder(x, any_size=True))
        assert isinstance(other, ViT)
