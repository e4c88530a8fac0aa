"""Every task of the table trains, saves, loads and predicts the same, and its targets follow the images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tests.processes import FORKS
from unveil.blocks.stateless_random import sample_keys
from unveil.data.augment import AugmentConfig, eval_geometry
from unveil.data.batch import Batch
from unveil.data.targets import BoxTargets, ClassTargets, MultiLabelTargets, NumberTargets, PixelTargets, Targets
from unveil.interop import model_files
from unveil.interop.load import load
from unveil.learner import Task
from unveil.models.bert import TextConfig, TextEncoder
from unveil.models.seq2seq import Seq2Seq, Seq2SeqConfig
from unveil.models.vit import ViT
from unveil.models.vit_config import ViTConfig
from unveil.tasks import TASKS, task_class, task_defaults
from unveil.text.parallel_corpus import PairLoader
from unveil.text.wordpiece import SPECIAL, TextBatch
from unveil.train.loop import train
from unveil.train.optim import OptimConfig
from unveil.train.parallel import HardwareConfig, World
from unveil.train.recipe import Recipe, TrainConfig

CLASSES = ["ash", "birch", "cedar"]
VIT = ViTConfig(width=24, depth=2, heads=3, image_size=(8, 12), patch_size=(4, 4), mean=(0.5,) * 3, std=(0.25,) * 3)
TEXT = TextConfig(width=24, depth=2, heads=3, vocabulary=(*SPECIAL, *(f"word{i}" for i in range(20))), length=12, dropout=0.0)
SAMPLES, SIZE = 24, 8
OFF = {"drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "randaugment": 0, "erasing": 0.0, "dropout": 0.0}
SMALL = {"channels": 16, "box_convs": 1, "mask_convs": 1, "box_width": 16, "samples": 32, "proposals": 30, "scales": (0.7, 1.4)}
"""Options of the heads of a detector."""
LOADED = [name for name in TASKS.builtin if name != "translation"]
"""Tasks on an encoder; the translator has files of its own, which tests/recipes/test_translate.py covers."""


class Images:
    """A loader of a few labelled images."""

    samples, batch_size, prefetch = SAMPLES, SIZE, False

    def __init__(self, targets: type[Targets]) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randint(0, 3, (SAMPLES, 3, 3, 4), generator=generator, dtype=torch.uint8)
        self.images = (43 + 86 * coarse).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)  # squares, with no symmetry
        self.targets = targets

    def share(self, step: int, share: int, shares: int) -> Batch:
        size = SIZE // shares
        first = step * SIZE + share * size
        indices = torch.arange(first, first + size) % SAMPLES
        maps = (self.images[indices, 0] // 86).long()
        maps[:, -1] = 255
        numbers = self.images[indices, 0].float().mean(dim=(1, 2))
        boxes = torch.tensor([[0.0, 0, 8, 8], [4, 4, 16, 12]]).expand(size, 2, 4)
        masks = torch.zeros(size, 2, 12, 16, dtype=torch.bool)
        masks[:, 0, :8, :8] = masks[:, 1, 4:, 4:] = True
        labels = torch.stack([indices, indices + 1], dim=1) % len(CLASSES)
        nobody = torch.zeros(size, 2, dtype=torch.bool)
        kinds: dict[type[Targets], Targets] = {
            BoxTargets: BoxTargets(boxes, labels, nobody, masks.sum(dim=(2, 3)).float(), masks),
            PixelTargets: PixelTargets(maps),
            ClassTargets: ClassTargets(indices % len(CLASSES)),
            MultiLabelTargets: MultiLabelTargets((numbers[:, None] > torch.tensor([80.0, 86.0, 92.0])).float()),
            NumberTargets: NumberTargets(numbers),
        }
        targets = kinds[self.targets]
        return Batch(self.images[indices], torch.tensor([[12, 16]] * size), sample_keys(0, first, size), targets)


class Texts:
    """A loader of a few labelled texts."""

    samples, batch_size, prefetch = SAMPLES, SIZE, False

    def __init__(self, targets: type[Targets]) -> None:
        self.ids = torch.randint(len(SPECIAL), 25, (SAMPLES, 12), generator=torch.Generator().manual_seed(0))

    def share(self, step: int, share: int, shares: int) -> TextBatch:
        size = SIZE // shares
        first = step * SIZE + share * size
        indices = torch.arange(first, first + size) % SAMPLES
        return TextBatch(self.ids[indices], sample_keys(0, first, size), targets=ClassTargets(indices % len(CLASSES)))


def built(name: str) -> Task:
    """A small task, always with the same weights."""
    torch.manual_seed(0)
    kind = task_class(name)
    fields = kind.Config.__dataclass_fields__
    config = kind.Config(**{key: value for key, value in (OFF | SMALL).items() if key in fields})
    if name == "translation":
        return kind.build(Seq2Seq(Seq2SeqConfig(words=30, width=32, depth=1, heads=2)), config, None, ())
    if kind.modality == "text":
        return kind.build(TextEncoder(TEXT), config, None, CLASSES)
    return kind.build(ViT(VIT), config, AugmentConfig(), CLASSES)


def loader_of(name: str) -> Any:
    if name == "translation":
        rows = [[5 + (i + j) % 20 for j in range(1 + i % 5)] for i in range(SAMPLES)]
        return PairLoader(rows, rows, batch_size=SIZE, seed=0)
    kind = task_class(name)
    return (Texts if kind.modality == "text" else Images)(kind.TargetType)


def evaluation_batch(name: str, step: int = 0) -> Any:
    batch = loader_of(name).share(step, 0, 1)
    if isinstance(batch, Batch) and not task_class(name).whole_images:
        geometry = eval_geometry(batch.sizes, VIT.image_size)
        images = torch.randn(len(batch.images), 3, *VIT.image_size, generator=torch.Generator().manual_seed(step))
        assert batch.targets is not None
        return batch._replace(images=images, targets=batch.targets.transformed(geometry))
    return batch


@pytest.mark.parametrize("name", TASKS.builtin)
def test_it_trains(name: str) -> None:
    task = built(name)
    before = {key: value.clone() for key, value in task.state_dict().items()}
    hardware, world = HardwareConfig(device="cpu", precision="float32"), World(torch.device("cpu"))
    training = TrainConfig(epochs=1.0, batch_size=SIZE, log_every=1, accum_steps=1, num_evals=1)
    train(task, loader_of(name), Recipe(training, OptimConfig(base_lr=0.1), hardware, world))
    moved = {key for key, value in task.state_dict().items() if not torch.equal(value, before[key])}
    assert {key for key, p in task.named_parameters() if p.requires_grad and "head" in key} <= moved
    assert not {key for key, p in task.named_parameters() if not p.requires_grad and not key.startswith("average.")} & moved


@pytest.mark.parametrize("name", LOADED)
def test_it_is_saved_and_predicts_the_same(name: str, tmp_path: Path) -> None:
    task, batch = built(name).eval(), evaluation_batch(name)
    model_files.save(task, tmp_path / "run")
    for path in (tmp_path / "run", tmp_path / "run" / "model.safetensors"):
        again = load(path, say=lambda text: None)
        assert type(again) is type(task)
        assert (list(again.classes), again.config) == (CLASSES, task.config)
        with torch.no_grad():
            assert same(again.predict(batch), task.predict(batch))


def same(first: Any, second: Any) -> bool:
    """Whether two predictions are equal: tensors, or detections."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(*pair) for pair in zip(first, second, strict=True))
    return bool(first == second)


