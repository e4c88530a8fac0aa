"""Names that other libraries, and earlier versions of unveil, use for our options. A hint suggests ours for a foreign name."""

import difflib
from collections.abc import Callable, Iterable

SYNONYMS: dict[str, tuple[str, ...]] = {
    # names of earlier versions of unveil
    "recompute": ("grad_checkpointing",),
    "clip": ("clip_grad",),
    "accumulate": ("accum_steps",),
    "warmup": ("warmup_epochs", "warmup_ratio"),
    "keep": ("keep_checkpoints",),
    "monitor_times": ("num_evals",),
    "epsilon": ("eps",),
    "last_weight_decay": ("weight_decay_end",),
    "pixel_limit": ("max_pixels",),
    "jitter": ("color_jitter",),
    "tokenizer": ("visual_tokenizer",),
    "codebook": ("codebook_size",),
    "vocabulary": ("vocabulary_size",),
    "longest": ("max_length",),
    "length": ("max_length",),
    "labelled": ("labelled_data",),
    "tuned": ("with_finetune",),
    # the public MAE, DINO and BEiT code
    "accum_iter": ("accum_steps",),
    "blr": ("base_lr",),
    "data_path": ("data",),
    "drop": ("dropout",),
    "end_weight_decay": ("weight_decay_end",),
    "finetune": ("run",),
    "global_pool": ("pool", "tokens"),
    "input_size": ("image_size",),
    "local_crops_number": ("local_crops",),
    "log_dir": ("out",),
    "norm_pix_loss": ("target",),
    "output_dir": ("out",),
    "pixel_norm": ("target",),
    "num_mask_patches": ("mask_ratio",),
    "out_dim": ("prototypes",),
    "reprob": ("erasing",),
    "save_ckpt_freq": ("save_seconds",),
    "saveckp_freq": ("save_seconds",),
    "teacher_temp": ("teacher_temperature",),
    "use_amp": ("precision",),
    "use_fp16": ("precision",),
    "weight_decay_schedule": ("weight_decay_end",),
    # timm, transformers, lightly, Lightning, MMPretrain
    "aa": ("randaugment",),
    "accelerator": ("device",),
    "accumulate_grad_batches": ("accum_steps",),
    "adam_beta1": ("beta1",),
    "adam_beta2": ("beta2",),
    "adam_epsilon": ("eps",),
    "amp": ("precision",),
    "arch": ("model",),
    "auto_augment": ("randaugment",),
    "backbone": ("model",),
    "batch": ("batch_size",),
    "bf16": ("precision",),
    "checkpoint": ("resume_from",),
    "ckpt_path": ("resume_from",),
    "continue_from": ("resume_from",),
    "from": ("resume_from",),
    "resume_from_checkpoint": ("resume_from",),
    "bs": ("batch_size",),
    "cls_token": ("pool", "tokens"),
    "clip_grad_norm": ("clip_grad",),
    "crop_pct": ("crop_scale",),
    "dataset": ("data",),
    "data_dir": ("data",),
    "drop_path_rate": ("drop_path",),
    "fp16": ("precision",),
    "grad_clip": ("clip_grad",),
    "gradient_accumulation_steps": ("accum_steps",),
    "gradient_checkpointing": ("grad_checkpointing",),
    "gradient_clip_val": ("clip_grad",),
    "hflip": ("flip",),
    "image_processor": ("image_size",),
    "init_weights": ("init",),
    "initial_checkpoint": ("init",),
    "img_size": ("image_size",),
    "in_channels": ("channels",),
    "in_chans": ("channels",),
    "k": ("neighbours",),
    "label_smoothing": ("smoothing",),
    "label_smoothing_factor": ("smoothing",),
    "license": ("licence",),
    "layer_wise_lr_decay": ("layer_decay",),
    "learning_rate": ("base_lr",),
    "log_every_n_steps": ("log_every",),
    "log_interval": ("log_every",),
    "logger": ("tracker",),
    "logging_dir": ("out",),
    "logging_steps": ("log_every",),
    "lr": ("base_lr",),
    "lr_scheduler": ("schedule",),
    "lr_scheduler_type": ("schedule",),
    "mask_patch_size": ("mask_unit",),
    "masking_ratio": ("mask_ratio",),
    "max_epochs": ("epochs",),
    "max_grad_norm": ("clip_grad",),
    "mlm_probability": ("mask_ratio",),
    "model_name": ("model",),
    "momentum_teacher": ("momentum",),
    "n_neighbors": ("neighbours",),
    "num_beams": ("beams",),
    "num_channels": ("channels",),
    "num_epochs": ("epochs",),
    "num_train_epochs": ("epochs",),
    "opt": ("optimizer",),
    "opt_eps": ("eps",),
    "output": ("out",),
    "patch": ("patch_size",),
    "per_device_train_batch_size": ("batch_size",),
    "pooling": ("pool", "tokens"),
    "pretrained": ("init",),
    "push_to_hub": ("push",),
    "pretrained_path": ("init",),
    "random_seed": ("seed",),
    "report_to": ("tracker",),
    "sched": ("schedule",),
    "save_dir": ("out",),
    "save_total_limit": ("keep_checkpoints",),
    "scale": ("crop_scale",),
    "size": ("image_size",),
    "strategy": ("parallel",),
    "top_k": ("count",),
    "torch_compile": ("compile",),
    "val_data": ("test",),
    "vocab_size": ("vocabulary_size",),
    "wandb": ("tracker",),
    "warmup_proportion": ("warmup_ratio",),
    "warmup_steps": ("warmup_epochs", "warmup_ratio"),
    "wd": ("weight_decay",),
}
"""Foreign names, and the names of our options that may be meant, the best one first."""

