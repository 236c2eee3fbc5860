"""The commands about jobs: enqueue, retry, list, show, and who did what."""

import json
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID, uuid4

import typer
from rich.console import Group

from stats_pipeline import database, settings
from stats_pipeline.cli import console
from stats_pipeline.cli.base import JsonOption, opened_database, print_json
from stats_pipeline.errors import InvalidJob, StatsPipelineError
from stats_pipeline.jobs import audit, queue
from stats_pipeline.jobs.models import Enqueued, Payload, Trigger

app = typer.Typer()

WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the job to end; exit code 1 if it fails.")]
TimeoutOption = Annotated[float, typer.Option(help="With --wait: seconds to wait before giving up.", min=1)]
JobIdArgument = Annotated[
    str, typer.Argument(metavar="JOB_ID", help="The job's id, or a beginning of it that no other job has.")
]


@app.command()
def enqueue(
    trigger: Annotated[Trigger | None, typer.Option(help="What caused the refresh. Default: admin.")] = None,
    match_id: Annotated[int | None, typer.Option(help="The match. Required for post-match.", min=1)] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Idempotency key: reusing one returns the existing job. Default: a new UUID.")
    ] = None,
    user_id: Annotated[str | None, typer.Option(help="Who asked, for the audit trail.")] = None,
    tenant_id: Annotated[UUID | None, typer.Option(help="The club. Default: the database's default tenant.")] = None,
    payload: Annotated[
        str | None, typer.Option(help="The whole payload as JSON, instead of the options above.")
    ] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = 300,
    as_json: JsonOption = False,
) -> None:
    """Enqueue a refresh and print its job id.

    `stats-pipeline up` must be running to process it.
    """
    options = {
        "triggeredBy": ("--trigger", trigger),
        "matchId": ("--match-id", match_id),
        "requestId": ("--request-id", request_id),
        "userId": ("--user-id", user_id),
        "tenantId": ("--tenant-id", tenant_id),
    }
    if payload is not None:
        if given := [option for option, value in options.values() if value is not None]:
            raise typer.BadParameter(f"cannot be combined with {', '.join(given)}", param_hint="'--payload'")
        content = _parse_json(payload)
    elif trigger == "post-match" and match_id is None:
        raise typer.BadParameter("post-match requires --match-id", param_hint="'--trigger'")
    else:
        content = Payload(
            triggered_by=trigger or "admin",
            request_id=str(uuid4()) if request_id is None else request_id,
            match_id=match_id,
            user_id=user_id,
            tenant_id=None if tenant_id is None else str(tenant_id),
            timestamp=datetime.now(UTC),
        ).as_json()
    with opened_database() as (loaded, opened):
        try:
            with opened.connection() as connection:
                answer = queue.enqueue(connection, content)
        except InvalidJob as error:
            field, _, problem = str(error).partition(" ")
            if payload is None and field in options:
                raise typer.BadParameter(problem, param_hint=f"'{options[field][0]}'") from None
            raise typer.BadParameter(str(error), param_hint="'--payload'") from None
        _show_enqueued(loaded, opened, answer, wait=wait, timeout=timeout, as_json=as_json)


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(
            f'not valid JSON ({error}); expected an object such as {{"triggeredBy": "admin", "requestId": "1"}}',
            param_hint="'--payload'",
        ) from None


@app.command()
def retry(
    job_id: JobIdArgument,
    wait: WaitOption = False,
    timeout: TimeoutOption = 300,
    as_json: JsonOption = False,
) -> None:
    """Enqueue a failed job again.

    This creates a new job, whose `retry_of` names the failed one.
    """
    beginning = _beginning_of_id(job_id)
    with opened_database(makes=False) as (loaded, opened):
        with opened.connection() as connection:
            failed = queue.find_job(connection, beginning)
            if failed.status != "failed":
                raise InvalidJob(f"job {failed.id} is {failed.status}: only a failed job can be retried")
            answer = queue.retry(connection, failed.id)
        _show_enqueued(loaded, opened, answer, wait=wait, timeout=timeout, as_json=as_json)


def _beginning_of_id(given: str) -> str:
    if not re.fullmatch("[0-9a-f][0-9a-f-]{3,35}", given.lower()):
        raise typer.BadParameter("must be a job's id, or its first four characters or more", param_hint="'JOB_ID'")
    return given.lower()


def _show_enqueued(
    loaded: settings.Settings, opened: database.Database, answer: Enqueued, *, wait: bool, timeout: float, as_json: bool
) -> None:
    job = None
    if wait:
        job = console.follow_job(opened, answer.job_id, loaded.functions, timeout=timeout, shown=not as_json)
    if as_json:
        shown = answer if job is None else answer.model_copy(update={"status": job.status})
        print_json(shown.model_dump(mode="json", by_alias=True))
    elif job is None:
        console.out.print(console.enqueued(answer), soft_wrap=True)
    else:
        if answer.repeated:
            console.out.print(console.enqueued(answer), soft_wrap=True)
        console.out.print(f"Job {job.id} {job.status}, {console.duration(job)}", soft_wrap=True)
    if job is not None and job.status != "completed":
        reason = job.error_message if job.is_over else f"still {job.status} after {timeout:g} seconds; is `up` running?"
        raise StatsPipelineError(f"job {job.id}: {reason}")


@app.command()
def jobs(
    limit: Annotated[int, typer.Option(help="How many to show.", min=1, max=1000)] = 10,
    watch: Annotated[bool, typer.Option("--watch", help="Keep the list up to date until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the newest jobs, newest first."""
    if watch and as_json:
        raise typer.BadParameter("is for a terminal; call `jobs --json` repeatedly instead", param_hint="'--watch'")
    with opened_database(makes=False) as (_, opened):

        def look() -> Group:
            with opened.connection() as connection:
                found = queue.list_jobs(connection, limit=limit)
                return console.overview(found, queue.list_set_aside(connection))

        if as_json:
            with opened.connection() as connection:
                print_json([job.model_dump(mode="json") for job in queue.list_jobs(connection, limit=limit)])
        elif watch:
            with console.live(console.out) as show:
                while True:
                    show(look())
                    time.sleep(1)
        else:
            console.out.print(look())


@app.command()
def activity(
    limit: Annotated[
        int, typer.Option(help="How many of what was done, and how many of what was refused.", min=1, max=1000)
    ] = 20,
    as_json: JsonOption = False,
) -> None:
    """List who did what, and from where, newest first."""
    with opened_database(makes=False) as (_, opened):
        with opened.connection() as connection:
            entries = audit.latest(connection, limit)
        if as_json:
            print_json([asdict(entry) for entry in entries])
        else:
            console.out.print(console.activity_table(entries) if entries else "Nothing yet")


@app.command("job")
def job_command(job_id: JobIdArgument, as_json: JsonOption = False) -> None:
    """Show one job in full.

    Its status and the reason for a failure, each stats function, the cache tags and the payload.
    """
    beginning = _beginning_of_id(job_id)
    with opened_database(makes=False) as (loaded, opened):
        with opened.connection() as connection:
            found = queue.find_job(connection, beginning)
        if as_json:
            print_json(found.model_dump(mode="json"))
        else:
            console.out.print(console.job_in_full(found, loaded.functions))