@pytest.mark.parametrize("name", LOADED)
def test_its_metric_is_the_same_for_any_batch_size(name: str) -> None:
    task = built(name).eval()
    batches = [evaluation_batch(name, step) for step in range(3)]
    results = []
    for size in (SIZE, 3):
        metric = task.metric()
        for batch in batches:
            with torch.no_grad():
                predictions = task.predict(batch)
            for start in range(0, SIZE, size):
                some = slice(start, start + size)
                part = type(batch.targets)(*(tensor[some] for tensor in batch.targets))
                metric.update(predictions[some], part)
        results.append(metric.compute())
    assert results[0] == results[1]
    assert isinstance(results[0][metric.primary], float)


@pytest.mark.parametrize("name", [name for name in LOADED if name != "text-classification"])
def test_targets_stay_aligned_with_augmented_images(name: str) -> None:
    task, batch = built(name), loader_of(name).share(0, 0, 1)
    augmented = task.augment(batch)
    assert type(augmented.targets) is task.TargetType
    assert augmented.images.shape[2:] == VIT.image_size
    if isinstance(augmented.targets, PixelTargets):
        # The map is a function of the red channel, so it can be computed again from the augmented image.
        red = (augmented.images[:, 0] * VIT.std[0] + VIT.mean[0]) * 255
        maps = augmented.targets.maps
        known = maps != 255
        assert ((red / 86).long() == maps)[known].float().mean() > 0.9
    elif isinstance(augmented.targets, BoxTargets):
        found, masks = augmented.targets.boxes, augmented.targets.masks
        assert masks is not None
        assert masks.shape[2:] == VIT.image_size
        for box, mask, label in zip(found.flatten(0, 1), masks.flatten(0, 1), augmented.targets.labels.flatten(), strict=True):
            left, top, right, bottom = box.long().tolist()
            assert mask[top:bottom, left:right].all() == mask.any() == (label >= 0)
    elif augmented.targets[0].ndim == batch.targets[0].ndim:  # not mixed
        assert torch.equal(augmented.targets[0], batch.targets[0])


