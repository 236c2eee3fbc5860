"""The plans of the statements inside the stats functions, as they are really executed there.

A function's body cannot be explained from outside, so a temporary copy of it explains its own statements: same
variables, same parameters, same settings.
"""

import re
from collections.abc import Iterator
from typing import Any

from psycopg import Connection

Plan = dict[str, Any]

_STATEMENT = re.compile(r"^    (?:with|insert|select)\b.*?;$", re.DOTALL | re.MULTILINE)
_INTO = re.compile(r"^\s+into \w+$|(?<=\*) into \w+$", re.MULTILINE)


def explain(connection: Connection[Any], rpc: str) -> list[Plan]:
    """Run the function's statements for the default tenant; their plans with actual rows and loops."""
    definition = _one(connection, "select pg_get_functiondef(%s::regproc)", f"public.{rpc}")
    head, body = definition.split("\nbegin\n", 1)
    head = head.replace(f"public.{rpc}(", "pg_temp.twin(").replace("RETURNS void", "RETURNS SETOF json")
    variable = "    plan json;" if "\ndeclare\n" in head else "declare\n    plan json;"
    connection.execute(f"{head}\n{variable}\nbegin\n{_STATEMENT.sub(_explained, body)}".encode())
    return [plan[0]["Plan"] for (plan,) in connection.execute("select * from pg_temp.twin()")]


def explain_helper(connection: Connection[Any], helper: str) -> Plan:
    """The plan of an SQL helper for the default tenant, further arguments null."""
    query = _one(connection, "select prosrc from pg_proc where oid = %s::regproc", f"stats_pipeline.{helper}")
    query = query.replace("target_tenant_id", "'00000000-0000-0000-0000-000000000001'::uuid")
    query = query.replace("ignored_match_id", "null::integer").strip().rstrip(";")
    found: Plan = _one(connection, f"explain (analyze, format json) {query}")[0]["Plan"]
    return found


def nodes(plan: Plan) -> Iterator[Plan]:
    """The plan's nodes, itself first."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def handled_rows(node: Plan) -> float:
    """Rows the node produced or threw away, over all its loops."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Join Filter", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


def _explained(statement: re.Match[str]) -> str:
    query = _INTO.sub("", statement[0].rstrip(";"))
    assigning = statement[0] if _INTO.search(statement[0]) else ""
    return f"{assigning}\n    for plan in explain (analyze, format json)\n{query}\n    loop return next plan; end loop;"


def _one(connection: Connection[Any], query: str, *parameters: str) -> Any:
    row = connection.execute(query.encode(), parameters or None).fetchone()
    assert row is not None
    return row[0]
