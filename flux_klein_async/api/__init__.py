"""What the service says: pure values in, pure values out."""
