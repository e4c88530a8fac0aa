"""What to train, and how: chosen from the images and the hardware by rules that fit in a head, each with its reason.

Pure functions of numbers: nothing here looks at a file or at a device.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unveil.blocks.masks import visible_count
from unveil.blocks.patches import Size, grid_size
from unveil.errors import UnveilError
from unveil.models.flops import mae_cost
from unveil.models.vit import MODELS, ViTConfig
from unveil.runs.open_data import sizes_for

HOURS = {"cpu": 1.0}
"""The budget by default; 8 hours on a GPU."""
PASSES, FEW_PASSES = 800.0, 1600.0
"""Epochs that are wanted: the paper's 800, and its 1600 for less than `FEW` images."""
FEW = 2_000
ENOUGH = 25.0
"""A larger encoder is taken only if it sees each image this often within the budget."""
LARGEST = ((2_000, "vit-tiny"), (20_000, "vit-small"), (500_000, "vit-base"))
"""Below so many images, no encoder larger than this; vit-large for more."""
SMALL_IMAGES, SMALL_SIDE = "vit-small", 96
"""No larger encoder for images smaller than this."""
CPU_SIDE = 64
"""Images are taken at this size on a CPU: 224 px cost twelve times as much."""
REACHED = 0.3
"""Share of the measured matrix peak that a step is guessed to reach before it is tried."""
SHARE = 0.9
"""Of the budget, for training; the rest is for reading, judging and the report."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """What there is to see of DATA without reading it."""

    count: int
    """Images to train on."""
    side: int
    """Short side that half of them have at least."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The hardware that was found."""

    device: str
    """cpu, cuda or mps."""
    name: str
    """Of the device."""
    memory: int
    """Bytes, for one process."""
    cores: int
    """That this process may use."""
    processes: int
    """Under torchrun, over all machines."""
    peak: float
    """FLOPs a second of a large matrix product, measured, for one process."""
    precision: str
    """What it multiplies fast."""


class Choice(NamedTuple):
    """A knob's value, and why."""

    value: Any
    why: str


Choices = dict[str, Choice]


def budget(machine: Machine, hours: float | None) -> float:
    """Seconds that a run may take. Raises `UnveilError` where there are none."""
    hours = HOURS.get(machine.device, 8.0) if hours is None else hours
    if not 0 < hours < float("inf"):
        raise UnveilError(f"--hours is {hours:g}: give the hours that the run may take, more than 0")
    return 3600 * hours


def choose(
    glance: DataSummary,
    machine: Machine,
    seconds: float,
    fixed: Mapping[str, Any],
    usual: Mapping[str, Any],
    known: Collection[str],
) -> Choices:
    """A value for each knob that matters, but for the epochs, which wait for the speed.

    Args:
        glance: The images.
        machine: The hardware.
        seconds: The budget.
        fixed: Options that the user has given, `model` among them.
        usual: Defaults that were made for this very data.
        known: Names of the options that there are.
    """
    chosen: Choices = {}
    said = {name: Choice(value, "made for this data") for name, value in usual.items()}
    said |= {name: Choice(value, "as given") for name, value in fixed.items()}

    def settle(name: str, choice: Choice) -> Any:
        if name in known:
            chosen[name] = said.get(name, choice)
            return chosen[name].value
        return choice.value

    model = settle("model", said.get("model") or model_for(glance, machine, seconds, said))
    image, patch = shapes(glance, machine, said, model)
    settle("image_size", Choice(image, size_for(glance, machine, said).why))
    settle("patch_size", Choice(patch, f"{rows_of(image, patch)} patches"))
    width, depth, _ = MODELS[model]
    narrow, shallow = decoder_for(width, depth, machine)
    settle("decoder_width", narrow)
    settle("decoder_depth", shallow)
    batch = settle("batch_size", batch_for(glance, machine))
    settle("base_lr", rate_for(width, batch))
    settle("precision", Choice(machine.precision, precision_reason(machine)))
    if machine.processes > 1:
        settle("parallel", parallel_for(model, machine))
    return chosen


def size_for(glance: DataSummary, machine: Machine, said: Mapping[str, Choice]) -> Choice:
    """The side of the images; nothing of it where it was said."""
    if "image_size" in said:
        return said["image_size"]
    if machine.device == "cpu" and glance.side > 96:
        return Choice((CPU_SIDE,), f"images of {glance.side} px are too slow for a CPU at their own size")
    return Choice((), "what the images have" if glance.side < 224 else "the paper's; half of the images have it")


def shapes(glance: DataSummary, machine: Machine, said: Mapping[str, Choice], model: str) -> tuple[Size, Size]:
    """Image and patch size, settled as `pretrain` would."""
    given = said["patch_size"].value if "patch_size" in said else ()
    return sizes_for(glance.side, size_for(glance, machine, said).value, given, model == "vit-huge")


def model_for(glance: DataSummary, machine: Machine, seconds: float, said: Mapping[str, Choice]) -> Choice:
    """The largest encoder that the images can fill, the memory holds, and the budget shows each image often enough."""
    names, most = list(MODELS), next((name for count, name in LARGEST if glance.count < count), "vit-large")
    why = f"as large as {glance.count:,} images can fill"
    if glance.side < SMALL_SIDE and names.index(most) > names.index(SMALL_IMAGES):
        most, why = SMALL_IMAGES, f"as large as images of {glance.side} px can fill"
    for name in reversed(names[1 : names.index(most) + 1]):
        passes = SHARE * seconds * pace(name, glance, machine, said) / glance.count
        if passes >= ENOUGH and 16 * parameters(name) < 0.4 * machine.memory:
            return Choice(name, why)
        why = f"the largest that may see each image {ENOUGH:g} times in {spell_hours(seconds)}"
    return Choice(names[0], f"small: {spell_hours(seconds)} are short for {glance.count:,} images on this hardware")


