"""What was paid for."""
