"""Brings a database to this version: numbered migrations, re-appliable functions, the optional reference set.

Each call also checks what was applied before, and restores what was dropped or altered since. Everything happens in
one transaction under one advisory lock: a migration that fails leaves nothing behind, and twenty processes that migrate
at once do the work of one. Migrations go forward only. The SQL itself lives in `sql/`.
"""

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.types.json import Jsonb

from stats_pipeline.catalog import ALL_STATS_FUNCTIONS
from stats_pipeline.database import run, run_one, schema
from stats_pipeline.errors import MigrationError, one_line
from stats_pipeline.settings import SQL_ROOT

# Dagster's tables live here; Dagster creates them itself, but not their schema.
DAGSTER_SCHEMA = "dagster"

_NUMBER = re.compile(r"^\d+_")
_SIGNATURE = re.compile(r"revoke all on function (\S+?\(.*?\))")  # every file of `sql/functions` has one


@dataclass(frozen=True)
class Applied:
    """What one call changed: the files it applied, and the objects it restored."""

    migrations: tuple[str, ...]
    functions: tuple[str, ...]
    reference_stats: tuple[str, ...]
    repaired: tuple[str, ...]


def migrate(connection: Connection[Any], *, reference_stats: bool = False) -> Applied:
    """Apply what is missing or changed, in one separate transaction.

    `reference_stats` also installs the reference tables and stats functions, for a database that has none. Raises
    `MigrationError` if the app has its own ones, if an applied migration's file has changed, if the queue extension is
    missing, if a column of the app's job table has an unsupported type, if something that was dropped or altered cannot
    be repaired, and if the role may not create what is needed.
    """
    try:
        with connection.transaction():
            run(connection, "lock_migrations")
            run(connection, "ensure_migration_ledger")
            _ensure_queue_extension(connection)
            _refuse_foreign_columns(connection)
            ledger = _restore_ledger(connection)
            migrations = _apply_migrations(connection)
            run(connection, "limit_lock_wait")
            parts = schema.repair(connection)
            functions, objects = _apply_functions(connection)
            stats = _apply_reference_stats(connection) if reference_stats else ()
            connection.execute(f"create schema if not exists {DAGSTER_SCHEMA}".encode())
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"STATS_DATABASE_URL: this role may not set the schema up ({one_line(error)}): "
            "migrate once with the role `postgres`, or ask its owner to"
        ) from error
    except psycopg.Error as error:
        raise MigrationError(f"migrating failed and nothing was changed: {one_line(error)}") from error
    return Applied(migrations, functions, stats, (*ledger, *parts, *objects))


def pending(connection: Connection[Any]) -> list[str]:
    """The files that `migrate` would apply to a migrated database; changes nothing."""
    applied = _checksums(connection, "migrations")
    names = [file.name for file in _files("migrations") if applied.get(file.name) != _checksum(file)]
    return names + [file.name for file in _changed_functions(_ledger(connection, "functions"))]


def differences(connection: Connection[Any]) -> Iterator[str]:
    """Everything dropped or altered since a database was migrated, each with what to do; changes nothing."""
    if columns := run(connection, "list_foreign_columns"):
        yield _foreign_columns(columns)
    yield from _old_queue_extension(connection)
    for difference in schema.differences(connection):
        yield f"{difference.problem}: " + ("run `stats-pipeline migrate`" if difference.is_safe else difference.sql)
    for _, name in _altered_functions(_ledger(connection, "functions"), _made(connection)):
        yield f"{name} is missing or was altered: run `stats-pipeline migrate`"
    for problem, sql in _strange_functions(connection):
        yield f"{problem}: {sql};"


def _files(folder: str) -> Sequence[Path]:
    return sorted((SQL_ROOT / folder).glob("*.sql"))


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _ledger(connection: Connection[Any], kind: str) -> dict[str, Any]:
    return {row["name"]: row for row in run(connection, "list_migrations", kind=kind)}


def _checksums(connection: Connection[Any], kind: str) -> dict[str, str]:
    return {name: row["checksum"] for name, row in _ledger(connection, kind).items()}


def _apply(connection: Connection[Any], kind: str, file: Path) -> None:
    connection.execute(file.read_bytes())
    _record(connection, kind, file)


def _record(connection: Connection[Any], kind: str, file: Path, made: dict[str, str] | None = None) -> None:
    as_json = None if made is None else Jsonb(made)
    run(connection, "record_migration", kind=kind, name=file.name, checksum=_checksum(file), made=as_json)


def _restore_ledger(connection: Connection[Any]) -> tuple[str, ...]:
    """If the list of applied files was lost but everything they create exists, record them as applied."""
    if _ledger(connection, "migrations") or any(schema.differences(connection)):
        return ()
    for file in _files("migrations"):
        _record(connection, "migrations", file)
    return ("the rows of stats_pipeline.migration",)


def _apply_migrations(connection: Connection[Any]) -> tuple[str, ...]:
    applied = _checksums(connection, "migrations")
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


def _signatures() -> dict[str, str]:
    """The signature of the function that each file creates; its triggers go with it."""
    return {file.name: _SIGNATURE.findall(file.read_text())[0] for file in _files("functions")}


def _made(connection: Connection[Any]) -> dict[str, dict[str, str]]:
    """The existing objects of each file: the definition of its function and of each trigger."""
    names = {signature: name for name, signature in _signatures().items()}
    made: dict[str, dict[str, str]] = {name: {} for name in names.values()}
    for row in schema.describe(connection, "describe_functions", signatures=list(names)):
        made[names[row["signature"]]][row["object"]] = row["definition"]
    return made


