"""MAE, recomputed one image and one patch at a time."""

import pytest
import torch
from torch import Tensor

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.vit_config import ViTConfig

VIT = ViTConfig(width=24, depth=2, heads=3, image_size=(8, 12), patch_size=(2, 3), channels=5, mean=(0.5,) * 5, std=(0.25,) * 5)
N, DECODER = 16, {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}


def build(vit: ViTConfig = VIT, **options: object) -> MAE:
    torch.manual_seed(0)
    mae = MAE.build(vit, MAEConfig(**{**DECODER, **options}), AugmentConfig())
    with torch.no_grad():
        for name, parameter in mae.named_parameters():
            if not name.endswith("positions"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return mae


def raw(count: int = 3) -> Tensor:
    return torch.randn(count, 5, 8, 12, generator=torch.Generator().manual_seed(1)) + 0.3


def batch(images: Tensor, first: int = 0) -> Batch:
    return Batch(images, torch.tensor([[8, 12]] * len(images)), sample_keys(0, first, len(images)))


def patch_of(image: Tensor, n: int) -> Tensor:
    """The values of patch n in the order (row, column, channel)."""
    top, left = n // 4 * 2, n % 4 * 3
    return torch.stack([image[c, top + i, left + j] for i in range(2) for j in range(3) for c in range(5)])


def predict_slowly(mae: MAE, image: Tensor, keep: list[int]) -> list[Tensor]:
    """What is predicted for each patch of one image of which the patches `keep` are seen."""
    vit, instead = mae.encoder, mae.config.mask_tokens_in_encoder
    tokens = [vit.class_token + vit.positions[0]]
    for n in range(N) if instead else keep:
        embedded = vit.embed.weight @ patch_of(image, n) + vit.embed.bias
        tokens.append((embedded if n in keep else mae.mask_token) + vit.positions[1 + n])
    x = torch.stack(tokens)[None]
    for block in vit.transformer.blocks:
        x = block(x)
    x = mae.decoder_embed(vit.transformer.norm(x))[0]
    places = list(range(N)) if instead else keep
    tokens = [x[0] + mae.decoder_positions[0]]
    for n in range(N):
        token = x[1 + places.index(n)] if n in places else mae.mask_token
        tokens.append(token + mae.decoder_positions[1 + n])
    x = torch.stack(tokens)[None]
    for block in mae.decoder.blocks:
        x = block(x)
    x = mae.decoder.norm(x)[0]
    return [mae.head.weight @ x[1 + n] + mae.head.bias for n in range(N)]


def target_slowly(mae: MAE, image: Tensor, n: int) -> Tensor:
    patch = patch_of(image, n)
    if mae.config.target != "normalised":
        return patch
    mean = sum(patch) / len(patch)
    variance = sum((value - mean) ** 2 for value in patch) / (len(patch) - 1)
    return (patch - mean) / (variance + 1e-6) ** 0.5


def loss_slowly(mae: MAE, images: Tensor, hidden: Tensor) -> Tensor:
    errors = []
    for image, gone in zip(images, hidden.tolist(), strict=True):
        predicted = predict_slowly(mae, image, [n for n in range(N) if not gone[n]])
        for n in range(N):
            if gone[n] or mae.config.loss_on_all:
                errors.extend((predicted[n] - target_slowly(mae, image, n)) ** 2)
    return sum(errors) / len(errors)


def hidden_of(mae: MAE, keys: Tensor) -> Tensor:
    keep, hide = mae.mask(keys)
    rows = []
    for b in range(len(keys)):
        assert sorted(keep[b].tolist() + hide[b].tolist()) == list(range(N))
        rows.append([n in hide[b].tolist() for n in range(N)])
    return torch.tensor(rows)


@pytest.mark.parametrize("target", ["normalised", "pixel"])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_the_loss_one_image_and_one_patch_at_a_time(target, everywhere, tokens):
    mae = build(target=target, loss_on_all=everywhere, mask_tokens_in_encoder=tokens)
    images, given = raw(), batch(raw())
    hidden = hidden_of(mae, given.keys)
    assert hidden.sum(dim=1).tolist() == [12, 12, 12]
    assert len({tuple(row) for row in hidden.tolist()}) == 3
    loss = mae(given).loss
    expected = loss_slowly(mae, images, hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mae.loss(images, hidden), expected, rtol=1e-5, atol=1e-6)
    trained = {name: p for name, p in mae.named_parameters() if p.requires_grad}
    assert set(dict(mae.named_parameters())) - set(trained) == {"encoder.positions", "decoder_positions"}
    ours, slow = (torch.autograd.grad(x, list(trained.values())) for x in (loss, expected))
    for name, a, b in zip(trained, ours, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
        assert b.any(), name


def test_pca_target_compares_coefficients():
    mae = build(target="pca")
    images = raw(20)
    mae.prepare(batch(images))
    assert mae.head.out_features == 30
    hidden = hidden_of(mae, sample_keys(0, 0, 2))
    errors = []
    for image, gone in zip(images[:2], hidden.tolist(), strict=True):
        predicted = predict_slowly(mae, image, [n for n in range(N) if not gone[n]])
        for n in range(N):
            if gone[n]:
                errors.extend((predicted[n] - (patch_of(image, n) - mae.target.centre) @ mae.target.axes) ** 2)
    torch.testing.assert_close(mae.loss(images[:2], hidden), sum(errors) / len(errors), rtol=1e-4, atol=1e-5)


def test_hidden_patches_never_reach_the_encoder():
    mae, images = build(), raw()
    keep, hide = mae.mask(sample_keys(0, 0, 3))
    expected = mae.predict_patches(images, keep, hide)
    poisoned = images.clone()
    for b in range(3):
        for n in hide[b].tolist():
            top, left = n // 4 * 2, n % 4 * 3
            poisoned[b, :, top : top + 2, left : left + 3] = float("nan")
    assert torch.equal(mae.predict_patches(poisoned, keep, hide), expected)
    assert mae.masked_loss(poisoned, keep, hide).isnan()  # they are what is compared with


@pytest.mark.parametrize("target", ["normalised", "pixel"])
def test_reconstruct(target):
    mae, images = build(target=target), raw()
    hidden = hidden_of(mae, sample_keys(3, 0, 3))
    found = mae.reconstruct(images, hidden)
    assert torch.equal(found.hidden, hidden)
    for b in range(3):
        predicted = predict_slowly(mae, images[b], [n for n in range(N) if not hidden[b, n]])
        for n in range(N):
            true = patch_of(images[b], n)
            pixels = predicted[n] if target == "pixel" else predicted[n] * (true.var() + 1e-6).sqrt() + true.mean()
            torch.testing.assert_close(patch_of(found.pixels[b], n), pixels, rtol=1e-4, atol=1e-5)
            gone = bool(hidden[b, n])
            assert torch.equal(patch_of(found.masked[b], n), torch.zeros_like(true) if gone else true)
            assert torch.equal(patch_of(found.pasted[b], n), patch_of(found.pixels[b], n) if gone else true)
    assert not found.pixels.requires_grad


def test_held_out():
    mae, images = build(), raw()
    given = batch(images)
    hidden = hidden_of(mae, given.keys)
    rebuilt, errors = mae.reconstruct(images, hidden).pixels, {"held_out": [], "patch_mean": [], "image_mean": []}
    for b in range(3):
        seen = [patch_of(images[b], n).reshape(6, 5) for n in range(N) if not hidden[b, n]]
        image_mean = torch.cat(seen).mean(dim=0)
        for n in range(N):
            if hidden[b, n]:
                true = patch_of(images[b], n).reshape(6, 5)
                errors["held_out"] += (true - patch_of(rebuilt[b], n).reshape(6, 5)).square().flatten().tolist()
                errors["patch_mean"] += (true - true.mean(dim=0)).square().flatten().tolist()
                errors["image_mean"] += (true - image_mean).square().flatten().tolist()
    assert mae.validation_metrics(given) == pytest.approx({f"{k}_error": sum(v) / len(v) for k, v in errors.items()}, rel=1e-4)
