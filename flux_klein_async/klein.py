"""The ids of the klein models, for everything that offers them: the command line completes them without pydantic."""

__all__ = ["KLEIN_4B_TEXT_TO_IMAGE", "KLEIN_9B_TEXT_TO_IMAGE"]

KLEIN_4B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/4b/text-to-image"
KLEIN_9B_TEXT_TO_IMAGE = "blackforestlabs/flux-2-klein/9b/text-to-image"
