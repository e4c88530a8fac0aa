"""Floor 3: what judges or tunes an encoder with labels: one file each, unaware of each other."""

TASKS: dict[str, str] = {                                                     # name: "module:class or function"
    "knn": "unveil.tasks.knn:KNN",
    "linear": "unveil.tasks.linear:Linear",
    "partial": "unveil.tasks.partial:Partial",
    "finetune": "unveil.tasks.finetune:Finetune",
}
