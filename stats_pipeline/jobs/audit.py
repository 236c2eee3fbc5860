"""Who did what, and from where: rows that are only ever added, until they are pruned.

Log lines are written by the callers. Who is behind a request, and where it comes from, is known to `web/audit.py`.
"""

import ipaddress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg import Connection

from stats_pipeline.database import call, run

Action = Literal["login", "logout", "key", "launch", "retry", "cancel", "change"]
Outcome = Literal["done", "refused"]
MAX_TEXT = 200  # characters


@dataclass(frozen=True)
class Entry:
    """One row. `times` is above 1 if it stands for several refused tries; the rest is then of the last one."""

    at: datetime
    action: Action
    outcome: Outcome
    who: str
    role: str
    address: str
    about: str | None
    times: int


def record(
    connection: Connection[Any],
    *,
    action: Action,
    who: str,
    role: str,
    address: str,
    about: str | None = None,
    outcome: Outcome = "done",
) -> None:
    """Add a row, in the caller's transaction. Never give it a secret.

    Refused tries beyond ten of the same action, network and hour are counted in one row.
    """
    call(
        connection,
        "record_audit",
        action=action,
        outcome=outcome,
        who=readable(who),
        role=readable(role),
        address=readable(address),
        network=network(address),
        about=None if about is None else readable(about),
    )


def latest(connection: Connection[Any], limit: int, *, refused: int | None = None) -> list[Entry]:
    """The newest rows of what was done, and of what was refused, newest first: at most `limit` of each.

    Fewer of what was `refused` if that is given. The one never hides the other: anybody can cause refused tries.
    """
    newest = {"done": limit, "refused": limit if refused is None else refused}
    return [Entry(**row) for row in run(connection, "list_audit", **newest)]


def readable(text: str) -> str:
    """Text of a stranger's, as it may be stored and logged: printable, on one line, at most MAX_TEXT characters."""
    return "".join(character if character.isprintable() else " " for character in text[:MAX_TEXT])


def network(address: str) -> str:
    """The network that counts as one address: an IPv6 subscriber has 2^64 addresses."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return readable(address)
    return str(ipaddress.ip_network((ip, 64 if ip.version == 6 else 32), strict=False))
