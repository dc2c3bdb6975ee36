"""Experiments: configured runs of the command line, on NNI's one-shot training."""
