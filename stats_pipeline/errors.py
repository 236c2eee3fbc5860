"""Everything this project raises on purpose, and the one mapping from SQLSTATE to "try again" or "give up".

A message here is one line, names the setting or field, and says what to do: the CLI prints it as it is.
Nothing in this module talks to a database or to Dagster.
"""

import psycopg


class StatsPipelineError(Exception):
    """Something the reader can put right; the message says how."""


class SettingsError(StatsPipelineError):
    """An environment variable is missing or wrong."""


class DatabaseUnavailable(StatsPipelineError):
    """The database does not answer, or refuses the login."""


class MigrationError(StatsPipelineError):
    """The database cannot be brought to this version of the schema."""


class InvalidJob(StatsPipelineError):
    """The database refused a payload or a job id; the message names the field."""


class AlreadyRunning(StatsPipelineError):
    """Another process owns what this one wanted to start."""


class LeaseLost(StatsPipelineError):
    """This run was replaced by a newer one while it slept; it must stop and change nothing more."""


LEASE_LOST_SQLSTATE = "SP001"
INVALID_JOB_SQLSTATE = "22023"

# Classes and codes that another attempt can cure: the server went away or was busy, or two transactions collided.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_TRANSIENT_CLASSES = {"08", "40", "53", "57", "58"}
_TRANSIENT_CODES = {"55P03", "55006", "25P03", "25P04"}


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed when it is simply made again.

    A statement that ran into its own timeout (57014) counts as transient: the server may have been busy. An error
    without a SQLSTATE is a lost connection when psycopg calls it operational. Everything else, such as a missing
    function, a missing right or a bad argument, gives the same answer each time.
    """
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate[:2] in _TRANSIENT_CLASSES or error.sqlstate in _TRANSIENT_CODES


def one_line(error: BaseException) -> str:
    """The error as one line of at most 500 characters, without psycopg's LINE and CONTEXT tails."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        text = f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:500]