def pace(model: str, glance: DataSummary, machine: Machine, said: Mapping[str, Choice]) -> float:
    """Images a second that a masked autoencoder may reach on all processes, guessed from its FLOPs."""
    image, patch = shapes(glance, machine, said, model)
    width, depth, heads = MODELS[model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=image, patch_size=patch)
    narrow, shallow = (
        said.get(name, choice)
        for name, choice in zip(("decoder_width", "decoder_depth"), decoder_for(width, depth, machine), strict=True)
    )
    rows, columns = grid_size(image, patch)
    ratio = said["mask_ratio"].value if "mask_ratio" in said else 0.75
    cost = mae_cost(
        vit, visible_count(rows * columns, ratio), width=narrow.value, depth=shallow.value, predicted=3 * patch[0] * patch[1]
    )
    return REACHED * machine.peak * machine.processes / cost.step


def decoder_for(width: int, depth: int, machine: Machine) -> tuple[Choice, Choice]:
    """Width and depth of the decoder."""
    narrow = Choice(min(512, width), "the paper's (table 1b)" if width >= 512 else "no wider than the encoder")
    if machine.device == "cpu":
        return narrow, Choice(min(2, max(1, depth // 2)), "half the cost on a CPU; table 1a: the same after fine-tuning")
    usual = 8 if width >= 512 else min(4, depth // 2)
    return narrow, Choice(usual, "the paper's (table 1a)" if usual == 8 else "enough for a narrow encoder")


def batch_for(glance: DataSummary, machine: Machine) -> Choice:
    """Images in a step: a power of two, or a multiple of the number of processes."""
    steps = 256 if machine.device == "cpu" else 64
    size = 16
    while size * 2 <= min(glance.count / steps, 4096):
        size *= 2
    size = max(min(size, glance.count), 1)
    size = max(1, round(size / machine.processes)) * machine.processes
    why = "the paper's" if size == 4096 else f"{max(1, round(glance.count / size)):,} steps an epoch"
    return Choice(size, why)


def rate_for(width: int, batch: int) -> Choice:
    """The learning rate for a batch of 256; the real one is this times batch / 256.

    The paper's peak is 2.4e-3 at a batch of 4096. AdamW's peak goes with the root of the batch, and narrow encoders bear more: a
    curve through 5e-4 (ViT-S, batch 128), 1.2e-3 (ViT-Ti, 128) and 2e-3 (vit-nano, 64), which all worked.
    """
    peak = 2.4e-3 * (batch / 4096) ** 0.5 * max(768 / width, 1.0) ** 0.75
    value = float(f"{peak * 256 / batch:.2g}")
    return Choice(value, f"peak {value * batch / 256:.1e}: by the root of the batch, more for narrow encoders")


def parallel_for(model: str, machine: Machine) -> Choice:
    """A copy of the model on each process, or a share."""
    state = 16 * parameters(model)
    if state > 0.3 * machine.memory:
        return Choice("fsdp", f"{state / 2**30:.0f} GiB of weights and optimiser state are shared out")
    return Choice("ddp", "the model fits on each process")


def parameters(model: str) -> int:
    """About how many an encoder has."""
    width, depth, _ = MODELS[model]
    return 12 * width**2 * depth


def precision_reason(machine: Machine) -> str:
    """Why it is what it is."""
    half = machine.precision == "bfloat16"
    return "this hardware multiplies it fast" if half else "this hardware has no fast bfloat16"


def epochs_for(glance: DataSummary, seconds: float, fixed_cost: float, per_image: float, most: float | None = None) -> Choice:
    """As many passes as are wanted, or as the budget allows.

    Args:
        glance: The images.
        seconds: The budget.
        fixed_cost: Seconds before and after training.
        per_image: Seconds of training for an image, all processes together, looks and checkpoints included.
        most: Passes that are wanted.

    Raises:
        UnveilError: Where the budget does not even pay for what stands around the training.
    """
    few = glance.count < FEW
    wanted = most or (FEW_PASSES if few else PASSES)
    fitting = (seconds - fixed_cost) / (per_image * glance.count)
    if fitting <= 0:
        raise UnveilError(
            f"{spell_hours(seconds)} are too short: reading, judging and the report alone take {fixed_cost:,.0f} seconds; "
            f"give more --hours"
        )
    if fitting >= wanted:
        why = "made for this data" if most else "the paper's longest: few images need many passes" if few else "the paper's"
        return Choice(wanted, why)
    value = float(int(fitting)) if fitting >= 20 else float(f"{0.995 * fitting:.2g}")
    return Choice(value, f"what fits into {spell_hours(seconds)}; {wanted:g} would be better")


def spell_hours(seconds: float) -> str:
    """A budget in words."""
    hours = seconds / 3600
    return f"{hours:.3g} hour{'' if hours == 1 else 's'}"


def rows_of(image: Size, patch: Size) -> str:
    """Rows and columns of patches in words. Raises `UnveilError` where they do not tile the image."""
    rows, columns = grid_size(image, patch)
    return f"{rows} x {columns}"
