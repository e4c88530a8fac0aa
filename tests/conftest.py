"""Tests that run beside each other share the cores."""

import os
import signal

import pytest

# A shell in the background ignores these for its programs, and unveil respects that. The tests of signals need the defaults.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

os.environ.setdefault("UNVEIL_CACHE", os.path.join(os.devnull, "unveil"))  # where nothing can be saved

# Nothing loses power during the tests. Those that look whether a file was synchronised replace the function themselves.
os.fsync = lambda handle: None

workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if workers > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))  # before torch is imported


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that at the end no process is left alone with one of them."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module")
def without_reports():
    """Runs of these tests write no report, which would take half of their time. Other tests look at reports."""

    def write_nothing(run, learner):
        page = run.path / "report.html"
        page.touch()
        return page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unveil.runs.session.write_page", write_nothing)
        yield
