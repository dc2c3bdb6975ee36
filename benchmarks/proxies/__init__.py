"""Training-free metrics, and searches with them, over published tables."""
