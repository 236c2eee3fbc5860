"""The queue as older versions of pgmq have it: other columns, fewer functions, other overloads.

Each test replaces the installed pgmq by tables and functions like that version's, and enqueues jobs in all three ways.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import Connection
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from stats_pipeline import database
from stats_pipeline.database import migrate
from stats_pipeline.jobs import queue
from stats_pipeline_tests.integration import steps

Connected = Connection[DictRow]

# 1.4.4: messages have five columns, and `set_vt` counts from the start of the transaction.
V1_4_4 = """
drop schema pgmq cascade;
create schema pgmq;
create table pgmq.meta (
    queue_name varchar unique not null,
    is_partitioned boolean not null,
    is_unlogged boolean not null,
    created_at timestamptz default now() not null
);
create type pgmq.message_record as (
    msg_id bigint, read_ct integer, enqueued_at timestamptz, vt timestamptz, message jsonb
);
create function pgmq.create(queue_name text) returns void language plpgsql as $$
begin
    execute format('create table pgmq.%I (msg_id bigint generated always as identity primary key,
        read_ct int default 0 not null, enqueued_at timestamptz default now() not null,
        vt timestamptz not null, message jsonb)', 'q_' || queue_name);
    execute format('create table pgmq.%I (msg_id bigint primary key, read_ct int default 0 not null,
        enqueued_at timestamptz default now() not null, archived_at timestamptz default now() not null,
        vt timestamptz not null, message jsonb)', 'a_' || queue_name);
    insert into pgmq.meta values (queue_name, false, false);
end $$;
create function pgmq.send(queue_name text, msg jsonb, delay integer default 0) returns setof bigint
language plpgsql as $$
begin
    return query execute
        format('insert into pgmq.%I (vt, message) values ($1, $2) returning msg_id', 'q_' || queue_name)
        using clock_timestamp() + make_interval(secs => delay), msg;
end $$;
create function pgmq.archive(queue_name text, msg_ids bigint[]) returns setof bigint language plpgsql as $$
begin
    return query execute format('with gone as (delete from pgmq.%I where msg_id = any($1) returning *)
        insert into pgmq.%I (msg_id, vt, read_ct, enqueued_at, message)
        select msg_id, vt, read_ct, enqueued_at, message from gone returning msg_id',
        'q_' || queue_name, 'a_' || queue_name) using msg_ids;
end $$;
create function pgmq.archive(queue_name text, msg_id bigint) returns boolean language sql as $$
    select exists (select from pgmq.archive(queue_name, array[msg_id]))
$$;
create function pgmq.set_vt(queue_name text, msg_id bigint, vt integer) returns setof pgmq.message_record
language plpgsql as $$
begin
    return query execute format('update pgmq.%I set vt = $1 where msg_id = $2 returning *', 'q_' || queue_name)
        using now() + make_interval(secs => vt), msg_id;
end $$;
"""

# 1.5.1: messages also have headers, and `send` has overloads that an untyped argument could mean.
V1_5_1 = (
    V1_4_4.replace("message jsonb)", "message jsonb, headers jsonb)").replace(
        "vt timestamptz, message jsonb\n", "vt timestamptz, message jsonb, headers jsonb\n"
    )
    + """
create function pgmq.send(queue_name text, msg jsonb, headers jsonb) returns setof bigint language sql as $$
    select pgmq.send(queue_name, msg, 0)
$$;
create function pgmq.send(queue_name text, msg jsonb, delay timestamptz) returns setof bigint language sql as $$
    select pgmq.send(queue_name, msg, 0)
$$;
"""
)


@pytest.fixture(params=[V1_4_4, V1_5_1], ids=["1.4.4", "1.5.1"])
def old(request: pytest.FixtureRequest, create_database: Callable[..., str]) -> Iterator[Connected]:
    with database.connect(create_database(), autocommit=True) as connection:
        connection.execute(request.param.encode())
        migrate.migrate(connection, reference_stats=True)
        yield connection


@pytest.fixture
def opened(old: Connected) -> Iterator[database.Database]:
    url = old.info.dsn
    with database.Database(url) as opened:
        yield opened


def test_jobs_come_through_all_doors(old: Connected, opened: database.Database) -> None:
    ids = {steps.enqueue(old)}
    old.execute(
        "insert into public.background_job_status (job_payload, status) values (%s, 'queued')",
        (Jsonb(steps.payload()),),
    )
    old.execute("select pgmq.send('stats_update', %s::jsonb)", (Jsonb(steps.payload()),))
    claimed = steps.finish(old, opened)
    assert ids < set(claimed.job_ids)
    assert [job.status for job in queue.list_jobs(old, limit=10)] == ["completed"] * 3
    assert messages(old, "a_stats_update") == 4  # the raw one, and one for each job
    assert messages(old, "q_stats_update") == 0


def test_what_is_leased_is_invisible_until_the_lease_is_void(old: Connected) -> None:
    steps.enqueue(old)
    [stale] = steps.lease(old)
    assert steps.lease(old) == []
    old.execute("update stats_pipeline.lease set claim_until = now()")
    old.execute("update pgmq.q_stats_update set vt = now()")
    assert steps.lease(old) == []
    old.execute("update pgmq.q_stats_update set vt = now()")  # a second later
    [fresh] = steps.lease(old)
    assert fresh.lease_id != stale.lease_id


def test_a_heartbeat_keeps_the_message_leased(old: Connected) -> None:
    steps.enqueue(old)
    steps.start(old)
    old.execute("update pgmq.q_stats_update set vt = now()")
    assert steps.renew(old, "run-1")
    row = old.execute("select vt > now() + interval '20 seconds' as leased from pgmq.q_stats_update").fetchone()
    assert row == {"leased": True}


def test_malformed_messages_are_archived(old: Connected) -> None:
    old.execute("select pgmq.send('stats_update', '[]'::jsonb)")
    assert steps.lease(old) == []
    [job] = queue.list_jobs(old, limit=10)
    assert job.error_message == "Rejected: payload must be a JSON object"
    assert messages(old, "a_stats_update") == 1


def test_a_failed_job_is_retried(old: Connected, opened: database.Database) -> None:
    job_id = steps.enqueue(old)
    steps.fail(old, opened)
    assert queue.retry(old, job_id).status == "queued"
    steps.finish(old, opened, "run-2")


def messages(connection: Connected, table: str) -> Any:
    row = connection.execute(f"select count(*) as messages from pgmq.{table}".encode()).fetchone()
    assert row is not None
    return row["messages"]
