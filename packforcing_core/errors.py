"""The one class of errors that are written for the user."""

from __future__ import annotations


class PackForcingError(ValueError):
    """Bad input or a render that cannot continue: the message says what was given, what was expected, what to do."""
