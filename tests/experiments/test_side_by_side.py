"""Runs in processes of their own, on this machine and as jobs of Slurm: their order, their results, and what a kill leaves."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import torch

import unveil
from tests.experiments.test_compare import TINY
from tests.processes import Command
from tests.recipes.test_end_to_end import write_images
from unveil.errors import Interrupted, UnveilError
from unveil.experiments import calls
from unveil.experiments.calls import Call, Outcome
from unveil.experiments.jobs import FailedRunsError, Job, JobsConfig, Notes, run_at_once, run_jobs
from unveil.experiments.side_by_side import WorkerProcesses, visible_gpus
from unveil.experiments.slurm import SlurmJobs, parse
from unveil.folder_lock import locked
from unveil.reports.failures import read_failures
from unveil.train.run_folder import ChangedSettingsError, Run, receipt

OPTIONS: dict[str, Any] = {key: value for key, value in TINY.items() if key != "finetune"} | {"with_finetune": False}
LONG = 30.0
"""Epochs of a run that takes a few seconds."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("images")))


class Scripted:
    """A launcher whose runs end as a script says, one at each look."""

    pause = 0.0

    def __init__(self, outcomes: Mapping[str, Outcome] | None = None) -> None:
        self.outcomes = outcomes or {}
        self.started, self.running, self.most, self.left = list[list[str]](), list[str](), 0, list[str]()
        self.has_ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.left, self.has_ended = list(self.running), True

    def start(self, calls: Sequence[tuple[str, Call]]) -> "list[ScriptedRun]":
        names = [name for name, _ in calls]
        self.started += [names] if names else []
        self.running += names
        self.most = max(self.most, len(self.running))
        return [ScriptedRun(self, name) for name in names]


class ScriptedRun:
    def __init__(self, launcher: Scripted, name: str) -> None:
        self.launcher, self.name = launcher, name

    def outcome(self) -> Outcome | None:
        if self.launcher.running[0] != self.name:
            return None
        self.launcher.running.remove(self.name)
        return self.launcher.outcomes.get(self.name, Outcome())


def job(name: str, *needs: str, call: Callable[[], Call | None] = lambda: Call("probe", (), {})) -> Job:
    return Job(name, call, needs)


JOBS = [job("a"), job("a-tuned", "a"), job("b"), job("b-tuned", "b"), job("c")]


def test_a_run_starts_as_soon_as_all_that_it_needs_has_ended(tmp_path: Path) -> None:
    launcher, ended = Scripted(), list[str]()
    run_at_once(JOBS, Notes(tmp_path, JOBS), launcher, 2, ended.append)
    assert launcher.started == [["a", "b"], ["a-tuned", "b-tuned"], ["c"]]
    assert launcher.most == 2
    assert ended == ["a", "b", "a-tuned", "b-tuned", "c"]
    wide = Scripted()
    run_at_once(JOBS, Notes(tmp_path, JOBS), wide, 9, lambda name: None)
    assert wide.started == [["a", "b", "c"], ["a-tuned", "b-tuned"]]  # the first is an array of three jobs


def test_what_fails_stops_only_what_needs_it_and_some_errors_stop_all(tmp_path: Path) -> None:
    def unknown() -> Call:
        raise UnveilError("no such option")

    notes, launcher, ended = Notes(tmp_path, JOBS), Scripted({"a": Outcome("failed", "out of memory", "trace")}), list[str]()
    run_at_once(JOBS, notes, launcher, 2, ended.append)
    assert launcher.started == [["a", "b"], ["b-tuned", "c"]]
    assert ended == ["a", "b", "a-tuned", "b-tuned", "c"]  # also those that are left out
    assert [(each.run, each.error, each.details) for each in notes.failures] == [("a", "out of memory", "trace")]
    jobs = [job("x", call=unknown), job("y", call=lambda: None), job("z", "y")]
    notes, launcher, ended = Notes(tmp_path, jobs), Scripted(), list[str]()
    run_at_once(jobs, notes, launcher, 2, ended.append)
    assert launcher.started == [["z"]]  # there was nothing left to do for y
    assert ended == ["x", "y", "z"]
    assert [(each.run, each.error) for each in notes.failures] == [("x", "no such option")]
    for kind, error in {"changed settings": ChangedSettingsError, "full disk": UnveilError, "interrupted": Interrupted}.items():
        stopped = Scripted({"a": Outcome(kind, "why")})  # type: ignore[arg-type]  # the keys are those of the Literal
        with pytest.raises(error, match="why"):
            run_at_once(JOBS, Notes(tmp_path, JOBS), stopped, 2, lambda name: None)
        assert stopped.left == ["b"]


