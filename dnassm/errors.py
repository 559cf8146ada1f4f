"""Every error a user can cause, one class per kind.

A message is one line: what was expected, what was found, where, and what to do now. Each class also
derives from the builtin that it refines, so that ``except ValueError`` works as a caller expects.
"""

from __future__ import annotations


class DnassmError(Exception):
    """Base of every error that dnassm raises on purpose; the command line prints it as one line."""

    def __str__(self) -> str:
        # KeyError, a base of UnknownNameError, would print the repr of the message.
        return str(self.args[0]) if self.args else ""


class ConfigError(DnassmError, ValueError):
    """A configuration value is misspelt, out of range or contradicts another one."""


class UnknownNameError(DnassmError, KeyError):
    """A name is not in its registry."""


class ShapeError(DnassmError, ValueError):
    """A tensor has the wrong shape, dtype or device."""


class FormatError(DnassmError, ValueError):
    """A file does not hold what its format asks for."""


class GenomeError(DnassmError, ValueError):
    """A contig or a coordinate does not exist in the genome."""


class LabelError(DnassmError, ValueError):
    """Labels of a classification task do not fit together."""


class ArtifactError(DnassmError, OSError):
    """An artifact cannot be read or written: missing, too new, target taken, disk full."""


class FetchError(DnassmError, OSError):
    """A download failed, or what came is not what its publisher or the lock file says."""


class MissingExtraError(DnassmError, ImportError):
    """An optional dependency is not installed."""


class BackendError(DnassmError, RuntimeError):
    """A kernel backend was asked for by name and cannot run here."""


class CheckError(DnassmError):
    """Something that `dnassm doctor` checked does not hold."""


class Interrupted(DnassmError):
    """The user stopped a long job; what was done so far is kept. Exit code 130."""
