"""Compares the features of public architectures, with random weights, with those of timm and transformers, from image files on.

    python -m benchmarks.parity            the real sizes: some 15 minutes and 12 GB of memory on two cores
    python -m benchmarks.parity --small    the sizes of the tests
    python -m benchmarks.parity vit_base_patch16_224 dinov2

Every tensor is random. Prints one row for each architecture: tokens, features and, where the head is kept, class scores, as the
largest difference divided by the largest value; and what is refused, with its sentence. Needs no network.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

import unveil
from unveil.errors import UnveilError
from unveil.interop.image_files import read_prepared
from unveil.learner import Learner
from unveil.protocols import Classifies

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 7}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_224.augreg_in21k_ft_in1k": {},
    "vit_base_patch16_224.mae": {"num_classes": 0},
    "vit_base_patch16_224_miil": {},
    "vit_base_patch16_gap_224": {},
    "vit_medium_patch16_gap_240": {"qkv_bias": False},
    "vit_base_patch16_siglip_gap_224": {"num_classes": 0},
    "vit_so400m_patch14_siglip_gap_224": {"num_classes": 0},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_small_patch14_dinov2": {"num_classes": 0},
    "vit_small_patch14_reg4_dinov2": {"num_classes": 0},
    "vit_giant_patch14_reg4_dinov2": {"num_classes": 0, "mlp_ratio": 5.5},
    "vit_medium_patch16_reg4_gap_256": {},
    "flexivit_small": {},
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit3_small_patch16_224": {},
    "beit_base_patch16_224": {},
    "beitv2_base_patch16_224": {"num_classes": 0},
    "eva_large_patch14_196": {},
}
"""Architectures of timm, and the arguments of the small ones in addition to `SMALL`."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "vit_small_patch16_dinov3": ({"num_classes": 0, "depth": 1}, "rotary positions"),
    "eva02_tiny_patch14_224": ({"num_classes": 0, "depth": 1}, r"blocks\.0\.attn\.q_bias .*rotary positions"),
    "vit_tiny_r_s16_p8_224": ({"num_classes": 0, "depth": 1}, r"patch_embed\.backbone\S+ has no place \(a convolutional network"),
    "vit_base_patch16_siglip_224": ({"num_classes": 0, "depth": 1}, r"attn_pool\.\w+\S* has no place \(attention pooling"),
    "vit_base_patch16_xp_224": ({"num_classes": 0, "depth": 1}, r"blocks\.0\.\S+ has no place"),
    "vit_small_patch16_18x2_224": ({"num_classes": 0, "depth": 1}, r"blocks\.0\.attns\.0\.\S+ has no place \(parallel branches"),
    "vit_base_patch16_rpn_224": ({"num_classes": 0, "depth": 1}, "ResPostBlock"),
    "swin_tiny_patch4_window7_224": ({"num_classes": 0}, r"layers\.0\.\S+ has no place|pos_embed is missing"),
}
"""Architectures of timm that cannot be expressed: their arguments, and a pattern of the sentence."""
CROPPED = {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 3}
SQUASHED = {"size": {"height": 32, "width": 32}, "do_center_crop": False, "resample": 2}
BOTH = {"size": {"height": 36, "width": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 3}
VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {key: value for key, value in VIT.items() if key != "intermediate_size"}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "ViTModel": ("ViTModel", "ViTConfig", VIT, SQUASHED),
    "ViTForImageClassification": ("ViTForImageClassification", "ViTConfig", VIT | {"num_labels": 5}, CROPPED),
    "ViTModel, quick GELU, no biases": ("ViTModel", "ViTConfig", VIT | {"hidden_act": "quick_gelu", "qkv_bias": False}, SQUASHED),
    "ViTMAEModel": ("ViTMAEModel", "ViTMAEConfig", VIT | {"mask_ratio": 0.0}, CROPPED),
    "Dinov2Model": ("Dinov2Model", "Dinov2Config", DINO, CROPPED),
    "Dinov2Model, SwiGLU": ("Dinov2Model", "Dinov2Config", DINO | {"use_swiglu_ffn": True}, CROPPED),
    "Dinov2ForImageClassification": ("Dinov2ForImageClassification", "Dinov2Config", DINO, BOTH),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO, CROPPED),
    "BeitModel": ("BeitModel", "BeitConfig", VIT | {"use_relative_position_bias": True}, BOTH),
    "BeitModel, shared": (
        "BeitModel",
        "BeitConfig",
        VIT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_absolute_position_embeddings": True},
        SQUASHED,
    ),
    "BeitForImageClassification": (
        "BeitForImageClassification",
        "BeitConfig",
        VIT | {"use_relative_position_bias": True, "num_labels": 5},
        CROPPED,
    ),
}
"""Models of transformers: class, class of the config, options of a small one, and how images are prepared."""
TRANSFORMERS_REFUSED = {
    "swin": ({"model_type": "swin"}, "config.json of swin: expected"),
    "dinov3_vit": ({"model_type": "dinov3_vit"}, "config.json of dinov3_vit: expected"),
}
SIZES = ((32, 32), (50, 41), (37, 90), (20, 25))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, with noise on every tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                scale = 0.3 if "gamma" in name or "lambda" in name or "layer_scale" in name else 0.05
                value.add_(scale * torch.randn(value.shape, generator=generator))
    return model.eval()


