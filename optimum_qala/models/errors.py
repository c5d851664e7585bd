"""Errors that the model files raise. They live beside the model so that it can travel to the Hub without the package.

Import them from `optimum_qala.errors`, which holds the whole family.
"""


class QuaLAError(Exception):
    """Base class of every error that optimum-qala raises on purpose."""


class ConfigurationError(QuaLAError, ValueError):
    """A configuration value, an argument or a combination of them is not legal."""


class LengthConfigError(ConfigurationError):
    """A `LengthConfig` is malformed or does not fit the model."""


class UnknownBudgetError(ConfigurationError):
    """A budget name that the model does not carry."""


class HubError(QuaLAError, OSError):
    """The Hub refuses, lacks or does not answer what it was asked for; the message names the repository."""


class CheckpointError(QuaLAError, ValueError):
    """A checkpoint is corrupt, foreign or does not match its tokenizer."""
