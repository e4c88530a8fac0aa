"""Settings of the study of the epochs that turn out to be the same: with few images, some epochs are equally many steps."""

from collections.abc import Mapping, Sequence

from unveil.experiments.runner import Comparison
from unveil.reports.paper_study_page import Point
from unveil.train.run_folder import finished_run


def without_same_steps(comparison: Comparison, names: Mapping[str, str], points: Sequence[Point]) -> tuple[list[Point], list[str]]:
    """The points without those that were trained for as many steps as another one, and the labels of those that are left out.

    How many images are left to train on, and so the number of steps, is only known once the data have been read. Of several points
    with the same steps, the paper's default is kept or, without it, the one with the most epochs.

    Args:
        comparison: The runs.
        names: The entry of the comparison that each setting belongs to, by the label of the setting.
        points: The point of each setting, by ascending epochs.
    """
    kept = dict[object, Point]()
    for point in points:
        key = steps_of(comparison, names[point.label]) or point.label
        if key not in kept or not kept[key].default:
            kept[key] = point
    found = list(kept.values())
    return found, [point.label for point in points if point not in found]


def steps_of(comparison: Comparison, name: str) -> int | None:
    """The training steps of the runs of an entry, if one of them has finished. They are the same for all seeds."""
    for seed in comparison.config.seeds:
        if run := finished_run(comparison.path(name, seed)):
            return round(float(run.results["images_seen"]) / float(run.config["batch_size"]))
    return None
