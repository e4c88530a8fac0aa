"""A tiny encoder, and images for it."""

import hashlib
from dataclasses import replace

import torch
from torch import nn

from unveil.blocks.stateless_random import sample_keys
from unveil.data.batch import Batch
from unveil.data.targets import ClassTargets
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig

VIT = ViTConfig(width=24, depth=3, heads=3, image_size=(8, 8), patch_size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)

CLASSES = ["ash", "birch", "cedar", "elm"]


def encoder(**changes: object) -> ViT:
    torch.manual_seed(0)
    return ViT(replace(VIT, **changes))


def digest(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values())).hexdigest()


def batch(count: int = 6, first: int = 0) -> Batch:
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(first))
    return Batch(images, torch.full((count, 2), 8), sample_keys(0, first, count), ClassTargets(torch.arange(count) % 4))


def normal(count: int = 6) -> Batch:
    return batch(count)._replace(images=torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
