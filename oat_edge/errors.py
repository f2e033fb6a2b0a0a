"""The errors a user can meet: one line each, with an exit code (DESIGN, section 5).

A message says what was got, what was expected and what to do. Anything else that escapes is a
bug and shows its traceback (exit 1).
"""

from __future__ import annotations


class OatEdgeError(Exception):
    """Base of all expected errors; `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(OatEdgeError, ValueError):
    """An argument, a file or an array is not what it should be."""

    exit_code = 2


class DependencyError(OatEdgeError):
    """A package, device or driver that this step needs is not there."""

    exit_code = 3


class BuildError(OatEdgeError):
    """An export or an engine build failed."""

    exit_code = 4


class GateError(OatEdgeError):
    """A parity or accuracy gate was not met."""

    exit_code = 5


class FallbackError(OatEdgeError):
    """A runtime chose another device or precision than the one asked for."""

    exit_code = 6


class GoalError(OatEdgeError):
    """No operating point meets the goal."""

    exit_code = 7


class UnstableError(OatEdgeError):
    """A measurement was unstable and `--strict` asked for that to be an error."""

    exit_code = 8
