"""Experiments of several runs: comparisons of methods, and studies of one option."""
