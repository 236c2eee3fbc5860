"""The outbox: cache tags that are due, and handing them to the app.

A row is written in the transaction that made its tag stale (`complete_function`), so it is due whatever dies next.
Delivery is at least once; invalidating a tag twice is harmless, not invalidating it leaves stale pages.
"""

from stats_pipeline.cache import CacheClient
from stats_pipeline.database import Database, run
from stats_pipeline.models import Delivery

NOTHING_DUE = Delivery(frozenset())


def deliver(database: Database, cache: CacheClient, *, run_id: str, rpc: str) -> Delivery:
    """Deliver what one function of one run made due, with one call.

    Between reading and marking no transaction is open. If the process dies after the app took the tags and before they
    are marked, they are delivered again. Rows added meanwhile are not marked, so a tag that went stale again stays due.
    """
    due = database.run("list_due_tags", run_id=run_id, rpc=rpc)
    if not due:
        return NOTHING_DUE
    delivery = cache.invalidate({row["tag"] for row in due}, request_id=run_id)
    taken = [row["id"] for row in due if row["tag"] in delivery.taken]
    if taken:
        with database.transaction() as connection:
            run(connection, "mark_delivered", ids=taken)
    return delivery
