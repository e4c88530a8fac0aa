"""The log of a run: the meter, the screen and the file."""

import json
import time
import tracemalloc

import pytest
import torch

from unveil.train.log import JsonLines, Meter, Screen, read_log
from unveil.train.parallel import World

RECORD = {"step": 10, "loss": 0.5, "samples_per_second": 1234.0, "peak_share": 0.25, "waiting": 0.0, "seconds": 1.0}


@pytest.mark.parametrize(("reads", "waiting", "advised"), [(True, 0.5, True), (True, 0.0, False), (False, 0.5, False)])
def test_waiting_for_files_gives_advice(reads, waiting, advised, capsys):
    screen = Screen("pretrain", 10, reads=reads)
    screen._start -= 1.0
    screen.write(RECORD | {"waiting": waiting})
    screen.close()
    said = capsys.readouterr().err
    assert "pretrain  10/10  loss 0.5000  1,234/s  25% of peak" in said
    assert ("unveil pack DATA OUT" in said) == advised


def test_the_meter_measures_speed_share_of_peak_and_waiting():
    meter = Meter(World(torch.device("cpu")), effort=0.001)
    assert not meter.has_values
    for _ in range(3):
        with meter.waiting():
            time.sleep(0.02)
    meter.step({"loss": torch.tensor(2.0)}, 8)
    record = meter.read()
    assert record["loss"] == 2
    assert record["peak_share"] == pytest.approx(record["samples_per_second"] * 0.001)
    assert 0.06 <= record["waiting"] * record["seconds"] <= record["seconds"]
    assert 0 < record["waiting"] <= 1


def test_a_pause_does_not_count():
    meter = Meter(World(torch.device("cpu")))
    meter.step({"loss": torch.tensor(2.0)}, 8)
    with meter.paused():
        time.sleep(0.3)
    assert meter.read()["seconds"] < 0.2


def test_a_meter_continues_from_its_state():
    """The state passes through JSON without a loss, so that a resumed run logs the same means, bit by bit."""
    whole, first, second = (Meter(World(torch.device("cpu"))) for _ in range(3))
    values = torch.rand(7)
    for value in values[:3]:
        first.add({"loss": value})
    second.load_state(json.loads(json.dumps(first.state())))
    for value in values[3:]:
        second.add({"loss": value})
    for value in values:
        whole.add({"loss": value})
    whole.step({}, 1)
    second.step({}, 1)
    assert second.read()["loss"] == whole.read()["loss"] == pytest.approx(values.double().mean().item())
    assert Meter(World(torch.device("cpu"))).state()["sums"] == {}


def test_a_meter_is_split_where_a_line_ends():
    """The values of the line can be read later, and a step can be taken back from them."""
    meter, world = Meter(World(torch.device("cpu"))), World(torch.device("cpu"))
    for value in (1.0, 2.0, 6.0):
        meter.add({"loss": torch.tensor(value)})
        meter.step({"norm": torch.tensor(value)}, 8)
    line = meter.split()
    assert not meter.has_values
    time.sleep(0.05)
    meter.add({"loss": torch.tensor(7.0)})
    record = line.read()
    assert (record["loss"], record["norm"]) == (3.0, 3.0)
    assert record["seconds"] < 0.05
    meter.add({"loss": torch.tensor(0.0)})  # a step that was dropped
    meter.step({"norm": torch.tensor(0.0)}, 8)
    line = meter.split()
    line.drop(1, 8)
    assert line.read()["loss"] == 7.0
    only = Meter(world)
    only.step({"norm": torch.tensor(0.0)}, 8)
    line = only.split()
    line.drop(1, 8)
    assert not line.has_values


def test_the_clock_continues_too():
    first, second = (Meter(World(torch.device("cpu"))) for _ in range(2))
    first.step({"loss": torch.tensor(1.0)}, 8)
    first._start -= 100.0
    second.load_state(first.state())
    second.step({"loss": torch.tensor(3.0)}, 8)
    record = second.read()
    assert record["loss"] == 2.0
    assert record["seconds"] == pytest.approx(100.0, abs=1.0)
    assert record["samples_per_second"] == pytest.approx(0.16, rel=0.01)
    second.load_state(None)
    assert second.read()["loss"] == 2.0


