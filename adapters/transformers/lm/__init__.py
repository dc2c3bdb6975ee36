"""Elastic language models: subnets that are slices of the supernet's weights."""
