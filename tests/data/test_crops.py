"""Random crops of the original: the boxes and pixels of the slow way, in memory and on demand."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

import unveil
from tests.recipes.test_unreadable_images import TINY, lose_from, same_weights
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import Augment, AugmentConfig, eval_draw, eval_images, random_resized_boxes
from unveil.data.batch import Batch, Cropped
from unveil.data.dataset import MEMORY, ImageDataset
from unveil.data.loader import ImageLoader
from unveil.data.pixels import CropSide
from unveil.data.source import Source
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError
from unveil.methods import METHODS, method_class
from unveil.models.vit_config import ViTConfig
from unveil.runs.open_data import stored_side

pytestmark = pytest.mark.usefixtures("without_reports")

ZERO, ONE = (0.0,) * 3, (1.0,) * 3
SIZE = (64, 80)
HALF = (0.5,) * 3


def photograph(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth shapes and a few edges (H, W, 3) uint8, far from black and white: Pillow clips what overshoots between its passes."""
    chance = np.random.default_rng(seed)
    detail = max(12, height // 20)
    small = chance.integers(0, 256, (height // detail, width // detail, 3), dtype=np.uint8)
    image = np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    image[height // 3 : height // 2, width // 4 : width // 2] //= 2
    return image // 2 + 50


def jpeg(image: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", **options)
    return stream.getvalue()


def source_of(files: list[Any]) -> Source:
    labels = np.arange(len(files), dtype=np.int64)
    return Source("made", [f"{i}.jpg" for i in range(len(files))], labels, [str(i) for i in labels], "0", files.__getitem__)


def kept(config: AugmentConfig, files: list[Any], memory: int, size: tuple[int, int] = SIZE) -> ImageDataset:
    return ImageDataset(source_of(files), side=stored_side(size, config), channels=3, memory=memory)


def no_candidates(row: int) -> Any:
    return iter(())


def slow_crop(raw: bytes, box: list[float], stored: list[int], size: tuple[int, int], flip: bool) -> np.ndarray:
    """Pillow's crop of the file at full size, with the box scaled from the size at which the image is kept."""
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    down, across = image.height / stored[0], image.width / stored[1]
    top, left, height, width = box
    edges = [left * across, top * down, (left + width) * across, (top + height) * down]
    x, y = math.floor(edges[0]), math.floor(edges[1])
    crop = image.crop((x, y, math.ceil(edges[2]), math.ceil(edges[3])))  # the filter must not see more than this
    within = (edges[0] - x, edges[1] - y, edges[2] - x, edges[3] - y)
    found = np.asarray(crop.resize(size[::-1], Image.Resampling.BICUBIC, box=within))
    return found[:, ::-1] if flip else found


@pytest.mark.parametrize("memory", [MEMORY, 0])
@pytest.mark.parametrize("crop", ["resized", "clipped"])
def test_crops_are_those_of_the_files(memory: int, crop: Any) -> None:
    """Photographs that are kept as they are, and ones that are shrunk: by the decoder (900 to 450), and then by a filter."""
    shapes = [(150, 200), (200, 150), (170, 170), (900, 1200), (64, 500)]
    files = [jpeg(photograph(*shape, i), quality=92) for i, shape in enumerate(shapes)]
    augment = Augment(AugmentConfig(crop=crop), SIZE, ZERO, ONE)
    dataset = kept(augment.config, files, memory)
    indices = torch.arange(len(files)).repeat(8)
    keys = sample_keys(3, 0, len(indices))
    whole = dataset.samples(indices, keys, no_candidates)
    batch = dataset.samples(indices, keys, no_candidates, augment.draw_early)
    assert isinstance(batch, Cropped)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (len(indices), 3, *SIZE)
    assert batch.sizes.tolist() == [list(SIZE)] * len(indices)
    geometry = augment.draw(whole.sizes, keys)
    for row, index in enumerate(indices.tolist()):
        assert whole.sizes[row].tolist() == list(shapes[index]) or index == 3
        true = slow_crop(files[index], geometry.boxes[row].tolist(), whole.sizes[row].tolist(), SIZE, bool(geometry.flip[row]))
        apart = np.abs(batch.images[row].permute(1, 2, 0).numpy().astype(int) - true)
        assert apart.max() <= (10 if index == 3 else 2)  # only one of them is resized twice
        assert (apart <= 2).mean() > 0.98
    # the plain way: the same boxes on canvases of whole images
    slow, fast = augment(whole), augment(batch)
    assert torch.equal(slow.images, fast.images)
    assert torch.equal(slow.targets.labels, fast.targets.labels)


@pytest.mark.parametrize("repeats", [1, 2])
def test_in_memory_equals_on_demand(repeats: int) -> None:
    for shapes in ([(150, 200)] * 9, [(150 + 9 * i, 190) for i in range(9)]):
        files: list[Any] = [jpeg(photograph(*shape, i)) for i, shape in enumerate(shapes)]
        files[4] = b"junk"
        augment = Augment(AugmentConfig(), SIZE, HALF, HALF)
        a, b = (
            ImageLoader(kept(augment.config, files, memory), batch_size=8, seed=1, repeats=repeats, draw=augment.draw_early)
            for memory in (MEMORY, 0)
        )
        for step in range(4):
            whole, parts = a.share(step, 0, 1), [b.share(step, share, 2) for share in range(2)]
            assert isinstance(whole, Cropped)
            for name in ("images", "sizes", "keys"):
                assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
            assert torch.equal(whole.targets.labels, torch.cat([part.targets.labels for part in parts]))


def test_batches_keep_their_kind() -> None:
    batch = Cropped(
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.full((4, 2), 8), torch.arange(4), ClassTargets(torch.arange(4))
    )
    cpu = torch.device("cpu")
    assert all(isinstance(x, Cropped) for x in (batch.to(cpu), batch.first(2), batch.rows(1, 3), *batch.chunks(2)))


def test_what_is_kept_is_enough_for_any_crop() -> None:
    assert stored_side((224, 224)) == 256
    assert stored_side((224, 224), AugmentConfig()) == CropSide(579, 579)
    for config in (AugmentConfig(crop="none"), AugmentConfig(crop="fixed"), AugmentConfig(crop_from="shrunk")):
        assert stored_side((224, 224), config) == 256
        assert Augment(config, (224, 224), ZERO, ONE).draw_early is None
    assert stored_side((64, 448), AugmentConfig(crop_scale=1.0, crop_from="shrunk")) == (74, 512)
    assert stored_side((224, 224), AugmentConfig(crop_scale=1.0)) == CropSide(259, 259)
    keys = sample_keys(0, 0, 100_000)
    for size in ((224, 224), (64, 448)):
        for scale in (0.08, 0.2, 0.9):
            side = stored_side(size, AugmentConfig(crop_scale=scale))
            assert isinstance(side, CropSide)
            boxes = random_resized_boxes(torch.tensor([side]).float().expand(len(keys), 2), keys, scale, size)
            least = boxes[:, 2:].amin(dim=0)
            assert (least >= torch.tensor(size) - 1).all()  # boxes are whole pixels
            assert (least <= torch.tensor(size) * 1.05).all() or scale == 0.9  # and no more than that is kept


def test_the_share_of_enlarged_crops_is_that_of_torchvision() -> None:
    """Of photographs of 500 x 375, 12 % of the crops have fewer pixels than a model of 224 px; shrunk to 256 px, 66 % had."""
    files = [jpeg(photograph(375, 500, 0))]
    keys, shares = sample_keys(0, 0, 20_000), []
    for config in (AugmentConfig(), AugmentConfig(crop_from="shrunk")):
        height, width = kept(config, files, MEMORY, (224, 224)).sample_sizes[0]
        boxes = random_resized_boxes(torch.tensor([[height, width]]).float().expand(len(keys), 2), keys, 0.2, (224, 224))
        shares.append(float((boxes[:, 2] * boxes[:, 3] < 224**2).float().mean()))
    torch.manual_seed(0)
    original = torch.empty(3, 375, 500)
    theirs = [RandomResizedCrop.get_params(original, [0.2, 1.0], [3 / 4, 4 / 3])[2:] for _ in range(5_000)]
    assert shares[0] == pytest.approx(np.mean([height * width < 224**2 for height, width in theirs]), abs=0.015)
    assert shares == pytest.approx([0.121, 0.664], abs=0.01)


def test_evaluations_are_the_same_without_a_canvas() -> None:
    files = [jpeg(photograph(150 + 30 * i, 200, i)) for i in range(5)]
    for memory in (MEMORY, 0):
        dataset = kept(AugmentConfig(), files, memory)
        for crop_pct in (0.875, 1.0):
            whole, cut = (dataset.readable(torch.arange(5), draw=draw) for draw in (None, eval_draw(SIZE, crop_pct)))
            assert isinstance(cut, Cropped)
            assert torch.equal(eval_images(whole, SIZE, HALF, HALF, crop_pct), eval_images(cut, SIZE, HALF, HALF, crop_pct))
        assert eval_draw((32, 64)) is None
    plain = ImageDataset(source_of(files), side=100)
    assert not isinstance(plain.readable(torch.arange(5), draw=eval_draw(SIZE)), Cropped)  # as earlier versions computed


def test_deep_and_small_images_are_cropped_on_the_device() -> None:
    deep = [(photograph(100, 120, i).astype(np.uint16) * 257) for i in range(3)]
    augment = Augment(AugmentConfig(), SIZE, HALF, HALF)
    batch = kept(augment.config, deep, MEMORY).samples(torch.arange(3), torch.arange(3), no_candidates, augment.draw_early)
    assert not isinstance(batch, Cropped)
    assert batch.images.dtype == torch.uint16
    assert Augment(AugmentConfig(), (32, 32), HALF, HALF).draw_early is None


@pytest.mark.parametrize("kind", ["jitter", "supervised", "compiled"])
def test_the_rest_of_the_augmentation_follows(kind: str) -> None:
    files = [jpeg(photograph(150 + 10 * i, 200, i)) for i in range(4)]
    config = AugmentConfig(color_jitter=0.4 if kind == "jitter" else 0.0)
    augment: Any = Augment(config, SIZE, HALF, HALF)
    if kind == "supervised":
        augment = SupervisedAugment(RegularisationConfig(mixup=0, cutmix=0, erasing=0), config, 4, SIZE, HALF, HALF)
    dataset, keys = kept(config, files, MEMORY), sample_keys(0, 0, 4)
    whole, cut = (dataset.samples(torch.arange(4), keys, no_candidates, draw) for draw in (None, augment.draw_early))
    assert isinstance(cut, Cropped)
    function: Callable[[Batch], Batch] = torch.compile(augment, backend="eager") if kind == "compiled" else augment
    assert torch.equal(function(whole).images, function(cut).images)


def test_normalising_does_not_change_its_input() -> None:
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    unveil.normalise(images)
    assert torch.equal(images, before)


def test_a_method_with_an_augment_of_its_own_gets_whole_images() -> None:
    vit = ViTConfig(width=24, depth=1, heads=1, image_size=(64, 64), patch_size=(16, 16))
    found = {}
    for name in METHODS.names:
        kind = method_class(name)
        if kind.modality == "images" and name != "beit":  # which wants a tokenizer
            options = {**kind.DEFAULTS, "crop": "resized"}
            augment = AugmentConfig(**{key: value for key, value in options.items() if key in AugmentConfig.__dataclass_fields__})
            learner = kind.build(vit, kind.Config(), augment)
            learner.set_classes(["a", "b"])
            found[name] = learner.draw_early is not None
    assert found["mae"]
    assert found["simmim"]
    assert not found["dino"]
    assert not found["mocov3"]

    class Own(method_class("mae")):
        def augment(self, batch: Any) -> Tensor:
            return batch.images

    assert Own.build(vit, Own.Config(), AugmentConfig()).draw_early is None


def test_a_run_gives_the_same_in_memory_and_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With crops that the loader cuts, from files of which some are shrunk, turned, or unreadable."""
    images = tmp_path / "images"
    images.mkdir()
    for i in range(24):
        exif = Image.Exif()
        exif[274] = 6 if i % 3 == 0 else 1
        image = Image.fromarray(photograph(90 + 40 * (i % 4), 300 if i % 5 else 110, i))
        image.save(images / f"{i:02d}.jpg", exif=exif, quality=90)
    (images / "07.jpg").write_bytes((images / "07.jpg").read_bytes()[:500])
    options = TINY | {"image_size": (64,), "patch_size": (16,), "repeats": 2}
    for limit in (MEMORY, 0):
        monkeypatch.setitem(ImageDataset.__init__.__kwdefaults__, "memory", limit)
        run = unveil.pretrain(str(images), out=tmp_path / f"run{limit}", **options)
        assert run.config["crop_from"] == "original"
    assert same_weights(tmp_path / f"run{MEMORY}", tmp_path / "run0")


def test_a_run_of_an_earlier_version_goes_on_with_the_crops_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(24):
        Image.fromarray(photograph(150, 190, i)).save(images / f"{i:02d}.jpg")
    options = TINY | {"image_size": (64,), "patch_size": (16,)}
    whole = unveil.pretrain(str(images), out=tmp_path / "whole", crop_from="shrunk", **options)
    new = unveil.pretrain(str(images), out=tmp_path / "new", **options)
    assert not same_weights(whole.path, new.path)

    def stop() -> None:
        raise UnveilError("stopped by the test")

    with monkeypatch.context() as patch:
        lose_from(5, stop, patch)
        patch.setitem(ImageDataset.__init__.__kwdefaults__, "memory", 0)  # prefetched, so that step 5 is saved
        with pytest.raises(UnveilError, match="stopped by the test"):
            unveil.pretrain(str(images), out=tmp_path / "run", crop_from="shrunk", **options)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    del facts["config"]["crop_from"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts | {"format": 3, "checksum": None}))
    resumed = unveil.pretrain(str(images), out=tmp_path / "run", **options)
    assert resumed.config["crop_from"] == "shrunk"
    assert same_weights(whole.path, resumed.path)
