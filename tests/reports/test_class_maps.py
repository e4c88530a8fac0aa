"""Maps of classes: one colour per class, and white where there is none."""

import numpy as np
import pytest
import torch

from unveil.reports.class_maps import class_colours, class_map_figure, colour_map_image, legend


@pytest.mark.parametrize("count", [1, 3, 21, 150])
def test_every_class_has_its_own_colour(count: int):
    colours = class_colours(count)
    assert colours.shape == (count, 3)
    assert ((colours >= 0) & (colours <= 1)).all()
    assert len({tuple(np.round(255 * colour)) for colour in colours}) == count
    assert np.array_equal(colours, class_colours(count + 5)[:count])  # a class keeps its colour when others are added


def test_pixels_without_a_class_are_white():
    colours = class_colours(2)
    image = colour_map_image(np.array([[0, 1], [255, 2]]), colours)
    assert np.array_equal(image[0], colours)
    assert (image[1] == 1).all()  # the ignored pixel, and a class that does not exist


def test_image_truth_and_prediction_stand_side_by_side():
    colours, true, predicted = class_colours(2), np.zeros((3, 8, 16), int), np.ones((3, 8, 16), int)
    images = torch.zeros(3, 3, 8, 16)
    figure = class_map_figure(images, true, predicted, colours=colours, mean=(0.5,) * 3, std=(1.0,) * 3, names=["a", "b", "c"])
    cells = [np.asarray(image.get_array()) for image in figure.axes[0].images]
    assert len(cells) == 9
    for image, first, second in (cells[:3], cells[3:6], cells[6:]):
        assert (image == 0.5).all()
        assert np.allclose(first, colours[0])
        assert np.allclose(second, colours[1])
    assert [text.get_text() for text in figure.texts if text.get_text() not in "abc"] == ["image", "truth", "prediction"]


def test_the_legend_names_each_class_beside_its_colour():
    markup = legend(["cat", "<dog>", "cow"], np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), {0, 1})
    assert markup.index("#ff0000") < markup.index("cat") < markup.index("#0000ff") < markup.index("&lt;dog&gt;")
    assert "cow" not in markup  # which is not shown
