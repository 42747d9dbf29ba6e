"""When to poll a request.

- `adaptive`: the default policy: decides, and keeps what was learned by model and picture size
- `durations`: one learned duration, and the best times to poll for it
- `policies`: the protocol, and the policies that learn nothing
"""
