"""The plan: its choices as pure functions, its arithmetic, its command, its file, and how a run is compared with it afterwards."""

import json
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import unveil
from unveil import cli
from unveil.command_line import parse_options
from unveil.commands import VERBS
from unveil.errors import UnveilError
from unveil.planning.dry_run import DryRun, part_of
from unveil.planning.plan import command_of, flag
from unveil.planning.rules import DataSummary, Hardware, budget, choose, choose_epochs
from unveil.planning.trial_evaluation import seconds_per_item
from unveil.runs.images import IMAGES
from unveil.train.parallel import World
from unveil.train.recipe import TrainConfig
from unveil.train.run_cost import cost_line, peak_memory, run_cost, spell_bytes, spell_time
from unveil.train.run_folder import Run

pytestmark = pytest.mark.usefixtures("without_reports")

CPU = Hardware(device="cpu", name="CPU", memory=24 * 2**30, cores=2, processes=1, peak=4e11, precision="bfloat16")
GPU = Hardware(device="cuda", name="H100", memory=80 * 10**9, cores=16, processes=1, peak=7e14, precision="bfloat16")
EIGHT = Hardware(**(asdict(GPU) | {"processes": 8}))
KNOWN = {"model", "image_size", "patch_size", "decoder_width", "decoder_depth", "batch_size", "base_lr", "precision", "parallel"}


def chosen(count: int, side: int, hardware: Hardware = CPU, hours: float | None = None, **given):
    made = choose(DataSummary(count=count, side=side), hardware, budget(hardware, hours), given, {}, KNOWN)
    assert all(choice.why for choice in made.values())
    return {name: choice.value for name, choice in made.items()}


def test_choices_for_images_and_hardware():
    cifar = chosen(50_000, 32)
    assert (cifar["image_size"], cifar["patch_size"]) == ((32, 32), (4, 4))
    assert cifar["batch_size"] == 128
    assert cifar["decoder_depth"] == 2
    photos = chosen(70, 375)
    assert (photos["image_size"], photos["patch_size"], photos["model"]) == ((64, 64), (8, 8), "vit-tiny")
    assert photos["batch_size"] == 16
    imagenet = chosen(1_281_167, 400, EIGHT, hours=72)
    assert imagenet == {
        "model": "vit-large",
        "image_size": (224, 224),
        "patch_size": (16, 16),
        "decoder_width": 512,
        "decoder_depth": 8,
        "batch_size": 4096,
        "base_lr": 1.5e-4,
        "precision": "bfloat16",
        "parallel": "ddp",
    }
    assert chosen(10, 32)["batch_size"] == 10  # never more than there are
    assert chosen(1000, 32, EIGHT)["batch_size"] % 8 == 0
    assert chosen(1_281_167, 400, GPU, patch_size=(32,))["patch_size"] == (32,)


def test_more_time_and_faster_hardware_never_make_the_model_smaller():
    names = list(VERBS["plan"].arguments["model"].type.__args__[0].__args__)
    for several in ([CPU, GPU, EIGHT], [CPU] * 3):
        models = [chosen(200_000, 224, hardware, hours)["model"] for hardware, hours in zip(several, (0.1, 2, 50), strict=True)]
        assert [names.index(name) for name in models] == sorted(names.index(name) for name in models)
    sizes = [names.index(chosen(count, 224, EIGHT, 1000)["model"]) for count in (100, 5_000, 100_000, 2_000_000)]
    assert sizes == [1, 2, 3, 4]
    assert chosen(2_000_000, 32, EIGHT, 1000)["model"] == "vit-small"  # small images do not fill a large one
    assert chosen(2_000_000, 224, CPU, 1)["model"] == "vit-nano"


def test_what_is_given_is_not_chosen():
    given = {"model": "vit-small", "batch_size": 24, "decoder_depth": 7, "base_lr": 1e-3, "image_size": (96,)}
    made = choose(DataSummary(count=1000, side=300), CPU, 3600, given, {}, KNOWN)
    for name, value in given.items():
        if name != "image_size":
            assert made[name] == (value, "given")
    assert made["patch_size"].value == (12, 12)  # follows the image's size
    defaults = choose(DataSummary(count=1000, side=16), CPU, 3600, {}, {"batch_size": 64}, KNOWN)
    assert defaults["batch_size"] == (64, "default for this data")
    assert "parallel" not in made


