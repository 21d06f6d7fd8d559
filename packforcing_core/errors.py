"""The one family of errors that a user is meant to read."""

from __future__ import annotations


class PackForcingError(ValueError):
    """Bad input or a render that cannot continue: the message says what was given, what was expected, what to do."""
