"""BEiT against transformers: the same weights, the same images, the same masks; in and out."""

import json

import pytest
import torch
from torch.nn import functional as F

from tests.interop.conftest import SHAPE, perturbed
from unveil.blocks.masks import as_bool
from unveil.data.augment import AugmentConfig
from unveil.errors import UnveilError
from unveil.interop import model_files, transformers_beit
from unveil.interop.load import load
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.models.vit_config import ViTConfig
from unveil.recipes.export import export

transformers = pytest.importorskip("transformers")

KINDS = [("shared", "none", 0.1), ("block", "none", 0.1), ("none", "learned", None), ("shared", "learned", 0.3)]


def theirs(bias="shared", positions="none", scale=0.1, **changes):
    config = transformers.BeitConfig(
        **{
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 192,
            "image_size": 32,
            "patch_size": 8,
            "vocab_size": 11,
            "use_mask_token": True,
            "use_shared_relative_position_bias": bias == "shared",
            "use_relative_position_bias": bias == "block",
            "use_absolute_position_embeddings": positions == "learned",
            "layer_scale_init_value": scale or 0.0,
            "drop_path_rate": 0.0,
        }
        | changes
    )
    torch.manual_seed(0)
    return perturbed(transformers.BeitForMaskedImageModeling(config))


@pytest.mark.parametrize("kind", KINDS)
def test_same_scores_and_gradients_as_transformers(kind, tmp_path, images, logged):
    peer = theirs(*kind)
    peer.save_pretrained(tmp_path)
    ours = load(tmp_path, say=logged)
    matched = len(list(peer.parameters()))
    assert logged == [
        f"{tmp_path}: {matched} of {matched} tensors matched (transformers, BeitForMaskedImageModeling, no tokenizer)"
    ]
    assert ours.encoder.config.mean == (0.5,) * 3
    _, hide = ours.mask(torch.arange(2))
    hidden, tokens = as_bool(hide, 16), torch.arange(hide.numel()) % 11
    found = ours.predict_visual_tokens(images, hide)
    wanted = peer(images, bool_masked_pos=hidden).logits
    wanted = torch.stack([row[order] for row, order in zip(wanted, hide, strict=True)])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.detach().abs().max()))
    F.cross_entropy(found.flatten(0, 1), tokens).backward()
    F.cross_entropy(wanted.flatten(0, 1), tokens).backward()
    gradients = {name: p.grad for name, p in peer.named_parameters()}
    for name, entry in transformers_beit.map_of(ours.encoder.config).items():
        gradient = ours.get_parameter(name).grad
        names = [part for part in entry.names if part]
        found = [g for part, g in zip(entry.names, gradient.chunk(len(entry.names)), strict=True) if part]
        for part, piece in zip(names, found, strict=True):
            part = next(n for n in gradients if transformers_beit.version4_names({n: 0}).popitem()[0] == part)
            expected = gradients[part]
            if entry.shape == "convolution":
                piece = piece.reshape(48, 8, 8, 3).permute(0, 3, 1, 2)
            scale = float(expected.abs().max())
            torch.testing.assert_close(piece.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5 * max(scale, 1e-2), msg=part)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_agrees(kind, tmp_path, logged):
    torch.manual_seed(0)
    bias, positions, scale = kind
    config = BEiTConfig(codebook_size=11, relative_bias=bias, positions=positions, layer_scale=scale)
    beit = perturbed(BEiT.build(ViTConfig(**SHAPE), config, AugmentConfig()))
    model_files.save(beit, tmp_path / "run")
    out = export(tmp_path / "run", to="transformers", say=logged)
    assert "transformers agrees" in logged[-1]
    again = load(out, say=logged)
    assert again.config.visual_tokenizer == "absent"
    with pytest.raises(UnveilError, match="loaded without its visual tokenizer"):
        again.target(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, dtype=torch.int64))


def test_what_ours_does_not_do_is_refused(tmp_path):
    theirs().save_pretrained(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    for change, match in (
        ({"use_mean_pooling": False}, "use_mean_pooling False"),
        ({"use_mask_token": False}, "use_mask_token False"),
        ({"use_relative_position_bias": True}, "both shared and per-block relative biases"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(facts | change))
        with pytest.raises(UnveilError, match=match):
            load(tmp_path)
    rectangle = BEiT.build(ViTConfig(**SHAPE | {"image_size": (32, 16)}), BEiTConfig(codebook_size=11), AugmentConfig())
    with pytest.raises(UnveilError, match="only square images"):
        transformers_beit.state_of(rectangle)
