"""The command line. Each command is a few lines: the work is done by the modules it calls.

Exit code 1: the work failed, and one line on standard error says why and what to do. Exit code 2: invalid usage.
"""

import json
import os
import re
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import typer
from rich.console import Group
from rich.text import Text

from stats_pipeline import database, log, settings
from stats_pipeline.cli import console
from stats_pipeline.database import budget, migrate
from stats_pipeline.deployment import doctor, up
from stats_pipeline.errors import InvalidJob, StatsPipelineError, is_permanent, one_line
from stats_pipeline.jobs import audit, queue, run_direct
from stats_pipeline.jobs.models import Enqueued, Payload, Trigger
from stats_pipeline.jobs.reconcile import read
from stats_pipeline.web import address

if TYPE_CHECKING:
    from stats_pipeline.demo import receiver

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

LogLevelOption = Annotated[
    settings.LogLevel | None, typer.Option(help="How much to log to standard error. Default: STATS_LOG_LEVEL, or info.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the job to end; exit code 1 if it fails.")]
TimeoutOption = Annotated[float, typer.Option(help="With --wait: seconds to wait before giving up.", min=1)]
JobIdArgument = Annotated[
    str, typer.Argument(metavar="JOB_ID", help="The job's id, or a beginning of it that no other job has.")
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        console.out.print(f"stats-pipeline {settings.VERSION}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Refreshes a football club's player statistics after every match."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that the user can fix into one line and exit code 1, and Ctrl-C into exit code 130."""
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # closing the terminal stops us, except under nohup
        signal.signal(signal.SIGHUP, lambda *_: _interrupt())
    # A shell script's `&` starts us with SIGINT ignored; Dagster's processes would inherit that and ignore SIGTERM too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except StatsPipelineError as error:
        _fail(str(error))
    except psycopg.Error as error:
        advice = "run `stats-pipeline migrate` to update its schema" if is_permanent(error) else "try again"
        _fail(f"STATS_DATABASE_URL: the database rejected the call: {one_line(error)}; {advice}")
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        path = os.fsdecode(error.filename or "")
        _fail(f"STATS_HOME: {path}: {error.strerror}; choose a folder that this user may write to")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(problem: str) -> NoReturn:
    console.err.print(Text.assemble(("Error:", "red"), " ", console.plain(problem)), soft_wrap=True)
    raise typer.Exit(1) from None


def _load(log_level: settings.LogLevel | None = None) -> settings.Settings:
    """The settings; prints warnings about them. A command logs errors only, the processes it starts the given level."""
    loaded = settings.load(**({"STATS_LOG_LEVEL": log_level} if log_level else {}))
    log.configure("error")
    for warning in settings.warnings():
        console.err.print(Text.assemble(("Warning:", "yellow"), " ", console.plain(warning)), soft_wrap=True)
    return loaded


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _turn(loaded: settings.Settings) -> Iterator[None]:
    """One of the deployment's connections, for the length of the block: waits for it if none is free."""
    slots = budget.slots(loaded)
    if slots is None:
        yield
        return
    if (held := slots.try_to_take("other")) is None:
        console.say(f"All {loaded.max_connections} connections (STATS_MAX_CONNECTIONS) are in use: waiting for one …")
        held = slots.take("other")
    with held:
        yield


@contextmanager
def _database(
    *, makes: bool = True, two: bool = False, log_level: settings.LogLevel | None = None
) -> Iterator[tuple[settings.Settings, database.Database]]:
    """The database, for the length of one command; the embedded one is started if it is not running.

    A command has one connection of the deployment's budget, and lets others have it between two uses; with `two` it
    holds as many as a run, one of them for this. Without `makes`, the command fails if the embedded database does not
    exist yet.
    """
    with one_line_errors(), ExitStack() as stack:
        loaded = _load(log_level)
        if not makes:
            up.check_there_is_a_database(loaded)
        if two:
            budget.take_room_for_a_run(loaded)
        slots = None if two else budget.slots(loaded)
        with nullcontext() if two else _turn(loaded):
            url = stack.enter_context(up.database_for(loaded))
            if loaded.database_url is None:
                up.migrated(loaded, url)
        own, shared = (1, 0) if slots is None else (0, 1)
        yield loaded, stack.enter_context(database.Database(url, max_connections=own, slots=slots, shared=shared))


def _judging(loaded: settings.Settings) -> settings.Settings:
    """The settings by which a command tells dead runs from live ones: in `stock`, with the time that its runs need."""
    return loaded.for_dagster() if loaded.runtime == "stock" else loaded


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


@app.command("up")
def up_command(log_level: LogLevelOption = None) -> None:
    """Run everything until Ctrl-C.

    Starts the embedded database (unless STATS_DATABASE_URL is set), applies migrations, runs the admin page and
    Dagster's code server, daemon and UI, and restarts any of them that dies.
    """
    with one_line_errors():
        loaded = _load(log_level)
        say = console.say
        address.require_a_key(loaded, is_terminal=console.err.is_terminal)
        with up.single_instance(loaded):
            up.check_ports(loaded)
            with up.database_for(loaded) as url:
                up.migrated(loaded, url)
                deployment = up.Deployment(loaded, url, say)
                with deployment.running():
                    say(Text.assemble(("Up.", "green"), f" {_door(loaded, deployment.start_key)} · Ctrl-C stops"))
                    say(f"Database: {database.describe(url)}")
                    if loaded.app_url is None:
                        missing = ("not configured", "yellow")
                        say(Text.assemble("Cache invalidation is ", missing, ": set NEXT_PUBLIC_APP_URL"))
                    deployment.watch()


@app.command()
def down() -> None:
    """Stop the `up` or `demo` of this state folder.

    Also stops the processes that a killed one has left running.
    """
    with one_line_errors():
        console.err.print("Stopped" if up.stop_all(_load()) else "Nothing was running")


@app.command()
def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop after the job; exit code 1 if it did not succeed.")
    ] = False,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Run everything, with a sample league and one job.

    Like `up`, but adds a match to a sample league, follows its post-match job to the end and shows the statistics. A
    small HTTP server stands in for the app: it checks the key and counts the cache tags.
    """
    from stats_pipeline.demo import receiver, story  # noqa: PLC0415  # a server and a generator, for this only

    with one_line_errors():
        loaded = _load(log_level)
        today = datetime.now(ZoneInfo(loaded.timezone)).date()
        with up.single_instance(loaded), receiver.Receiver() as app_server:
            up.check_ports(loaded)
            loaded = settings.load(
                STATS_LOG_LEVEL=loaded.log_level, NEXT_PUBLIC_APP_URL=app_server.url, INTERNAL_API_KEY=app_server.key
            )
            say = console.say
            say("Starting the database …")
            with up.database_for(loaded) as url:
                with database.connect(url, autocommit=True) as connection:
                    migrate.migrate(connection, reference_stats=True)
                    say(story.prepare_league(connection, today))
                deployment = up.Deployment(loaded, url, say)
                with deployment.running({"demo app": app_server.serve}):
                    exit_code = deployment.carry_out(
                        lambda: _tell_story(loaded, url, app_server, today, as_json=as_json)
                    )
                    if not exit_:
                        say(f"{_door(loaded, deployment.start_key)} · Ctrl-C stops")
                        deployment.watch()
        if exit_code:
            raise typer.Exit(exit_code)


def _tell_story(
    loaded: settings.Settings, url: str, app_server: "receiver.Receiver", today: date, *, as_json: bool
) -> None:
    """The demo's job and its result. Exits with code 1 if it did not succeed."""
    from stats_pipeline.demo import story  # noqa: PLC0415

    with database.Database(url) as opened:
        with opened.connection() as connection:
            job_id = story.play_and_enqueue(connection, today)
        job = console.follow_job(opened, job_id, loaded.functions, timeout=story.JOB_TIMEOUT, shown=not as_json)
        result = story.outcome(job, app_server.received())
        if as_json:
            _print_json(asdict(result))
        else:
            for title, rows in story.read_tables(opened, loaded.functions).items():
                console.out.print(console.rows_table(title, rows))
            console.out.print(result.in_words(), soft_wrap=True)
    if not result.is_complete(loaded.functions):
        reason = job.error_message or job.status
        where = f"; logs in {loaded.home}/logs"
        console.say(Text.assemble(("The job did not succeed:", "red"), " ", console.plain(reason), where))
        raise SystemExit(1)


@app.command()
def web(log_level: LogLevelOption = None) -> None:
    """Serve only the admin page and the HTTP API.

    Runs until Ctrl-C. The jobs are processed by an `up` elsewhere, on the same database.
    """
    from stats_pipeline.web import server  # noqa: PLC0415  # a web server no other command needs

    with _database(log_level=log_level) as (loaded, opened):
        up.check_port_is_free(address.address(loaded), loaded.port, "STATS_PORT")
        address.require_a_key(loaded, is_terminal=console.err.is_terminal)
        start_key = secrets.token_bytes(32)
        console.say(f"{_door(loaded, start_key)} · Ctrl-C stops")
        server.serve(loaded, opened.url, start_key=start_key)


def _door(loaded: settings.Settings, start_key: bytes) -> str:
    """Where the page is. Without a password, the link that lets in once: on a terminal only."""
    if loaded.admin_password is None and console.err.is_terminal:
        return f"Open once, to log in: {address.login_link(loaded, start_key)}"
    return f"Admin page: {address.url(loaded)}"


@app.command("migrate")
def migrate_command(
    reference_stats: Annotated[
        bool,
        typer.Option("--reference-stats", help="Also install the reference tables and stats functions, if missing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Create or update the database schema.

    Safe to repeat, and safe in a database that holds an app's own tables.
    """
    with one_line_errors():
        loaded = _load()
        with (
            _turn(loaded),
            up.database_for(loaded) as url,
            database.connect(url, autocommit=True) as connection,
        ):
            applied = migrate.migrate(connection, reference_stats=reference_stats or loaded.database_url is None)
        if as_json:
            _print_json(asdict(applied))
            return
        for kind, names in asdict(applied).items():
            console.out.print(f"{kind.replace('_', ' ')}: {', '.join(names) or 'nothing to do'}")


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
    with _database() as (loaded, opened):
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
    with _database(makes=False) as (loaded, opened):
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
        _print_json(shown.model_dump(mode="json", by_alias=True))
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
    with _database(makes=False) as (_, opened):

        def look() -> Group:
            with opened.connection() as connection:
                found = queue.list_jobs(connection, limit=limit)
                return console.overview(found, queue.list_set_aside(connection))

        if as_json:
            with opened.connection() as connection:
                _print_json([job.model_dump(mode="json") for job in queue.list_jobs(connection, limit=limit)])
        elif watch:
            with console.live(console.out) as show:
                while True:
                    show(look())
                    time.sleep(1)
        else:
            console.out.print(look())


@app.command()
def activity(
    limit: Annotated[int, typer.Option(help="How many to show.", min=1, max=1000)] = 20,
    as_json: JsonOption = False,
) -> None:
    """List who did what, and from where, newest first."""
    with _database(makes=False) as (_, opened):
        with opened.connection() as connection:
            entries = audit.latest(connection, limit)
        if as_json:
            _print_json([asdict(entry) for entry in entries])
        else:
            console.out.print(console.activity_table(entries) if entries else "Nothing yet")


@app.command("job")
def job_command(job_id: JobIdArgument, as_json: JsonOption = False) -> None:
    """Show one job in full.

    Its status and the reason for a failure, each stats function, the cache tags and the payload.
    """
    beginning = _beginning_of_id(job_id)
    with _database(makes=False) as (loaded, opened):
        with opened.connection() as connection:
            found = queue.find_job(connection, beginning)
        if as_json:
            _print_json(found.model_dump(mode="json"))
        else:
            console.out.print(console.job_in_full(found, loaded.functions))


@app.command("run-direct")
def run_direct_command(as_json: JsonOption = False) -> None:
    """For emergencies: process jobs without Dagster.

    Jobs of crashed runs are queued again first. If no job is waiting, the statistics of every club are refreshed once.
    Exit code 1 unless every job completed and the app confirmed its cache tags.
    """
    with _database(two=True) as (loaded, opened):
        job_ids = run_direct.run_direct(opened, _judging(loaded), console.say)
        with opened.connection() as connection:
            done = [queue.get_job(connection, job_id) for job_id in job_ids]
        if as_json:
            _print_json([job.model_dump(mode="json") for job in done])
        elif done:
            console.out.print(console.overview(done))
        if not done:
            raise StatsPipelineError("every club has an open run already: see `stats-pipeline jobs`")
        if unfinished := [job for job in done if job.status != "completed"]:
            first = unfinished[0]
            reason = first.error_message or f"still {first.status}, until the app confirms its cache tags"
            raise StatsPipelineError(f"{len(unfinished)} of {len(done)} jobs did not complete; {first.id}: {reason}")


@app.command("doctor")
def doctor_command(
    functions: Annotated[
        bool,
        typer.Option("--functions", help="Also call each stats function for each club, and roll it back."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the installation and say what to do.

    Checks settings, database, queue, stats functions, schema, Dagster and the app. Changes nothing. Exit code 1 if
    there is a problem; warnings do not count.
    """
    with one_line_errors():
        loaded = settings.load()
        log.configure("error")
        with _turn(loaded):
            findings = list(doctor.examine(loaded, trying=console.say if functions else None))
        if as_json:
            _print_json([asdict(finding) for finding in findings])
        else:
            console.out.print(console.findings_table(findings))
        problems = [finding.subject for finding in findings if finding.state == "problem"]
        if problems:
            raise StatsPipelineError(f"problems found: {', '.join(dict.fromkeys(problems))}")


@app.command()
def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be repaired.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare queue, rows and runs once, and repair any mismatch.

    While `up` is running this happens every second.
    """
    with _database(makes=False, two=True) as (loaded, opened):  # the other one is for Dagster's tables
        read(opened)  # fails if the database is not migrated, before Dagster creates its tables there
        os.environ.update(up.dagster_environment(loaded, opened.url))
        from dagster import DagsterInstance  # noqa: PLC0415  # two seconds of imports that no other command needs

        from stats_pipeline.defs.runs import repair_all  # noqa: PLC0415

        with DagsterInstance.get() as instance:
            repairs, problems = repair_all(opened, _judging(loaded), instance, dry_run=dry_run)
        if as_json:
            _print_json([{"repair": type(repair).__name__, **asdict(repair)} for repair in repairs])
        elif repairs:
            for repair in repairs:
                console.out.print(console.plain(f"{'Would' if dry_run else 'Done:'} {repair}"), soft_wrap=True)
        else:
            console.out.print("Nothing to repair")
        if problems:
            raise StatsPipelineError(f"{len(problems)} repairs failed and will be tried again: {'; '.join(problems)}")
