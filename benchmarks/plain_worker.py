"""A plain worker that runs the same jobs without a queue and without Dagster, as the baseline of the benchmarks.

It polls the status table once a second, runs the ten RPCs in ten threads with a connection each, marks the row, sends
all tags to the app in one call, and starts the next job. It has no retries, no leases and no repair: a job whose worker
is killed stays `processing`. Run it alone with `python -m benchmarks.plain_worker`; it reads the same environment as
the product (STATS_DATABASE_URL, NEXT_PUBLIC_APP_URL, INTERNAL_API_KEY) and runs until Ctrl-C.
"""

import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
from psycopg import Connection, sql
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from stats_pipeline import database, settings
from stats_pipeline.catalog import StatsFunction
from stats_pipeline.jobs.invalidation import ROUTE

POLL_SECONDS = 1

TAKE = """
update public.background_job_status set status = 'processing', started_at = now()
where id = (
    select id from public.background_job_status where status = 'queued' order by created_at limit 1
    for update skip locked
)
returning id, tenant_id
"""
FINISH = """
update public.background_job_status set status = %s, completed_at = now(), results = %s, error_message = %s
where id = %s
"""


class PlainWorker:
    """Ten connections for the RPCs, one for the table, one for the app; all stay open."""

    def __init__(self, url: str, loaded: settings.Settings, resources: ExitStack) -> None:
        def connect() -> Connection[DictRow]:
            return resources.enter_context(psycopg.connect(url, autocommit=True, row_factory=dict_row))

        self._functions = [(function, connect()) for function in loaded.functions]
        for function, connection in self._functions:
            connection.execute(f"set statement_timeout = '{function.timeout_seconds}s'".encode())
        self._table = connect()
        self._threads = resources.enter_context(ThreadPoolExecutor(len(self._functions)))
        self._app: httpx.Client | None = None
        if loaded.app_url is not None and loaded.internal_api_key is not None:
            self._app = resources.enter_context(
                httpx.Client(
                    base_url=str(loaded.app_url),
                    headers={"Authorization": f"Bearer {loaded.internal_api_key.get_secret_value()}"},
                )
            )

    def work_off(self) -> None:
        """Run the queued jobs, one after the other."""
        while job := self._table.execute(TAKE).fetchone():
            self._refresh(job)

    def _refresh(self, job: DictRow) -> None:
        def call(entry: tuple[StatsFunction, Connection[DictRow]]) -> dict[str, Any]:
            function, connection = entry
            started = time.monotonic()
            tenant = sql.SQL("") if job["tenant_id"] is None else sql.Literal(job["tenant_id"])
            try:
                connection.execute(sql.SQL("select public.{}({})").format(sql.Identifier(function.rpc), tenant))
            except psycopg.Error as error:
                return {"status": "failed", "error": str(error)}
            return {"status": "success", "duration_ms": round((time.monotonic() - started) * 1000)}

        outcomes = list(self._threads.map(call, self._functions))
        results = {function.rpc: outcome for (function, _), outcome in zip(self._functions, outcomes, strict=True)}
        failed = ", ".join(rpc for rpc, outcome in results.items() if outcome["status"] == "failed")
        self._table.execute(
            FINISH, ("failed" if failed else "completed", Jsonb({"functions": results}), failed or None, job["id"])
        )
        tags = [tag for function, _ in self._functions if function.rpc not in failed for tag in function.cache_tags]
        if self._app is not None:
            body = {"tags": tags, "source": "plain-worker", "requestId": str(job["id"])}
            try:
                self._app.post(ROUTE, json=body).raise_for_status()
            except httpx.HTTPError as error:
                print(f"The app was not told of {tags}: {error}", file=sys.stderr)


def main() -> None:
    """Work until Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell script started us with `&`
    loaded = settings.load()
    with ExitStack() as resources:
        worker = PlainWorker(database.running_url(loaded), loaded, resources)
        try:
            while True:
                worker.work_off()
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
