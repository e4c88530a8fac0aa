"""The training loop, with its checkpoints, logs and parallelism. It depends on `Learner`, not on any method or task."""
