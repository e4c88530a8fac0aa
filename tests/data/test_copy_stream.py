"""Batches of a stream of copies come in order, each after its copy. On fake streams; tests/gpu has the test on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import pytest
import torch

from unveil.data.copy_stream import CopyStream
from unveil.data.loader import stream


class FakeBatch:
    """Notes what is done with it."""

    def __init__(self, step: int, share: int, shares: int, notes: list[Any]) -> None:
        self.name, self.notes = (step, share, shares), notes

    def pinned(self) -> Self:
        self.notes.append(("pinned", self.name))
        return self

    def to(self, device: torch.device) -> Self:
        self.notes.append(("sent in", FakeStream.current.name, self.name))
        return self

    def record_stream(self, used_by: "FakeStream") -> Self:
        self.notes.append(("used by", used_by.name, self.name))
        return self


class FakeLoader:
    samples, batch_size, prefetch = 40, 8, True

    def __init__(self, notes: list[Any], fails: int = -1) -> None:
        self.notes, self.fails = notes, fails

    def share(self, step: int, share: int, shares: int) -> Any:
        if step == self.fails:
            raise MemoryError("no memory")
        return FakeBatch(step, share, shares, self.notes)


class FakeStream:
    current: "FakeStream"

    def __init__(self, name: Any, notes: list[Any]) -> None:
        self.name, self.notes = name, notes

    def wait_event(self, event: Any) -> None:
        self.notes.append(("waits", self.name, event))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    main = FakeStream.current = FakeStream("main", found)
    events = iter(range(100))

    class Event:
        def __init__(self) -> None:
            self.number = next(events)

        def record(self, of: FakeStream) -> None:
            assert of is FakeStream.current

    @contextmanager
    def within(chosen: FakeStream) -> Iterator[None]:
        before, FakeStream.current = FakeStream.current, chosen
        yield
        FakeStream.current = before

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream("copies", found))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    return found


def test_batches_are_sent_in_another_stream_and_waited_for(notes: list[Any]) -> None:
    gpu = torch.device("cuda")
    for step, batches in stream(FakeLoader(notes), range(3, 9), 1, 2, 2, gpu=gpu):
        names = [(step, 2, 4), (step, 3, 4)]
        assert [batch.name for batch in batches] == names
        at = [notes.index(("sent in", "copies", name)) for name in names]
        (waits,) = [i for i, note in enumerate(notes) if note[0] == "waits" and note[2].number == step - 3]
        used = [notes.index(("used by", "main", name)) for name in names]
        assert max(at) < waits < min(used)
        assert all(notes.index(("pinned", name)) < place for name, place in zip(names, at, strict=True))
    assert step == 8


def test_without_a_gpu_nothing_is_sent(notes: list[Any]) -> None:
    assert [step for step, _ in stream(FakeLoader(notes), range(4), 0, 1, 1)] == [0, 1, 2, 3]
    assert not any(note[0] in ("sent in", "waits") for note in notes)


def test_a_failure_to_read_reaches_the_step_that_needs_it(notes: list[Any]) -> None:
    batches = stream(FakeLoader(notes, fails=4), range(9), 0, 1, 1, gpu=torch.device("cuda"))
    assert [next(batches)[0] for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(MemoryError, match="no memory"):
        next(batches)


def test_a_batch_is_received_once_its_copy_is_done(notes: list[Any]) -> None:
    copies = CopyStream(torch.device("cuda"))
    sent = copies.send([FakeBatch(0, 0, 1, notes)])
    assert not any(note[0] == "waits" for note in notes)
    copies.receive(sent)
    assert [note[0] for note in notes] == ["pinned", "sent in", "waits", "used by"]
