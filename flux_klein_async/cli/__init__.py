"""The `flux-klein` command. Needs the extra `cli`.

- `commands`: every command, its options and its help; names the file that does the work
- `generate`, `batch`, `journal`, `doctor`, `emulator`; `answers`: status, result, cancel, models; `page`: report
- `run`: drives `generate` and `batch`; `forecast`: what they will cost; `signals`: what stops them
- `output`: the terminal; `progress`: its live line
"""
