"""Long runs of what must not break."""
