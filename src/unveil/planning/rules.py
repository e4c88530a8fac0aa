"""Rules that choose the options of a run from the images and the hardware. Each choice has a reason.

These are pure functions of numbers, which read no files and use no device. The rules are for methods that learn from images.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from unveil.blocks.masks import visible_count
from unveil.blocks.patches import Size, grid_size
from unveil.errors import UnveilError
from unveil.learner import Method
from unveil.models.flops import mae_cost
from unveil.models.vit_config import MODELS, ViTConfig
from unveil.plain_text import count_of
from unveil.runs.open_data import sizes_for

DEFAULT_HOURS = {"cpu": 1.0, "gpu": 8.0}
"""The default budget in hours."""
DEFAULT_EPOCHS, FEW_IMAGES_EPOCHS = 800.0, 1600.0
"""The default epochs of the paper, and its longest run, which is for fewer than `FEW_IMAGES` images."""
FEW_IMAGES = 2_000
MIN_EPOCHS = 25.0
"""A larger encoder is chosen only if the budget allows at least this many epochs."""
LARGEST_MODELS = ((2_000, "vit-tiny"), (20_000, "vit-small"), (500_000, "vit-base"))
"""Pairs (count, model): with fewer images than the count, the encoder is at most this model; otherwise vit-large."""
SMALL_SIDE, SMALL_IMAGES_MODEL = 96, "vit-small"
"""For images smaller than this side, the encoder is at most this model."""
CPU_SIDE = 64
"""The image size on a CPU, where 224 px would cost twelve times more."""
PEAK_SHARE = 0.3
"""The share of the measured matrix peak that a step is expected to reach, before steps are measured."""
TRAINING_SHARE = 0.9
"""The share of the budget for training; the rest is for reading, evaluation and the report."""


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Facts about DATA that need no training: the count, and the size from a sample of images."""

    count: int
    """Number of training images."""
    side: int
    """Median of the shorter side of the images, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The hardware of a run."""

    device: str
    """cpu, cuda or mps."""
    name: str
    """Name of the device."""
    memory: int
    """Memory for one process, in bytes."""
    cores: int
    """Number of cores that this process may use."""
    processes: int
    """World size under torchrun, over all machines."""
    peak: float
    """Measured FLOPs per second of a large matrix product, for one process."""
    precision: str
    """The precision with fast matrix products."""


class Choice(NamedTuple):
    """The value of an option, and the reason for it."""

    value: Any
    why: str


Choices = dict[str, Choice]
"""Choices by option name."""


def applies_to(method: type[Method]) -> bool:
    """Whether these rules and the dry run apply to a method: it must learn from images."""
    return method.modality == "images"


def budget(hardware: Hardware, hours: float | None) -> float:
    """The budget of a run in seconds."""
    hours = DEFAULT_HOURS["cpu" if hardware.device == "cpu" else "gpu"] if hours is None else hours
    return 3600 * hours


def choose(
    data: DataSummary,
    hardware: Hardware,
    seconds: float,
    fixed: Mapping[str, Any],
    defaults: Mapping[str, Any],
    option_names: Collection[str],
) -> Choices:
    """Chooses the most important options, except the epochs, which depend on the measured speed.

    Args:
        data: The images.
        hardware: The hardware.
        seconds: The budget in seconds.
        fixed: Options given by the user, which may include `model`.
        defaults: Defaults for this specific data.
        option_names: Names of the options of the method. Other options are not chosen.
    """
    chosen: Choices = {}
    given = {name: Choice(value, "default for this data") for name, value in defaults.items()}
    given |= {name: Choice(value, "given") for name, value in fixed.items()}

    def decide(name: str, choice: Choice) -> Any:
        if name in option_names:
            chosen[name] = given.get(name, choice)
            return chosen[name].value
        return choice.value

    model = decide("model", given.get("model") or choose_model(data, hardware, seconds, given))
    image, patch = image_and_patch_size(data, hardware, given, model)
    decide("image_size", Choice(image, choose_image_size(data, hardware, given).why))
    decide("patch_size", Choice(patch, f"{grid_text(image, patch)} patches"))
    width, depth, _ = MODELS[model]
    decoder_width, decoder_depth = choose_decoder(width, depth, hardware)
    decide("decoder_width", decoder_width)
    decide("decoder_depth", decoder_depth)
    batch_size = decide("batch_size", choose_batch_size(data, hardware))
    decide("base_lr", choose_base_lr(width, batch_size))
    decide("precision", Choice(hardware.precision, precision_reason(hardware)))
    if hardware.processes > 1:
        decide("parallel", choose_parallel(model, hardware))
    return chosen


