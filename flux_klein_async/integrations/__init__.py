"""What stands between this package and others: a file for each, and none is imported unless asked for."""
