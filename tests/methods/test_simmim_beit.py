"""SimMIM and BEiT, recomputed one image and one patch at a time."""

import math

import pytest
import torch
from torch import Tensor

from unveil.blocks.masks import as_bool
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.methods.simmim import SimMIM, SimMIMConfig
from unveil.models.vit_config import ViTConfig

VIT = ViTConfig(width=24, depth=2, heads=3, image_size=(8, 12), patch_size=(2, 3), channels=5, mean=(0.5,) * 5, std=(0.25,) * 5)
N = 16


def shaken(learner):
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return learner.eval()


def simmim(**options: object) -> SimMIM:
    torch.manual_seed(0)
    return shaken(SimMIM.build(VIT, SimMIMConfig(**options), AugmentConfig()))


def beit(**options: object) -> BEiT:
    torch.manual_seed(0)
    return shaken(BEiT.build(VIT, BEiTConfig(**{"codebook_size": 7, **options}), AugmentConfig()))


def raw(count: int = 3) -> Tensor:
    return torch.randn(count, 5, 8, 12, generator=torch.Generator().manual_seed(1)) + 0.3


def batch(images: Tensor, first: int = 0) -> Batch:
    return Batch(images, torch.tensor([[8, 12]] * len(images)), sample_keys(0, first, len(images)))


def patch_of(image: Tensor, n: int) -> Tensor:
    """The values of patch n in the order (row, column, channel)."""
    top, left = n // 4 * 2, n % 4 * 3
    return torch.stack([image[c, top + i, left + j] for i in range(2) for j in range(3) for c in range(5)])


def attend_slowly(block, x: Tensor, table: Tensor | None) -> Tensor:
    """Self-attention of one image's tokens (T, D), a score at a time, with a bias by offset looked up by hand."""
    attention, heads = block.attention, block.attention.heads
    each = x.shape[1] // heads
    query, key, value = (block.attention.query_key_value(block.norm1(x))).chunk(3, dim=1)
    rows = []
    for t in range(len(x)):
        parts = []
        for h in range(heads):
            part = slice(h * each, (h + 1) * each)
            scores = []
            for s in range(len(x)):
                score = query[t, part] @ key[s, part] / math.sqrt(each)
                if table is not None:
                    score = score + table[offset(t, s), h]
                scores.append(score)
            weights = torch.stack(scores).softmax(dim=0)
            parts.append(sum(w * v for w, v in zip(weights, value[:, part], strict=True)))
        rows.append(torch.cat(parts))
    return attention.out(torch.stack(rows))


def offset(t: int, s: int) -> int:
    """The row of the table for token t looking at token s; the class token is number 0, the grid 4 x 4."""
    if t == 0 or s == 0:
        return 7 * 7 + (2 if t == s else 0 if t == 0 else 1)
    (y, x), (v, u) = divmod(t - 1, 4), divmod(s - 1, 4)
    return (y - v + 3) * 7 + (x - u + 3)


def encode_slowly(learner: SimMIM | BEiT, image: Tensor, hidden: list[int]) -> Tensor:
    """The tokens of one image whose patches `hidden` are mask tokens."""
    vit = learner.encoder
    place = torch.zeros(1 + N, 24) if vit.positions is None else vit.positions
    tokens = [vit.class_token + place[0]]
    for n in range(N):
        embedded = vit.embed.weight @ patch_of(image, n) + vit.embed.bias
        tokens.append((learner.mask_token if n in hidden else embedded) + place[1 + n])
    x = torch.stack(tokens)
    for i, block in enumerate(vit.transformer.blocks):
        table = vit.relative[i % len(vit.relative)].table if len(vit.relative) else None
        scale1, scale2 = (1.0 if branch.scale is None else branch.scale for branch in (block.branch1, block.branch2))
        x = x + scale1 * attend_slowly(block, x, table)
        x = x + scale2 * block.mlp(block.norm2(x))
    return vit.transformer.norm(x)


@pytest.mark.parametrize("target", ["pixel", "normalised"])
def test_simmim_one_pixel_at_a_time(target):
    learner, images = simmim(target=target), raw()
    keys, differences = batch(images).keys, []
    _, hide = learner.mask(keys)
    for b, image in enumerate(images):
        hidden = hide[b].tolist()
        tokens = encode_slowly(learner, image, hidden)
        for n in hidden:
            predicted = learner.head.weight @ tokens[1 + n] + learner.head.bias
            patch = patch_of(image, n)
            if target == "normalised":
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            differences += [abs(float(a - b)) for a, b in zip(predicted, patch, strict=True)]
    assert float(learner(batch(images)).loss) == pytest.approx(sum(differences) / len(differences), rel=1e-5)


