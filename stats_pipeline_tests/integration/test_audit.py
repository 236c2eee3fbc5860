"""The rows of who did what: readable whatever was sent, few however often somebody guesses, kept across versions.

What the page and the API record is in `web/test_audit.py`, the rights on the table in `test_rights.py`.
"""

from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
import pytest
from psycopg import Connection
from psycopg.rows import DictRow

from stats_pipeline import database
from stats_pipeline.database import Database, migrate, schema
from stats_pipeline.jobs import audit

Connected = Connection[DictRow]
Query = Callable[..., list[dict[str, Any]]]
Count = Callable[[str], int]

AUDIT = "stats_pipeline.audit"
OWN_ROWS = 10  # of one network, kind and hour
MANY = 1_000  # rows of all networks in an hour


@pytest.fixture(autouse=True)
def within_one_hour(connection: Connected) -> None:
    """No test begins in one hour and ends in the next."""
    [row] = connection.execute("select extract(epoch from date_trunc('hour', now()) + interval '1 h' - now()) as left")
    if row["left"] < 20:
        connection.execute("select pg_sleep(%s)", (row["left"],))


def refuse(connection: Connected, address: str = "192.0.2.1", **fields: Any) -> None:
    told = {"action": "login", "who": "unknown", "role": "unknown", "outcome": "refused", **fields}
    audit.record(connection, address=address, **told)


def of(query: Query, address: str) -> list[int]:
    """How many tries each row of this address stands for, oldest row first."""
    return [row["times"] for row in query(f"select times from {AUDIT} where address = %s order by id", address)]


def test_a_row_says_who_did_what_and_from_where(connection: Connected) -> None:
    audit.record(connection, action="login", who="admin", role="admin", address="192.0.2.1")
    audit.record(connection, action="launch", who="server", role="server", address="2001:db8::1", about="job 1")
    launch, login = audit.latest(connection, 10)
    assert launch == audit.Entry(launch.at, "launch", "done", "server", "server", "2001:db8::1", "job 1", 1)
    assert login == audit.Entry(login.at, "login", "done", "admin", "admin", "192.0.2.1", None, 1)
    assert login.at < launch.at < datetime.now(UTC) + timedelta(seconds=1)
    assert audit.latest(connection, 1) == [launch]


def test_a_row_is_undone_with_what_it_records(connection: Connected, count: Count) -> None:
    with connection.transaction(force_rollback=True):
        audit.record(connection, action="launch", who="server", role="server", address="192.0.2.1")
        assert count(AUDIT) == 1
    assert count(AUDIT) == 0


HOSTILE = "a\x00b\nc\x1b[31m\x85d\u2028e\u202ef\u200bg\ud800h"


def test_text_is_cut_and_stays_on_one_line(connection: Connected) -> None:
    audit.record(connection, action="login", who=HOSTILE, role=HOSTILE, address=HOSTILE, about=HOSTILE + "x" * 300)
    [row] = audit.latest(connection, 1)
    plain = "a b c [31m d e f g h"
    assert (row.who, row.role, row.address) == (plain, plain, plain)
    assert row.about is not None
    assert row.about.startswith(plain + "x")
    assert len(row.about) == audit.MAX_TEXT


def test_the_function_itself_cuts_and_cleans(connection: Connected) -> None:
    hostile = HOSTILE.replace("\x00", " ").replace("\ud800", " ") + "x" * 300
    names = ("who", "role", "address", "network", "about")
    database.call(connection, "record_audit", action="key", outcome="refused", **dict.fromkeys(names, hostile))
    [row] = connection.execute(f"select * from {AUDIT}".encode()).fetchall()
    for name in names:
        assert row[name] == "a b c [31m d e f g h" + "x" * 180


@pytest.mark.parametrize("outcome", ["done", "refused"])
def test_nothing_is_recorded_under_a_made_up_outcome(connection: Connected, outcome: str, count: Count) -> None:
    refuse(connection, outcome=outcome)
    with pytest.raises(psycopg.errors.CheckViolation):
        refuse(connection, outcome=f"{outcome}?")
    assert count(AUDIT) == 1


def test_of_one_address_some_tries_have_a_row_and_the_others_share_one(connection: Connected, query: Query) -> None:
    for number in range(OWN_ROWS + 30):
        refuse(connection, about=f"try {number}")
    assert of(query, "192.0.2.1") == [1] * OWN_ROWS + [30]
    [row] = audit.latest(connection, 1)
    assert (row.about, row.times) == ("try 39", 30)  # and it is the newest


def test_each_address_kind_and_hour_has_rows_of_its_own(connection: Connected, query: Query) -> None:
    for _ in range(OWN_ROWS + 5):
        refuse(connection)
    refuse(connection, "192.0.2.2")
    refuse(connection, action="key")
    assert of(query, "192.0.2.2") == [1]
    assert of(query, "192.0.2.1") == [1] * OWN_ROWS + [5, 1]
    query(f"update {AUDIT} set hour = hour - interval '1 h', at = at - interval '1 h'")
    refuse(connection)
    assert of(query, "192.0.2.1") == [1] * OWN_ROWS + [5, 1, 1]


