"""The connections of every process of ours: how they are set up and replaced, and what happens without one."""

import time
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from stats_pipeline import database
from stats_pipeline.database import Database
from stats_pipeline.errors import DatabaseUnavailable


@pytest.mark.parametrize("is_pooled", [True, False])
def test_a_connection_is_set_up(database_url: str, opened: Database, is_pooled: bool) -> None:
    with opened.connection() if is_pooled else opened.dedicated_connection() as connection:
        assert connection.autocommit
        for name in ("client_connection_check_interval", "idle_in_transaction_session_timeout", "lock_timeout"):
            assert connection.execute(f"show {name}".encode()).fetchone() != {name: "0"}


def test_nothing_is_left_prepared_in_a_session(opened: Database) -> None:
    """A pooler gives the next transaction another session, which does not know the statement."""
    with opened.connection() as connection:
        for _ in range(20):
            database.run(connection, "list_jobs", newest=1)
        assert connection.execute("select name from pg_prepared_statements").fetchall() == []


def test_a_connection_that_broke_in_the_pool_is_replaced(opened: Database, connection: psycopg.Connection[Any]) -> None:
    assert opened.run("list_job_states") == []
    connection.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
        "where datname = current_database() and pid <> %s",
        (connection.info.backend_pid,),
    )
    assert opened.run("list_job_states") == []


def test_a_transaction_is_all_or_nothing(opened: Database, connection: psycopg.Connection[Any]) -> None:
    connection.execute("create table public.noted (what text)")

    def fail_half_way() -> None:
        with opened.transaction() as inside:
            inside.execute("insert into public.noted values ('half')")
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert connection.execute("select * from public.noted").fetchall() == []


def test_when_all_connections_are_taken_the_next_one_is_told_so_in_time(database_url: str) -> None:
    with Database(database_url, max_connections=1, turn=0.2) as small, small.connection():
        asked_at = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="became free in time"), small.connection():
            pass
        assert time.monotonic() - asked_at < 5


def test_a_database_that_is_not_there_is_named_without_its_password(database_url: str) -> None:
    url = "postgresql://someone:hunter2@127.0.0.1:1/app"
    with Database(url, patience=0.2) as gone, pytest.raises(DatabaseUnavailable) as caught:
        gone.run("list_job_states")
    assert "127.0.0.1:1/app" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("port", "listens"), [("5432", True), ("6543", False)])
def test_a_transaction_pooler_is_known_by_its_port(port: str, listens: bool) -> None:
    assert database.can_listen(make_conninfo("postgresql://db.example.com/app", port=port)) is listens