_WORKERS = "the number of reading threads is chosen automatically"
_TORCHRUN = "start one process per GPU with torchrun --nproc-per-node N -m unveil"
_RESUME = "the same command again resumes the run in --out"
EXPLAINED: dict[str, str] = {
    "workers": _WORKERS,
    "num_workers": _WORKERS,
    "dataloader_num_workers": _WORKERS,
    "pin_mem": "memory is pinned automatically",
    "pin_memory": "memory is pinned automatically",
    "gpus": _TORCHRUN,
    "num_gpus": _TORCHRUN,
    "devices": _TORCHRUN,
    "world_size": _TORCHRUN,
    "num_nodes": _TORCHRUN,
    "nodes": _TORCHRUN,
    "dist_url": _TORCHRUN,
    "local_rank": _TORCHRUN,
    "resume": _RESUME,
    "auto_resume": _RESUME,
    "start_epoch": _RESUME,
    "overwrite_output_dir": "nothing is overwritten: choose another --out, or remove the folder",
    "force": "nothing is overwritten: choose another --out, or remove the folder",
    "warmup_lr": "the learning rate rises from 0",
    "nb_classes": "the classes follow from the data",
    "num_classes": "the classes follow from the data",
    "init": "only methods for images start from weights; to go on from a run, give --resume-from",
    "max_steps": "the length of a run is given by --epochs, which may be a fraction",
    "steps": "the length of a run is given by --epochs, which may be a fraction",
}
"""Foreign names without an option of ours, and the reason."""

NOTES = {
    "base_lr": "the peak learning rate for a batch of 256, which is scaled with the batch size",
    "warmup_ratio": "a share of the run",
}
"""Remarks to add to a hint, for options that do not mean quite the same as a foreign one."""


def hint(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """A suggestion for a name that is not in `known`; "" if nothing is similar.

    Args:
        name: The unknown name, with underscores.
        known: The names that exist, with underscores.
        spell: How to write a name, such as `--base-lr`.
    """
    known = sorted(known)
    name = name.replace("-", "_").lower()
    meant = [each for each in SYNONYMS.get(name, ()) if each in known]
    if not meant and name in EXPLAINED:
        return EXPLAINED[name]
    if not meant:
        meant = difflib.get_close_matches(name, known, n=3)
        return f"did you mean {' or '.join(map(spell, meant))}?" if meant else ""
    notes = [f" ({NOTES[each]})" if each in NOTES and name != each else "" for each in meant]
    return f"did you mean {' or '.join(spell(each) + note for each, note in zip(meant, notes, strict=True))}?"
