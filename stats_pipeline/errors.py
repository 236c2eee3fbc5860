"""Everything this project raises on purpose, and the one place that reads a SQLSTATE as "try again" or "give up".

A message here is one line, names the setting or field, and says what to do: the CLI prints it as it is.
Nothing in this module talks to a database or to Dagster.
"""

import psycopg


class StatsPipelineError(Exception):
    """Something the reader can put right; the message says how."""


class SettingsError(StatsPipelineError):
    """An environment variable is missing or wrong."""


class CatalogError(StatsPipelineError):
    """The list of stats functions cannot be read, or contradicts itself."""


class DatabaseUnavailable(StatsPipelineError):
    """The database does not answer, or refuses the login."""


class MigrationError(StatsPipelineError):
    """The database cannot be brought to this version of the schema."""


class InvalidJob(StatsPipelineError):
    """The database refused a payload or a job id; the message names the field."""


class AlreadyRunning(StatsPipelineError):
    """Another process owns what this one wanted to start."""


class LeaseLost(StatsPipelineError):
    """The lease was taken from this run, perhaps while it slept; it must stop and change nothing more."""


class TenantBusy(StatsPipelineError):
    """A run that was started by hand has waited in vain for the tenant's open lease to end."""


LEASE_LOST_SQLSTATE = "SP001"
INVALID_JOB_SQLSTATE = "22023"

# What gives the same answer each time: wrong data or argument, missing object or right, wrong login, missing feature.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_PERMANENT_CLASSES = {"0A", "22", "28", "2F", "3D", "3F", "42"}


def is_permanent(error: BaseException) -> bool:
    """Whether making the same call again is pointless, by the error's SQLSTATE.

    Lost connections (no SQLSTATE, or class 08 and 57P), deadlocks (40), full resources (53), timeouts (57014), and
    errors that a function raises itself (P0001) may all be gone the next time.
    """
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _PERMANENT_CLASSES


def is_outage(error: BaseException) -> bool:
    """Whether the database was out of reach or shutting down: no fault of the call, and every call fares alike."""
    if isinstance(error, psycopg.OperationalError):
        return (error.sqlstate or "08000")[:3] in {"080", "57P"}
    return isinstance(error, DatabaseUnavailable)


def one_line(error: BaseException) -> str:
    """The error as one line of at most 500 characters, without psycopg's LINE and CONTEXT tails."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        text = f"{error.diag.message_primary} (SQLSTATE {error.sqlstate})"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())[:500]
