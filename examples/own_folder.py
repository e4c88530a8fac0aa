"""Pre-trains on a folder of images, and evaluates the encoder if the folder has classes.

python examples/own_folder.py photos/ [epochs] [model]
"""

import sys

import unveil


def main(folder: str, epochs: float = 100, model: str = "vit-small") -> None:
    """The same as `unveil pretrain photos/ --model vit-small --out runs/photos`, then `unveil probe runs/photos`."""
    run = unveil.pretrain(folder, model=model, out="runs/photos", epochs=epochs)
    print("report:", run.path / "report.html")
    try:
        results = unveil.probe(run.path)
    except unveil.UnveilError as error:  # no class folders and no labels.csv
        print("no probe:", error)
        return
    for name, accuracy in results["top1"].items():
        print(f"{name:>10}  {100 * accuracy:5.1f} % by a linear probe")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], *map(float, sys.argv[2:3]), *sys.argv[3:4])
