"""Readers of the official benchmark files, each into questions or captions."""
