"""A few numbers on their way from a GPU to the host."""

from typing import Any

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor on the host. A GPU makes it while the host goes on; `read` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host, self._event = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            event: Any = torch.cuda.Event()
            event.record()
            self._event = event

    def read(self) -> list[Any]:
        """The numbers."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.tolist()
