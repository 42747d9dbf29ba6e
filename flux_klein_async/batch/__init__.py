"""Files of many rows: reading them, estimating them, and the manifest of what became of each."""
