"""Records what was paid for, so that no crash loses a result and no later run pays for it again."""
