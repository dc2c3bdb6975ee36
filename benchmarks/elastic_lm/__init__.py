"""Momentum separation with AdamW, on an elastic byte-level Llama: what separate states cost."""
