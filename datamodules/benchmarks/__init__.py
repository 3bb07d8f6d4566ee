"""Readers of the official benchmark files; each returns questions or captions."""