def small_timm(name: str) -> nn.Module:
    """A small model of an architecture."""
    return randomised(timm.create_model(name, **SMALL | TIMM[name]))


def save_timm(model: nn.Module, folder: Path) -> None:
    """Writes a folder by timm, with the image size of the model in its preprocessing."""
    timm.models.save_for_hf(model, folder, safe_serialization=True)


def small_transformers(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small model, and the content of its preprocessor_config.json."""
    import transformers

    kind, config, options, processor = TRANSFORMERS[name]
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    return randomised(model), processor_of(processor)


def processor_of(changes: dict[str, Any]) -> dict[str, Any]:
    """The content of preprocessor_config.json."""
    kind = "BitImageProcessor" if "shortest_edge" in changes["size"] else "ViTImageProcessor"
    mean = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "do_normalize": True, "do_rescale": True}
    return {"image_processor_type": kind, "do_resize": True, "rescale_factor": 1 / 255, **mean, **changes}


def write_images(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES) -> list[Path]:
    """PNG files of smooth noise."""
    paths, generator = [], np.random.default_rng(0)
    for number, (height, width) in enumerate(sizes):
        coarse = generator.integers(0, 256, (height // 3 + 2, width // 3 + 2, 3)).astype(np.uint8)
        paths.append(folder / f"{number}.png")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, divided by the largest value; infinite if shapes differ."""
    return float((found - wanted).abs().max() / wanted.abs().max()) if found.shape == wanted.shape else float("inf")


@torch.no_grad()
def difference_from_timm(model: nn.Module, learner: Learner, paths: list[Path]) -> float:
    """The largest difference of tokens, features and class scores."""
    data = timm.data.resolve_data_config({}, pretrained_cfg=saved_config(model))
    transform = timm.data.create_transform(**data)
    theirs = torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])
    ours = read_prepared(paths, learner.encoder.config)
    tokens = model.forward_features(theirs)
    found = [relative(learner.encoder(ours), tokens)]
    found.append(relative(learner.features(ours), model.forward_head(tokens, pre_logits=True)))
    if isinstance(learner, Classifies):
        found.append(relative(learner.logits(ours), model.forward_head(tokens)))
    return max(found)


def saved_config(model: nn.Module) -> dict[str, Any]:
    """The preprocessing of a model as timm saves it, with the size of the model's images."""
    with tempfile.TemporaryDirectory() as folder:
        save_timm(model, Path(folder))
        facts: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text())
    pretrained: dict[str, Any] = facts["pretrained_cfg"]
    size = model.patch_embed.img_size
    return pretrained | {"input_size": (pretrained["input_size"][0], *size)}


