"""A club as plain rows: the tests of the SQL load them, and the oracle computes from them.

Also the few calls that each of these tests makes: load a club, refresh on a fixed day, read back the stored rows.
Nothing here knows what the functions compute.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from stats_pipeline.demo.league import DEFAULT_TENANT
from stats_pipeline_tests.reference import RPCS, TABLES

OTHER_TENANT = UUID("00000000-0000-0000-0000-0000000000b2")

_UNSTABLE = {"id", "race_data_id", "last_updated", "created_at", "updated_at"}  # surrogate ids and timestamps
_KEYS = (
    "match_id", "season_id", "player_id", "season_start_date", "season_end_date", "season_year", "period_type",
    "cache_key",
)  # fmt: skip


class Player(NamedTuple):
    player_id: int
    name: str | None
    is_ringer: bool = False
    is_retired: bool | None = False
    selected_club: Any = None


class Season(NamedTuple):
    id: int
    start_date: date
    half_date: date | None
    end_date: date


class Match(NamedTuple):
    match_id: int
    match_date: date | None
    team_a_score: int | None
    team_b_score: int | None
    team_a_own_goals: int | None = 0
    team_b_own_goals: int | None = 0


class Appearance(NamedTuple):
    match_id: int | None
    player_id: int | None
    team: str | None
    actual_team: str | None
    goals: int | None
    clean_sheet: bool | None
    result: str | None


@dataclass(frozen=True)
class Club:
    """One tenant's source rows and settings."""

    players: tuple[Player, ...] = ()
    seasons: tuple[Season, ...] = ()
    matches: tuple[Match, ...] = ()
    appearances: tuple[Appearance, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    tenant_id: UUID = DEFAULT_TENANT


def load(connection: Connection[Any], club: Club) -> None:
    """Insert the club's rows in the order they have."""
    for table, columns, rows in (
        ("players", Player._fields, (p._replace(selected_club=_jsonb(p.selected_club)) for p in club.players)),
        ("seasons", Season._fields, club.seasons),
        ("matches", Match._fields, club.matches),
        ("player_matches", Appearance._fields, club.appearances),
        ("app_config", ("config_key", "config_value"), club.config.items()),
    ):
        _insert(connection, table, columns, club.tenant_id, rows)


def _jsonb(value: Any) -> Jsonb | None:
    return None if value is None else Jsonb(value)


def _insert(
    connection: Connection[Any], table: str, columns: tuple[str, ...], tenant_id: UUID, rows: Iterable[tuple[Any, ...]]
) -> None:
    holders = ", ".join(["%s"] * (len(columns) + 1))
    statement = f"insert into public.{table} (tenant_id, {', '.join(columns)}) values ({holders})"
    with connection.cursor() as cursor:
        cursor.executemany(statement.encode(), [(tenant_id, *row) for row in rows])


def set_today(connection: Connection[Any], today: date) -> None:
    """Fix the day for this session."""
    connection.execute("select set_config('stats_pipeline.today', %s, false)", (today.isoformat(),))


def refresh(
    connection: Connection[Any], *, today: date, tenant_id: UUID = DEFAULT_TENANT, rpcs: Iterable[str] = RPCS
) -> None:
    """Call the functions one after another, as of a day."""
    set_today(connection, today)
    for rpc in rpcs:
        connection.execute(f"select public.{rpc}(%s)".encode(), (tenant_id,))


def stored(connection: Connection[Any], tenant_id: UUID = DEFAULT_TENANT) -> dict[str, list[dict[str, Any]]]:
    """The tenant's rows of every aggregate table, without surrogate ids and times, in an order that repeats.

    The hall of fame keeps the order of its ids, its only hint of rank. `cache_metadata` is there with its labels.
    """
    return {
        table: read(connection, table, tenant_id, keep_order=table == "aggregated_hall_of_fame")
        for table in (*TABLES, "cache_metadata")
    }


def read(
    connection: Connection[Any], table: str, tenant_id: UUID = DEFAULT_TENANT, *, keep_order: bool = False
) -> list[dict[str, Any]]:
    """The tenant's rows of one table, comparable as in `stored`."""
    ordered = " order by id" if keep_order else ""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            f"select * from public.{table} where tenant_id = %s{ordered}".encode(), (tenant_id,)
        ).fetchall()
    hidden = _UNSTABLE | {"tenant_id", "last_invalidated"}
    comparable = [{key: value for key, value in row.items() if key not in hidden} for row in rows]
    return comparable if keep_order else in_order(comparable)


def in_order(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one table by the columns that identify them."""
    return sorted(rows, key=lambda row: tuple(str(row[key]) for key in _KEYS if key in row))


def fingerprint(connection: Connection[Any], tenant_id: UUID = DEFAULT_TENANT) -> list[tuple[str, str]]:
    """Every stored value of the tenant as text, to the last digit; the hall of fame with its order."""
    lines = []
    for table in TABLES:
        position = ", row_number() over (order by id)" if table == "aggregated_hall_of_fame" else ""
        rows = connection.execute(
            f"select (to_jsonb(stored) - %s::text[])::text{position}"
            f" from public.{table} as stored where tenant_id = %s".encode(),
            (sorted(_UNSTABLE), tenant_id),
        )
        lines += [(table, "|".join(map(str, tuple(row)))) for row in rows]
    return sorted(lines)


def versions(connection: Connection[Any], tenant_id: UUID = DEFAULT_TENANT) -> set[tuple[str, str, str]]:
    """Table, place and writing transaction of every stored row of the tenant: a row that was written anew differs."""
    return {
        (table, *row)
        for table in TABLES
        for row in connection.execute(
            f"select ctid::text, xmin::text from public.{table} where tenant_id = %s".encode(), (tenant_id,)
        )
    }
