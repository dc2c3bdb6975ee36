"""Storage: files that a stop at any point leaves whole."""
