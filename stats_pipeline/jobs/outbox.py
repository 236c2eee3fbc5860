"""The outbox: cache tags that are due, and handing them to the app.

A row is written in the transaction that made its tag stale (`complete_function`), so it is due whatever dies next.
Delivery is at least once; invalidating a tag twice is harmless, not invalidating it leaves stale pages.
"""

from uuid import UUID

from stats_pipeline.database import Database, call
from stats_pipeline.jobs.invalidation import CacheClient
from stats_pipeline.jobs.models import Delivery

NOTHING_DUE = Delivery(frozenset())


def deliver(database: Database, cache: CacheClient, *, cache_deadline: int, lease_id: UUID | None = None) -> Delivery:
    """Deliver with one call what is due: what the run of one lease has made stale by now, or everything.

    Between reading and recording no transaction is open. If the process dies after the app took the tags and before
    that is recorded, they are delivered again. Rows added meanwhile are not touched, so a tag that went stale again
    stays due. Nothing is due while the route is given a rest after a failure.
    """
    due = database.run("list_due_tags", route=cache.url, lease_id=lease_id)
    if not due:
        return NOTHING_DUE
    delivery = cache.invalidate({row["tag"] for row in due}, request_id=str(due[0]["lease_id"]))
    with database.transaction() as connection:
        call(
            connection,
            "record_delivery",
            route=cache.url,
            asked=[row["id"] for row in due],
            taken=sorted(delivery.taken),
            problem=delivery.problem if delivery.route_failed else None,
            cache_deadline=cache_deadline,
        )
    return delivery
