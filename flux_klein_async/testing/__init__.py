"""For tests of applications that use this package: the pytest fixtures are in `plugin`."""
