"""What a training step of a masked autoencoder costs: FLOPs by its shape, and seconds by the clock."""

from statistics import median

from unveil.blocks.masks import visible_count
from unveil.blocks.targets import PCA_COEFFICIENTS
from unveil.interop.configs import config_from_json
from unveil.interop.model_files import config_of
from unveil.methods.mae import MAEConfig
from unveil.models.flops import mae_cost
from unveil.models.vit_config import ViTConfig
from unveil.train.log import read_log
from unveil.train.run_folder import Run

FEWEST_SPEEDS = 3
"""Lines of the log with a speed, below which no time of a step is given."""


def flops_per_step(run: Run) -> float | None:
    """FLOPs of a step, of the whole batch, forward and backward; None for another method than MAE.

    What computes the targets is not counted, such as a visual tokenizer.
    """
    config = config_of(run.path) or {}
    if config.get("method") != "mae":
        return None
    vit = config_from_json(ViTConfig, config["encoder"], f"the encoder of {run.path}")
    mae = config_from_json(MAEConfig, config["options"], f"the options of {run.path}")
    if mae.decoder_width is None or mae.decoder_depth is None:  # an earlier version did not record what they were
        return None
    values = vit.patch_size[0] * vit.patch_size[1] * vit.channels
    predicted = {"token": mae.codebook_size, "pca": min(PCA_COEFFICIENTS, values)}.get(mae.target, values)
    batch = int(run.config["batch_size"])
    cost = mae_cost(
        vit,
        visible_count(vit.grid[0] * vit.grid[1], mae.mask_ratio),
        width=mae.decoder_width,
        depth=mae.decoder_depth,
        predicted=predicted,
        batch=batch,
        every=mae.loss_on_all,
        mask_tokens_in_encoder=mae.mask_tokens_in_encoder,
    )
    return cost.step * batch


def seconds_per_step(run: Run) -> float | None:
    """The median time of a training step, without reading, evaluation and reports; None if the log has fewer than 3 speeds.

    The first speed of a log includes the start of the process, which takes seconds. It would be the median of one speed, half of
    that of two, and no part of that of three.
    """
    records, _ = read_log(run.path / "log.jsonl")
    speeds = [float(record["samples_per_second"]) for record in records if record.get("samples_per_second")]
    return float(run.config["batch_size"] / median(speeds)) if len(speeds) >= FEWEST_SPEEDS else None
