"""What a run says while it goes on."""

import time

import pytest
import torch

from unveil.train.log import Meter, Screen
from unveil.train.parallel import World

RECORD = {"loss": 0.5, "samples_per_second": 1234.0, "peak_share": 0.25, "waiting": 0.0, "seconds": 1.0}


@pytest.mark.parametrize(("reads", "waiting", "advised"), [(True, 0.5, True), (True, 0.0, False), (False, 0.5, False)])
def test_who_waits_for_files_is_told_what_to_do(reads, waiting, advised, capsys):
    screen = Screen("pretrain", 10, reads=reads)
    screen._start -= 1.0
    screen.show(10, RECORD | {"waiting": waiting})
    screen.close()
    said = capsys.readouterr().err
    assert "pretrain  10/10  loss 0.5000  1,234/s  25% of peak" in said
    assert ("unveil pack DATA OUT" in said) == advised


def test_the_meter_tells_speed_share_of_peak_and_waiting():
    meter = Meter(World(torch.device("cpu")), effort=0.001)

    def slow():
        for i in range(3):
            time.sleep(0.02)
            yield i

    assert list(meter.waits(slow())) == [0, 1, 2]
    meter.step({"loss": torch.tensor(2.0)}, 8)
    record = meter.read()
    assert record["loss"] == 2
    assert record["peak_share"] == pytest.approx(record["samples_per_second"] * 0.001)
    assert 0.06 <= record["waiting"] * record["seconds"] <= record["seconds"]
    assert 0 < record["waiting"] <= 1
