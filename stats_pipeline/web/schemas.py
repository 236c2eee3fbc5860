"""The types of the HTTP API's requests and answers, from which the OpenAPI document is generated.

The database validates requests (`stats_pipeline.payload_problem`); `EnqueueRequest` describes the valid ones, and a
test sends such requests to it. Rows are `models.Job`.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from stats_pipeline.jobs.models import Enqueued, Status, Trigger

Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]  # PostgreSQL stores no NUL
Uuid = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$")
]
Moment = Annotated[
    str,
    StringConstraints(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(Z|[+-][0-9]{2}:?[0-9]{2})?$"
    ),
]


class _CamelCase(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class EnqueueRequest(_CamelCase):
    """A job's payload. Fields beyond these are kept with the job."""

    triggered_by: Trigger
    request_id: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]+$")] = Field(
        description="Repeating one returns the first job and enqueues nothing."
    )
    timestamp: Moment | None = Field(None, description="When it was asked for; default: now.")
    match_id: Annotated[int, Field(ge=1, le=999_999_999_999_999_999)] | None = None
    user_id: Text | None = Field(None, description="Who asked, for the audit trail.")
    retry_of: Uuid | None = Field(None, description="The id of a failed job that this one replaces.")
    tenant_id: Uuid | None = Field(None, description="The club; default: the default tenant.")


class TenantJob(Enqueued):
    """The cron job of one tenant."""

    tenant_id: UUID | None


class CronAnswer(Enqueued):
    """The first tenant's job, and those of all tenants."""

    jobs: list[TenantJob]


class Problem(BaseModel):
    """Why a request was refused."""

    success: Literal[False] = False
    error: str


class Alive(BaseModel):
    """The enqueue endpoint answers and reaches its database."""

    success: Literal[True] = True
    status: Literal["healthy"] = "healthy"
    message: str
    timestamp: datetime


class JobEvent(BaseModel):
    """The data of one server-sent event named `job`."""

    id: UUID
    status: Status
    version: int = Field(description="When the row was written, in microseconds since 1970; later states have more.")


class DatabaseHealth(BaseModel):
    """Whether the database answers, and why it would take no job if it would not."""

    status: Literal["ok", "refusing", "down"]
    problem: str | None = Field(None, exclude_if=lambda problem: problem is None)


class QueueHealth(BaseModel):
    """Whether the queue is there, and how many jobs wait in it."""

    status: Literal["ok", "missing"]
    waiting: int


class SensorHealth(BaseModel):
    """Whether the sensors are at work, and when the queue was last looked at."""

    status: Literal["ok", "late", "never"]
    seconds_since_tick: float | None
    silent: list[str] = Field(
        [], description="Sensors without a sign of life: the daemon is down, or they were stopped."
    )


class AppHealth(BaseModel):
    """Whether there is an app to tell about stale tags, and whether it takes them."""

    status: Literal["ok", "failing", "not configured"]
    failing_since: datetime | None = None
    undelivered_tags: int


class Health(BaseModel):
    """`down` (503): nothing can be enqueued. `degraded`: jobs wait, pages stay stale, or something was set aside."""

    status: Literal["ok", "degraded", "down"]
    database: DatabaseHealth
    queue: QueueHealth | None = None
    sensor: SensorHealth | None = None
    app: AppHealth | None = None
    set_aside: int | None = Field(
        None, description="What could not be done and is tried again, while the rest goes on."
    )
