"""What attachment takes in memory."""
