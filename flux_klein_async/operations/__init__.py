"""What takes time.

- `submit`: the paid POST; `wait`: polls, then fetches the result
- `calls`: the single calls, and the cancel of a request that nobody waits for
- `download`: receives files; `files`: checks and keeps each; `names`: what they may be called
- `fanout`: many items; `items`: one of them; `inputs`: local files of an input
- `operation`: one call under way, with its deadline and its repeats
- `context`: what all calls of a client share: events, generations under way, background tasks, the end
"""
