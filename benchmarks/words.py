"""Is BERT worth its pre-training? Fine-tuned on SST-2 and AG News with 500 labels and with all, beside the same from scratch.

    python benchmarks/words.py RUNS [--epochs 8] [--seeds 3] [--threads 2]

Pre-trains on the training parts of AG News, SST-2 and the movie reviews in ../shared/data/text, and on WikiText-2's valid and test
files (its train file is not there). Test parts are judged on and never trained on, nor are SST-2's dev sentences. SST-2's
sentences come from film reviews: with the reviews among the texts it is not out of domain. Then the same model, pre-trained and
from scratch, is fine-tuned by one recipe, and the table says the accuracy on the test part: mean and range of the seeds. What
is finished is not done again.
"""

import argparse
import statistics
from pathlib import Path

import torch

import unveil
from unveil.train.run_folder import Run

TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "text"
CORPUS = ("ag_news_7600", "sst2", "movie_reviews_2000", "wikitext2_valid_test")
TASKS = {"SST-2": ("sst2", {500: 20.0, 0: 5.0}), "AG News": ("ag_news_7600", {500: 20.0, 0: 5.0})}  # epochs by labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a folder for the runs")
    parser.add_argument("--texts", type=Path, default=TEXTS, help="where the archives lie")
    parser.add_argument("--model", default="bert-mini")
    parser.add_argument("--epochs", type=float, default=8.0, help="of pre-training")
    parser.add_argument("--seeds", type=int, default=3, help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    corpus = given.runs / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name in CORPUS:
        if not (link := corpus / f"{name}.tar.gz").exists():
            link.symlink_to((given.texts / link.name).resolve())
    run = unveil.pretrain(
        str(corpus),
        method="bert",
        model=given.model,
        out=given.runs / "bert",
        epochs=given.epochs,
        length=64,
        batch_size=64,
        base_lr=4e-3,
        dropout=0.0,
    )
    print("pre-training:", {key: round(value, 3) for key, value in run.results["words"].items()}, run.results["cost"])
    print(f"| {'set':<8} | labels | pre-trained | from scratch |\n| --- | --- | --- | --- |")
    for task, (archive, epochs) in TASKS.items():
        for labels, passes in epochs.items():
            cells = []
            for scratch in (False, True):
                found = []
                for seed in range(given.seeds):
                    out = given.runs / f"{archive}-{labels or 'all'}-{'scratch' if scratch else 'tuned'}-{seed}"
                    data, knobs = given.texts / f"{archive}.tar.gz", {"labels": labels, "epochs": passes, "seed": seed}
                    tuned: Run = unveil.finetune(run.path, data, scratch=scratch, out=out, **knobs)
                    found.append(100 * tuned.results["score"]["top1"])
                cells.append(f"{statistics.mean(found):.2f} ({min(found):.2f} to {max(found):.2f})")
            print(f"| {task:<8} | {labels or 'all'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
