"""Supernets of timm models in which some layers are a choice of layers."""
