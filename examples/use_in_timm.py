"""Uses the encoder of a run in timm: for features, or to train a classifier there.

python examples/use_in_timm.py runs/digits-mae-vit-nano
"""

import sys
from pathlib import Path

import timm
import torch

import unveil


def main(run: str) -> None:
    """Exports the encoder once, loads it with timm alone, and compares the features of both for the same images."""
    folder = Path(run) / "export" / "timm"
    if not folder.exists():
        unveil.export(run, to="timm")
    encoder = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    settings = timm.data.resolve_model_data_config(encoder)
    print("timm takes images", settings["input_size"], "normalised with", settings["mean"], settings["std"])

    pixels = torch.rand(4, *settings["input_size"])  # random images, between 0 and 1
    images = unveil.normalise(pixels, settings["mean"], settings["std"])
    with torch.no_grad():
        theirs, ours = encoder(images), unveil.load(run).encoder.features(images)  # (4, D), mean of the patch tokens
    print("features", tuple(theirs.shape), "largest difference", float((theirs - ours).abs().max()))

    classifier = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=10)
    print("class scores", tuple(classifier(images).shape))  # a new head, ready to be trained


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1])
