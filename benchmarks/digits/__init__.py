"""Strategies compared on scikit-learn's digits, a data set of seconds."""
