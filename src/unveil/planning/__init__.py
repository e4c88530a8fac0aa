"""Planning of runs: rules that choose options, a dry run that predicts time and memory, and a cost model for many GPUs."""
