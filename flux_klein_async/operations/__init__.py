"""What takes time: submitting, waiting, single calls, downloads, and many items at once."""
