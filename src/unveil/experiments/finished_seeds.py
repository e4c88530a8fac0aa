"""For how many seeds the runs of a comparison have finished."""

from collections.abc import Sequence

from unveil.experiments.runner import Comparison
from unveil.reports.comparison import ComparisonRow
from unveil.reports.seed_counts import SeedCounts


def seed_counts(comparison: Comparison, rows: Sequence[ComparisonRow]) -> SeedCounts:
    """For how many seeds all runs of each entry, and of each baseline among `rows`, have finished."""
    done = {job.name: comparison.has_finished(job.name) for job in comparison.all_jobs()}
    seeds = comparison.config.seeds

    def count(name: str) -> int:
        starts = [f"{name}-seed{seed}" for seed in seeds]
        return sum(all(ended for job, ended in done.items() if job == start or job.startswith(f"{start}-")) for start in starts)

    found = {entry.name: count(entry.name) for entry in comparison.entries}
    first = comparison.baselines_of.name
    for row in rows:
        if row.baseline:  # frozen features of baselines are in the pre-training runs of the first entry
            pretrained = sum(done[f"{first}-seed{seed}"] for seed in seeds)
            found[row.name] = min(pretrained, count(row.name))
    return SeedCounts(len(seeds), found)