def test_a_resumed_run_is_announced(capsys):
    screen = Screen("pretrain", 10)
    screen.start(0)
    assert capsys.readouterr().err == ""
    screen.start(4)
    assert "resuming from step 4" in capsys.readouterr().err


def test_a_resumed_log_drops_the_lines_that_are_repeated(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    log.start(0)
    for step in (10, 20, 30):
        log.write({"step": step, "loss": 1 / step})
    log.close()
    with path.open("a") as file:
        file.write('{"step": 40, "lo')  # cut short by a kill
    assert [line["step"] for line in read_log(path)[0]] == [10, 20, 30]
    log = JsonLines(path)
    log.start(20)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    log.write({"step": 30, "loss": 5.0})
    assert read_log(path)[0][-1] == {"step": 30, "loss": 5.0}  # flushed at once
    log.close()
    assert path.read_text().endswith("}\n")
    assert read_log(tmp_path / "none.jsonl") == ([], 0)
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


DAMAGED_LINES = {
    "bytes that are not UTF-8": b"\xff\xfe{}",
    "another type": b"[1, 2]",
    "a number": b"7",
    "200,000 brackets": b"[" * 200_000,
    "cut in the middle": b'{"step": 4, "lo',
    "no step": b'{"loss": 1.0}',
    "a step that is a text": b'{"step": "4"}',
    "a step of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("line", DAMAGED_LINES.values(), ids=DAMAGED_LINES)
def test_a_damaged_log_is_set_aside_and_the_run_goes_on(line, tmp_path):
    path, said = tmp_path / "log.jsonl", []
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n' + line + b'\n{"step": 3, "loss": NaN, "knn": 0.5}\n{"st')
    assert read_log(path) == ([{"step": 1, "loss": 2.0}, {"step": 3, "knn": 0.5}], 1)
    whole = path.read_bytes()
    log = JsonLines(path, said.append)
    log.start(3)
    log.write({"step": 4, "loss": 1.0})
    log.close()
    assert [record["step"] for record in read_log(path)[0]] == [1, 3, 4]
    assert said == [f"{path} has 1 damaged line: the file is set aside as log.damaged.jsonl, and the run goes on"]
    assert (tmp_path / "log.damaged.jsonl").read_bytes() == whole


def test_a_folder_in_place_of_the_log_is_set_aside(tmp_path):
    path, said = tmp_path / "log.jsonl", []
    (path / "inner").mkdir(parents=True)
    (tmp_path / "log.damaged.jsonl").touch()
    JsonLines(path, said.append).start(3)
    assert "log.jsonl cannot be read: Is a directory: the file is set aside as log.damaged-2.jsonl" in said[0]
    assert read_log(path) == ([], 0)


def test_no_flipped_bit_in_a_log_goes_without_a_word(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    log.start(0)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 0.5 / step})
    log.close()
    raw, whole = path.read_bytes(), read_log(path)
    assert whole[1] == 0
    for bit in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        records, lines = read_log(path)
        assert lines or records == whole[0]


def test_a_small_log_needs_little_memory(tmp_path):
    """The size limit of 2 GiB was allocated first, which failed where less is left."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n')
    tracemalloc.start()
    read_log(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_a_log_of_an_earlier_version_gets_checksums_when_its_run_resumes(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    log = JsonLines(path)
    log.start(2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert [list(json.loads(line)) for line in path.read_text().splitlines()] == [["step", "loss", "checksum"]] * 3
    assert read_log(path) == ([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}], 0)


def test_each_process_goes_on_with_its_own_sums():
    state = {"samples": 8, "seconds": 1.0, "waited": 0.0, "sums": {"loss": ([0.25, 0.75], 2)}}
    for rank, total in enumerate((0.25, 0.75)):
        meter = Meter(World(torch.device("cpu"), rank, 2))
        meter.load_state(state)
        assert meter._sums["loss"] == (torch.tensor(total), 2)
    meter = Meter(World(torch.device("cpu")))  # resumed on another number of processes
    meter.load_state(state)
    assert meter._sums["loss"] == (torch.tensor(0.5), 2)
    meter.load_state(state | {"sums": {"loss": (0.5, 2)}})  # as earlier versions saved it
    assert meter._sums["loss"] == (torch.tensor(0.5), 2)
