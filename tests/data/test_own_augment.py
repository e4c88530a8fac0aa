"""A function of the user, `augment=`, in the augmentation of a batch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unveil.data.augment import Augment, AugmentConfig, standardise
from unveil.data.batch import Batch
from unveil.data.multicrop import MultiCrop, byol_views
from unveil.data.own_augment import OwnAugment, name_of_code
from unveil.data.supervised_augment import RegularisationConfig, SupervisedAugment
from unveil.data.targets import ClassTargets
from unveil.errors import UnveilError

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def negative(images: Tensor) -> Tensor:
    return 1 - images


class Brighter(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mul_(2)


def batch(side: int = 20, dtype: torch.dtype = torch.uint8) -> Batch:
    torch.manual_seed(0)
    images = torch.randint(0, 256 if dtype == torch.uint8 else 65536, (6, 3, side, side)).to(dtype)
    return Batch(images, torch.tensor([[side, side]] * 6), torch.arange(6), ClassTargets(torch.arange(6)))


def plain(images: Tensor) -> Tensor:
    """Images as they were before `standardise`."""
    return images * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("crop", ["resized", "none"])
def test_it_follows_the_crop_and_precedes_the_normalisation(crop: Any, dtype: torch.dtype) -> None:
    augment = Augment(AugmentConfig(crop=crop, color_jitter=0.4), (16, 16), MEAN, STD)
    before = augment(batch(dtype=dtype))
    augment.own = OwnAugment(negative)
    after = augment(batch(dtype=dtype))
    assert torch.allclose(plain(after.images), 1 - plain(before.images), atol=1e-6)
    assert torch.equal(after.keys, before.keys)
    assert after.targets is not None


def test_of_images_that_the_loader_has_cropped() -> None:
    from unveil.data.batch import Cropped

    images = batch(16).images
    augment = Augment(AugmentConfig(), (16, 16), MEAN, STD)
    augment.own = OwnAugment(Brighter())
    found = augment(Cropped(images, torch.tensor([[16, 16]] * 6), torch.arange(6)))
    assert torch.allclose(found.images, standardise(2 * images.float() / 255, MEAN, STD), atol=1e-6)
    assert torch.equal(images, batch(16).images)  # the function changes its own copy


def test_of_training_with_labels_and_of_views() -> None:
    regularisation = RegularisationConfig(mixup=0, cutmix=0, erasing=0)
    labelled = SupervisedAugment(regularisation, AugmentConfig(), 6, (16, 16), MEAN, STD)
    views = MultiCrop(AugmentConfig(), (16, 16), MEAN, STD)
    both = byol_views((16, 16), 0.3)
    calls: tuple[tuple[Any, Callable[[], Tensor]], ...] = (
        (labelled, lambda: labelled(batch()).images),
        (views, lambda: views(batch(), both)),
    )
    for augment, call in calls:
        before = call()
        augment.own = OwnAugment(negative)
        assert torch.allclose(plain(call()), 1 - plain(before), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images: images[:, :1], r"returned images \(6, 1, 4, 4\) on cpu for images \(6, 3, 4, 4\) on cpu: augment= is"),
        (lambda images: images.flatten(), r"returned images \(288,\) on cpu"),
        (lambda images: None, "returned a NoneType: augment= is a function from a batch of images"),
        (lambda images: images.numpy(), "returned a ndarray"),
        (lambda images: (255 * images).to(torch.uint8), r"returned images of torch.uint8"),
        (lambda images: images / 0, "values that are not finite"),
        (lambda images: images + 1j, r"returned images of torch.complex64"),
        (lambda images: images @ images[0, 0, 0, :2], r"failed: RuntimeError: .*augment= is a function"),
    ],
)
def test_what_it_may_not_return(function: Any, message: str) -> None:
    with pytest.raises(UnveilError, match=message):
        OwnAugment(function)(torch.rand(6, 3, 4, 4) + 0.1)


def test_names_and_what_is_no_function() -> None:
    assert OwnAugment(negative).name == f"{__name__}.negative"
    assert name_of_code(Brighter()) == f"{__name__}.Brighter"
    assert name_of_code(torch.relu).endswith("relu")
    for wrong in ("negative", Brighter, 3):
        with pytest.raises(UnveilError, match=r"augment is .*: augment= is a function"):
            OwnAugment(wrong)  # type: ignore[arg-type]
    assert OwnAugment(lambda images: images.half())(torch.rand(2, 3, 4, 4)).dtype == torch.float32
    torchvision = pytest.importorskip("torchvision.tv_tensors")
    assert type(OwnAugment(lambda images: torchvision.Image(images))(torch.rand(2, 3, 4, 4))) is Tensor


def test_without_gradients() -> None:
    scale = torch.ones((), requires_grad=True)
    assert not OwnAugment(lambda images: images * scale)(torch.rand(2, 3, 4, 4)).requires_grad


def test_a_compiled_augmentation_leaves_it_as_it_is() -> None:
    """With the backend "eager", which needs no compiler: a value that Python reads changes at each call."""
    calls: list[int] = []

    def count(images: Tensor) -> Tensor:
        calls.append(len(calls))
        return images * (1 + calls[-1])

    augment = Augment(AugmentConfig(crop="none"), (16, 16), (0.0,) * 3, (1.0,) * 3)
    augment.own = OwnAugment(count).uncompiled()
    compiled = torch.compile(augment.__call__, backend="eager")
    first, second = compiled(batch(16)).images, compiled(batch(16)).images
    assert calls == [0, 1]
    assert torch.equal(second, 2 * first)
