"""Our connections and Dagster's through PgBouncer: what is set for them holds, and what is refused is waited for."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import dagster as dg
import psycopg
import pytest
import structlog

from stats_pipeline import database
from stats_pipeline.database import Database, allowance, connect, embedded, migrate
from stats_pipeline.deployment import doctor
from stats_pipeline.errors import DatabaseUnavailable, NoConnectionFree
from stats_pipeline.jobs import queue, reconcile, run_direct
from stats_pipeline.runtime.storage import PooledPostgresStorage
from stats_pipeline.settings import Settings
from stats_pipeline_tests.acceptance import pooler
from stats_pipeline_tests.acceptance.pooler import Mode
from stats_pipeline_tests.acceptance.processes import until

pytestmark = pooler.needs_both


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pools")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[int]:
    """A migrated database whose role has settings that nobody of ours may depend on."""
    with pooler.postgres(folder) as port:
        with connect(pooler.url_of(port), autocommit=True) as connection:
            migrate.migrate(connection, reference_stats=True)
            for setting in (
                "statement_timeout = '1s'",
                "default_transaction_isolation = 'serializable'",
                "timezone = 'Asia/Kathmandu'",
                "search_path = 'pg_temp'",
                "lock_timeout = '1ms'",
            ):
                connection.execute(f"alter role postgres set {setting}".encode())
        yield port


@pytest.fixture
def pooled(folder: Path, server: int) -> Iterator[Callable[..., str]]:
    """The URL of a pooler of the test's own."""
    with ExitStack() as stack:

        def start(mode: Mode, **options: int) -> str:
            port = stack.enter_context(pooler.pgbouncer(folder, server, mode, **options))
            loaded = Settings.model_validate({"STATS_DATABASE_URL": pooler.url_of(port, mode=mode)})
            assert loaded.database_url is not None
            return loaded.database_url.get_secret_value()

        yield start


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_what_a_statement_depends_on_is_set_whatever_session_it_gets(pooled: Callable[..., str], mode: Mode) -> None:
    names = ("lock_timeout", "statement_timeout", "TimeZone", "transaction_isolation")
    shown = ", ".join(f"current_setting('{name}') as {name}" for name in names)
    expected = ("30s", "0", "UTC", "read committed")
    with Database(pooled(mode), max_connections=3) as opened:
        assert opened.can_listen == (mode == "session")
        with opened.connection() as first, opened.transaction() as second:  # two sessions at least
            for _ in range(3):
                for connection in (first, second):
                    row = connection.execute(f"select {shown}").fetchone()
                    assert row is not None
                    assert tuple(row.values())[:3] == expected[:3]
            row = second.execute(f"select {shown}").fetchone()
            assert row is not None
            assert tuple(row.values())[3] == "read committed"


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_transaction_may_still_choose_its_isolation(pooled: Callable[..., str], mode: Mode) -> None:
    with Database(pooled(mode), max_connections=1) as opened:
        assert reconcile.read(opened).leases == []
        with opened.transaction() as connection:
            connection.execute("set transaction isolation level repeatable read, read only")
            row = connection.execute("show transaction_isolation").fetchone()
            assert row == {"transaction_isolation": "repeatable read"}
            assert connection.execute("show lock_timeout").fetchone() == {"lock_timeout": "30s"}


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_a_database_is_migrated_and_a_waiting_job_is_run_without_dagster(folder: Path, server: int, mode: Mode) -> None:
    name = f"fresh_{mode}"
    with connect(pooler.url_of(server), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    with pooler.pgbouncer(folder, server, mode) as port:
        given = re.sub(r"/postgres(\?|$)", rf"/{name}\1", pooler.url_of(port, mode=mode))
        settings = Settings.model_validate({"STATS_DATABASE_URL": given})
        assert settings.database_url is not None
        url = settings.database_url.get_secret_value()
        embedded._install_queue(pooler.url_of(server).removesuffix("postgres") + name)
        with connect(url, autocommit=True) as connection:
            assert migrate.migrate(connection, reference_stats=True).migrations
            assert migrate.pending(connection) == []
            assert list(migrate.differences(connection)) == []
        with Database(url, max_connections=1) as opened:
            [job] = run_direct.run_direct(opened, settings, lambda _: None)
            with opened.connection() as connection:
                assert queue.get_job(connection, job).status == "completed"


@dg.asset
def made() -> None:
    pass


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_dagsters_tables_are_made_and_used_in_their_schema(pooled: Callable[..., str], server: int, mode: Mode) -> None:
    url = database.sqlalchemy_url(pooled(mode), schema=f"dagster_{mode}")
    storage = {
        "module": PooledPostgresStorage.__module__,
        "class": PooledPostgresStorage.__name__,
        "config": {"postgres_url": url},
    }
    with dg.instance_for_test(overrides={"storage": {"custom": storage}}) as instance:
        for _ in range(2):
            assert dg.materialize([made], instance=instance).success
        assert len(instance.get_runs()) == 2
        assert instance.get_latest_materialization_event(made.key) is not None
    with connect(pooler.url_of(server), autocommit=True) as connection:
        rows = connection.execute("select schemaname from pg_tables where tablename = 'runs'").fetchall()
        assert f"dagster_{mode}" in [row["schemaname"] for row in rows]
        assert "public" not in [row["schemaname"] for row in rows]
        late = "select extract(epoch from now() at time zone 'UTC' - max(create_timestamp)) as late from {}.runs"
        row = connection.execute(late.format(f"dagster_{mode}").encode()).fetchone()
        assert row is not None
        assert 0 <= row["late"] < 600  # written in UTC, not in the role's time zone


def test_who_is_refused_waits_until_there_is_a_connection(pooled: Callable[..., str]) -> None:
    url = pooled("session", max_client_conn=1)
    with Database(url, max_connections=1, turn=0.1) as impatient, Database(url, max_connections=1) as patient:
        answers: list[object] = []
        asking = threading.Thread(target=lambda: answers.append(patient.run("list_job_states")))
        with structlog.testing.capture_logs() as logged:
            with psycopg.connect(url):
                with pytest.raises(NoConnectionFree, match="no more connections allowed"):
                    impatient.run("list_job_states")
                asking.start()
                until(lambda: len(logged), "a line")
            asking.join(30)
        assert answers == [[]]
    assert [line["event"] for line in logged] == ["waiting for a free connection", "there are free connections again"]


@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_dagsters_storage_waits_also_if_only_its_first_statement_is_refused(
    pooled: Callable[..., str], mode: Mode, caplog: pytest.LogCaptureFixture
) -> None:
    """A pooler lets a client in, and then refuses to let it wait for longer."""
    url = pooled(mode, size=1, query_wait_timeout=1)
    storage_url = database.sqlalchemy_url(url, schema=migrate.DAGSTER_SCHEMA)
    runs: list[object] = []

    def ask() -> None:
        storage = PooledPostgresStorage(storage_url, wait_when_refused=database.REFUSED)
        runs.append(storage.run_storage.get_runs())
        storage.event_log_storage.dispose()

    asking = threading.Thread(target=ask)
    with connect(url) as holding:
        holding.execute("select 1")
        asking.start()
        asking.join(4)  # longer than the pooler lets anybody wait
        assert asking.is_alive()
        holding.commit()
    asking.join(30)
    assert len(runs) == 1
    assert "Retrying failed database connection" not in caplog.text  # as Dagster does, five times


@pytest.mark.parametrize("limit", [{"max_client_conn": 3}, {"size": 3}], ids=["refuses", "lets wait"])
def test_a_start_waits_for_its_connections_in_one_line(pooled: Callable[..., str], limit: dict[str, int]) -> None:
    """By refusing, or by letting wait."""
    url = pooled("session", **limit)
    said: list[str] = []
    allowance.wait_for_connections(url, 3, said.append)
    assert said == []
    waiting = threading.Thread(target=allowance.wait_for_connections, args=(url, 3, said.append))
    with psycopg.connect(url) as other:
        other.execute("select 1")
        waiting.start()
        until(lambda: said, "a line")
        until(lambda: allowance.count_allowed(url, 2).count == 2, "that it lets go of what it had")
    waiting.join(30)
    assert not waiting.is_alive()
    assert len(said) == 1
    assert said[0].startswith("Waiting for 3 free connections at 127.0.0.1:")


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"max_client_conn": 3}, "no more connections allowed"), ({"size": 3}, "no answer")],
    ids=["refuses", "lets wait"],
)
def test_what_a_pooler_allows_is_found_out_by_trying(
    pooled: Callable[..., str], limit: dict[str, int], reason: str
) -> None:
    url = pooled("session", **limit)
    assert allowance.count_allowed(url, 3) == allowance.Allowed(3)
    allowed = allowance.count_allowed(url, 5)
    assert allowed.count == 3
    assert reason in allowed.reason


