"""The two diagrams of `docs/architecture.md`, compared with the functions and the constraints of the database.

A function counts as writing a state if its text does; the rest of its behaviour is in its own tests.
"""

import re
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from stats_pipeline.settings import PROJECT_ROOT

Query = Callable[..., list[dict[str, Any]]]
Arrows = set[tuple[str, str, str]]  # from, to, by which function

_PAGE = (PROJECT_ROOT / "docs" / "architecture.md").read_text()
_ARROW = re.compile(r"^\s+(\S+) --> (\w+): (\w+)$", re.MULTILINE)
_RELEASED = {"succeeded", "failed", "empty"}
START = "[*]"


def arrows(section: str) -> Arrows:
    """The arrows of the section's diagram."""
    (diagram,) = re.findall(rf"## {section}\n.*?```mermaid\nstateDiagram-v2\n(.*?)```", _PAGE, re.DOTALL)
    lines = [line for line in diagram.splitlines() if line.strip()]
    found = _ARROW.findall(diagram)
    assert len(found) == len(lines), lines
    return set(found)


JOB, LEASE = arrows("The states of a job"), arrows("The states of a lease")


@pytest.fixture
def sources(query: Query) -> dict[str, str]:
    """The text of each of our functions, by its name."""
    rows = query(
        "select proname, prosrc from pg_proc "
        "where pronamespace in ('stats_pipeline'::regnamespace, 'public'::regnamespace)"
    )
    return {row["proname"]: row["prosrc"] for row in rows}


def allowed(query: Query, table: str, column: str) -> set[str]:
    """The values that a check constraint allows."""
    [row] = query(
        "select pg_get_constraintdef(oid) as definition from pg_constraint "
        "where contype = 'c' and conrelid = %s::regclass and pg_get_constraintdef(oid) ~ %s",
        table,
        rf"{column} = ANY|{column}\)::text = ANY",
    )
    return set(re.findall(r"'(\w+)'", row["definition"]))


def targets(diagram: Arrows) -> dict[str, set[str]]:
    by_function: dict[str, set[str]] = defaultdict(set)
    for _, target, function in diagram:
        by_function[function].add(target)
    return by_function


def test_the_states_of_a_job_are_those_of_its_column(query: Query) -> None:
    assert {target for _, target, _ in JOB} == allowed(query, "public.background_job_status", "status")


def test_the_states_of_a_lease_are_those_of_its_outcome(query: Query) -> None:
    ends = {target for _, target, _ in LEASE} - {"acquired", "claimed"}
    assert ends == {"released", "expired", "revoked"}
    assert allowed(query, "stats_pipeline.lease", "outcome") == ends - {"released"} | _RELEASED


def test_each_arrow_of_a_job_is_taken_by_its_function_and_no_other(sources: dict[str, str]) -> None:
    """A status is written as a value of `write_jobs`, or in an insert."""

    def written(source: str) -> set[str]:
        if "stats_pipeline.write_jobs(" not in source and "insert into public.background_job_status" not in source:
            return set()
        statuses = set(re.findall(r"'status',\s*(?:case[^,]*?then\s*)?'(\w+)'", source))
        statuses |= set(re.findall(r"'status', case when [^,]*? then '\w+' else '(\w+)' end", source))
        for insert in re.findall(r"insert into public\.background_job_status .*?;", source, re.DOTALL):
            statuses |= set(re.findall(r"'(queued|processing|completed|failed)'", insert))
        return statuses

    found = {name: states for name, source in sources.items() if (states := written(source))}
    del found["rehearse"]  # takes everything back
    assert found == targets(JOB)


def test_each_arrow_of_a_lease_is_taken_by_its_function_and_no_other(sources: dict[str, str]) -> None:
    enders = {name for name, source in sources.items() if re.search(r"stats_pipeline\.end_lease\(", source)}
    assert enders == {"expire_lease", "revoke_lease"}
    assert "end_lease(this_lease, 'expired', " in sources["expire_lease"]
    assert "end_lease(this_lease, 'revoked', " in sources["revoke_lease"]
    releasers = {name for name, source in sources.items() if "stats_pipeline.release_lease(" in source}
    assert releasers == {"settle_lease", "claim_lease"}
    writers = {
        name: set(re.findall(r"\b(renewed_at|run_id|outcome|claim_until) =", " ".join(updates)))
        | ({"insert"} if "insert into stats_pipeline.lease" in source else set())
        for name, source in sources.items()
        if (updates := re.findall(r"update stats_pipeline\.lease as l\s+set .*?where", source, re.DOTALL))
        or "insert into stats_pipeline.lease" in source
    }
    assert writers == {
        "acquire_lease": {"insert"},
        "claim_lease": {"insert", "run_id", "renewed_at"},
        "renew_lease": {"renewed_at"},
        "release_lease": {"outcome"},
        "end_lease": {"outcome"},
    }
    assert set(targets(LEASE)) == set(writers) - {"end_lease"} | enders
