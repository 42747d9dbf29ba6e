"""Files of prompts: reads them, estimates them, writes how each row ended, and reads that for a report."""
