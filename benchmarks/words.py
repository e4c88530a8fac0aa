"""What pre-training BERT is worth: fine-tuning on SST-2 and AG News with 500 labels and with all, and the same from scratch.

    python benchmarks/words.py RUNS [--epochs 8] [--seeds 3] [--threads 2]

Pre-trains on the training splits of AG News, SST-2 and the movie reviews in ../shared/data/text, and on the valid and test files
of WikiText-2 (its train file is not there). The test splits, and the dev sentences of SST-2, are never used for training. The
sentences of SST-2 come from film reviews, so with the movie reviews in the corpus it is a task of the same domain. Then the same
model, pre-trained and from scratch, is fine-tuned by one recipe. The table has the accuracy on the test split: mean and range over
the seeds. Finished runs are not repeated.
"""

import argparse
import statistics
from pathlib import Path

import torch

import unveil
from unveil.train.run_folder import Run

TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "text"
CORPUS = ("ag_news_7600", "sst2", "movie_reviews_2000", "wikitext2_valid_test")
TASKS = {
    "SST-2": ("sst2", {500: 20.0, 0: 5.0}),
    "AG News": ("ag_news_7600", {500: 20.0, 0: 5.0}),
}  # epochs for each number of labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder for all runs")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="the folder with the archives")
    parser.add_argument("--model", default="bert-mini")
    parser.add_argument("--epochs", type=float, default=8.0, help="epochs of pre-training")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of fine-tuning")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    corpus = args.runs / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name in CORPUS:
        if not (link := corpus / f"{name}.tar.gz").exists():
            link.symlink_to((args.texts / link.name).resolve())
    run = unveil.pretrain(
        str(corpus),
        method="bert",
        model=args.model,
        out=args.runs / "bert",
        epochs=args.epochs,
        max_length=64,
        batch_size=64,
        base_lr=4e-3,
        dropout=0.0,
    )
    print("pre-training:", {key: round(value, 3) for key, value in run.results["words"].items()}, run.results["cost"])
    print(f"| {'task':<8} | labels | pre-trained | from scratch |\n| --- | --- | --- | --- |")
    for task, (archive, epochs) in TASKS.items():
        for labels, passes in epochs.items():
            cells = []
            for scratch in (False, True):
                accuracies = []
                for seed in range(args.seeds):
                    out = args.runs / f"{archive}-{labels or 'all'}-{'scratch' if scratch else 'tuned'}-{seed}"
                    data, options = args.texts / f"{archive}.tar.gz", {"labels": labels, "epochs": passes, "seed": seed}
                    finetuned: Run = unveil.finetune(run.path, data, scratch=scratch, out=out, **options)
                    accuracies.append(100 * finetuned.results["score"]["top1"])
                cells.append(f"{statistics.mean(accuracies):.2f} ({min(accuracies):.2f} to {max(accuracies):.2f})")
            print(f"| {task:<8} | {labels or 'all'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
