"""Bytes: sending a request, whether to try again, and slowing everybody down."""
