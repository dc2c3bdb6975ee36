"""Elastic vision transformers: subnets that are slices of the supernet's weights."""
