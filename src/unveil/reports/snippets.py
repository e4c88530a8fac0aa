"""Python code that uses an exported model, for its model card."""

from pathlib import Path

from unveil.errors import UnveilError
from unveil.json_files import read_json

TIMM = """\
import timm, torch
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("{mode}")  # upright, as phones mean it
model = timm.create_model({place}, pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
with torch.inference_mode():
    output = model(prepare(image).unsqueeze(0))"""
TRANSFORMERS = """\
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, {model}

image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("{mode}")  # upright, as phones mean it
prepare, model = AutoImageProcessor.from_pretrained({place}, backend="pil"), {model}.from_pretrained({place}{more}).eval()
with torch.inference_mode():
    output = model(**prepare(image, return_tensors="pt"))"""
TRANSFORMERS_TEXT = """\
from transformers import {model}

model = {model}.from_pretrained({place}).eval()"""
ONNX = """\
import json, onnxruntime

session = onnxruntime.InferenceSession({file})
facts = {{key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}}
outputs = session.run(None, {{"images": images}})  # (B, C, H, W), float32, prepared as facts says; outputs as facts["outputs"]"""
OURS = """\
import unveil

model = unveil.load({file})
table = unveil.predict({file}, "images/")  # if it has a head; unveil.embed(...) otherwise"""
MAE = """\
import torch

state = torch.load({file}, weights_only=True)["model"]  # for the models of the public MAE release; also: unveil.load({file})"""
DOWNLOAD = """\
from huggingface_hub import hf_hub_download

path = hf_hub_download("{repository}", "{name}")
"""


def snippet(to: str, written: Path, *, repository: str | None = None, channels: int = 3) -> str:
    """A block of Markdown with code that loads an export.

    Args:
        to: The format.
        written: The exported file or folder.
        repository: Where it is on the Hub; None if it is not there.
        channels: Channels of the images.
    """
    name, place = written.name, repr(repository or written.name)
    mode = {1: "L", 4: "RGBA"}.get(channels, "RGB")
    if to == "timm":
        return block(TIMM.format(place=repr(f"hf-hub:{repository}" if repository else f"local-dir:{name}"), mode=mode))
    if to == "transformers":
        try:
            model = str(read_json(written / "config.json")["architectures"][0])
        except (UnveilError, KeyError, IndexError, TypeError):
            model = "AutoModel"
        more = ""
        if model.startswith("ViTMAE"):  # which masks patches, unless it is told not to
            model, more = "ViTMAEModel", ", mask_ratio=0.0"
        is_image = (written / "preprocessor_config.json").is_file()
        return block((TRANSFORMERS if is_image else TRANSFORMERS_TEXT).format(place=place, model=model, mode=mode, more=more))
    text = {"onnx": ONNX, "mae": MAE}.get(to, OURS).format(file="path" if repository else repr(name))
    return block((DOWNLOAD.format(repository=repository, name=name) if repository else "") + text)


def block(code: str) -> str:
    """Code as Markdown."""
    return f"```python\n{code}\n```"
