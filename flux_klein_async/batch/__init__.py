"""Files of prompts: reads them, estimates them, and writes how each row ended."""