def test_what_has_ended_before_needs_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(name: str, results: str) -> Job:
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(results)
        (tmp_path / name / "run.json").write_text('{"config": {}}')
        (tmp_path / name / "report.html").touch()
        return job(name, call=lambda: Call("probe", (), {"out": tmp_path / name}))

    called = list[Path]()
    monkeypatch.setattr(calls, "COMMANDS", {"probe": lambda out: called.append(out)})
    jobs = [ended("a", '{"seconds": 1.0}'), ended("b", '{"sec'), job("c", "a")]
    launcher = Scripted()
    run_at_once(jobs, Notes(tmp_path, jobs), launcher, 1, lambda name: None)
    assert called == [tmp_path / "a"]
    assert launcher.started == [["b"], ["c"]]  # the results of b are damaged


def test_a_signal_stops_the_launcher(tmp_path: Path) -> None:
    launcher = Scripted()
    with pytest.raises(Interrupted, match="run the same command to resume") as error:
        run_at_once(JOBS, Notes(tmp_path, JOBS), launcher, 2, lambda name: os.kill(os.getpid(), signal.SIGTERM))
    assert error.value.number == signal.SIGTERM
    assert launcher.started == [["a", "b"]]
    assert launcher.has_ended


def wait_for(what: Callable[[], Any]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on_and_ends_with_the_same_table(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], without_reports: None
) -> None:
    folder = tmp_path / "killed"
    words = ["--model", "vit-nano", "--image-size", "16", "--patch-size", "4", "--batch-size", "8", "--held-out", "4"]
    words += ["--device", "cpu", "--precision", "float32", "--num-evals", "1", "--epochs", f"{LONG}", "--seeds", "0"]
    words += ["--no-with-finetune", "--jobs", "2", "--out", str(folder)]
    command = Command(["study", "sampling=grid", images, *words])
    run = folder / "mae-sampling-grid-seed0"
    wait_for((run / "log.jsonl").is_file)
    command.kill()
    command.communicate()
    wait_for(lambda: not (run / ".lock").is_file())  # its process notices it, saves, and ends
    assert not (run / "results.json").is_file()
    assert any((run / "checkpoints").iterdir())

    options: dict[str, Any] = {**OPTIONS, "epochs": LONG, "seeds": (0,)}
    (resumed,) = unveil.study("sampling=grid", images, out=folder, **options)
    (straight,) = unveil.study("sampling=grid", images, out=tmp_path / "straight", **options)
    assert resumed.rows[0].name == straight.rows[0].name
    assert {**resumed.rows[0].figures, "seconds": []} == {**straight.rows[0].figures, "seconds": []}
    assert "resuming from step" in capsys.readouterr().err
    log = (folder / "mae-sampling-grid-seed0.log").read_text()
    assert "steps of 8" in log
    assert "Fatal" not in log  # Python has ended in order
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_process_reports_errors_stops_with_a_checkpoint_and_may_be_killed(images: str, tmp_path: Path) -> None:
    with WorkerProcesses(tmp_path, 2) as workers:
        environment = workers.environment(1)
        assert environment["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // 2)))
        assert environment.get("CUDA_VISIBLE_DEVICES") == (visible_gpus()[1 % len(visible_gpus())] if visible_gpus() else None)
        options = {key: value for key, value in OPTIONS.items() if key != "with_finetune"} | {"epochs": 10_000.0}
        good = Call("pretrain", (images,), options | {"out": tmp_path / "good"})
        bad = Call("pretrain", (str(tmp_path / "nothing"),), options | {"out": tmp_path / "bad"})
        long, wrong = workers.start([("good", good), ("bad", bad)])
        wait_for(wrong.outcome)
        found = wrong.outcome()
        assert found is not None
        assert found.kind == "failed"
        assert "nothing" in found.text
        assert not found.details  # a message for the user, no traceback
        log = tmp_path / "good" / "log.jsonl"
        wait_for(lambda: log.is_file() and log.stat().st_size)  # its first step: before it, there is nothing to save
        assert long.outcome() is None
    assert long.process.returncode == 0
    assert any((tmp_path / "good" / "checkpoints").iterdir())
    assert Run(tmp_path / "good").facts["command"] == receipt()["command"]  # not that of the process
    with locked(tmp_path / "good", "testing"):  # it has left nothing locked
        pass
    with WorkerProcesses(tmp_path, 1) as workers:
        (killed,) = workers.start([("good", good)])
        killed.process.kill()
        wait_for(killed.outcome)
        found = killed.outcome()
    assert found is not None
    assert found == Outcome(
        "failed", f"its process ended by SIGKILL, perhaps for want of memory; what it printed is in {killed.log}"
    )


def test_seconds_are_not_measured_side_by_side(images: str, tmp_path: Path) -> None:
    with pytest.raises(UnveilError, match="use --jobs 1, or --epochs"):
        unveil.compare("mae", images, out=tmp_path, seconds=5.0, jobs=2, **OPTIONS)


SBATCH = '''#!{python}
"""A stand-in for sbatch: starts the jobs of an array at once, and prints the number that a cluster would give them."""
import os, re, subprocess, sys
home, text = os.path.dirname(os.path.abspath(__file__)), open(sys.argv[1]).read()
os.makedirs(f"{{home}}/said", exist_ok=True)
open(f"{{home}}/said/script", "a").write(text)
number = 1 + len(os.listdir(f"{{home}}/said"))
open(f"{{home}}/said/{{number}}", "w").close()
array = re.search(r"--array=0-(\\d+)%(\\d+)", text)
for task in range(int(array[1]) + 1) if array else [None]:
    own = {{"SLURM_JOB_ID": f"{{number + (task or 0)}}", "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0",
           "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}}
    own |= {{"SLURM_ARRAY_JOB_ID": f"{{number}}", "SLURM_ARRAY_TASK_ID": f"{{task}}"}} if array else {{}}
    subprocess.Popen(["bash", sys.argv[1]], env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"Submitted batch job {{number}}")
'''
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do case $1 in --output|--error) shift 2;; *) shift;; esac; done
exec "$@"
"""
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that stand in for those of Slurm."""
    folder = tmp_path / "slurm commands"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH.format(python=sys.executable), "srun": SRUN, "sacct": SACCT, "scancel": SACCT}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_an_array_of_slurm_jobs(images: str, tmp_path: Path, cluster: Path) -> None:
    pytest.importorskip("submitit")
    options: dict[str, Any] = {**OPTIONS, "epochs": 1.0, "seeds": (0,), "out": tmp_path / "runs"}
    separate = {"mae-broken": {"patch_size": (5,)}}
    with pytest.raises(FailedRunsError, match=r"1 of 2 runs failed: mae-broken-seed0 \(.*patch"):
        unveil.compare("mae,mae-broken", images, slurm=("partition=gpu", "time=90"), **options, **separate)
    script = (cluster / "said" / "script").read_text()
    assert "#SBATCH --array=0-1%2" in script
    assert "#SBATCH --partition=gpu" in script
    assert "#SBATCH --time=90" in script
    assert Run(tmp_path / "runs" / "mae-seed0").results["features"]["encoder"]["linear"] > 0
    assert Run(tmp_path / "runs" / "mae-seed0").facts["command"] == receipt()["command"]  # not that of a process of Slurm
    with pytest.raises(UnveilError, match=r"--slurm colour=red: .*colour"):
        unveil.compare("mae", images, slurm=("colour=red",), **options)


