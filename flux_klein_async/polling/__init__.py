"""When to poll a request: poll policies, and the learned distribution of durations that the default one uses."""
