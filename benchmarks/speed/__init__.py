"""What attachment, its checks and the scoring of subnets take in time."""
