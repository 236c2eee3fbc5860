"""Every error this project raises on purpose, and the one place that reads a SQLSTATE as "try again" or "give up".

A message is one line, names the setting or field, and says what to do: the CLI prints it unchanged.
Nothing in this module talks to a database or to Dagster.
"""

import psycopg


class StatsPipelineError(Exception):
    """A problem that the reader can fix; the message says how."""


class SettingsError(StatsPipelineError):
    """An environment variable is missing or wrong."""


class CatalogError(StatsPipelineError):
    """The catalog of stats functions cannot be read, or contradicts itself."""


class DatabaseUnavailable(StatsPipelineError):
    """The database does not answer, or rejects the login."""


class NoConnectionFree(DatabaseUnavailable):
    """The database, or the pooler in front of it, allows no more connections now."""


class MigrationError(StatsPipelineError):
    """The database cannot be brought to this version of the schema."""


class InvalidJob(StatsPipelineError):
    """The database rejected a payload or a job id; the message names the field."""


class AlreadyRunning(StatsPipelineError):
    """Another process already runs the services of this state folder."""


class LeaseLost(StatsPipelineError):
    """The lease was taken from this run, perhaps while it was suspended; it must stop and change nothing more."""


class TenantBusy(StatsPipelineError):
    """A run that was started by hand has waited too long for the tenant's open lease to end."""


LEASE_LOST_SQLSTATE = "SP001"
INVALID_JOB_SQLSTATE = "22023"

# A repeated call fails again: wrong data or argument, missing object or privilege, wrong login, missing feature.
# https://www.postgresql.org/docs/current/errcodes-appendix.html
_PERMANENT_CLASSES = {"0A", "22", "28", "2F", "3D", "3F", "42"}


def is_permanent(error: BaseException) -> bool:
    """Whether repeating the call is pointless, by the error's SQLSTATE.

    Lost connections (no SQLSTATE, or class 08 and 57P), deadlocks (40), exhausted resources (53), timeouts (57014), and
    errors that a function raises itself (P0001) may not occur the next time.
    """
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] in _PERMANENT_CLASSES


def is_outage(error: BaseException) -> bool:
    """Whether the database was unreachable or shutting down: not specific to this call, any call would fail."""
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
