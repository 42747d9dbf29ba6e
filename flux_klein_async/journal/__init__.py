"""Records what was paid for, so that no crash loses a result and no later run pays for it again.

`budget` bounds what one client spends, `sql` what all processes and machines spend that share a journal.
"""
