import dataclasses

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tests.reports.conftest import make_mae
from unveil.errors import UnveilError
from unveil.learner import Learner, Step
from unveil.reports.image_grid import channel_note, shorten_name, to_rgb
from unveil.reports.reconstruct import NORMALISED_NOTE, VISIBLE_NOTE, masks_to_show, reconstruction_figure, suitable_ratios
from unveil.reports.style import MASK_GREY


def texts(drawn: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in drawn.texts).split())


def raw(drawn: Figure) -> list[np.ndarray]:
    return [np.asarray(image.get_array()) for image in drawn.axes[0].images]


def test_the_figure_has_a_row_for_each_image_and_three_columns_for_each_ratio():
    drawn = reconstruction_figure(make_mae(), torch.randn(2, 3, 16, 16), names=["first.png", "second.png"])
    text = texts(drawn)
    assert len(raw(drawn)) == 2 * (1 + 3 * 3)
    for heading in ("50 % masked", "75 % masked, as in training", "94 % masked", "first.png", "second.png"):
        assert heading in text
    assert [each.get_text() for each in drawn.texts].count("masked") == 3
    sizes = {tuple(np.round(np.diff(np.reshape(image.get_extent(), (2, 2)))[:, 0], 6)) for image in drawn.axes[0].images}
    assert len(sizes) == 1


@pytest.mark.parametrize(("target", "borrows"), [("normalised", True), ("pixel", False), ("pca", False)])
def test_a_normalised_target_says_what_it_borrows(target: str, borrows: bool):
    text = texts(reconstruction_figure(make_mae(target=target), torch.randn(1, 3, 16, 16), ratios=(0.5,)))
    assert (NORMALISED_NOTE in text) == borrows
    assert VISIBLE_NOTE in text


def test_masks_nest_and_follow_the_seed():
    mae = make_mae()
    few, more, most = (masks_to_show(mae, 4, ratio, seed=3) for ratio in (0.5, 0.75, 0.9))
    assert (few <= more).all()
    assert (more <= most).all()
    assert more.sum(1).tolist() == [12] * 4
    assert torch.equal(more, masks_to_show(mae, 4, 0.75, seed=3))
    assert not torch.equal(more, masks_to_show(mae, 4, 0.75, seed=4))


def test_another_sampling_is_shown_at_its_own_ratio():
    hidden = masks_to_show(make_mae(sampling="grid"), 2, 0.75, seed=0).reshape(2, 4, 4)
    assert not hidden[:, ::2, ::2].any()
    assert hidden.sum() == 24


def test_hidden_patches_are_grey_and_visible_ones_are_pasted():
    mae, images = make_mae(), torch.randn(1, 3, 16, 16)
    drawn = [image[::10, ::10] for image in raw(reconstruction_figure(mae, images, ratios=(0.75,)))]  # enlarged ten times
    original, masked, _, pasted = drawn
    hidden = masks_to_show(mae, 1, 0.75, 0)[0].reshape(4, 4).numpy().repeat(4, 0).repeat(4, 1)
    assert (masked[hidden] == MASK_GREY).all()
    np.testing.assert_allclose(masked[~hidden], original[~hidden])
    np.testing.assert_allclose(pasted[~hidden], original[~hidden])


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_is_shown(channels: int):
    text = texts(reconstruction_figure(make_mae(channels), torch.randn(1, channels, 16, 16), ratios=(0.5,)))
    assert (f"{channels} channels" in text) == (channels in (2, 5)) == bool(channel_note(channels))


def test_colours_are_unnormalised_and_clipped():
    values = torch.tensor([-10.0, 0.0, 1.0, 10.0]).reshape(1, 1, 2, 2)
    shown = to_rgb(values, (0.4,), (0.2,))
    np.testing.assert_allclose(shown[0, ..., 0], [[0, 0.4], [0.6, 1]], rtol=1e-6)
    assert shown.shape == (1, 2, 2, 3)


def test_a_rectangle_keeps_its_shape():
    drawn = reconstruction_figure(make_mae(size=(8, 16)), torch.randn(1, 3, 8, 16), ratios=(0.5,))
    left, right, bottom, top = drawn.axes[0].images[0].get_extent()
    assert (right - left) / (top - bottom) == pytest.approx(2)
    box = drawn.axes[0].get_window_extent().size / drawn.dpi  # one unit of the axes is an inch
    assert box == pytest.approx([drawn.axes[0].get_xlim()[1], drawn.axes[0].get_ylim()[1]])


def test_ratios_hold_the_trained_one_and_fit_the_image():
    assert suitable_ratios(make_mae(mask_ratio=0.6)) == (0.6, 0.75, 0.9)
    assert suitable_ratios(make_mae(mask_ratio=0.75)) == (0.5, 0.75, 0.9)
    assert suitable_ratios(make_mae(size=(4, 8), mask_ratio=0.5)) == (0.5,)


def test_a_learner_that_reconstructs_nothing_is_refused():
    class Mute(Learner):
        def forward(self, batch: object) -> Step:
            raise NotImplementedError

    with pytest.raises(UnveilError, match="Mute cannot reconstruct images: use a masked autoencoder"):
        reconstruction_figure(Mute(), torch.randn(1, 3, 16, 16))


def test_names_are_shortened_in_the_middle_and_never_read_as_formulas():
    assert shorten_name("a" * 30 + ".png") == "aaaaaaaaaa…aaaaaaa.png"
    assert "\x1b" not in shorten_name("a\x1bb")
    mae = make_mae()
    reconstruction_figure(mae, torch.randn(1, 3, 16, 16), ratios=(0.5,), names=["$\\frac$"]).savefig("/dev/null", format="png")
    assert dataclasses.is_dataclass(mae.config)
