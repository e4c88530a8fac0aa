"""Images of extreme shapes keep the resolution that training needs: compared with torchvision on the original."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from unveil.data.augment import Augment, AugmentConfig, eval_images
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.images import read_image
from unveil.data.pixels import LONGEST, fit_size, shrink_class_map
from unveil.data.sources import open_source
from unveil.data.splits import Subset
from unveil.runs.open_data import stored_side
from unveil.runs.skipped_files import SkippedFiles
from unveil.train.parallel import World

ZERO, ONE = (0.0,) * 3, (1.0,) * 3


def texture(height: int, width: int) -> np.ndarray:
    """Fine detail everywhere, which a loss of resolution would blur."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def gradient(images: torch.Tensor) -> float:
    """The mean absolute difference of neighbouring pixels."""
    return float(images.diff(dim=-1).abs().mean() + images.diff(dim=-2).abs().mean()) / 2


@pytest.fixture(scope="module", params=[(600, 3000), (3000, 600), (700, 700), (600, 1800), (600, 1200)])
def original(request: pytest.FixtureRequest) -> np.ndarray:
    return texture(*request.param)


def folder_of(image: np.ndarray, folder: Path, count: int = 1) -> str:
    for i in range(count):
        Image.fromarray(image).save(folder / f"{i}.png")
    return str(folder)


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_evaluation_sees_what_torchvision_sees_of_the_original(original: np.ndarray, memory: int, tmp_path: Path) -> None:
    dataset = ImageDataset(open_source(folder_of(original, tmp_path)), side=stored_side((224, 224)), memory=memory)
    batch = dataset.readable(torch.arange(1))
    ours = eval_images(batch, (224, 224), ZERO, ONE)[0]
    reference = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224), v2.ToImage()])
    theirs = reference(Image.fromarray(original)).float() / 255
    assert float((ours - theirs).abs().mean()) < 0.004
    assert gradient(ours) == pytest.approx(gradient(theirs), rel=0.02)  # 1:5 had 59 % of it


def test_random_crops_are_as_sharp_as_torchvisions_of_the_original(original: np.ndarray, tmp_path: Path) -> None:
    """The original at a short side of 256 px, as any photograph is stored. Most crops of a panorama have its full height."""
    torch.manual_seed(0)
    dataset = ImageDataset(open_source(folder_of(original, tmp_path)), side=stored_side((224, 224)))
    batch = dataset.readable(torch.zeros(48, dtype=torch.int64), torch.arange(48))
    ours = Augment(AugmentConfig(flip=False), (224, 224), ZERO, ONE)(batch).images
    crop = v2.RandomResizedCrop(224, (0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    whole = v2.Resize(256, v2.InterpolationMode.BICUBIC)(Image.fromarray(original))  # as any photograph is stored
    theirs = torch.stack([v2.functional.to_image(crop(whole)) for _ in range(48)]).float() / 255
    assert gradient(ours) == pytest.approx(gradient(theirs), rel=0.1)


@pytest.mark.parametrize(("height", "width"), [(600, 3000), (3000, 600), (64, 4000), (4001, 64), (300, 1600), (1, 9000)])
def test_the_short_side_stays_and_only_the_ends_of_long_images_are_cut(height: int, width: int) -> None:
    values = np.arange(height * width, dtype=np.uint32).reshape(height, width)
    image = np.stack([values % 251, values // 251 % 251, values // 63001], axis=2).astype(np.uint8)
    found = read_image(image, shrink_to=100)
    short, long = sorted(found.shape[:2])
    assert short == min(100, height, width)
    new = fit_size(height, width, 100)
    assert max(new) == round(max(height, width) * min(1, 100 / min(height, width)))
    assert long == (max(new) if max(new) <= LONGEST * 100 else LONGEST * 100 - (max(new) - LONGEST * 100) % 2)
    if min(height, width) <= 100:  # it was not resized: the middle of the original
        top, left = (height - found.shape[0]) // 2, (width - found.shape[1]) // 2
        assert np.array_equal(found, image[top : top + found.shape[0], left : left + found.shape[1]])
    assert shrink_class_map(values.astype(np.uint8), 100).shape == found.shape[:2]
    assert read_image(image).shape == image.shape


def test_the_centre_crop_of_a_cut_image_is_that_of_the_whole() -> None:
    for width in range(1995, 2005):
        whole = texture(60, width)
        cut = read_image(whole, shrink_to=120)
        assert cut.shape[1] in (480, 479)
        for size in (60, 59, 52):
            of_whole, of_cut = (image[:, (image.shape[1] - size) // 2 :][:, :size] for image in (whole, cut))
            assert np.array_equal(of_whole, of_cut)


@pytest.mark.parametrize(
    ("image_size", "height", "width"),
    [((64, 448), 200, 1400), ((128, 1024), 128, 3000), ((448, 64), 1400, 200), ((64, 448), 900, 300)],
)
def test_models_of_wide_or_tall_images_get_the_pixels_they_need(image_size: tuple[int, int], height: int, width: int) -> None:
    found = read_image(texture(height, width), shrink_to=stored_side(image_size))
    # The largest crop of the model's shape must have its resolution, as far as the original has it.
    scale = min(found.shape[0] / image_size[0], found.shape[1] / image_size[1])
    assert scale >= min(1.0, height / image_size[0], width / image_size[1]) - 0.01


@pytest.mark.parametrize("memory", [MEMORY, 0])
def test_the_user_is_told_what_is_cut(memory: int, tmp_path: Path) -> None:
    for i, width in enumerate((60, 90, 250, 230)):
        Image.fromarray(texture(60, width)).save(tmp_path / f"{i}.png")
    for side, expected in ((60, 1), (20, 1), (100, 0)):
        dataset = ImageDataset(open_source(str(tmp_path)), side=side, memory=memory)
        said: list[str] = []
        subset = Subset(dataset, torch.arange(4))
        SkippedFiles(subset, subset, None, World(torch.device("cpu")), said.append)
        where = "" if memory else " in a sample"
        assert said == [f"1 image{where} is at least 4 times as long as wide: only the middle of such images is used"] * expected


def test_a_batch_with_panoramas_is_bounded() -> None:
    shapes = [(100, 100 * 50), (100 * 50, 100), (100, 150)]
    stream = [io.BytesIO() for _ in shapes]
    for each, shape in zip(stream, shapes, strict=True):
        Image.fromarray(texture(*shape)).save(each, "PNG")
    sizes = [read_image(each.getvalue(), shrink_to=100).shape for each in stream]
    assert sizes == [(100, 400, 3), (400, 100, 3), (100, 150, 3)]
