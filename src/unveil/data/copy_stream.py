"""Sends batches to a GPU in a stream of their own, while another stream computes."""

from collections.abc import Sequence
from typing import Any

import torch

from unveil.data.batch import Samples

Sent = tuple[list[Samples], Any]  # batches whose copy may not be done, and the event after which it is


class CopyStream:
    """A stream of copies from page-locked memory to a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def send(self, batches: Sequence[Samples]) -> Sent:
        """Starts to copy batches. Any thread may call it."""
        with torch.cuda.stream(self._stream):
            sent = [batch.pinned().to(self._device) for batch in batches]
            event: Any = torch.cuda.Event()
            event.record(self._stream)
        return sent, event

    def receive(self, sent: Sent) -> list[Samples]:
        """The copies, for the current stream, which waits for them; the host does not."""
        batches, event = sent
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for batch in batches:
            batch.record_stream(current)  # so that no later copy gets their memory while this stream still reads it
        return batches
