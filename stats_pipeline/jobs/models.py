"""Types for data that crosses a boundary: a job's payload, a row of the job table, a lease, the result of a delivery.

The database validates payloads (`stats_pipeline.payload_problem`), because two of the three ways to enqueue never pass
through Python. Behaviour belongs elsewhere.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

Trigger = Literal["post-match", "admin", "cron"]
Status = Literal["queued", "processing", "completed", "failed"]


class Payload(BaseModel):
    """The JSON of a job, in the app's spelling. Only `triggeredBy` and `requestId` are required."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    triggered_by: str
    request_id: str
    timestamp: datetime | None = None
    match_id: int | None = None
    user_id: str | None = None
    retry_of: str | None = None
    tenant_id: str | None = None

    def as_json(self) -> dict[str, Any]:
        """As sent: camel case, without fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Enqueued(BaseModel):
    """The answer of `enqueue_stats_job` and `retry_stats_job`: a new job, or one that was there already."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    success: bool
    job_id: UUID
    status: Status
    message: str
    repeated: bool = Field(False, description="Nothing was enqueued: this is the job of an earlier request.")
    created_at: datetime | None = None
    completed_at: datetime | None = None


def _as_object(value: Any) -> Any:
    # The app may write any JSON; wrapped in the same way as `reject_message` wraps a message that is not an object.
    return value if isinstance(value, dict) else {"message": value}


def _as_object_or_none(value: Any) -> Any:
    return None if value is None else _as_object(value)


class Job(BaseModel):
    """A row of `background_job_status`: the seed's columns, then ours, then what is odd about it.

    Other programs and people write there too: a time may be missing, and `oddities` says in words what is odd.
    """

    id: UUID
    job_type: str
    job_payload: Annotated[dict[str, Any], BeforeValidator(_as_object)]
    status: Status
    started_at: datetime | None
    completed_at: datetime | None
    error_message: str | None
    results: Annotated[dict[str, Any] | None, BeforeValidator(_as_object_or_none)]
    created_at: datetime | None
    updated_at: datetime | None
    tenant_id: UUID | None
    retry_of: UUID | None
    attempts: int
    run_id: str | None
    msg_id: int | None
    oddities: list[str] = Field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether the job has reached a final state."""
        return self.status in ("completed", "failed")

    @property
    def match(self) -> str | None:
        """Its match, in words. An app may enqueue before the match has an id."""
        if (match := self.job_payload.get("matchId")) is not None:
            return f"Match {match}"
        return "match not named" if self.job_payload.get("triggeredBy") == "post-match" else None


@dataclass(frozen=True)
class SetAside:
    """One thing that could not be done, while the others continued. It is retried from `next_try_at` on."""

    what: str
    key: str
    reason: str
    since: datetime
    tries: int
    next_try_at: datetime


@dataclass(frozen=True)
class Lease:
    """Jobs of one tenant for one run: how many, and the id, trigger and match of the first one."""

    lease_id: UUID
    tenant_id: UUID | None
    jobs: int
    job_id: UUID
    triggered_by: str
    match_id: str | None


@dataclass(frozen=True)
class Claim:
    """A claimed lease: the jobs its run works on, and the RPCs that its predecessor completed for the same jobs."""

    lease_id: UUID
    tenant_id: UUID | None
    job_ids: tuple[UUID, ...]
    carried_over: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Delivery:
    """The app's answer to one delivery: the tags it confirmed, and why it did not confirm the others.

    `route_failed` means that the answer concerned no tags at all, so that other tags would fail too.
    """

    taken: frozenset[str]
    problem: str | None = None
    route_failed: bool = False
