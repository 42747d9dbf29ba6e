"""When to poll: `adaptive` decides, and keeps what was learned; `durations` learns one, and finds the best polls."""
