import numpy as np
import pytest
import torch
from torch import nn

from tests.reports.conftest import make_mae
from unveil.errors import UnveilError
from unveil.reports import attention
from unveil.reports.curves import draw_curves, running_mean, spread_labels
from unveil.train.run_folder import Run

NAME = "k-NN accuracy on the test set"


def test_every_curve_that_the_log_has_numbers_for(run: Run):
    drawn = {curve.title: curve for curve in draw_curves(run.log)}
    assert list(drawn) == ["Loss", "Learning rate", "Squared error on masked patches of held-out images", NAME]
    error = drawn["Squared error on masked patches of held-out images"]
    assert len(error.figure.axes[0].lines) == 3
    assert "this model 0.121, patch mean 0.242, image mean 0.847" in error.summary
    assert drawn[NAME].summary == "From 10.0 % to 40.0 %, measured during training. The results are those of the last step."
    assert drawn["Loss"].figure.axes[0].get_xlabel() == "epoch"


def test_a_short_or_broken_log_draws_what_it_can():
    assert draw_curves([]) == []
    assert draw_curves([{"step": 1}]) == []
    (loss,) = draw_curves([{"step": 1, "loss": 0.5}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": None}])
    assert loss.figure.axes[0].get_xlabel() == "step"


def test_the_running_mean_is_centred_and_keeps_the_ends():
    assert running_mean([1, 2, 3, 4, 5], 3) == pytest.approx([1.5, 2, 3, 4, 4.5])
    assert running_mean([7.0], 1) == [7]


def test_labels_do_not_touch():
    assert spread_labels([0.5, 0.5, 2.0], 1.0) == [0.5, 1.5, 2.5]


def test_attention_has_a_cell_for_the_image_the_mean_and_each_head():
    drawn = attention.attention_figure(make_mae().encoder, torch.randn(2, 3, 16, 16), names=["one", "two"])
    assert len(drawn.axes[0].images) == 2 * (2 + 3)
    text = "\n".join(text.get_text() for text in drawn.texts)
    assert "head 3" in text
    assert "the maximum of each map" in text


def test_the_mean_map_is_the_mean_of_the_heads():
    mae, images = make_mae(), torch.randn(1, 3, 16, 16)
    expected = mae.encoder.attention(images)[0].mean(0)
    drawn = attention.attention_figure(mae.encoder, images)
    label = next(text.get_text() for text in drawn.texts if "all heads" in text.get_text())
    assert f"{float(expected.max() / expected.mean()):.1f}" in label


def test_large_attention_is_bright():
    weights, image = np.array([[0.0, 1.0]]), np.full((2, 4, 3), 0.5)
    shown = attention.to_colours(weights, image)
    assert shown.shape == (2, 4, 3)
    assert shown[:, 2:].min() > shown[:, :2].max()


def test_an_encoder_without_a_class_token_is_refused():
    with pytest.raises(UnveilError, match="Identity has no class token"):
        attention.attention_figure(nn.Identity(), torch.randn(1, 3, 16, 16))
