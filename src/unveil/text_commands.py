"""The forms for text of the commands for images: what differs in their arguments and options. Needs no torch."""

from unveil.paths import TEXT_FORMS
from unveil.verbs import (
    ALL_RUNS,
    BERT_MODEL,
    CONFIG,
    CORPUS,
    EXTEND,
    FINETUNE_OUT,
    METHOD,
    METHOD_NAME,
    NO_SEED,
    PRETRAIN_OUT,
    PRETRAIN_TEXT,
    RARE_IN_TRAINING,
    RESUME_FROM,
    RESUMES,
    SHARED,
    TASK,
    TEXT_RUN,
    Argument,
    Verb,
    task_argument,
)

TIMED = {"seconds": "the time of a step is measured for images only: give --epochs"}
"""Why the option is ignored."""
PRETRAIN_ON_TEXT = Verb(
    "unveil.recipes.pretrain:pretrain",
    f"Train an encoder on texts without labels.{RESUMES}",
    {
        "data": CORPUS,
        "method": Argument(str, METHOD_NAME, "bert"),
        "model": BERT_MODEL,
        "out": PRETRAIN_OUT,
        "resume_from": RESUME_FROM,
        "extend": EXTEND,
        "config": CONFIG,
    },
    {**PRETRAIN_TEXT, "method": METHOD, **SHARED},
    hides=RARE_IN_TRAINING,
    resumes=True,
)
FINETUNE_ON_TEXT = Verb(
    "unveil.recipes.finetune:finetune",
    f"Fine-tune an encoder on labelled texts, or train it from scratch (--scratch).{RESUMES}",
    {
        "run": TEXT_RUN,
        "data": Argument(str | None, f"Labelled texts; by default those of the run. Otherwise {TEXT_FORMS}.", None, True, "text"),
        "task": task_argument("text-classification"),
        "test": Argument(
            str | None,
            "Labelled test texts; by default the test split of DATA, its validation split, or a tenth.",
            None,
            path="text",
        ),
        "out": FINETUNE_OUT,
        "resume_from": RESUME_FROM,
        "extend": EXTEND,
        "config": CONFIG,
    },
    {"run": "unveil.runs.texts:TextFinetuneConfig", "task": TASK, **SHARED},
    task="text-classification",
    hides=RARE_IN_TRAINING - {"layer_decay"},
    resumes=True,
)
COMPARE_ON_TEXT = Verb(
    "unveil.experiments.compare:compare",
    "Train several methods on texts with equal budgets, fine-tune them, and compare them in one table.",
    {
        "methods": Argument(
            str,
            "Methods for texts, such as bert,wordmae. A method may occur twice under two names, such as bert and bert-low. "
            "--bert-low.mask-ratio 0.1 is an option of `pretrain` for that entry only.",
            positional=True,
        ),
        "data": CORPUS,
        "model": BERT_MODEL,
        "out": Argument(str | None, ALL_RUNS + "runs/<data>-compare.", None, path="folder"),
    },
    {
        "comparison": "unveil.experiments.runner:ComparisonConfig",
        "table": "unveil.experiments.compare:CompareConfig",
        **PRETRAIN_TEXT,
        **SHARED,
    },
    hides=RARE_IN_TRAINING,
    ignores=NO_SEED | TIMED,
    per_method=True,
    resumes=True,
)
STUDY_ON_TEXT = Verb(
    "unveil.experiments.study:study",
    "Train a method with several values of one option, and plot the curve.",
    {
        "what": Argument(str, "An option and its values, such as mask_ratio=0.15,0.4,0.75.", positional=True),
        "data": CORPUS,
        "method": Argument(str, METHOD_NAME, "bert"),
        "model": BERT_MODEL,
        "out": Argument(str | None, ALL_RUNS + "runs/<data>-<method>-<option>.", None, path="folder"),
    },
    {"comparison": "unveil.experiments.runner:ComparisonConfig", **PRETRAIN_TEXT, "method": METHOD, **SHARED},
    hides=RARE_IN_TRAINING,
    ignores=NO_SEED | TIMED,
    per_method=True,
    resumes=True,
)
