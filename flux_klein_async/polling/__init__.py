"""When to poll a request: `adaptive`, the default policy, decides; `durations` learns, and computes the best times."""