def test_the_rate_is_the_paper_s_at_the_paper_s_batch_and_what_worked_on_small_ones():
    assert chosen(1_281_167, 400, GPU, model="vit-base")["base_lr"] == 1.5e-4
    for model, batch, worked in (("vit-small", 128, 5e-4), ("vit-tiny", 128, 1.2e-3), ("vit-nano", 64, 2e-3)):
        peak = chosen(10_000, 32, model=model, batch_size=batch)["base_lr"] * batch / 256
        assert 0.6 < peak / worked < 1.6


def test_epochs_fill_the_budget():
    assert choose_epochs(10_000, 3600, 100, 1e-6).value == 800
    assert choose_epochs(100, 3600, 100, 1e-6).value == 1600
    assert choose_epochs(10_000, 3600, 100, 0.01) == (35.0, "the most that fit into 1 hour; 800 would be better")
    assert choose_epochs(10_000, 1e9, 0, 1e-6, wanted=7.5) == (7.5, "default for this data")
    assert 0 < choose_epochs(10_000, 101, 100, 0.01).value * 100 <= 1
    with pytest.raises(UnveilError, match="alone take 100 seconds; give more --hours"):
        choose_epochs(10_000, 99, 100, 0.01)
    assert budget(CPU, None) == 3600
    assert budget(GPU, None) == 8 * 3600


