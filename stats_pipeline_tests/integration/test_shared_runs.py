"""One Dagster run with the leases of two clubs: what happens to one lease does not affect the other."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection

from stats_pipeline.database import Database
from stats_pipeline.errors import LeaseLost
from stats_pipeline.jobs.models import Claim
from stats_pipeline.jobs.reconcile import ExpireLease, FailInDagster, Limits, Repair, apply_all, decide, read
from stats_pipeline.jobs.refresh import session_name
from stats_pipeline_tests.integration import steps
from stats_pipeline_tests.integration.steps import OTHER_TENANT, SETTINGS, TENANT, TWO

RUN = "5ea7ed00-run"


@pytest.fixture
def claims(connection: Connection[Any]) -> dict[UUID | None, Claim]:
    """By tenant."""
    jobs = {tenant: steps.enqueue(connection, tenant) for tenant in (TENANT, OTHER_TENANT)}
    claims = {leased.tenant_id: steps.claim(connection, leased, RUN) for leased in steps.lease(connection)}
    assert {tenant: claimed.job_ids for tenant, claimed in claims.items() if claimed} == {
        tenant: (job_id,) for tenant, job_id in jobs.items()
    }
    made = {tenant: claimed for tenant, claimed in claims.items() if claimed}
    for claimed in made.values():
        steps.renew(connection, claimed.lease_id, silent_for=60)
    return made


@pytest.fixture
def of_the_run(database_url: str) -> Iterator[Database]:
    with Database(database_url, application_name=session_name(RUN)) as opened:
        yield opened


def silence(connection: Connection[Any], claimed: Claim) -> None:
    connection.execute(
        "update stats_pipeline.lease set renewed_at = now() - interval '1 minute' where id = %s",
        [claimed.lease_id],
    )


def look(opened: Database) -> list[Repair]:
    # Silence counts from the server's start, which may be a second ago.
    limits = Limits(dead_after=0, cache_deadline=900, cache_configured=False)
    return decide(read(opened), {RUN: "live"}, limits)


def test_each_ends_by_itself(connection: Connection[Any], opened: Database, claims: dict[UUID | None, Claim]) -> None:
    done, working = claims[TENANT], claims[OTHER_TENANT]
    steps.compute(opened, done)
    steps.settle(connection, done.lease_id)

    assert steps.job(connection, done.job_ids[0]).status == "completed"
    assert steps.job(connection, working.job_ids[0]).status == "processing"
    assert look(opened) == []

    steps.compute(opened, working)
    steps.settle(connection, working.lease_id)
    assert steps.job(connection, working.job_ids[0]).status == "completed"


def test_a_run_that_is_heard_of_one_lease_loses_only_the_other(
    connection: Connection[Any], opened: Database, of_the_run: Database, claims: dict[UUID | None, Claim]
) -> None:
    silent, heard = claims[TENANT], claims[OTHER_TENANT]
    silence(connection, silent)

    repairs = look(opened)
    assert [(type(repair), vars(repair).get("lease_id")) for repair in repairs] == [(ExpireLease, silent.lease_id)]
    with of_the_run.connection() as session:
        assert apply_all(opened, repairs, SETTINGS, pytest.fail) == []
        assert session.execute("select 'still connected' as it").fetchone() == {"it": "still connected"}
    assert look(opened) == []

    assert steps.job(connection, silent.job_ids[0]).status == "queued"
    with pytest.raises(LeaseLost):
        steps.run(of_the_run).compute(TWO[0], silent, tries=1)
    steps.run(of_the_run).compute(TWO[0], heard, tries=1)
    assert steps.job(connection, heard.job_ids[0]).status == "processing"


def test_a_run_that_is_heard_of_none_is_marked_once_and_cut_off(
    connection: Connection[Any], opened: Database, of_the_run: Database, claims: dict[UUID | None, Claim]
) -> None:
    for claimed in claims.values():
        silence(connection, claimed)
    marked: list[str] = []

    repairs = look(opened)
    assert sorted(type(repair).__name__ for repair in repairs) == ["ExpireLease", "ExpireLease", "FailInDagster"]
    assert FailInDagster(RUN) in repairs
    with of_the_run.connection() as session:
        assert apply_all(opened, repairs, SETTINGS, marked.append) == []
        with pytest.raises(psycopg.OperationalError):
            session.execute("select")
    assert marked == [RUN]
    assert {steps.job(connection, claimed.job_ids[0]).status for claimed in claims.values()} == {"queued"}
