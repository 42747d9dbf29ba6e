"""Pytest fixtures for the tests of applications that use this package."""
