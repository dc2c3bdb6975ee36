"""What the elastic models of all frameworks share: slices, blocks, and the active subnet."""
