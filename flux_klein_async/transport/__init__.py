"""Bytes: calls are sent, repeated where that is safe, and slowed down.

- `aiohttp`: sends; `failures`: translates its exceptions; `environment`: proxies and certificate authorities
- `retry`: whether a call, a paid submit above all, may be repeated, and how many repeats all calls have together
- `throttle`: the limits of one client, and what `Retry-After` does to them; `redis`: those of all processes
- `base`: the seam for a transport of your own
"""
