"""Our MAE against that of transformers, an independent implementation: same weights, same mask, same numbers and gradients."""

import pytest
import torch
from torch import Tensor

from unveil.blocks.masks import split
from unveil.blocks.positions import sincos_2d
from unveil.blocks.targets import PIXEL_TARGETS
from unveil.data.augment import AugmentConfig
from unveil.interop.state_dict_map import load_state
from unveil.interop.transformers_names import version4_names
from unveil.interop.transformers_vit_mae import map_of
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import MODELS, ViTConfig

transformers = pytest.importorskip("transformers")


def theirs(vit: ViTConfig, config: MAEConfig) -> transformers.ViTMAEForPreTraining:
    return transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            hidden_size=vit.width,
            num_hidden_layers=vit.depth,
            num_attention_heads=vit.heads,
            intermediate_size=4 * vit.width,
            image_size=vit.image_size[0],
            patch_size=vit.patch_size[0],
            num_channels=vit.channels,
            layer_norm_eps=1e-6,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=4 * config.decoder_width,
            mask_ratio=config.mask_ratio,
            norm_pix_loss=config.target == "normalised",
        )
    )


def perturbed(module: torch.nn.Module) -> None:
    """Gives norms and biases, which begin as ones and zeros, values that would show a swap."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))


def distance(ours: Tensor, true: Tensor) -> float:
    return float((ours - true).norm() / true.norm())


def largest(ours: Tensor, true: Tensor) -> float:
    return float((ours - true).abs().max() / true.abs().max())


def compare(vit: ViTConfig, config: MAEConfig, batch: int) -> dict[str, float]:
    torch.manual_seed(0)
    reference = theirs(vit, config)
    perturbed(reference)
    ours = MAE.build(vit, config, AugmentConfig())
    count = load_state(ours, map_of(vit, config.decoder_depth, "vit."), version4_names(reference.state_dict()), "transformers")
    assert count == len(reference.state_dict())
    return differences_of(ours, reference, batch)


def differences_of(ours: MAE, reference: transformers.ViTMAEForPreTraining, batch: int) -> dict[str, float]:
    vit, config = ours.encoder.config, ours.config
    layout = map_of(vit, config.decoder_depth, "vit.")
    ours.zero_grad()
    reference.zero_grad()
    images, noise = torch.randn(batch, vit.channels, *vit.image_size), torch.rand(batch, vit.grid[0] * vit.grid[1])

    found = reference(images, noise=noise)
    found.loss.backward()
    logits, hidden = found.logits.detach(), found.mask.bool()
    loss = ours.loss(images, hidden)
    loss.backward()
    keep, hide = split(hidden)
    with torch.no_grad():
        predicted = ours.predict_patches(images, keep, hide)

    assert hidden.sum(1).tolist() == [hide.shape[1]] * batch
    gradients = version4_names({name: p.grad for name, p in reference.named_parameters() if p.grad is not None})
    differences = {"loss": abs(float(loss.detach() / found.loss.detach()) - 1), "pixels": distance(predicted, logits)}
    differences["pixels, largest"] = largest(predicted, logits)
    seen = 0
    for name, parameter in ours.named_parameters():
        places = layout[name].names
        if not parameter.requires_grad:
            assert all(place not in gradients for place in places)  # positions are fixed in both
            continue
        true = torch.cat([gradients[place] for place in places])
        if layout[name].shape == "convolution":
            true = true.permute(0, 2, 3, 1).flatten(1)
        true = true.reshape(parameter.shape)
        differences[name], differences[f"{name}, largest"] = (distance(parameter.grad, true), largest(parameter.grad, true))
        seen += len(places)
    assert seen == len(gradients)
    return differences


def worst(differences: dict[str, float]) -> tuple[float, str]:
    return max((value, name) for name, value in differences.items())


@pytest.mark.parametrize("target", ["normalised", "pixel"])
@pytest.mark.parametrize("ratio", [0.75, 0.4])
def test_equals_transformers(target, ratio):
    vit = ViTConfig(width=96, depth=3, heads=3, image_size=(48, 48), patch_size=(8, 8))
    config = MAEConfig(target=target, mask_ratio=ratio, decoder_width=64, decoder_depth=2, decoder_heads=4)
    assert worst(compare(vit, config, batch=3)) < (1e-5, "")


def test_equals_transformers_with_one_channel():
    vit = ViTConfig(width=48, depth=2, heads=3, image_size=(28, 28), patch_size=(7, 7), channels=1)
    config = MAEConfig(decoder_width=32, decoder_depth=1, decoder_heads=2)
    assert worst(compare(vit, config, batch=4)) < (1e-5, "")


@pytest.mark.slow
def test_vit_base_equals_transformers():
    (width, _, heads), depth = MODELS["vit-base"], 4  # of 12 equal blocks
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=(224, 224), patch_size=(16, 16))
    config = MAEConfig(target="normalised", decoder_width=512, decoder_depth=2, decoder_heads=16)
    torch.manual_seed(0)
    reference, ours = theirs(vit, config), MAE.build(vit, config, AugmentConfig())
    perturbed(reference)
    assert load_state(ours, map_of(ours.encoder.config, 2, "vit."), version4_names(reference.state_dict()), "transformers") == len(
        reference.state_dict()
    )
    assert worst(differences_of(ours, reference, batch=2)) < (1e-5, "")

    reference.config.norm_pix_loss = False
    ours.target = PIXEL_TARGETS["pixel"](vit.patch_size, vit.channels)
    assert worst(differences_of(ours, reference, batch=2)) < (1e-5, "")


@pytest.mark.parametrize(("side", "width"), [(14, 768), (14, 512), (16, 1280), (4, 48)])
def test_positions_equal_those_of_transformers(side, width):
    from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings

    config = transformers.ViTMAEConfig(hidden_size=width, num_attention_heads=4, image_size=2 * side, patch_size=2)
    embeddings = ViTMAEEmbeddings(config)  # in 5.23 the whole model leaves them at zero
    embeddings.initialize_weights()
    true = embeddings.position_embeddings[0]
    assert torch.equal(true[0], torch.zeros(width))
    assert (sincos_2d((side, side), width) - true[1:]).abs().max() < 1e-6
