"""Adapters: one folder for each framework that a supernet may be trained in."""
