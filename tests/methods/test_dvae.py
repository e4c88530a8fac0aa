"""The dVAE: its draws, its schedules, its loss the slow way, and its place as a tokenizer."""

import json
import math
import shutil

import pytest
import torch

from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig
from unveil.data.batch import Batch
from unveil.errors import UnveilError
from unveil.interop import model_files as native
from unveil.interop.load import load
from unveil.methods.beit import BEiT, BEiTConfig
from unveil.methods.dvae import DVAE, DVAEConfig
from unveil.methods.mae import MAE, MAEConfig
from unveil.models.dvae import gumbel_softmax
from unveil.models.vit_config import ViTConfig
from unveil.reports.reconstruct import reconstruction_figure

VIT = ViTConfig(width=24, depth=4, heads=3, image_size=(8, 12), patch_size=(2, 3))
N, K = 16, 9


def dvae(vit: ViTConfig = VIT, **options: object) -> DVAE:
    torch.manual_seed(0)
    return DVAE.build(vit, DVAEConfig(**{"codebook_size": K, **options}), AugmentConfig()).eval()


def raw(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 8, 12, generator=torch.Generator().manual_seed(1))


def batch(images: torch.Tensor) -> Batch:
    return Batch(images, torch.tensor([[8, 12]] * len(images)), sample_keys(0, 0, len(images)))


def test_draws_follow_the_scores_and_are_different_in_each_patch():
    learner, scores = dvae(), torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5, 0.0, 0.0, -2.0, 1.5])
    noise = learner.noise(sample_keys(0, 0, 4000), 2)
    assert noise.shape == (4000, 2, K)
    drawn = gumbel_softmax(scores.expand(4000, 2, K), noise, torch.tensor(0.1), True)
    assert torch.equal(drawn.sum(dim=-1), torch.ones(4000, 2))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    for n in range(2):
        torch.testing.assert_close(drawn[:, n].mean(dim=0), scores.softmax(dim=0), rtol=0, atol=0.03)
    agree = float((drawn[:, 0].argmax(dim=1) == drawn[:, 1].argmax(dim=1)).float().mean())
    alike = float(scores.softmax(dim=0).square().sum())  # of two independent draws
    assert alike - 0.03 < agree < alike + 0.1
    part = learner.noise(sample_keys(0, 10, 5), 2)
    assert torch.equal(part, noise[10:15])


def test_straight_through_has_the_gradient_of_the_blend():
    chance = torch.Generator().manual_seed(0)
    scores, noise, weight = (torch.rand(2, 3, K, generator=chance) for _ in range(3))
    gradients = []
    for straight in (False, True):
        x = scores.clone().requires_grad_()
        (gumbel_softmax(x, noise, torch.tensor(0.7), straight) * weight).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])
    blend = gumbel_softmax(scores, noise, torch.tensor(0.7), False)
    by_hand = [(s - math.log(-math.log(u))) / 0.7 for s, u in zip(scores[0, 0].tolist(), noise[0, 0].tolist(), strict=True)]
    shares = [math.exp(x) for x in by_hand]
    assert blend[0, 0].tolist() == pytest.approx([share / sum(shares) for share in shares], rel=1e-4)


def test_the_loss_and_its_schedules():
    learner, given = dvae(kl_weight=0.4, last_kl_weight=0.1, temperature=1.0, last_temperature=0.25), batch(raw())
    for progress, temperature, weight in ((0.0, 1.0, 0.4), (0.5, 0.5, 0.25), (1.0, 0.25, 0.1)):
        learner.after_step(progress)
        scores = learner.encoder.encode(given.images)
        chosen = gumbel_softmax(scores, learner.noise(given.keys, N), torch.tensor(temperature), False)
        error = (learner.encoder.decode(chosen, (8, 12)) - given.images).square().mean().item()
        divergences = []
        for image in scores.softmax(dim=-1):
            together = [sum(row[k].item() for row in image) / N for k in range(K)]
            divergences.append(sum(q * math.log(q * K) for q in together))
        step = learner(given)
        assert step.loss.item() == pytest.approx(error + weight * sum(divergences) / 3, rel=1e-4)
    assert set(step.metrics) == {"rebuilt_error", "divergence", "codebook_usage", "perplexity"}
    assert "progress" in learner.state_dict()  # so that a run that goes on draws the same