def choose_image_size(data: DataSummary, hardware: Hardware, given: Mapping[str, Choice]) -> Choice:
    """The option `image_size`; empty for the size of the images."""
    if "image_size" in given:
        return given["image_size"]
    if hardware.device == "cpu" and data.side > 96:
        return Choice((CPU_SIDE,), f"images of {data.side} px are too slow for a CPU at full size")
    return Choice((), "the size of the images" if data.side < 224 else "the paper's; half of the images are at least as large")


def image_and_patch_size(data: DataSummary, hardware: Hardware, given: Mapping[str, Choice], model: str) -> tuple[Size, Size]:
    """Image and patch size, resolved as `pretrain` does."""
    patch_size = given["patch_size"].value if "patch_size" in given else ()
    return sizes_for(data.side, choose_image_size(data, hardware, given).value, patch_size, model == "vit-huge")


def choose_model(data: DataSummary, hardware: Hardware, seconds: float, given: Mapping[str, Choice]) -> Choice:
    """The largest encoder that suits the images, fits into memory, and trains for enough epochs within the budget."""
    names, largest = list(MODELS), next((name for count, name in LARGEST_MODELS if data.count < count), "vit-large")
    reason = f"the largest for {count_of(data.count, 'image')}"
    if data.side < SMALL_SIDE and names.index(largest) > names.index(SMALL_IMAGES_MODEL):
        largest, reason = SMALL_IMAGES_MODEL, f"the largest for images of {data.side} px"
    for name in reversed(names[1 : names.index(largest) + 1]):
        epochs = TRAINING_SHARE * seconds * images_per_second(name, data, hardware, given) / data.count
        if epochs >= MIN_EPOCHS and 16 * encoder_parameters(name) < 0.4 * hardware.memory:
            return Choice(name, reason)
        reason = f"the largest that may see each image {MIN_EPOCHS:g} times in {hours_text(seconds)}"
    return Choice(names[0], f"the smallest: {hours_text(seconds)} is short for {count_of(data.count, 'image')} on this hardware")


def images_per_second(model: str, data: DataSummary, hardware: Hardware, given: Mapping[str, Choice]) -> float:
    """The expected speed of a masked autoencoder on all processes, estimated from its FLOPs."""
    image, patch = image_and_patch_size(data, hardware, given, model)
    width, depth, heads = MODELS[model]
    vit = ViTConfig(width=width, depth=depth, heads=heads, image_size=image, patch_size=patch)
    decoder_width, decoder_depth = (
        given.get(name, choice)
        for name, choice in zip(("decoder_width", "decoder_depth"), choose_decoder(width, depth, hardware), strict=True)
    )
    rows, columns = grid_size(image, patch)
    ratio = given["mask_ratio"].value if "mask_ratio" in given else 0.75
    cost = mae_cost(
        vit,
        visible_count(rows * columns, ratio),
        width=decoder_width.value,
        depth=decoder_depth.value,
        predicted=3 * patch[0] * patch[1],
    )
    return PEAK_SHARE * hardware.peak * hardware.processes / cost.step


