"""Does dynamic training rank NAS-Bench-201's subnets better? A paired, resumable benchmark."""