def test_it_learns_to_rebuild():
    learner, given = dvae(codebook_size=32, last_kl_weight=0.0).train(), batch(raw(8).repeat_interleave(2, dim=0))
    before = learner.validation_metrics(given)["rebuilt_error"]
    optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
    for step in range(150):
        learner(given).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step((step + 1) / 150)
    assert learner.validation_metrics(given)["rebuilt_error"] < 0.7 * before


def test_codebook_by_the_size_of_images():
    assert dvae(codebook_size=None).config.codebook_size == 512
    with torch.device("meta"):
        photographs = ViTConfig(width=24, depth=4, heads=3, image_size=(224, 224), patch_size=(16, 16))
        large = DVAE.build(photographs, DVAEConfig(), AugmentConfig())
    assert large.config.codebook_size == 8192
    with pytest.raises(UnveilError, match="a codebook of 1 tokens cannot encode anything"):
        dvae(codebook_size=1)


def test_its_reconstructions_are_drawn():
    learner, images = dvae(), raw(2)
    made = learner.reconstruct(images)
    assert not made.hidden.any()
    assert torch.equal(made.pixels, learner.encoder.autoencode(images))
    tokens = learner.encoder(images)
    assert tokens.shape == (2, N)
    one_hot = torch.nn.functional.one_hot(tokens, K).float()
    torch.testing.assert_close(learner.encoder.decode(one_hot, (8, 12)), made.pixels)
    drawn = reconstruction_figure(learner, images)
    assert len(drawn.axes[0].images) == 4  # two images, each as it is and rebuilt


@pytest.mark.parametrize("method", [BEiT, MAE])
def test_a_run_is_a_tokenizer_and_may_go_afterwards(method, tmp_path):
    trained = dvae()
    native.save(trained, tmp_path / "dvae")
    assert not (tmp_path / "dvae" / "encoder.safetensors").exists()
    assert torch.equal(load(tmp_path / "dvae", say=lambda text: None).encoder(raw()), trained.encoder(raw()))
    options = {"target": "token", "decoder_width": 24, "decoder_heads": 3} if method is MAE else {}
    config = {MAE: MAEConfig, BEiT: BEiTConfig}[method](visual_tokenizer=str(tmp_path / "dvae"), **options)
    learner = method.build(VIT, config, AugmentConfig())
    learner.prepare(batch(raw()))
    assert torch.equal(learner.target.tokenizer(raw()), trained.encoder(raw()))
    assert learner.head.out_features == K
    assert not any(p.requires_grad for p in learner.target.parameters())
    native.save(learner, tmp_path / "run")
    shutil.rmtree(tmp_path / "dvae")
    again = load(tmp_path / "run", say=lambda text: None)
    assert torch.equal(again.target.tokenizer(raw()), trained.encoder(raw()))
    assert json.loads(again.config.visual_tokenizer)["codebook"] == K
    with pytest.raises(UnveilError, match="is not the folder of a finished run"):
        method.build(VIT, config, AugmentConfig())


def test_tokens_for_another_grid_and_other_images(tmp_path):
    native.save(dvae(ViTConfig(width=24, depth=4, heads=3, image_size=(8, 8), patch_size=(4, 4))), tmp_path / "dvae")
    config = BEiTConfig(visual_tokenizer=str(tmp_path / "dvae"))
    assert BEiT.build(VIT, config, AugmentConfig()).target.tokenizer(raw()).shape == (3, N)  # seen at 16 x 16
    with pytest.raises(UnveilError, match=r"is for images with mean .*train one on them"):
        BEiT.build(ViTConfig(**{**vars(VIT), "mean": (0.5,) * 3}), config, AugmentConfig())
    native.save(BEiT.build(VIT, BEiTConfig(codebook_size=4), AugmentConfig()), tmp_path / "beit")
    with pytest.raises(UnveilError, match=r"^[^ ]*beit is a run of beit, expected a run of dvae"):
        BEiT.build(VIT, BEiTConfig(visual_tokenizer=str(tmp_path / "beit")), AugmentConfig())
