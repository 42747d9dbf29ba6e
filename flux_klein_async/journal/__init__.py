"""Records what was paid for, so that no crash loses a result and no later run pays for it again.

- `states`: what each state of a request means
- `sql`: decides on claims, and on what all processes that share a journal may spend
- `sqlite`, `postgres`: the stores; `writer`: the thread that writes; `reader`: shows a journal and prunes it
- `budget`: bounds what one client spends
- `base`: the protocols
"""
