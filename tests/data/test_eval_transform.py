"""The preprocessing of evaluations against torchvision and timm."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from unveil.data.augment import eval_images
from unveil.data.batch import Batch
from unveil.data.dataset import ImageDataset
from unveil.data.eval_transform import LARGEST, EvalTransform, crop_pct_for, resize, usual_crop_pct
from unveil.data.sources import open_source

SIZES = [(64, 64), (73, 73), (70, 64), (64, 67), (200, 131), (97, 300), (31, 40), (500, 375), (1, 1), (3, 50), (1000, 33), (85, 64)]


def photo(height, width, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 3 + 2, width // 3 + 2, channels), dtype=np.uint8)
    return resize(coarse, (height, width))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.9])
@pytest.mark.parametrize("image_size", [(64, 64), (48, 80), (33, 33)])
def test_pixels_are_those_of_torchvision(size, crop_pct, image_size):
    transform, pixels = EvalTransform(image_size, crop_pct), photo(*size)
    rows, columns = (int(side / crop_pct) for side in image_size)
    bicubic = InterpolationMode.BICUBIC
    first = Resize(rows, bicubic) if rows == columns else ResizeKeepRatio((rows, columns), interpolation="bicubic")
    wanted = np.asarray(Compose([first, CenterCrop(image_size)])(Image.fromarray(pixels)))
    assert np.array_equal(transform(pixels), wanted)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels(channels):
    pixels = photo(90, 70, channels)
    if channels == 4:
        pixels = pixels.copy()
        pixels[:, :, 3] = 255  # without transparency, colours are not weighted by it
    found = EvalTransform((64, 64), 0.875)(pixels)
    assert found.shape == (64, 64, channels)
    for channel in range(channels):
        alone = EvalTransform((64, 64), 0.875)(np.ascontiguousarray(pixels[:, :, channel : channel + 1]))
        assert np.array_equal(found[:, :, channel : channel + 1], alone)


def test_16_bits_keep_their_steps_and_do_not_wrap_around():
    plain = np.zeros((40, 40, 1), dtype=np.uint16)
    plain[:, 20:] = 65535
    found = EvalTransform((64, 64), 1.0)(plain)
    assert found.dtype == np.uint16
    assert found[:, :20].max() == 0
    assert found[:, -20:].min() == 65535
    fine = (np.arange(64 * 64).reshape(64, 64, 1) * 16).astype(np.uint16)
    assert np.array_equal(EvalTransform((64, 64), 1.0)(fine), fine)


def test_extreme_shapes_take_little_memory():
    thin = photo(2, 60_000, 1)
    transform = EvalTransform((64, 64), 1.0)
    assert 64 * transform.resized(2, 60_000)[1] > LARGEST
    found = transform(thin)
    left = 60_000 // 2 - 40
    near = np.asarray(Image.fromarray(thin[:, left : left + 80, 0]).resize((80 * 32, 64), Image.Resampling.BICUBIC))
    middle = near[:, 40 * 32 - 32 : 40 * 32 + 32]
    assert np.abs(found[:, :, 0].astype(int) - middle).max() <= 1


def test_crop_follows_from_most_images():
    assert crop_pct_for([(64, 64)] * 9, (64, 64)) == 1.0
    assert crop_pct_for([(74, 100)] * 9, (64, 64)) == 0.875
    assert crop_pct_for([(73, 100)] * 9, (64, 64)) == 1.0
    assert crop_pct_for([(64, 64)] * 4 + [(500, 375)] * 5, (64, 64)) == 0.875
    assert crop_pct_for([(500, 50)], (32, 64)) == 1.0
    assert (usual_crop_pct((224, 224)), usual_crop_pct((64, 64))) == (0.875, 1.0)


@pytest.mark.parametrize("memory", [1, 2**30])
def test_datasets_are_prepared_in_memory_and_on_demand(tmp_path, memory):
    for i, size in enumerate(SIZES[:8]):
        Image.fromarray(photo(*size, seed=i)).save(tmp_path / f"{i}.png")
    Image.fromarray(photo(1200, 900, seed=9)).save(tmp_path / "9.jpg", quality=90)  # large enough for the decoder to shrink it
    transform = EvalTransform((64, 64), 0.875)
    dataset = ImageDataset(open_source(tmp_path), side=74, memory=memory, transform=transform)
    batch = dataset.readable(torch.arange(9))
    for i, name in enumerate(dataset.names):
        wanted = transform(np.asarray(Image.open(tmp_path / name).convert("RGB")))
        assert np.array_equal(batch.images[i].permute(1, 2, 0).numpy(), wanted)
    shown = eval_images(Batch(batch.images, batch.sizes, batch.keys, None), (64, 64), (0.0,) * 3, (1.0,) * 3, 1.0)
    torch.testing.assert_close(shown, batch.images / 255)  # nothing is cropped twice


def test_evaluations_of_a_run_see_the_same_at_224_px():
    """They start from images that were shrunk for training, to a short side of 256 px."""
    pixels = photo(500, 375)
    stored = resize(pixels, (341, 256))
    batch = Batch(torch.from_numpy(stored.copy()).permute(2, 0, 1)[None], torch.tensor([[341, 256]]), torch.zeros(1).long(), None)
    found = eval_images(batch, (224, 224), (0.0,) * 3, (1.0,) * 3, 0.875)[0] * 255
    wanted = torch.from_numpy(EvalTransform((224, 224), 0.875)(pixels)).permute(2, 0, 1)
    torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-3)
