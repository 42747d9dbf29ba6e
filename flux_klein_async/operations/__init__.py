"""Things that take time: submitting, waiting, downloading, fanning out."""
