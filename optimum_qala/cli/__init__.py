"""The commands behind `optimum-cli qala`, one module per command.

Their parsers are in `_namespace/optimum/commands/register/register_qala.py`, which every start of `optimum-cli`
imports and which therefore must not import this package before a command runs.
"""