@torch.no_grad()
def difference_from_transformers(model: nn.Module, folder: Path, learner: Learner, paths: list[Path]) -> float:
    """The largest difference of tokens, pooled features and class scores."""
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    opened = [Image.open(path).convert("RGB") for path in paths]
    theirs = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in opened])
    ours = read_prepared(paths, learner.encoder.config)
    base: Any = model.base_model
    patches = float(np.prod(learner.encoder.config.grid))  # in order, as MAE shuffles them
    noise = {"noise": torch.arange(patches).expand(len(theirs), -1)} if "MAE" in type(model).__name__ else {}
    output: Any = base(theirs, **noise)
    tokens = output.last_hidden_state
    found = [relative(learner.encoder(ours), tokens)]
    pooled = getattr(output, "pooler_output", None) if "Beit" in type(model).__name__ else None
    wanted = pooled if pooled is not None else tokens[:, 0] if learner.pool == "class" else tokens[:, 1:].mean(dim=1)
    found.append(relative(learner.features(ours), wanted))
    if isinstance(learner, Classifies):
        found.append(relative(learner.logits(ours), model(theirs).logits))
    return max(found)


def rows(names: list[str], small: bool) -> None:
    """Prints the table."""
    print("| architecture | source | parameters | largest difference |\n| --- | --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        sizes = SIZES if small else ((480, 640), (375, 500))
        paths = write_images(root, sizes)
        for name in [each for each in TIMM if chosen(each, names)]:
            options = SMALL | TIMM[name] if small else {"num_classes": 0} if TIMM[name].get("num_classes") == 0 else {}
            model = randomised(timm.create_model(name, **options))
            save_timm(model, root / "model")
            learner = unveil.load(root / "model", say=lambda text: None)
            print(f"| {name} | timm | {count(model)} | {difference_from_timm(model, learner, paths):.1e} |", flush=True)
        if any(chosen(each, names) for each in TRANSFORMERS):
            transformers_rows(root, paths, names, small)
    print("\n| refused | sentence |\n| --- | --- |")
    for name, (options, _) in REFUSED.items():
        if chosen(name, names):
            print(f"| {name} | {sentence(name, options)} |", flush=True)


def transformers_rows(root: Path, paths: list[Path], names: list[str], small: bool) -> None:
    """Prints the rows of transformers."""
    import transformers

    for name in [each for each in TRANSFORMERS if chosen(each, names)]:
        kind, config, options, processor = TRANSFORMERS[name]
        if not small:
            small_keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size")
            options = {key: value for key, value in options.items() if key not in small_keys} | {"image_size": 224}
            processor = json.loads(json.dumps(processor).replace("36", "256").replace("32", "224"))
        model = randomised(getattr(transformers, kind)(getattr(transformers, config)(**options)))
        folder = root / "transformers"
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(processor_of(processor)))
        learner = unveil.load(folder, say=lambda text: None)
        difference = difference_from_transformers(model, folder, learner, paths)
        print(f"| {name} | transformers | {count(model)} | {difference:.1e} |", flush=True)


def sentence(name: str, options: dict[str, Any]) -> str:
    """The sentence with which a model is refused."""
    with tempfile.TemporaryDirectory() as folder:
        save_timm(timm.create_model(name, **options), Path(folder))
        try:
            unveil.load(folder, say=lambda text: None)
        except UnveilError as error:
            return str(error).replace(folder, "FOLDER").replace("|", "/")
    return "accepted"


def chosen(name: str, names: list[str]) -> bool:
    """Whether a row is asked for."""
    return not names or any(part.lower() in name.lower() for part in names)


def count(model: nn.Module) -> str:
    """The number of parameters."""
    number = sum(value.numel() for value in model.parameters())
    return f"{number / 1e6:.1f} M"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names; all by default")
    parser.add_argument("--small", action="store_true", help="the small sizes of the tests")
    args = parser.parse_args()
    rows(args.names, args.small)
