import pytest
import torch

from unveil import plugins
from unveil.data.augment import AugmentConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig

SHAPE = {"width": 48, "depth": 2, "heads": 3, "image_size": (32, 32), "patch_size": (8, 8)}


def perturbed(module):
    """The module in eval mode, with noise on all weights: where they start as zeros and ones, a swap would not show."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture
def make_mae():
    def make(*, target="normalised", decoder_width=32, decoder_depth=1, decoder_heads=2, **shape):
        torch.manual_seed(0)
        config = MAEConfig(target=target, decoder_width=decoder_width, decoder_depth=decoder_depth, decoder_heads=decoder_heads)
        return perturbed(MAE.build(ViTConfig(**SHAPE | shape), config, AugmentConfig()))

    return make


@pytest.fixture
def make_finetune():
    def make(classes=("a", "b", "c", "d", "e"), config=None, **shape):
        torch.manual_seed(0)
        return perturbed(Finetune.build(ViT(ViTConfig(**SHAPE | shape)), config or FinetuneConfig(), AugmentConfig(), classes))

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logged():
    """A list that can be passed as `say`: log lines are appended to it."""

    class Lines(list):
        def __call__(self, text):
            self.append(text)

    return Lines()


@pytest.fixture
def no_trust(monkeypatch):
    """A process in which the user has named no code and no class has been imported, as a new one."""
    monkeypatch.setattr(plugins, "_trusted", set())
    monkeypatch.setattr(plugins, "_classes", {})
