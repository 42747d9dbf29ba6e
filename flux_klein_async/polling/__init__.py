"""When to poll a request.

- `adaptive`: the default policy: decides, and keeps what was learned by model and picture size
- `durations`: one duration, learned from samples, and the times to poll for it that cost least
- `policies`: the protocol, and the policies that learn nothing
"""