@pytest.mark.parametrize(
    ("allows", "state", "said"),
    [
        (12, "ok", "12 can be opened at the same time, of STATS_MAX_CONNECTIONS=12"),
        (11, "warning", "only 11 of STATS_MAX_CONNECTIONS=12 can be opened (.*max_client_conn.*), or set .* to 11"),
        (
            6,
            "problem",
            "only 6 of STATS_MAX_CONNECTIONS=12 can be opened (.*max_client_conn.*) let the pooler have more",
        ),
    ],
)
def test_doctor_says_what_the_pooler_allows(
    pooled: Callable[..., str], tmp_path: Path, allows: int, state: str, said: str
) -> None:
    url = pooled("session", max_client_conn=allows)
    settings = Settings.model_validate({"STATS_DATABASE_URL": url, "STATS_HOME": str(tmp_path)})
    [found] = [finding for finding in doctor.examine(settings) if finding.subject == "connections"]
    assert found.state == state
    assert re.fullmatch(said, found.said), found.said


def test_doctor_counts_nothing_behind_a_transaction_pooler(pooled: Callable[..., str], tmp_path: Path) -> None:
    url = pooled("transaction", size=2)
    settings = Settings.model_validate({"STATS_DATABASE_URL": url, "STATS_HOME": str(tmp_path)})
    found = {finding.subject: finding for finding in doctor.examine(settings)}
    assert found["connections"].state == "ok"
    assert found["connections"].said.startswith("a transaction pooler: ")
    assert found["jobs"].state == "ok"


def test_a_pooler_that_closes_all_connections_and_comes_back_is_one_outage(folder: Path, server: int) -> None:
    with ExitStack() as first:
        port = first.enter_context(pooler.pgbouncer(folder, server, "session"))
        with ExitStack() as stack:
            opened = stack.enter_context(Database(pooler.url_of(port), patience=0.3))
            opened.run("list_job_states")
            logged = stack.enter_context(structlog.testing.capture_logs())
            first.close()
            with pytest.raises(DatabaseUnavailable):
                opened.run("list_job_states")
            with pytest.raises(DatabaseUnavailable):
                opened.run("list_job_states")
            with pooler.pgbouncer(folder, server, "session", port=port):
                assert opened.run("list_job_states") == []
    assert [line["event"] for line in logged] == ["the database is out of reach", "the database is back"]


def test_postgres_itself_may_be_full(tmp_path: Path) -> None:
    with pooler.postgres(tmp_path, max_connections=6) as port:
        allowed = allowance.count_allowed(pooler.url_of(port), 10)
        assert allowed.count == 6
        assert "too many clients already" in allowed.reason