@pytest.mark.parametrize("bias", ["shared", "block", "none"])
def test_beit_one_token_at_a_time(bias):
    learner, images = beit(relative_bias=bias, positions="sincos" if bias == "none" else "none"), raw()
    learner.prepare(batch(images))
    _, hide = learner.mask(batch(images).keys)
    assert hide.shape[1] == 16 - int(16 * 0.6)
    centres, losses = learner.target.tokenizer.centres, []
    for b, image in enumerate(images):
        hidden = hide[b].tolist()
        tokens = encode_slowly(learner, image, hidden)
        for n in hidden:
            patch = patch_of(image, n)
            patch = (patch - patch.mean()) / (patch.var() + 1e-2).sqrt()
            token = min(range(7), key=lambda k: float((patch - centres[k]).square().sum()))
            scores = (learner.head.weight @ tokens[1 + n] + learner.head.bias).tolist()
            losses.append(math.log(sum(math.exp(s) for s in scores)) - scores[token])
    assert float(learner(batch(images)).loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    seen = learner.validation_metrics(batch(images))
    assert seen["held_out_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert 0 <= seen["token_accuracy"] <= 1


def test_what_is_hidden_depends_on_the_key_alone():
    for learner in (simmim(), beit()):
        keys = sample_keys(0, 0, 12)
        whole = as_bool(learner.mask(keys)[1], N)
        assert torch.equal(torch.cat([as_bool(learner.mask(part)[1], N) for part in keys.split(5)]), whole)
        assert len({tuple(row) for row in whole.tolist()}) > 3


def test_simmim_rebuilds_images():
    learner, images = simmim(), raw(2)
    hidden = torch.zeros(2, N, dtype=torch.bool)
    hidden[:, 3:9] = True
    made = learner.reconstruct(images, hidden)
    assert torch.equal(made.hidden, hidden)
    assert torch.equal(made.pasted[:, :, :2, :9], images[:, :, :2, :9])  # patches 0 to 2 are seen
    assert not made.masked[:, :, :2, 9:].any()
    assert torch.equal(made.pasted[:, :, :2, 9:], made.pixels[:, :, :2, 9:])
    assert learner.reconstruct(images).hidden.sum(1).tolist() == [12, 12]  # 3 of 4 squares: what is left is rounded down
    hidden[0, 0] = True
    with pytest.raises(UnveilError, match="the same count in each row"):
        learner.reconstruct(images, hidden)
    error = learner.validation_metrics(batch(images))
    assert set(error) == {"held_out_error", "patch_mean_error", "image_mean_error"}
    borrows = simmim(target="normalised")
    borrows.head.weight.data.zero_()
    borrows.head.bias.data.zero_()
    corner = borrows.reconstruct(images).pixels[:, :, :2, :3].flatten(1)  # patch 0, of which nothing but its mean is known
    torch.testing.assert_close(corner, images[:, :, :2, :3].flatten(1).mean(dim=1, keepdim=True).expand_as(corner))


def test_what_cannot_be_hidden_is_refused():
    with pytest.raises(UnveilError, match="a unit of 5 patches does not fit into 4 x 4 patches: use 1 to 4"):
        simmim(mask_unit=5)
    for build in (simmim, beit):
        with pytest.raises(UnveilError, match="mask ratio 1"):
            build(mask_ratio=1.0)


def test_mae_predicts_the_tokens_of_the_same_tokenizer():
    torch.manual_seed(0)
    mae = MAE.build(VIT, MAEConfig(target="token", codebook_size=7, decoder_width=16, decoder_heads=2), AugmentConfig())
    other = beit()
    for learner in (mae, other):
        learner.prepare(batch(raw()))
    assert torch.equal(mae.target.tokenizer(raw()), other.target.tokenizer(raw()))
    assert mae.head.out_features == 7
    assert set(mae.validation_metrics(batch(raw()))) == {"held_out_loss", "token_accuracy"}
    with pytest.raises(UnveilError, match="cannot reconstruct pixels"):
        mae.reconstruct(raw())


def test_figure_facts():
    assert simmim().figure_facts() == {
        "mask_ratio": 0.6,
        "sampling": None,
        "target": "pixel",
        "loss_on_all": False,
        "uses_true_patch_statistics": False,
    }
    assert simmim(target="normalised").figure_facts()["uses_true_patch_statistics"]
