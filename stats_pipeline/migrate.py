"""Brings a database to this version: numbered migrations, re-appliable functions, the optional reference set.

Everything happens in one transaction under one advisory lock: a migration that fails leaves nothing behind, and twenty
processes that migrate at once do the work of one. Migrations go forward only. The SQL itself lives in `sql/`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection

from stats_pipeline.catalog import OPTIONAL_STATS_FUNCTIONS, STATS_FUNCTIONS
from stats_pipeline.database import run, run_one
from stats_pipeline.errors import MigrationError, one_line
from stats_pipeline.settings import SQL_ROOT

# Dagster's tables live here; Dagster creates them itself, but not their schema.
DAGSTER_SCHEMA = "dagster"


@dataclass(frozen=True)
class Applied:
    """What one call changed: names of files, and of what somebody had removed."""

    migrations: tuple[str, ...]
    functions: tuple[str, ...]
    reference_stats: tuple[str, ...]
    repaired: tuple[str, ...]


def migrate(connection: Connection[Any], *, reference_stats: bool = False) -> Applied:
    """Apply what is missing or changed, in one transaction of its own.

    `reference_stats` also installs the reference tables and stats functions, for a database that has none; on one
    where an app's own exist it raises. A queue that somebody has dropped is made again. Raises `MigrationError` also
    when an applied migration's file has changed, when the queue extension is missing, when a column of the app's job
    table has a type that cannot be worked with, and when the role may not create what is needed.
    """
    try:
        with connection.transaction():
            run(connection, "lock_migrations")
            run(connection, "ensure_migration_ledger")
            _ensure_queue_extension(connection)
            _refuse_foreign_columns(connection)
            migrations = _apply_migrations(connection)
            functions = _apply_repeatable(connection, "functions")
            repaired = ("the queue stats_update",) if run_one(connection, "ensure_queue")["made"] else ()
            stats = _apply_reference_stats(connection) if reference_stats else ()
            connection.execute(f"create schema if not exists {DAGSTER_SCHEMA}".encode())
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"STATS_DATABASE_URL: this role may not set the schema up ({one_line(error)}): "
            "migrate once with the role `postgres`, or ask its owner to"
        ) from error
    except psycopg.Error as error:
        raise MigrationError(f"migrating failed and nothing was changed: {one_line(error)}") from error
    return Applied(migrations, functions, stats, repaired)


def pending(connection: Connection[Any]) -> list[str]:
    """The files that `migrate` would apply to a migrated database; changes nothing."""
    names = []
    for kind in ("migrations", "functions"):
        applied = _ledger(connection, kind)
        names += [file.name for file in _files(kind) if applied.get(file.name) != _checksum(file)]
    return names


def _files(folder: str) -> Sequence[Path]:
    return sorted((SQL_ROOT / folder).glob("*.sql"))


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _ledger(connection: Connection[Any], kind: str) -> dict[str, str]:
    return {row["name"]: row["checksum"] for row in run(connection, "list_migrations", kind=kind)}


def _apply(connection: Connection[Any], kind: str, file: Path) -> None:
    connection.execute(file.read_bytes())
    run(connection, "record_migration", kind=kind, name=file.name, checksum=_checksum(file))


def _apply_migrations(connection: Connection[Any]) -> tuple[str, ...]:
    applied = _ledger(connection, "migrations")
    missing = []
    for file in _files("migrations"):
        if file.name not in applied:
            _apply(connection, "migrations", file)
            missing.append(file.name)
        elif applied[file.name] != _checksum(file):
            raise MigrationError(
                f"{file.name} was applied to this database with other content: "
                "restore the file, and put the change into a new migration"
            )
    return tuple(missing)


def _apply_repeatable(connection: Connection[Any], folder: str) -> tuple[str, ...]:
    """Apply the folder's files that are new or changed, in name order."""
    applied = _ledger(connection, folder)
    changed = [file for file in _files(folder) if applied.get(file.name) != _checksum(file)]
    connection.execute("set local check_function_bodies = off")  # they call each other; name order is not call order
    for file in changed:
        _apply(connection, folder, file)
    return tuple(file.name for file in changed)


def _apply_reference_stats(connection: Connection[Any]) -> tuple[str, ...]:
    ours = _ledger(connection, "stats")
    if not ours:
        catalog = (*STATS_FUNCTIONS, *OPTIONAL_STATS_FUNCTIONS)
        rows = run(
            connection,
            "list_app_objects",
            tables=sorted({table for function in catalog for table in (*function.reads, *function.tables)}),
            functions=[function.rpc for function in catalog],
        )
        if rows:
            names = ", ".join(row["name"] for row in rows[:3])
            raise MigrationError(
                f"this database has stats objects of its own (public.{names}, …), which are never replaced: "
                "use an empty database, or migrate without the reference stats"
            )
    if all(ours.get(file.name) == _checksum(file) for file in _files("stats")):
        return ()
    for file in _files("stats"):  # all of them: later files build on the views and helpers of earlier ones
        _apply(connection, "stats", file)
    return tuple(file.name for file in _files("stats"))


def _refuse_foreign_columns(connection: Connection[Any]) -> None:
    """Any other type would be found out by the first job, which then never ends."""
    if not (columns := run(connection, "list_foreign_columns")):
        return
    found = ", ".join(f"{column['name']} is {column['type']}, not {column['needed']}" for column in columns)
    changes = ", ".join(
        f"alter column {column['name']} drop default, "
        f"alter column {column['name']} type {column['needed']} using {column['conversion']}"
        for column in columns
    )
    raise MigrationError(
        f"public.background_job_status has columns that the pipeline cannot work with ({found}): change them, set "
        f"their defaults again, and migrate again: alter table public.background_job_status {changes};"
    )


def _ensure_queue_extension(connection: Connection[Any]) -> None:
    if run_one(connection, "find_queue_extension")["installed"]:
        return
    try:
        with connection.transaction():
            connection.execute("create extension if not exists pgmq")
    except psycopg.Error as error:
        raise MigrationError(
            f"this database has no pgmq ({one_line(error)}): enable Queues in the Supabase dashboard, or install the "
            "extension, and migrate again"
        ) from error
