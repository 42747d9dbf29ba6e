"""Records what was paid for, so that no crash loses a result and no later run pays for it again.

- `states`: what each state of a request means, and what a later run does with it: wait, recall, report, submit
- `sql`: every statement, once for both stores; decides which run has an item, and what all runs together may spend
- `sqlite`, `postgres`: the connection and transactions of a store, and which runs are alive
- `writer`: the thread that writes; `reader`: shows a journal and prunes it
- `budget`: bounds what one client spends
- `base`: the protocols
"""
