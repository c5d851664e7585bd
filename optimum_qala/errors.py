"""Errors raised by optimum-qala.

Every error derives from `QuaLAError`, so one `except` catches them all, and from the builtin that fits, so code that
knows nothing of this package handles them as usual. A message says what was given, what is legal and what to do next.
"""

from optimum_qala.models.errors import (
    CheckpointError,
    ConfigurationError,
    HubError,
    LengthConfigError,
    QuaLAError,
    UnknownBudgetError,
)


class DataError(QuaLAError, ValueError):
    """Question answering data that cannot be read; the message names the file and the record."""


class QuestionTooLongError(DataError):
    """A question leaves no room for its context in the window."""


class SearchStoreError(QuaLAError, ValueError):
    """The file that keeps a search's measurements is corrupt or belongs to another search; it was left as it is."""


class MissingExtraError(QuaLAError, ImportError):
    """An optional dependency is absent or of a version that does not fit; the message names the pip extra for it."""


class OutputExistsError(QuaLAError, FileExistsError):
    """An output path holds something already; nothing was overwritten."""


class AccuracyError(QuaLAError, RuntimeError):
    """No int8 model that was tried loses as little as was asked for; nothing was written."""


class BackendError(QuaLAError, RuntimeError):
    """A back end cannot run the model that it was given."""


__all__ = [
    "AccuracyError",
    "BackendError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "HubError",
    "LengthConfigError",
    "MissingExtraError",
    "OutputExistsError",
    "QuaLAError",
    "QuestionTooLongError",
    "SearchStoreError",
    "UnknownBudgetError",
]