def choose_decoder(width: int, depth: int, hardware: Hardware) -> tuple[Choice, Choice]:
    """Width and depth of the decoder, which depend on the encoder."""
    decoder_width = Choice(min(512, width), "the paper's (table 1b)" if width >= 512 else "no wider than the encoder")
    if hardware.device == "cpu":
        half_cost = "half the cost on a CPU; table 1a: the same after fine-tuning"
        return decoder_width, Choice(min(2, max(1, depth // 2)), half_cost)
    blocks = 8 if width >= 512 else min(4, depth // 2)
    return decoder_width, Choice(blocks, "the paper's (table 1a)" if blocks == 8 else "enough for a narrow encoder")


def choose_batch_size(data: DataSummary, hardware: Hardware) -> Choice:
    """The batch size: a power of two, or a multiple of the number of processes."""
    steps = 256 if hardware.device == "cpu" else 64
    size = 16
    while size * 2 <= min(data.count / steps, 4096):
        size *= 2
    size = max(min(size, data.count), 1)
    size = max(1, round(size / hardware.processes)) * hardware.processes
    return Choice(size, "the paper's" if size == 4096 else f"{count_of(max(1, round(data.count / size)), 'step')} per epoch")


def choose_base_lr(width: int, batch_size: int) -> Choice:
    """The learning rate for a batch of 256; the actual one is this times batch size / 256.

    The paper's peak is 2.4e-3 at a batch size of 4096. The best rate of AdamW grows with the square root of the batch size, and
    is higher for narrow encoders. The rule is a curve through rates that worked well: 5e-4 (ViT-S, batch size 128), 1.2e-3
    (ViT-Ti, 128) and 2e-3 (vit-nano, 64).
    """
    peak = 2.4e-3 * (batch_size / 4096) ** 0.5 * max(768 / width, 1.0) ** 0.75
    value = float(f"{peak * 256 / batch_size:.2g}")
    reason = f"peak {value * batch_size / 256:.1e}: scaled with the square root of the batch size, higher for narrow encoders"
    return Choice(value, reason)


def choose_parallel(model: str, hardware: Hardware) -> Choice:
    """DDP if the model fits on each process, else FSDP."""
    state = 16 * encoder_parameters(model)
    if state > 0.3 * hardware.memory:
        return Choice("fsdp", f"{state / 2**30:.0f} GiB of weights and optimiser state are sharded")
    return Choice("ddp", "the model fits on each process")


def encoder_parameters(model: str) -> int:
    """The approximate number of parameters of an encoder."""
    width, depth, _ = MODELS[model]
    return 12 * width**2 * depth


def precision_reason(hardware: Hardware) -> str:
    return "this hardware is not faster in half precision" if hardware.precision == "float32" else "fast on this hardware"


def choose_epochs(count: int, seconds: float, fixed_cost: float, per_image: float, wanted: float | None = None) -> Choice:
    """The number of epochs: as many as are useful, up to what the budget allows.

    Args:
        count: Number of training images.
        seconds: The budget in seconds.
        fixed_cost: Seconds before and after training.
        per_image: Seconds of training per image, over all processes, with evaluations and checkpoints.
        wanted: The default epochs for this data, if there are any.

    Raises:
        UnveilError: If the budget is too short for the fixed cost alone.
    """
    few = count < FEW_IMAGES
    most = wanted or (FEW_IMAGES_EPOCHS if few else DEFAULT_EPOCHS)
    affordable = (seconds - fixed_cost) / (per_image * count)
    if affordable <= 0:
        raise UnveilError(
            f"{hours_text(seconds)} is too short: reading, evaluation and the report alone take {fixed_cost:,.0f} seconds; "
            f"give more --hours"
        )
    if affordable >= most:
        if wanted:
            return Choice(most, "default for this data")
        return Choice(most, "the paper's longest run: few images need many epochs" if few else "the paper's")
    value = float(int(affordable)) if affordable >= 20 else float(f"{0.995 * affordable:.2g}")
    return Choice(value, f"the most that fit into {hours_text(seconds)}; {most:g} would be better")


def hours_text(seconds: float) -> str:
    """A budget as text."""
    hours = seconds / 3600
    return f"{hours:.3g} hour{'' if hours == 1 else 's'}"


def grid_text(image: Size, patch: Size) -> str:
    """Rows and columns of patches as text. Raises `UnveilError` if patches do not tile the image."""
    rows, columns = grid_size(image, patch)
    return f"{rows} x {columns}"
