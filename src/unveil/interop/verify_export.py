"""Whether an exported model still says the same: its own library loads it, and is asked about random images."""

import importlib.util
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unveil.blocks.masks import as_bool, split
from unveil.blocks.patches import gather
from unveil.data.augment import normalise
from unveil.interop import model_files as native
from unveil.interop.load import load
from unveil.interop.silence import silenced
from unveil.learner import Learner, Task
from unveil.methods.beit import BEiT
from unveil.methods.bert import BERT
from unveil.methods.mae import MAE
from unveil.methods.supervised import Supervised
from unveil.models.bert import TextEncoder


@torch.no_grad()
def max_difference(learner: Learner, to: str, written: Path) -> tuple[float | None, str]:
    """The largest difference as a share of the largest value, and who was asked; None where nobody could be.

    Args:
        learner: What was exported.
        to: "timm", "transformers", "mae", "safetensors" or "onnx".
        written: The file or folder.
    """
    if isinstance(native.encoder_of(learner), TextEncoder):
        return max_text_difference(learner, to, written)
    vit = native.vit_of(learner).config
    chance = torch.Generator().manual_seed(0)
    images = normalise(torch.rand(2, vit.channels, *vit.image_size, generator=chance), vit.mean, vit.std)
    if to == "timm":
        return apart(ask_timm(written, images, isinstance(learner, Task | Supervised)), answer(learner, images)), "timm"
    if to == "onnx":
        if importlib.util.find_spec("onnxruntime") is None:
            return None, "onnxruntime is not installed"
        return apart(ask_onnxruntime(written, images), answer(learner, images)), "onnxruntime"
    if to == "transformers" and importlib.util.find_spec("transformers"):
        if isinstance(learner, BEiT):
            _, hide = learner.mask(torch.arange(2))
            hidden = as_bool(hide, vit.grid[0] * vit.grid[1])
            return apart(gather(ask_transformers_beit(written, images, hidden), hide), learner.name(images, hide)), "transformers"
        noise = torch.rand(2, vit.grid[0] * vit.grid[1], generator=chance)
        if isinstance(learner, MAE):
            theirs, hidden = ask_transformers(written, images, noise)
            return apart(theirs, painted(learner, images, hidden)), "transformers"
        return apart(ask_transformers_encoder(written, images), answer(learner, images)), "transformers"
    given: dict[str, Any] = {}
    if to == "mae":
        given = {"heads": vit.heads, "image_size": vit.image_size}
    if to == "mae" and isinstance(learner, MAE):
        given |= {"decoder_heads": learner.decoder.config.heads, "target": learner.config.target}
    again = load(written, **given, say=lambda text: None)
    if isinstance(learner, MAE) and isinstance(again, MAE):
        hidden = torch.zeros(2, vit.grid[0] * vit.grid[1], dtype=torch.bool)
        hidden[:, ::2] = True
        return apart(painted(again, images, hidden), painted(learner, images, hidden)), "the file, read again,"
    return apart(answer(again, images), answer(learner, images)), "the file, read again,"


def max_text_difference(learner: Learner, to: str, written: Path) -> tuple[float | None, str]:
    """The same for a model of texts, asked about random rows of pieces, half of which fill up one of them."""
    encoder = native.encoder_of(learner)
    assert isinstance(encoder, TextEncoder)
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(len(encoder.config.vocabulary), (2, min(16, encoder.config.length)), generator=chance)
    real = torch.ones_like(ids, dtype=torch.bool)
    real[1, ids.shape[1] // 2 :] = False
    if to == "transformers" and importlib.util.find_spec("transformers"):
        from transformers import BertForMaskedLM, BertModel

        with silenced():
            model: Any = (BertForMaskedLM if isinstance(learner, BERT) else BertModel).from_pretrained(written)
        found = model.eval()(ids, attention_mask=real.long())
        theirs = found.logits if isinstance(learner, BERT) else found.last_hidden_state
        return apart(theirs[real], words_of(learner, ids, real)[real]), "transformers"
    again = load(written, say=lambda text: None)
    return apart(words_of(again, ids, real)[real], words_of(learner, ids, real)[real]), "the file, read again,"


def words_of(learner: Learner, ids: Int[Tensor, "B T"], real: Bool[Tensor, "B T"]) -> Tensor:
    """A score for each word at each place, or the tokens of another learner's encoder."""
    if isinstance(learner, BERT):
        return learner.scores(ids, real=real)
    tokens: Tensor = learner.encoder(ids, real=real)
    return tokens


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest value; not a number where the shapes differ."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if a.shape == b.shape else float("nan")


def answer(learner: Learner, images: Float[Tensor, "B C H W"]) -> Tensor:
    """The class scores of a learner that has them, or the tokens of another one's encoder."""
    if isinstance(learner, Task | Supervised):
        return learner.predict(images)
    tokens: Tensor = native.vit_of(learner)(images)
    return tokens


def painted(learner: MAE, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B N Q"]:
    """What a masked autoencoder predicts for every patch."""
    return learner.paint(images, *split(hidden))


def ask_timm(folder: Path, images: Float[Tensor, "B C H W"], scores: bool) -> Tensor:
    """Tokens, or class scores, by timm."""
    with silenced():
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found: Tensor = model(images) if scores else model.forward_features(images)
    return found


def ask_transformers(
    folder: Path, images: Float[Tensor, "B C H W"], noise: Float[Tensor, "B N"]
) -> tuple[Float[Tensor, "B N Q"], Bool[Tensor, "B N"]]:
    """The prediction for every patch by transformers, and which patches it hid."""
    from transformers import ViTMAEForPreTraining

    with silenced():
        model: Any = ViTMAEForPreTraining.from_pretrained(folder)
    found = model.eval()(images, noise=noise)
    return found.logits, found.mask.bool()


def ask_transformers_beit(folder: Path, images: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B N"]) -> Float[Tensor, "B N K"]:
    """The score of each visual token by transformers."""
    from transformers import BeitForMaskedImageModeling

    with silenced():
        model: Any = BeitForMaskedImageModeling.from_pretrained(folder)
    found: Tensor = model.eval()(images, bool_masked_pos=hidden).logits
    return found


def ask_transformers_encoder(folder: Path, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
    """Tokens by transformers, with every patch visible and in order."""
    from transformers import ViTMAEModel

    with silenced():
        model: Any = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0)
    order = torch.arange(float(model.embeddings.patch_embeddings.num_patches))
    tokens: Tensor = model.eval()(images, noise=order.expand(len(images), -1)).last_hidden_state
    return tokens


def ask_onnxruntime(path: Path, images: Float[Tensor, "B C H W"]) -> Tensor:
    """What the graph says, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
