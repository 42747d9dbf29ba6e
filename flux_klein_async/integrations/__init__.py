"""The client inside other people's programs: one optional third party a module, built on the public API alone."""
