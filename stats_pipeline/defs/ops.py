"""One op per stats function, made by one factory.

The op claims, calls the SQL function and reports; the SQL function does the work. The steps after an op are in
`hooks.py`, how ops become assets in `assets.py`.
"""

import time
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import dagster as dg
import psycopg

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.errors import LeaseLost, StatsPipelineError, TenantBusy, is_permanent, one_line
from stats_pipeline.jobs.refresh import Refresh

# Three tries: now, after about a second, after about two more.
RETRY_POLICY = dg.RetryPolicy(max_retries=2, delay=1, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


def build_stats_op(function: StatsFunction, upstream_tables: tuple[str, ...]) -> dg.OpDefinition:
    """The op for one catalog entry: inputs are the tables it reads, outputs the tables it fills."""

    @dg.op(
        name=function.rpc,
        description=function.summary,
        ins={table: dg.In(dg.Nothing) for table in (*function.reads, *upstream_tables)},
        out={table: dg.Out(dg.Nothing) for table in function.tables},
        retry_policy=RETRY_POLICY,
        tags={"stats/timeout_seconds": str(function.timeout_seconds)},
    )
    def stats_op(context: dg.OpExecutionContext, refresh: dg.ResourceParam[Refresh]) -> Iterator[dg.Output[None]]:
        tries = context.retry_number + 1
        started = time.monotonic()
        try:
            claimed = refresh.claim(selected_rpcs(context))
            if function.rpc in claimed.carried_over:
                context.log.info("Skipped: the previous run of these jobs had already committed it")
                yield from _outputs(function, {"carried over": True})
                return
            milliseconds, rows = refresh.compute(function, claimed, tries=tries)
        except (LeaseLost, TenantBusy) as error:
            raise dg.Failure(f"Stopped: {error}", allow_retries=False) from error
        except (psycopg.Error, StatsPipelineError) as error:
            elapsed = round((time.monotonic() - started) * 1000)
            _record_failed_try(context, refresh, function, tries, elapsed, error)
            if is_permanent(error):
                raise dg.Failure(one_line(error), allow_retries=False) from error
            raise
        yield from _outputs(
            function,
            {
                "seconds": milliseconds / 1000,
                "try": tries,
                "jobs": [str(job_id) for job_id in claimed.job_ids[:20]],
                "job count": len(claimed.job_ids),
            },
            rows,
        )

    return stats_op


def _outputs(
    function: StatsFunction, metadata: dict[str, Any], rows: Mapping[str, int] = MappingProxyType({})
) -> Iterator[dg.Output[None]]:
    """One materialization per table, with its metadata."""
    for table in function.tables:
        counted = {"rows": rows[table]} if table in rows else {}
        yield dg.Output(None, output_name=table, metadata={**counted, **metadata})


def selected_rpcs(context: dg.OpExecutionContext) -> list[str]:
    """The functions this run calls: all of its job's, or those selected in the UI."""
    steps = context.run.step_keys_to_execute
    return sorted(steps) if steps else sorted(context.job_def.graph.node_dict)


def _record_failed_try(
    context: dg.OpExecutionContext,
    refresh: Refresh,
    function: StatsFunction,
    tries: int,
    elapsed_ms: int,
    error: Exception,
) -> None:
    """Record a failed try. If that fails too, log it: the op's own error is the one to report."""
    try:
        refresh.record_failed_try(function.rpc, tries=tries, duration_ms=elapsed_ms, problem=one_line(error))
    except (psycopg.Error, StatsPipelineError) as second:
        context.log.warning("The failed try could not be recorded: %s", one_line(second))
