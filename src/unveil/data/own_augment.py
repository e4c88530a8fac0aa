"""Augmentation by a function of one's own: `augment=` of `unveil.pretrain` and `unveil.finetune`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unveil.data.resize import MAX_VALUE
from unveil.errors import UnveilError

TAKES = "augment= is a function from a batch of images (B, C, H, W), floats from 0 to 1, to images of the same shape"


class OwnAugment:
    """A function that changes each augmented batch of images before they are normalised.

    Args:
        function: Maps float images (B, C, S, T) from 0 (black) to 1 (white), on the device of the model, to images of the same
            shape. It is called without gradients. Its result is not clipped.

    Raises:
        UnveilError: If it cannot be called.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        if not callable(function) or isinstance(function, type):
            raise UnveilError(f"augment is {function!r}: {TAKES}")
        self.function, self.name = function, name_of_code(function)

    def uncompiled(self) -> Callable[[Tensor], Tensor]:
        """The same, for an augmentation that is compiled: torch.compile leaves it as it is. Takes a second to import."""
        found: Callable[[Tensor], Tensor] = torch.compiler.disable(self.__call__)
        return found

    def __call__(self, images: Tensor) -> Float[Tensor, "B C S T"]:
        """The changed images, float32.

        Args:
            images: Images (B, C, S, T), uint8, uint16, or floats from 0 to 1.

        Raises:
            UnveilError: If the function fails, or returns something else than finite floats of the same shape on the same device.
        """
        scaled = images.to(torch.float32, copy=True)
        scaled = scaled.div_(MAX_VALUE[images.dtype]) if images.dtype in MAX_VALUE else scaled
        shape, device = scaled.shape, scaled.device
        try:
            with torch.no_grad():
                found = self.function(scaled)
        except UnveilError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise UnveilError(f"augment={self.name} failed: {type(error).__name__}: {reason}. {TAKES}") from error
        if not isinstance(found, Tensor):
            raise UnveilError(f"augment={self.name} returned a {type(found).__name__}: {TAKES}")
        found = found.as_subclass(Tensor)  # torchvision's transforms may return an Image
        if found.shape != shape or found.device != device:
            got, given = f"{tuple(found.shape)} on {found.device}", f"{tuple(shape)} on {device}"
            raise UnveilError(f"augment={self.name} returned images {got} for images {given}: {TAKES}")
        if not found.is_floating_point():
            raise UnveilError(f"augment={self.name} returned images of {found.dtype}: {TAKES}")
        if not bool(found.isfinite().all()):
            raise UnveilError(f"augment={self.name} returned images with values that are not finite: {TAKES}")
        return found.float()


def name_of_code(function: Any) -> str:
    """The name of a function, or of the class of an object that can be called, with its module."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
