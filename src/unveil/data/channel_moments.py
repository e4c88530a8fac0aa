"""Mean and standard deviation of the channels of a dataset, to normalise its images."""

import torch

from unveil.data.dataset import ImageDataset
from unveil.errors import UnveilError


def channel_moments(dataset: ImageDataset, count: int = 512) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, on a scale of 0 to 1, over up to `count` images, evenly spaced.

    Images that cannot be read are left out.
    """
    total = square = torch.zeros(dataset.channels, dtype=torch.float64)
    pixels = 0
    for index in torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).long():
        batch = dataset.readable(index[None])
        if batch is None:
            continue
        x = batch.images[0].double().flatten(1) / (65535 if dataset.dtype == torch.uint16 else 255)
        total, square, pixels = total + x.sum(1), square + x.square().sum(1), pixels + x.shape[1]
    if not pixels:
        raise UnveilError(f"none of {count} images of {dataset.source.name} can be read: check whether the data was moved")
    mean = total / pixels
    deviation = (square / pixels - mean**2).clamp(min=1e-8).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(max(round(v, 4), 1e-4) for v in deviation.tolist())
