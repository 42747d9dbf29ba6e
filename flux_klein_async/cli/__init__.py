"""The `flux-klein` command. `commands` declares each command and names the file that does it. Needs the extra `cli`."""
