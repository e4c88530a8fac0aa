"""Reading images prints nothing, and leaves the host as it was."""

import io
import logging
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
from unveil.data.quiet_decoders import LOGGERS, quiet_decoders


def settings() -> tuple[list[object], list[object]]:
    loggers = [logging.getLogger(name) for name in LOGGERS]
    return list(warnings.filters), [(list(each.filters), each.level, each.disabled) for each in loggers]


def test_settings_are_restored_when_the_last_reader_is_done() -> None:
    before = settings()
    with quiet_decoders():
        first = settings()
        assert first != before
        with quiet_decoders():
            assert settings() == first
        assert settings() == first
    assert settings() == before
    with pytest.raises(ZeroDivisionError), quiet_decoders():
        raise ZeroDivisionError
    assert settings() == before


def test_many_threads_at_once_restore_them_too() -> None:
    before, together = settings(), threading.Barrier(8)

    def read(index: int) -> None:
        together.wait()
        for _ in range(200):
            with quiet_decoders():
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert settings() == before


def test_other_threads_still_log_and_warn_about_their_own_code(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tifffile")
    with quiet_decoders():
        logger.error("of a reader")
        thread = threading.Thread(target=lambda: logger.error("of the host"))
        thread.start()
        thread.join()
        with pytest.warns(UserWarning, match="of the host"):
            warnings.warn("of the host", UserWarning, stacklevel=1)
    logger.error("afterwards")
    assert [record.message for record in caplog.records] == ["of the host", "afterwards"]


def test_warnings_of_pillow_are_silent_only_while_reading() -> None:
    def warn() -> None:
        warnings.warn_explicit("odd tag", UserWarning, "x.py", 1, module="PIL.TiffImagePlugin")

    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always", append=False)
        warnings.filters.clear()  # type: ignore[attr-defined]  # a list at runtime
        with quiet_decoders():
            warn()
        assert not caught
        warn()
        assert len(caught) == 1


DAMAGED = """
import io, sys, warnings
import numpy as np
from PIL import Image
stream = io.BytesIO()
noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
Image.fromarray(noise).save(stream, "TIFF", compression="tiff_lzw")
raw = bytearray(stream.getvalue())
raw[2800:3000] = bytes([255]) * 200
def by_pillow():
    try:
        Image.open(io.BytesIO(bytes(raw))).load()
    except OSError:
        print("damaged")
by_pillow()
sys.stderr.write("|")
sys.stderr.flush()
from unveil.data.images import read_image
from unveil.data.pixels import Unreadable
try:
    read_image(bytes(raw))
except Unreadable:
    print("unreadable")
sys.stderr.write("|")
sys.stderr.flush()
by_pillow()
"""


def test_libtiffs_handler_comes_back() -> None:
    """The host's libtiff prints before and after, and nothing in between."""
    done = subprocess.run([sys.executable, "-c", DAMAGED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["damaged", "unreadable", "damaged"]
    before, between, after = done.stderr.split("|")
    if not before:
        pytest.skip("this Pillow's libtiff prints nothing")
    assert between == ""
    assert after == before


def test_importing_changes_nothing() -> None:
    code = """
import logging, random, sys, warnings
import numpy, PIL.Image, tifffile
loggers = [logging.getLogger(name) for name in ("PIL.TiffImagePlugin", "tifffile", "PIL")]
def state():
    return list(warnings.filters), [(each.level, list(each.filters)) for each in loggers], PIL.Image.MAX_IMAGE_PIXELS
before, chance = state(), random.getstate()
import unveil.data.images, unveil.data.sources
assert state() == before and random.getstate() == chance
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damaged_images_still_raise() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(stream, "TIFF", compression="tiff_lzw")
    with pytest.raises(Unreadable):
        read_image(stream.getvalue()[:60])