def _changed_functions(ledger: dict[str, Any]) -> list[Path]:
    """The files that are new, have changed, or were applied by a version that did not record what they created."""
    return [
        file
        for file in _files("functions")
        if not (row := ledger.get(file.name)) or row["checksum"] != _checksum(file) or row["made"] is None
    ]


def _altered_functions(ledger: dict[str, Any], there_is: dict[str, dict[str, str]]) -> Iterator[tuple[str, str]]:
    """File and object of everything that differs from what its file created."""
    for name, there in there_is.items():
        as_made = (ledger.get(name) or {}).get("made") or {}
        yield from ((name, each) for each, definition in as_made.items() if there.get(each) != definition)


def _strange_functions(connection: Connection[Any]) -> Iterator[tuple[str, str]]:
    for row in schema.describe(connection, "list_strange_functions", signatures=list(_signatures().values())):
        yield row["problem"], row["sql"]


def _apply_functions(connection: Connection[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Apply the files that are new or changed, and those whose objects were altered; both in name order."""
    ledger = _ledger(connection, "functions")
    changed = _changed_functions(ledger)
    altered = list(_altered_functions(ledger, _made(connection)))
    again = {name for name, _ in altered} | {file.name for file in changed}
    connection.execute("set local check_function_bodies = off")  # they call each other; name order is not call order
    for file in _files("functions"):
        if file.name in again:
            _make_function(connection, file)
    if strange := [f"{problem}: {sql};" for problem, sql in _strange_functions(connection)]:
        raise MigrationError(schema.by_hand(strange))
    made = _made(connection) if again else {}
    for file in _files("functions"):
        if file.name in again:
            _record(connection, "functions", file, made[file.name])
    names = tuple(file.name for file in changed)
    return names, tuple(each for name, each in altered if name not in names)


def _make_function(connection: Connection[Any], file: Path) -> None:
    try:
        connection.execute(file.read_bytes())
    except psycopg.errors.InvalidFunctionDefinition as error:
        signature = _signatures()[file.name]
        problem = f"the function {signature} was altered ({one_line(error)}): drop function {signature};"
        raise MigrationError(schema.by_hand([problem])) from error


def _apply_reference_stats(connection: Connection[Any]) -> tuple[str, ...]:
    ours = _checksums(connection, "stats")
    _refuse_app_objects(connection, ours)
    files = _files("stats")  # numbered files first, then the functions, which do not depend on each other
    if all(ours.get(file.name) == _checksum(file) for file in files):
        return ()
    for file in files:  # all of them: later files depend on the views and helpers of earlier ones
        try:
            _apply(connection, "stats", file)
        except psycopg.errors.InsufficientPrivilege:
            raise
        except psycopg.Error as error:
            raise MigrationError(
                f"migrating failed and nothing was changed: sql/stats/{file.name}: {one_line(error)}"
            ) from error
    return tuple(file.name for file in files)


def _refuse_app_objects(connection: Connection[Any], ours: Collection[str]) -> None:
    """Raises `MigrationError` if a file that was not applied before would replace an object that is not ours."""
    applied = {_NUMBER.sub("", name).removesuffix(".sql") for name in ours}  # functions once had numbers
    making = {file.stem for file in _files("stats")} - applied
    new = [function for function in ALL_STATS_FUNCTIONS if function.rpc in making]
    if not new:
        return
    tables = {table for function in new for table in (*function.tables, *(() if ours else function.reads))}
    rows = run(
        connection, "list_app_objects", tables=sorted(tables), functions=sorted(function.rpc for function in new)
    )
    if not rows:
        return
    names = ", ".join(f"public.{row['name']}" for row in rows[:3])
    if ours:
        raise MigrationError(
            f"{names} is there already and not of the reference stats, which never replace anything: rename it or drop "
            "it, or use another name in the catalog and in sql/stats"
        )
    raise MigrationError(
        f"this database has stats objects of its own ({names}, …), which are never replaced: "
        "use an empty database, or migrate without the reference stats"
    )


def _refuse_foreign_columns(connection: Connection[Any]) -> None:
    """Raises `MigrationError`: with another type only the first job would show it, by never ending."""
    if columns := run(connection, "list_foreign_columns"):
        raise MigrationError(_foreign_columns(columns))


def _foreign_columns(columns: Sequence[Any]) -> str:
    found = ", ".join(f"{column['name']} is {column['type']}, not {column['needed']}" for column in columns)
    changes = ", ".join(
        f"alter column {column['name']} drop default, "
        f"alter column {column['name']} type {column['needed']} using {column['conversion']}"
        for column in columns
    )
    return (
        f"public.background_job_status has columns that the pipeline cannot work with ({found}): change them, and "
        f"migrate again: alter table public.background_job_status {changes};"
    )


def _ensure_queue_extension(connection: Connection[Any]) -> None:
    if not run_one(connection, "find_queue_extension")["installed"]:
        try:
            with connection.transaction():
                connection.execute("create extension if not exists pgmq")
        except psycopg.Error as error:
            raise MigrationError(
                f"this database has no pgmq ({one_line(error)}): enable Queues in the Supabase dashboard, or install "
                "the extension, and migrate again"
            ) from error
    if old := list(_old_queue_extension(connection)):
        raise MigrationError(schema.by_hand(old))


def _old_queue_extension(connection: Connection[Any]) -> Iterator[str]:
    if missing := run_one(connection, "find_queue_extension")["missing"]:
        yield f"pgmq has no {', '.join(missing)} and is too old, or not whole: alter extension pgmq update;"
