"""Tasks that train a head on an encoder with labels, one per file. A task does not import another one."""

from typing import TYPE_CHECKING, Any

from unveil.options import ClassSource
from unveil.plugins import Registry

if TYPE_CHECKING:
    from unveil.learner import Task

TASKS = Registry(
    "task",
    {
        "linear": "unveil.tasks.linear:Linear",
        "partial": "unveil.tasks.partial:PartialFinetune",
        "finetune": "unveil.tasks.finetune:Finetune",
        "multilabel": "unveil.tasks.multilabel:MultiLabel",
        "regression": "unveil.tasks.regression:Regression",
        "detect": "unveil.tasks.detect:Detect",
        "segment": "unveil.tasks.segment:Segment",
        "text-classification": "unveil.tasks.text_classification:TextClassification",
        "translation": "unveil.tasks.translate:Translation",
    },
)


def task_class(task: "str | type[Task]") -> "type[Task]":
    """The class of a task. Raises `UnveilError` for a name that is not in the table."""
    found: type[Task] = TASKS.load(task)
    return found


def task_source(task: str) -> ClassSource:
    """The source of a task's class, to read its options and defaults without importing torch."""
    return ClassSource.find(TASKS.find(task))


def task_defaults(task: str) -> dict[str, Any]:
    """The recipe of a task: options whose defaults differ for it."""
    return dict(task_source(task).literal("DEFAULTS", {}))
