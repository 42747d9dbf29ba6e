"""Files of prompts.

- `rows`: reads them; `formats`: tells what a file is
- `manifest`: writes how each row ended; `report`: reads that for a page
"""
