"""The 15 common corruptions of images, at 5 severities (Hendrycks and Dietterich, 2019), by the package imagecorruptions-imaug.

The processes that corrupt images import this file, so it imports no torch.
"""

from importlib.metadata import version
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from unveil.errors import UnveilError

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""Their names in the order of the paper. The place of a name here is a part of its seed."""
SEVERITIES = (1, 2, 3, 4, 5)
VERSIONS = len(CORRUPTIONS) * len(SEVERITIES)
"""The number of corrupted versions of an image."""
PACKAGE = "imagecorruptions-imaug"
OWN_SEED = ("impulse_noise", "glass_blur")
"""Corruptions that take a seed; the others draw from the global generator of NumPy."""
SHORTEST = 32
"""The shortest side that the package takes, in pixels."""
GREEN = 1
"""The channel of a corrupted grey image. Its noise has the strength that a colour image gets; that of the luma would be weaker."""

Pixels = NDArray[np.uint8]


def library() -> ModuleType:
    """The module `imagecorruptions`. Raises `UnveilError` if it cannot be imported."""
    try:
        import imagecorruptions
    except ModuleNotFoundError as error:
        raise UnveilError(f"--corrupt needs the package {PACKAGE} ({error}): run pip install 'unveil[corrupt]'") from None
    except ImportError as error:  # opencv-python needs libraries of a desktop, which servers often lack
        raise UnveilError(
            f"--corrupt needs OpenCV, which cannot be imported ({error}): without a display, run pip uninstall opencv-python, and "
            "then pip install opencv-python-headless"
        ) from None
    module: ModuleType = imagecorruptions
    return module


def library_version() -> str:
    """The package with its version. Other versions may corrupt otherwise."""
    return f"{PACKAGE} {version(PACKAGE)}"


def seed_of(seed: int, index: int, corruption: str, severity: int) -> int:
    """The seed of one corrupted image. It depends on nothing else, such as the order of images or the process."""
    entropy = (seed, index, CORRUPTIONS.index(corruption), severity)
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def corrupt(image: Pixels, corruption: str, severity: int, seed: int) -> Pixels:
    """A corrupted image (H, W, C) of an image (H, W, C) with 1 or 3 channels.

    An image with a side below 32 pixels, which the package does not take, is continued by its mirror images up to that size, and
    the middle of the result is cut out. So a corruption has the same scale in pixels as in larger images. Grey images are corrupted
    as colour images.

    The global generator of NumPy is seeded anew and left like that: call this in a process of its own.

    Args:
        image: The image.
        corruption: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: See `seed_of`.
    """
    height, width, channels = image.shape
    top, left = (max(0, SHORTEST - side + 1) // 2 for side in (height, width))
    image = np.pad(image, ((top, top), (left, left), (0, 0)), mode="symmetric")
    image = np.repeat(image, 3 // channels, axis=2)
    np.random.seed(seed)
    own = {"seed": seed} if corruption in OWN_SEED else {}
    found: Pixels = library().corrupt(image, severity=severity, corruption_name=corruption, **own)
    found = found[top : top + height, left : left + width]
    return found if channels == 3 else found[:, :, GREEN : GREEN + 1]


def corrupted_versions(image: Pixels, seed: int, index: int) -> NDArray[np.uint8]:
    """All corrupted versions of an image (H, W, C): (15, 5, H, W, C), in the order of `CORRUPTIONS` and `SEVERITIES`.

    Args:
        image: The image.
        seed: The seed of the evaluation.
        index: The index of the image in its dataset.
    """
    return np.stack(
        [
            np.stack([corrupt(image, name, severity, seed_of(seed, index, name, severity)) for severity in SEVERITIES])
            for name in CORRUPTIONS
        ]
    )
