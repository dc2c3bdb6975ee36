"""Training-free metrics, and searches over published tables."""
