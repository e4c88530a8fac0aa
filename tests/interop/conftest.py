import pytest
import torch

from unveil.data.augment import AugmentConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit import ViT, ViTConfig
from unveil.tasks.finetune import Finetune, FinetuneConfig

SHAPE = {"width": 48, "depth": 2, "heads": 3, "image_size": (32, 32), "patch_size": (8, 8)}


def shaken(module):
    """The module in eval mode, with values that would show a swap where it begins with zeros and ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


@pytest.fixture
def make_mae():
    def make(*, target="normalised", decoder_width=32, decoder_depth=1, decoder_heads=2, **shape):
        torch.manual_seed(0)
        config = MAEConfig(target=target, decoder_width=decoder_width, decoder_depth=decoder_depth, decoder_heads=decoder_heads)
        return shaken(MAE.build(ViTConfig(**SHAPE | shape), config, AugmentConfig()))

    return make


@pytest.fixture
def make_finetune():
    def make(classes=5, **shape):
        torch.manual_seed(0)
        return shaken(Finetune(ViT(ViTConfig(**SHAPE | shape)), classes, FinetuneConfig(), AugmentConfig()))

    return make


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def said():
    """A list that can be given as `say`: what is told to the user lands in it."""

    class Said(list):
        def __call__(self, text):
            self.append(text)

    return Said()