def test_an_ipv6_subscriber_is_one_address(connection: Connected, query: Query, count: Count) -> None:
    for number in range(OWN_ROWS + 5):
        refuse(connection, f"2001:db8:0:1::{number:x}")
    assert count(AUDIT) == OWN_ROWS + 1
    refuse(connection, "2001:db8:0:2::1")
    assert of(query, "2001:db8:0:2::1") == [1]


def test_what_was_done_is_never_counted_together(connection: Connected, count: Count) -> None:
    for _ in range(OWN_ROWS + 30):
        audit.record(connection, action="launch", who="server", role="server", address="192.0.2.1")
    assert count(AUDIT) == OWN_ROWS + 30


def test_guesses_from_any_number_of_addresses_do_not_fill_the_table(
    connection: Connected, query: Query, count: Count
) -> None:
    with connection.transaction():
        for number in range(MANY + 200):
            refuse(connection, f"10.0.{number // 250}.{number % 250}")
    assert count(AUDIT) == MANY + 1
    assert of(query, "many addresses") == [200]
    refuse(connection, "10.0.0.1", action="key")
    assert of(query, "many addresses") == [200, 1]
    audit.record(connection, action="login", who="admin", role="admin", address="10.0.0.1")
    assert [row.outcome for row in audit.latest(connection, 1)] == ["done", "refused"]


def test_what_was_refused_hides_nothing_that_was_done_and_the_other_way_round(connection: Connected) -> None:
    for number in range(4):
        audit.record(connection, action="launch", who="x", role="x", address="192.0.2.1", about=f"done {number}")
        refuse(connection, about=f"refused {number}")
    assert [row.about for row in audit.latest(connection, 2)] == ["refused 3", "done 3", "refused 2", "done 2"]
    assert [row.about for row in audit.latest(connection, 3, refused=1)] == ["refused 3", "done 3", "done 2", "done 1"]
    for number in range(30):
        refuse(connection, f"192.0.2.{number}")
    assert [row.about for row in audit.latest(connection, 4, refused=0)] == [f"done {n}" for n in (3, 2, 1, 0)]


def test_a_try_that_waits_for_another_is_counted(
    first: Connected, meanwhile: Callable[[Callable[[Connected], Any]], Future[Any]], query: Query
) -> None:
    """Both take the same number, since neither sees the other's row."""
    with first.transaction():
        refuse(first)
        second = meanwhile(refuse)
        assert not second.done()
    second.result(timeout=20)
    assert of(query, "192.0.2.1") == [2]


@pytest.mark.parametrize("is_rolled_back", [True, False])
def test_a_launch_waits_for_no_open_transaction(
    first: Connected,
    meanwhile: Callable[[Callable[[Connected], Any]], Future[Any]],
    count: Count,
    is_rolled_back: bool,
) -> None:
    def launch(connection: Connected) -> None:
        audit.record(connection, action="launch", who="server", role="server", address="192.0.2.1")

    with first.transaction(force_rollback=is_rolled_back):
        launch(first)
        refuse(first)
        assert meanwhile(launch).done()
    assert count(AUDIT) == (1 if is_rolled_back else 3)


def test_of_many_tries_at_once_none_is_lost(opened: Database, at_once: Callable[..., list[Any]], query: Query) -> None:
    def guess(_: int) -> None:
        for _ in range(10):
            with opened.connection() as connection:
                refuse(connection)

    assert at_once(8, guess) == [None] * 8
    tries = of(query, "192.0.2.1")
    assert sum(tries) == 80
    assert len(tries) <= OWN_ROWS + 1


def test_the_version_before_is_migrated_and_a_lost_table_comes_back(create_database: Callable[..., str]) -> None:
    files = migrate._files

    def of_the_version_before(folder: str) -> list[Path]:
        return [file for file in files(folder) if "audit" not in file.name]

    with database.connect(create_database(), autocommit=True) as connection:
        with (
            mock.patch.object(migrate, "_files", of_the_version_before),
            mock.patch.object(schema, "repair", return_value=()),
        ):
            migrate.migrate(connection)
        with pytest.raises(psycopg.errors.UndefinedFunction):
            refuse(connection)
        assert {"0017_audit.sql", "record_audit.sql"} <= set(migrate.pending(connection))
        applied = migrate.migrate(connection)
        assert applied.migrations == ("0017_audit.sql",)
        assert applied.functions == ("audit_text.sql", "prune_audit.sql", "record_audit.sql")
        assert applied.repaired == ()
        refuse(connection)
        connection.execute(f"drop table {AUDIT}".encode())
        assert migrate.migrate(connection).repaired == (f"the table {AUDIT}",)
        refuse(connection)
        assert [row.times for row in audit.latest(connection, 10)] == [1]
        assert list(migrate.differences(connection)) == []
