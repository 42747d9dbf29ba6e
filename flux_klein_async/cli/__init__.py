"""The `flux-klein` command: one file for each command, put together in `main`. Needs the extra `cli`."""
