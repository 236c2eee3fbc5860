"""Compares what our migrations create, part by part, with what exists: the ledger only proves what was applied once.

`sql/schema.json` describes a newly migrated database (`make schema` writes it); `describe` describes any other in the
same form. Objects that are not ours are ignored.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection

from stats_pipeline.database import run
from stats_pipeline.errors import MigrationError, one_line
from stats_pipeline.settings import SQL_ROOT

AS_MADE = SQL_ROOT / "schema.json"

# Where the server writes casts and parentheses depends on its version, and on whether a column is text or varchar.
_CASTS_AND_PARENTHESES = re.compile(r"::[a-z ]+(\[\])?|[()\s]")


@dataclass(frozen=True)
class Difference:
    """One part that is missing or differs from what the migrations create, and the SQL that repairs it."""

    what: str
    part_of: str | None
    problem: str
    sql: str
    is_safe: bool


def describe(connection: Connection[Any], query: str = "describe_schema", **parameters: Any) -> list[Any]:
    """Query definitions under a fixed search path, since the server's wording depends on it."""
    with connection.transaction(force_rollback=True):
        run(connection, "pin_search_path")
        return run(connection, query, **parameters)


def differences(connection: Connection[Any]) -> Iterator[Difference]:
    """Each part that differs, before those that depend on it; the parts of a missing part are left out."""
    found = {part["what"]: part["definition"] for part in describe(connection)}
    as_made = json.loads(AS_MADE.read_text())
    missing = {part["what"] for part in as_made} - found.keys()
    for part in as_made:
        what, part_of, wanted = part["what"], part["part_of"], part["definition"]
        if part_of in missing:
            continue
        if what in missing:
            yield Difference(what, part_of, f"{what} is missing", part["make"], is_safe=True)
        elif _gist(found[what]) != _gist(wanted):
            problem = f"{what}: {found[what] or 'nothing'}, not {wanted or 'nothing'}"
            yield Difference(what, part_of, problem, part["change"], part["is_safe"])


def _gist(definition: str) -> str:
    return _CASTS_AND_PARENTHESES.sub("", definition)


def repair(connection: Connection[Any]) -> tuple[str, ...]:
    """Restore what is missing or was changed, and return its names; the parts of a missing part are not listed.

    Raises `MigrationError` with the SQL to run where existing data or another session's lock prevents a repair, or
    where a repair could lose data.
    """
    repaired: dict[str, Difference] = {}
    while todo := [difference for difference in differences(connection) if difference.what not in repaired]:
        tried = [(difference, _put_right(connection, difference)) for difference in todo]
        if blocked := [f"{difference.problem} ({why}): {difference.sql};" for difference, why in tried if why]:
            raise MigrationError(by_hand(blocked))
        repaired |= {difference.what: difference for difference in todo}
    return tuple(what for what, difference in repaired.items() if difference.part_of not in repaired)


def by_hand(problems: Sequence[str]) -> str:
    """Differences that are left to the operator, each with its SQL, as one line."""
    return f"nothing was changed; put this right by hand, and migrate again: {' '.join(problems)}"


def _put_right(connection: Connection[Any], difference: Difference) -> str | None:
    """Run its SQL; returns the reason if it cannot be run."""
    if not difference.is_safe:
        return "changing it could lose data"
    try:
        with connection.transaction():
            connection.execute(difference.sql.encode())
    except psycopg.Error as error:
        return " ".join([one_line(error), *(error.diag.message_detail or "").split()])
    return None
