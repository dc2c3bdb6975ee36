"""Many supernets at once on one GPU: arms × seeds of the benchmark in one CUDA graph."""
