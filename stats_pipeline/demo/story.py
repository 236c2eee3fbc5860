"""The demo: a sample league, one post-match job through the real parts, and its results."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.database import Database, run, run_one
from stats_pipeline.demo import league
from stats_pipeline.errors import StatsPipelineError
from stats_pipeline.jobs import queue
from stats_pipeline.jobs.models import Job, Payload

JOB_TIMEOUT = 120  # seconds: the promise is 45


@dataclass(frozen=True)
class Outcome:
    """The result that `demo --json` prints. Seconds count from the moment of enqueuing."""

    job_id: str
    status: str
    seconds_to_start: float | None
    seconds_to_complete: float | None
    functions: dict[str, Any]
    delivered_tags: list[str]

    def in_words(self) -> str:
        """The outcome as a sentence, without what has not happened."""
        times = {"started": self.seconds_to_start, "finished": self.seconds_to_complete}
        took = [f"{what} after {seconds:.1f} s" for what, seconds in times.items() if seconds is not None]
        received = f"the demo app received {len(self.delivered_tags)} cache tags"
        return f"Job {self.status}: {'; '.join(filter(None, [', '.join(took), received]))}."

    def is_complete(self, functions: Sequence[StatsFunction]) -> bool:
        """Whether the job completed, every function succeeded, and the receiver got every tag."""
        succeeded = {rpc for rpc, result in self.functions.items() if result["status"] == "success"}
        tags = {tag for function in functions for tag in function.cache_tags}
        return (
            self.status == "completed"
            and succeeded == {function.rpc for function in functions}
            and tags <= set(self.delivered_tags)
        )


def prepare_league(connection: Connection[Any], today: date) -> str:
    """Load the sample league if there is none, or an old one, in one transaction; returns a sentence for the user.

    Raises `StatsPipelineError` if the database holds players that are not the demo's.
    """
    with connection.transaction():
        state = run_one(connection, "read_demo_state")
        if not state["is_reference"] or (state["players"] and state["loaded_for"] is None):
            raise StatsPipelineError(
                "STATS_DATABASE_URL: this database holds an app's own data; the demo would add a sample league to it. "
                "Unset the variable to use the embedded database, or name an empty one"
            )
        if state["loaded_for"] is not None and 0 <= (today - date.fromisoformat(state["loaded_for"])).days < 30:
            return f"Using the existing sample league: {state['players']} players, {state['matches']} matches"
        run(connection, "clear_demo_league")
        made = league.generate(last_match=today)
        league.load(connection, made)
        run(connection, "record_migration", kind="demo", name="league", checksum=today.isoformat(), made=None)
        return f"Generated a sample league of {len(made.players)} players and {len(made.matches)} matches"


def play_and_enqueue(connection: Connection[Any], today: date) -> UUID:
    """Add the next match to the league and enqueue its post-match job; the job's id."""
    loaded_for = date.fromisoformat(run_one(connection, "read_demo_state")["loaded_for"])
    match, line_up = league.next_match(league.generate(last_match=loaded_for), day=today)
    with connection.transaction():
        match_id = league.add_match(connection, match, line_up)
    payload = Payload(
        triggered_by="post-match", request_id=str(uuid4()), match_id=match_id, timestamp=datetime.now(UTC)
    )
    return queue.enqueue(connection, payload.as_json()).job_id


def outcome(job: Job, received: Collection[str]) -> Outcome:
    """How the job ended, and which tags the demo's app has received."""

    def seconds(moment: datetime | None) -> float | None:
        return round((moment - job.created_at).total_seconds(), 3) if moment and job.created_at else None

    return Outcome(
        job_id=str(job.id),
        status=job.status,
        seconds_to_start=seconds(job.started_at),
        seconds_to_complete=seconds(job.completed_at),
        functions=(job.results or {}).get("functions", {}),
        delivered_tags=sorted(set(received)),
    )


def read_tables(database: Database, functions: Sequence[StatsFunction]) -> dict[str, list[dict[str, Any]]]:
    """How many rows each table holds, and a few of the statistics: rows by title."""
    tables = [table for function in functions for table in function.tables]
    return {
        "Rows per table": database.run("count_rows", tables=tables, tenant_id=None),
        "All time": database.run("show_all_time"),
        "Hall of fame": database.run("show_hall_of_fame"),
    }
