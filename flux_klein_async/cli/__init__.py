"""The `flux-klein` command: a file a command, wired together in `main`. Needs the extra `cli`."""
