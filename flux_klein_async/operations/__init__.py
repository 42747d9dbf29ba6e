"""What takes time: submitting, waiting, single calls, downloads, and many inputs at once."""
