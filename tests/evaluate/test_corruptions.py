"""Corrupted images against calls of the package by hand, their seeds and processes, and the mean corruption error by hand."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from unveil.data.arrays import array_source
from unveil.data.batch import Batch
from unveil.data.dataset import ImageDataset
from unveil.data.eval_transform import EvalTransform
from unveil.data.splits import Subset
from unveil.errors import UnveilError
from unveil.evaluate import corruption_errors as module
from unveil.evaluate.corruption_errors import CorruptionErrors, corruption_errors, corruption_facts, errors_of, relative_to
from unveil.evaluate.corruption_workers import Corrupted, CorruptionWorkers
from unveil.evaluate.corruptions import CORRUPTIONS, SEVERITIES, Pixels, corrupt, corrupted_versions, library, seed_of
from unveil.models.vit_config import ViTConfig
from unveil.reports.chance import accuracy_interval, chance_margin
from unveil.reports.corruption_table import corruption_table
from unveil.train.parallel import HardwareConfig, World

VIT = ViTConfig(width=8, depth=1, heads=1, image_size=(32, 32), patch_size=(8, 8))
EXACT, HERE = HardwareConfig(device="cpu", precision="float32"), World(torch.device("cpu"))


class InThisProcess(CorruptionWorkers):
    """The same without processes, which take seconds to start."""

    def __enter__(self) -> "InThisProcess":
        return self

    def corrupted(self, images: Iterable[tuple[int, Pixels]]) -> Iterator[Corrupted]:
        return (Corrupted(key, image, corrupted_versions(image, self.seed, key)) for key, image in images)


def photo(height: int = 40, width: int = 48, channels: int = 3, seed: int = 0) -> Pixels:
    """A smooth image with a few edges."""
    rows, columns = np.mgrid[:height, :width]
    planes = [
        120 + 60 * np.sin((rows * (c + 1 + seed) + 2 * columns) / 9) + 40 * ((rows // 8 + columns // 8) % 2)
        for c in range(channels)
    ]
    return np.stack(planes, axis=2).clip(0, 255).astype(np.uint8)


def by_hand(image: Pixels, name: str, severity: int, seed: int, key: int) -> Pixels:
    """A call of the package for a colour image of 32 pixels or more."""
    number = int(np.random.SeedSequence((seed, key, CORRUPTIONS.index(name), severity)).generate_state(1)[0])
    np.random.seed(number)
    own = {"seed": number} if name in ("impulse_noise", "glass_blur") else {}
    return np.asarray(library().corrupt(image, severity=severity, corruption_name=name, **own))


def test_the_corruptions_are_those_of_the_package_in_the_order_of_the_paper() -> None:
    assert list(CORRUPTIONS) == library().get_corruption_names("common")
    image = photo()
    found = corrupted_versions(image, seed=3, index=5)
    assert found.shape == (15, 5, 40, 48, 3)
    for row, name in zip(found, CORRUPTIONS, strict=True):
        assert np.array_equal(row[2], by_hand(image, name, 3, 3, 5)), name
        assert not np.array_equal(row[2], image)


@pytest.mark.parametrize("name", ["gaussian_noise", "frost", "motion_blur", "jpeg_compression"])
def test_small_and_grey_images(name: str) -> None:
    """A small image is continued by mirror images, and a grey one has the noise of one channel."""
    grey = photo(9, 40, channels=1)
    mirrored = np.concatenate([grey, grey[::-1], grey, grey[::-1], grey])  # image 2 begins at row 18
    padded = mirrored[18 - 12 : 18 + 9 + 12]
    expected = by_hand(np.repeat(padded, 3, axis=2), name, 4, 0, 1)[12:21, :, 1:2]
    assert np.array_equal(corrupt(grey, name, 4, seed_of(0, 1, name, 4)), expected)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "defocus_blur", "brightness", "contrast", "jpeg_compression"])
def test_a_higher_severity_changes_an_image_more(name: str) -> None:
    image = photo(64, 64)
    changes = [np.abs(corrupt(image, name, severity, 0).astype(float) - image).mean() for severity in SEVERITIES]
    assert changes == sorted(changes)
    assert changes[-1] > 1.3 * changes[0]


@pytest.fixture(scope="module")
def workers() -> Iterator[CorruptionWorkers]:
    with CorruptionWorkers(1, seed=7) as workers:  # one, since the package takes 5 seconds to start
        yield workers


def test_the_same_versions_in_any_order_and_process(workers: CorruptionWorkers) -> None:
    images = {key: photo(32, 32, seed=key) for key in (4, 0, 9)}
    expected = {key: corrupted_versions(image, 7, key) for key, image in images.items()}
    state = np.random.get_state()[1].tolist()
    for keys in ([4, 0, 9], [9, 4, 0]):
        found = list(workers.corrupted((key, images[key]) for key in keys))
        assert [each.key for each in found] == keys
        for each in found:
            assert np.array_equal(each.image, images[each.key])
            assert np.array_equal(each.versions, expected[each.key])
    assert np.random.get_state()[1].tolist() == state  # the generator of the caller is left alone
    for other in (corrupted_versions(images[4], 7, 5), corrupted_versions(images[4], 8, 4)):
        same = {CORRUPTIONS[i] for i in range(15) if np.array_equal(other[i], expected[4][i])}
        assert same == {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}  # nothing is drawn


def test_a_process_that_fails_goes_on(workers: CorruptionWorkers) -> None:
    with pytest.raises(UnveilError, match=r"image 3 could not be corrupted: AttributeError: .*1 or 3 channels"):
        list(workers.corrupted([(3, photo(channels=2))]))
    assert len(list(workers.corrupted([(key, photo(32, 32)) for key in range(3)]))) == 3


def test_a_process_that_is_killed() -> None:
    with CorruptionWorkers(1, seed=0) as workers:
        workers._processes[0].kill()
        with pytest.raises(UnveilError, match="a process that corrupts images has ended"):
            list(workers.corrupted([(3, photo(32, 32))]))


def subset_of(keys: list[int], dtype: type = np.uint8, channels: int = 3) -> Subset:
    images = np.stack([photo(32, 32, channels=channels, seed=seed) for seed in range(8)]).astype(dtype)
    source = array_source(images, np.array(["a", "b"])[np.arange(8) % 2])
    return Subset(ImageDataset(source, side=None, transform=EvalTransform((32, 32), 1.0)), torch.tensor(keys))


def test_errors_do_not_depend_on_order_and_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is classified by hand, one version at a time."""
    monkeypatch.setattr(module, "CorruptionWorkers", InThisProcess)
    weights = torch.randn(3 * 32 * 32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights -= weights.mean(dim=0)

    def classify(batch: Batch) -> Tensor:
        return batch.images.double().flatten(1) @ weights

    def error_of(versions: list[Pixels], labels: list[int]) -> float:
        wrong = 0
        for pixels, label in zip(versions, labels, strict=True):
            image = (torch.tensor(pixels).permute(2, 0, 1).double() / 255 - torch.tensor(VIT.mean)[:, None, None]) / (
                torch.tensor(VIT.std)[:, None, None]
            )
            scores = image.flatten() @ weights
            wrong += int(scores[label] < scores[1 - label])
        return wrong / len(labels)

    runs = [
        corruption_errors({"encoder": classify}, subset_of(keys), VIT, EXACT, HERE, seed=2, batch_size=size)
        for keys, size in (([1, 2, 5], 0), ([5, 1, 2], 7))
    ]
    assert runs[0] == runs[1]
    errors, count = runs[0]
    assert count == 3
    images, labels = [photo(32, 32, seed=key) for key in (1, 2, 5)], [1, 0, 1]
    assert errors["encoder"].clean == pytest.approx(error_of(images, labels))
    for name in ("shot_noise", "fog", "pixelate"):
        for severity in SEVERITIES:
            versions = [by_hand(image, name, severity, 2, key) for image, key in zip(images, (1, 2, 5), strict=True)]
            assert errors["encoder"].corrupted[name][severity - 1] == pytest.approx(error_of(versions, labels)), (name, severity)


def test_scores_must_be_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CorruptionWorkers", InThisProcess)
    with pytest.raises(UnveilError, match="scores of encoder are not finite"):
        corruption_errors(
            {"encoder": lambda batch: torch.full((len(batch.images), 2), torch.nan)}, subset_of([0]), VIT, EXACT, HERE, seed=0
        )


def made_up(clean: float, *by_corruption: float) -> CorruptionErrors:
    """The same error at each severity but the last, where it is higher by 0.1; cycled over the corruptions."""
    values = [by_corruption[i % len(by_corruption)] for i in range(15)]
    return CorruptionErrors(clean, {name: [e, e, e, e, e + 0.1] for name, e in zip(CORRUPTIONS, values, strict=True)})


def test_the_mean_corruption_error_by_hand() -> None:
    own, baseline = made_up(0.1, 0.2, 0.3, 0.4), made_up(0.2, 0.5)
    found = relative_to(own, baseline)
    sums, base = [5 * 0.2 + 0.1, 5 * 0.3 + 0.1, 5 * 0.4 + 0.1], 5 * 0.5 + 0.1
    assert list(found["corruption_error"].values()) == pytest.approx([each / base for each in sums] * 5)
    assert found["mce"] == pytest.approx(sum(sums) / 3 / base)
    assert found["relative_mce"] == pytest.approx(sum(each - 5 * 0.1 for each in sums) / 3 / (base - 5 * 0.2))
    assert own.mean == pytest.approx(sum(sums) / 15)
    facts = corruption_facts({"encoder": own, "raw pixels": baseline}, "raw pixels", images=10, seed=0)
    assert facts["mce"] == {"encoder": found["mce"]}
    assert facts["mean_error"] == {"encoder": own.mean, "raw pixels": baseline.mean}
    table = corruption_table(facts)
    assert table.heads == ["corruption", "1", "2", "3", "4", "5", "mean", "raw pixels", "CE"]
    assert len(table.rows) == 17
    assert table.rows[0] == ["none", "", "", "", "", "", "10.0", "20.0", ""]
    assert table.rows[1] == ["gaussian noise", "20.0", "20.0", "20.0", "20.0", "30.0", "22.0", "52.0", "42.3"]
    assert table.rows[-1] == ["mean", "30.0", "30.0", "30.0", "30.0", "40.0", "32.0", "52.0", "61.5"]
    alone = corruption_table(corruption_facts({"encoder": own}, None, images=10, seed=0))
    assert alone.heads[-1] == "mean"
    assert len(alone.sentences) == 1  # chance alone, without a baseline


def test_quotients_that_are_not_defined() -> None:
    """A baseline without errors; one at chance, whose error rises under some corruptions only."""
    own, perfect = made_up(0.1, 0.2), CorruptionErrors(0.0, {name: [0.0] * 5 for name in CORRUPTIONS})
    assert relative_to(own, perfect)["mce"] is None
    at_chance = relative_to(own, made_up(0.5, 0.5, 0.4))
    assert at_chance["mce"] is not None
    assert at_chance["relative_mce"] is None
    table = corruption_table(corruption_facts({"encoder": own, "untrained": perfect}, "untrained", images=10, seed=0))
    assert table.rows[1][-1] == "undefined"
    assert "not defined for corruptions under which the untrained encoder has no errors" in table.sentences[0]


def test_errors_from_correct_answers() -> None:
    correct = torch.ones(4, 76, dtype=torch.bool)
    correct[0, 0] = correct[:3, 1 + 5 * CORRUPTIONS.index("fog") + 4] = False
    errors = errors_of(correct)
    assert errors.clean == 0.25
    assert errors.corrupted["fog"] == [0.0, 0.0, 0.0, 0.0, 0.75]
    assert errors.mean == pytest.approx(0.75 / 75)


def test_the_intervals_are_those_of_images_and_not_of_versions() -> None:
    """33 of 40 images are wrong. All versions of an image are as the image itself, or one half of them is wrong."""
    wrong = torch.arange(40) < 33
    same = errors_of(~wrong[:, None].expand(40, 76))
    assert (same.independent, same.independent_mean) == (40, pytest.approx(39))  # 39, as the variance is divided by n - 1
    half = torch.rand(40, 75, generator=torch.Generator().manual_seed(0)) < torch.linspace(0.2, 0.8, 40)[:, None]
    found = errors_of(torch.cat([~wrong[:, None], half], dim=1))
    of_image = 1 - half.double().mean(dim=1).numpy()
    assert found.independent_mean == pytest.approx(found.mean * (1 - found.mean) / (of_image.var(ddof=1) / 40), abs=0.01)
    pairs = errors_of(~wrong[:, None].expand(40, 76), torch.arange(40) // 2)  # two of each original
    assert pairs.independent == pytest.approx(20, abs=2)
    facts = corruption_facts({"encoder": same, "raw pixels": found}, "raw pixels", images=40, seed=0)
    intervals = [binomtest(33, 40).proportion_ci(method="wilson"), accuracy_interval(33 / 40, same.independent_mean)]
    shown = [f"{100 * low:.1f} to {100 * high:.1f} %" for low, high in intervals]
    margins = [
        100 * chance_margin([getattr(same, key)], [getattr(found, key)], count)
        for key, count in (("clean", 40), ("mean", same.independent_mean))
    ]
    assert corruption_table(facts).sentences[1:] == [
        f"With 40 test images, the 95 % interval of the error of this encoder is {shown[0]} without corruption, and {shown[1]} for "
        f"the mean.",
        f"Differences from another column of up to about {margins[0]:.1f} points without corruption, and {margins[1]:.1f} points "
        f"for the mean, can be due to chance.",
    ]
    earlier = {key: value for key, value in facts.items() if key != "independent"}
    assert (
        corruption_table(earlier)
        .sentences[1]
        .startswith(f"With 40 test images, the 95 % interval of the error of this encoder is {shown[0]}")
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [({"dtype": np.uint16}, "16-bit images, but the corruptions are made for 8 bits"), ({"channels": 4}, "have 4 channels")],
)
def test_other_images_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UnveilError, match=says):
        module.refuse_other_images(subset_of([0], **options))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UnveilError, match=r"needs the package imagecorruptions-imaug .*pip install 'unveil\[corrupt\]'"):
        library()
