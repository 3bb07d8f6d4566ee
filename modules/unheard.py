"""The listener of progress that nobody wants to hear."""


def unheard(*_: object) -> None:
    """Takes whatever is reported, and does nothing."""
