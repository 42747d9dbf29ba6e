"""The `flux-klein` command. Needs the extra `cli`.

- `commands`: every command, its options and its help; names the file that does the work
- `generate`, `batch`, `journal`, `doctor`, `emulator`; `answers`: status, result, cancel, models
- `page`: the report (its HTML: `assets`); `thumbnails`: its small pictures
- `run`: drives `generate` and `batch`; `forecast`: what they will cost; `signals`: what stops them
- `exit_codes`: from errors to codes; `parsing`: what is said of a wrong word; `connect`: which service and journal
- `output`: the terminal; `progress`: its live line
"""