def test_the_parts_of_a_run_whose_costs_are_known():
    """Ten steps were measured: two of 3 seconds as a warm-up, eight of 1 second."""
    steps = (3, 3, *([1] * 8))
    costs = {"reading": 5, "checkpoint": 0.5, "monitor": 2, "evaluation": 7}
    trial = DryRun(steps=steps, waiting=0, accum_steps=1, memory=1, train=100, read=1, **costs)
    config = TrainConfig(num_evals=4, save_seconds=20, log_every=10)
    parts = trial.parts(100, config)
    assert parts == {"reading": 5, "training": 104, "monitoring": 8, "saving": 0.5 * (1 + 104 // 25), "evaluation": 7}
    assert trial.training(1) == 3
    assert trial.monitor_count(2, config) == 2  # at most one evaluation at a step


def test_few_items_are_measured_if_all_take_too_long():
    seen = []

    seconds_per_item(seen.append, 100, seconds=1.0)
    assert seen == [16, 16, 100]
    seen.clear()
    seconds_per_item(seen.append, 100, seconds=0.0)
    assert seen == [16, 16, 16]


def write_images(folder: Path, count: int = 40) -> Path:
    chance = np.random.default_rng(0)
    for i in range(count):
        name = folder / "ab"[i % 2] / f"{i:02d}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(name)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("plan") / "images")


TINY = {"model": "vit-nano", "image_size": (16,), "patch_size": (4,), "device": "cpu", "precision": "float32", "epochs": 2.0}


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    return unveil.plan(str(images), out=tmp_path_factory.mktemp("runs") / "run", seconds=2, num_evals=2, **TINY)


def test_the_command_is_understood_and_means_the_plan(made, images):
    words = shlex.split(made.command)
    assert words[:3] == ["unveil", "pretrain", str(images)]
    options = parse_options("pretrain", VERBS["pretrain"], words[2:])
    assert Path(options.pop("out")) == made.path
    assert options.pop("resume_from") is None
    assert options.pop("extend") is False
    assert options.pop("config") is None
    plan = IMAGES.plan(options.pop("data"), options.pop("method"), options.pop("model"), options)
    assert plan.config == made.config


def test_the_folder_holds_the_plan_and_nothing_else(made):
    assert [path.name for path in made.path.iterdir()] == ["plan.json"]
    assert [path.name for path in made.path.parent.iterdir()] == ["run"]  # the trial's own folder is gone
    facts = json.loads((made.path / "plan.json").read_text())
    assert facts["predicted"]["seconds"] == made.seconds == sum(facts["predicted"]["parts"].values())
    assert facts["predicted"]["memory"] == made.memory > 2**27
    assert facts["command"] == made.command
    assert facts["choices"]["batch_size"]["why"]


def test_a_run_compares_its_cost_with_the_plan(made, images, capsys):
    words = shlex.split(made.command)
    options = parse_options("pretrain", VERBS["pretrain"], words[2:])
    run = unveil.pretrain(**options)
    cost = run.results["cost"]
    assert cost["planned"] == {"seconds": made.seconds, "memory": made.memory}
    assert cost["seconds"] > 0
    assert cost["memory"] == pytest.approx(peak_memory(torch.device("cpu")), rel=0.2)
    line = " ".join(capsys.readouterr().err.split())
    assert cost_line(cost) in line
    assert f"(planned: {spell_time(made.seconds)}" in line
    assert unveil.pretrain(**options).results["cost"] == cost  # and again touches nothing
    with pytest.raises(UnveilError, match="is not empty, so no run can be planned there"):
        unveil.plan(str(images), out=run.path, seconds=2, **TINY)
    world = World(torch.device("cpu"))
    assert run_cost(run, 0.0, 5, world)["seconds"] is None  # one that went on cannot know
    (run.path / "plan.json").write_text("{")
    assert "planned" not in run_cost(run, 0.0, 0, world)


def test_a_plan_for_other_settings_is_not_compared(tmp_path, images):
    small = TINY | {"epochs": 1.0, "num_evals": 1}
    plan = unveil.plan(str(images), out=tmp_path / "run", seconds=1, **small)
    assert plan.config["epochs"] == 1.0
    run = unveil.pretrain(str(images), out=plan.path, **small, batch_size=8)
    assert "planned" not in run.results["cost"]
    assert Run(run.path).results["cost"]["seconds"] > 0


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["--hours", "0"], 2, "--hours is 0, expected a number above 0"),
        (["--seconds", "0"], 2, "--seconds is 0, expected a number from 1 to 3,600"),
        (["--hours", "soon"], 2, "soon"),
        (["--model", "vit-nano", "--image-size", "16", "--patch-size", "5"], 1, "image side 16 is not a multiple of patch 5"),
        (["--device", "cuda"], 1, "torch finds no GPU"),
        (["--model", "vit-giant"], 2, "vit-giant"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(argv, code, sentence, images, tmp_path, capsys):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as caught:
        cli.main(["plan", str(images), "--out", str(tmp_path / "run"), *argv])
    assert caught.value.code == code
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    with pytest.raises(UnveilError, match="there is no option 'mask_ratoi'; did you mean mask_ratio"):
        unveil.plan(str(images), mask_ratoi=0.5)


def test_options_as_they_are_typed():
    assert flag("flip", False) == ["--no-flip"]
    assert flag("compile", True) == ["--compile"]
    assert flag("image_size", (64, 64)) == ["--image-size", "64"]
    assert flag("image_size", (64, 96)) == ["--image-size", "64", "96"]
    assert flag("base_lr", 1.5e-4) == ["--base-lr", "0.00015"]
    assert flag("decoder_heads", None) == flag("image_size", ()) == []


def test_commands_for_many_processes(images, monkeypatch):
    plan = IMAGES.plan(str(images), "mae", "vit-nano", {"device": "cpu"})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def command(size: int) -> str:
        recipe = replace(plan.recipe, world=World(torch.device("cpu"), 0, size))
        return command_of(replace(plan, recipe=recipe), "photos", "run", {})

    assert command(2) == "torchrun --standalone --nproc-per-node 2 --module unveil pretrain photos --method mae --out run"
    assert command(4).startswith("torchrun ... --module")


def test_a_part_of_a_source_reads_the_same_images(images):
    source = IMAGES.plan(str(images), "mae", "vit-nano", {}).source
    part = part_of(source, 0.25)
    assert len(part) == 10
    assert set(part.names) <= set(source.names)
    for i, name in enumerate(part.names):
        assert part.read(i) == source.read(source.names.index(name))
    assert part.labels is not None
    assert part.labels.tolist() == [source.labels[source.names.index(name)] for name in part.names]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counted by Linux")
def test_memory_is_counted():
    before = peak_memory(torch.device("cpu"))
    block = np.ones(2**24)  # 128 MiB
    assert peak_memory(torch.device("cpu")) >= before
    del block
    assert peak_memory(torch.device("mps")) is None
    expected = "The run used an unknown amount of memory; it was resumed, so its total time is not known."
    assert cost_line({"seconds": None, "memory": None}) == expected


def test_times_and_bytes_in_words():
    texts = [spell_time(x) for x in (3.21, 65, 3700, 90_000)]
    assert texts == ["3.2 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]
    assert spell_bytes(2**20 * 12) == "12 MiB"
    assert spell_bytes(3 * 2**29) == "1.50 GiB"
    assert {"method", "model"} <= set(VERBS["plan"].arguments)
    assert len(IMAGES.configs("mae")) == 6