@pytest.mark.parametrize("name", TASKS.builtin)
def test_its_recipe_names_options_that_exist(name: str) -> None:
    kind = task_class(name)
    known = {field for config in (kind.Config, TrainConfig, OptimConfig, AugmentConfig) for field in config.__dataclass_fields__}
    assert set(kind.DEFAULTS) <= known
    assert task_defaults(name) == dict(kind.DEFAULTS)  # as the command line reads it, without importing torch


def trained(name: str, world: World, way: str) -> dict[str, torch.Tensor]:
    """The weights of a small task after an epoch, of which this process has seen its share."""
    task, loader = built(name), loader_of(name)
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0  # the processes would not drop what one does
    training = TrainConfig(epochs=1.0, batch_size=SIZE, log_every=1, accum_steps=1, num_evals=1)
    train(task, loader, Recipe(training, OptimConfig(base_lr=0.1), HardwareConfig(precision="float32", parallel=way), world))
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in task.state_dict().items()}


def on_one_of_two(rank: int, store: str, found: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for way in ("ddp", "fsdp"):
        for name in ("detect", "segment"):
            state = trained(name, World(torch.device("cpu"), rank, 2), way)
            found.put((rank, way, name, {key: value.numpy() for key, value in state.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """A detector looks at the objects of its process alone, so it only has the same weights on both processes."""
    found = FORKS.Queue()
    processes = [FORKS.Process(target=on_one_of_two, args=(rank, str(tmp_path / "store"), found), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    seen = {key: state for *key, state in (found.get(timeout=240) for _ in range(8)) for key in [tuple(key)]}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for way in ("ddp", "fsdp"):
        for name in ("detect", "segment"):
            first, second = (seen[rank, way, name] for rank in range(2))
            assert all(np.array_equal(first[key], second[key]) for key in first)
            assert all(np.isfinite(value).all() for value in first.values())
        for key, value in trained("segment", World(torch.device("cpu")), "ddp").items():
            np.testing.assert_allclose(seen[0, way, "segment"][key], value.numpy(), rtol=1e-3, atol=2e-3, err_msg=key)
    assert any((seen[0, "ddp", "detect"][key] != value.numpy()).any() for key, value in built("detect").state_dict().items())
