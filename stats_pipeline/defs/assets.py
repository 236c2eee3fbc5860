"""The lineage: the app's tables as sources, the aggregate tables as assets that the ops fill.

Ops become assets with their hooks, so that a table refreshed alone from the UI is recorded and invalidated like one
refreshed by a job. Nothing here knows how a function is run.
"""

from collections.abc import Sequence, Set

import dagster as dg

from stats_pipeline.catalog import StatsFunction
from stats_pipeline.defs.hooks import STOCK_HOOKS
from stats_pipeline.defs.ops import build_stats_op


def build_source_assets(functions: Sequence[StatsFunction]) -> list[dg.AssetSpec]:
    """The tables that the functions read and none of them fills."""
    tables = sorted({table for function in functions for table in function.reads})
    return [
        dg.AssetSpec(
            table,
            group_name="app",
            kinds={"postgres"},
            description="Source table owned by the app; this project only reads it.",
        )
        for table in tables
    ]


def build_stats_assets(
    functions: Sequence[StatsFunction], *, hooks: Set[dg.HookDefinition] = STOCK_HOOKS
) -> list[dg.AssetsDefinition]:
    """One definition per function, with one asset per table it fills; `after` becomes an edge."""
    tables_of = {function.rpc: function.tables for function in functions}
    return [
        _lift(function, tuple(table for rpc in function.after for table in tables_of[rpc]), hooks)
        for function in functions
    ]


def _lift(
    function: StatsFunction, upstream_tables: tuple[str, ...], hooks: Set[dg.HookDefinition]
) -> dg.AssetsDefinition:
    return dg.AssetsDefinition.from_op(
        build_stats_op(function, upstream_tables),
        keys_by_input_name={table: dg.AssetKey(table) for table in (*function.reads, *upstream_tables)},
        keys_by_output_name={table: dg.AssetKey(table) for table in function.tables},
        group_name="stats",
        hook_defs=hooks,
        descriptions_by_output_name=dict.fromkeys(function.tables, function.summary),
        tags_by_output_name={table: {"dagster/kind/postgres": ""} for table in function.tables},
        metadata_by_output_name={
            table: {"rpc": function.rpc, "cache tags": ", ".join(function.cache_tags)} for table in function.tables
        },
    )
