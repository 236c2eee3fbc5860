"""Which errors are worth a retry, and their text."""

import psycopg
import pytest
from psycopg import errors

from stats_pipeline.errors import DatabaseUnavailable, is_permanent, one_line

PERMANENT = [
    errors.UndefinedFunction,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.InsufficientPrivilege,
    errors.SyntaxError,
    errors.InvalidParameterValue,
    errors.DivisionByZero,
    errors.NumericValueOutOfRange,
    errors.FeatureNotSupported,
    errors.InvalidPassword,
    errors.InvalidCatalogName,
    errors.InvalidSchemaName,
]
TRANSIENT = [
    errors.DeadlockDetected,
    errors.SerializationFailure,
    errors.QueryCanceled,
    errors.LockNotAvailable,
    errors.AdminShutdown,
    errors.CrashShutdown,
    errors.CannotConnectNow,
    errors.TooManyConnections,
    errors.DiskFull,
    errors.OutOfMemory,
    errors.ConnectionFailure,
    errors.IdleInTransactionSessionTimeout,
    errors.RaiseException,
    psycopg.OperationalError,  # a lost connection has no SQLSTATE
]


@pytest.mark.parametrize("kind", PERMANENT)
def test_permanent(kind: type[psycopg.Error]) -> None:
    assert is_permanent(kind("no"))


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient(kind: type[psycopg.Error]) -> None:
    assert not is_permanent(kind("not now"))


def test_errors_of_others_are_not_judged() -> None:
    assert not is_permanent(DatabaseUnavailable("localhost:5432 does not answer"))
    assert not is_permanent(TimeoutError())


def test_one_line_is_one_line_and_never_empty() -> None:
    assert one_line(ValueError("first\n  second\tthird")) == "first second third"
    assert one_line(TimeoutError()) == "TimeoutError"
    assert len(one_line(ValueError("x" * 10_000))) == 500


def test_one_line_of_a_database_error_is_its_message_and_code(postgres: str) -> None:
    with psycopg.connect(postgres) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute("select nothing_of_this_name()")
    assert one_line(caught.value) == "function nothing_of_this_name() does not exist (SQLSTATE 42883)"
