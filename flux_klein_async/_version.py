"""The one place that says which version this is."""

__all__ = ["USER_AGENT", "__version__"]

__version__ = "0.1.0"
USER_AGENT = f"flux_klein_async/{__version__}"
