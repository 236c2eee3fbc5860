"""Twenty-three ways to break the protocol: the model finds each of them, and nothing without it. `make model-breaks`
takes some minutes.

Each names a file of `sql/functions/`, a text in it, and the replacement. Not part of `make test`.
"""

import itertools
import logging
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from psycopg import Connection

from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.settings import SQL_ROOT
from stats_pipeline_tests.acceptance.app_server import App
from stats_pipeline_tests.model.test_model import SETTINGS, histories
from stats_pipeline_tests.model.world import World

PATIENCE = 300  # seconds
UNSHRUNK = settings(SETTINGS, phases=[Phase.generate])


@dataclass(frozen=True)
class Break:
    """One change, and what it means for somebody."""

    means: str
    file: str
    before: str
    after: str

    def apply(self, connection: Connection[Any]) -> None:
        """Put the broken function in the place of the right one."""
        text = self._text()
        assert text.count(self.before) == 1, f"{self.file} has changed: say anew how to break it"
        connection.execute("set check_function_bodies = off")
        connection.execute(text.replace(self.before, self.after).encode())

    def mend(self, connection: Connection[Any]) -> None:
        connection.execute(self._text().encode())

    def _text(self) -> str:
        return (SQL_ROOT / "functions" / f"{self.file}.sql").read_text()


BREAKS = (
    Break(
        "a leased job that was given to another club is computed for the old one",
        "claim_lease",
        """            and stats_pipeline.club(j.tenant_id, j.job_payload, default_tenant)
                is not distinct from nullif(claimed.tenant_id, default_tenant)
""",
        "",
    ),
    Break(
        "an attempt is not counted",
        "claim_lease",
        "0), 100) + 1,\n            -- A job that had ended",
        "0), 100),\n            -- A job that had ended",
    ),
    Break(
        "a job that was given to another club while its run worked is completed",
        "jobs_of_lease",
        """    and stats_pipeline.club(j.tenant_id, j.job_payload, d.default_tenant)
        is not distinct from nullif(l.tenant_id, d.default_tenant)
""",
        "",
    ),
    Break(
        "a run that says it is alive is not heard",
        "renew_lease",
        "set renewed_at = clock_timestamp() + make_interval(secs => silent_for)",
        "set renewed_at = l.renewed_at",
    ),
    Break("a run is over before its last function", "settle_lease", "        >= (outcome", "        >= -1 + (outcome"),
    Break("a job has one attempt more", "requeue_jobs", ">= max_attempts\n", "> max_attempts\n"),
    Break(
        "what was computed for a job is taken for what it needs after somebody has queued it again",
        "resumable_lease",
        """
            and a.put_back_as = j.xmin::text""",
        "",
    ),
    Break(
        "what was computed before another job joined is taken for it too",
        "resumable_lease",
        "    and cardinality(successor.job_ids) = (\n",
        "    and 0 < (\n",
    ),
    Break(
        "a run that was replaced can commit",
        "complete_function",
        " and coalesce(l.outcome, '') not in ('expired', 'revoked')",
        "",
    ),
    Break(
        "a table is fresh and its tag is not due",
        "complete_function",
        "from unnest(tags) as t",
        "from unnest(tags[2:]) as t",
    ),
    Break("tags that the app has left count as taken", "record_delivery", " and o.tag = any(taken);", ";"),
    Break("a row that somebody holds is waited for", "write_jobs", "for update of j skip locked", "for update of j"),
    Break(
        "a row that refuses stops the others",
        "write_jobs",
        "            changed := '{}';\n",
        "            return '{}';\n",
    ),
    Break(
        "a message is taken for the one of whoever has its number",
        "archive_messages",
        " and q.message ->> 'jobId' = j.id::text\n",
        "\n",
    ),
    Break(
        "a request that is being entered by somebody else is refused for good",
        "admit_messages",
        "                    when lock_not_available or deadlock_detected then raise;\n",
        "",
    ),
    Break("one requestId is one for all clubs", "job_inserted", "tenant_key(club)", "tenant_key(null)"),
    Break(
        "the functions' default club is not none's", "default_tenant", "case when count", "case when false and count"
    ),
    Break("a retry is the default club's", "retry_stats_job", "jsonb_build_object('tenantId', j.tenant_id)", "'{}'"),
    Break(
        "a run that has been seen since is given up",
        "end_lease",
        " and (l.run_id is null or l.renewed_at <= not_renewed_since)",
        "",
    ),
    Break(
        "a run that works on another lease is cut off",
        "end_lease",
        "other.ended_at is null and other.renewed_at > not_renewed_since",
        "false",
    ),
    Break(
        "a run that waits for its tags counts as dead",
        "orphans",
        "coalesce(l.outcome, '') not in ('expired', 'revoked')",
        "l.outcome is null",
    ),
    Break(
        "attempts at rows that somebody has changed stay open",
        "withdraw_attempts",
        "where a.job_id = lost.job_id",
        "where false and a.job_id = lost.job_id",
    ),
    Break(
        "a raw message that nobody has read is archived",
        "stale_messages",
        " and stats_pipeline.names_job(q.message)",
        "",
    ),
)


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.means)
def test_the_model_finds(
    broken: Break, world: World, app: App, cache: CacheClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "stats_pipeline")
    broken.apply(world.hand)
    deadline = time.monotonic() + PATIENCE
    for number in itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count()):
        try:
            run_state_machine_as_test(histories(number, world, app, cache), settings=UNSHRUNK)
        except Exception as found:
            print(f"found by seed {number}: {str(found).splitlines()[0][:200]}")
            world.empty()
            broken.mend(world.hand)
            run_state_machine_as_test(
                histories(number, world, app, cache), settings=UNSHRUNK
            )  # it was the break that was found
            return
    pytest.fail(f"not found in {PATIENCE} seconds")