def test_more_jobs_than_an_array_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = list[list[object]]()

    class Executor:
        @contextmanager
        def batch(self) -> Iterator[None]:
            submitted.append([])
            yield

        def submit(self, task: object) -> object:
            submitted[-1].append(task)
            return task

    monkeypatch.setattr("unveil.experiments.slurm.LONGEST_ARRAY", 2)
    jobs = SlurmJobs.__new__(SlurmJobs)
    jobs._executor, jobs._started = Executor(), []
    assert len(jobs.start([(name, Call("probe", (), {})) for name in "abcde"])) == 5
    assert [len(each) for each in submitted] == [2, 2, 1]
    assert jobs.start([]) == []
    assert len(submitted) == 3


def test_slurm_needs_its_commands_and_options_with_values(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse(["partition=gpu", "time=240", "comment=a=b"]) == {"partition": "gpu", "time": 240, "comment": "a=b"}
    with pytest.raises(UnveilError, match="--slurm has 'gpu', expected options with values"):
        parse(["gpu"])
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("submitit")
    with pytest.raises(UnveilError, match="needs the commands sbatch and srun"):
        unveil.compare("mae", images, out=tmp_path / "runs", slurm=("partition=gpu",), epochs=1.0, **OPTIONS)


def test_no_run_of_a_sweep_waits_for_those_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sweep ended before the next began, and its last run left all other cores idle."""
    launcher = Scripted({"depth/a": Outcome("failed", "too deep")})

    def made(folder: Path, count: int) -> Scripted:
        assert all((folder / name).is_dir() for name in ("ratio", "depth"))  # for the logs of the processes
        return launcher

    monkeypatch.setattr("unveil.experiments.jobs.WorkerProcesses", made)
    jobs = [job("ratio/a"), job("ratio/a-tuned", "ratio/a"), job("depth/a"), job("depth/a-tuned", "depth/a"), job("depth/b")]
    failures = run_jobs(jobs, tmp_path / "study", lambda name: None, JobsConfig(jobs=2))
    assert launcher.started == [["ratio/a", "depth/a"], ["ratio/a-tuned", "depth/b"]]
    assert [(each.run, each.error) for each in failures] == [("depth/a", "too deep")]
    assert [each.run for each in read_failures(tmp_path / "study" / "depth")] == ["a"]
    assert not (tmp_path / "study" / "ratio" / "failed.json").exists()
    monkeypatch.setattr("unveil.experiments.jobs.WorkerProcesses", lambda *given: Scripted())
    assert run_jobs(jobs, tmp_path / "study", lambda name: None, JobsConfig(jobs=2)) == []
    assert not (tmp_path / "study" / "depth" / "failed.json").exists()


def test_processes_of_several_sweeps_have_a_log_and_a_reply_each(tmp_path: Path) -> None:
    def missing(run: str) -> Job:
        return job(run, call=lambda: Call("probe", (tmp_path / run / "none",), {}))

    failures = run_jobs([missing("ratio/a"), missing("depth/a")], tmp_path, lambda name: None, JobsConfig(jobs=2))
    assert [each.run for each in failures] == ["ratio/a", "depth/a"]
    assert all(str(tmp_path / each.run / "none") in each.error for each in failures)
    assert all((tmp_path / f"{each.run}.log").is_file() for each in failures)


def test_jobs_of_one_process_need_no_other(tmp_path: Path) -> None:
    done = list[str]()
    assert run_jobs([job("a", call=lambda: done.append("a"))], tmp_path, lambda name: None) == []  # type: ignore[arg-type, func-returns-value]  # append returns None
    assert done == ["a"]
