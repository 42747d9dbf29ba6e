"""Adapters for other libraries, on events and the public API alone: web frameworks, telemetry, logging, notebooks.

`web` is what the web frameworks share: error responses, server-sent events, clients that disconnect. Each module needs
one third party at most, and nothing here is imported unless you import it.
"""
