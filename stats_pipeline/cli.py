"""The command line. Each command is a few lines: what it does is in the modules it calls.

Errors that the user can put right are one line on standard error and exit code 1; a wrong option is exit code 2.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Annotated, Any, Literal, NoReturn
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import typer
from rich.console import Group
from rich.live import Live
from rich.text import Text

from stats_pipeline import console, database, direct, doctor, job_status, log, migrate, services, settings
from stats_pipeline.errors import StatsPipelineError, is_permanent, one_line
from stats_pipeline.models import Enqueued, Job, Payload

app = typer.Typer(
    help="Refreshes a football club's player statistics: a queue in front, Dagster behind.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Trigger = Literal["post-match", "admin", "cron"]
LogLevelOption = Annotated[
    settings.LogLevel | None, typer.Option(help="What to say besides; default: STATS_LOG_LEVEL, which is info.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        console.out.print(f"stats-pipeline {version('stats-pipeline')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Refreshes a football club's player statistics: a queue in front, Dagster behind."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what the user can put right into one line and exit code 1, and Ctrl-C into exit code 130."""
    signal.signal(signal.SIGTERM, lambda *_: _interrupt())
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # the terminal was closed, and nobody said nohup
        signal.signal(signal.SIGHUP, lambda *_: _interrupt())
    # A shell script's `&` starts us with SIGINT ignored; Dagster's processes would inherit that and ignore SIGTERM too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except StatsPipelineError as error:
        _fail(str(error))
    except psycopg.Error as error:
        advice = "bring it to this version with `stats-pipeline migrate`" if is_permanent(error) else "try again"
        _fail(f"STATS_DATABASE_URL: the database refused: {one_line(error)}; {advice}")
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        _fail(f"STATS_HOME: {error.filename}: {error.strerror}; name a folder that may be written to")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _fail(problem: str) -> NoReturn:
    console.err.print(Text.assemble(("Error:", "red"), " ", console.plain(problem)), soft_wrap=True)
    raise typer.Exit(1) from None


def _load(log_level: settings.LogLevel | None = None) -> settings.Settings:
    """The settings, with warnings said. A command has no log: its error says all. What it starts has one."""
    loaded = settings.load(**({"STATS_LOG_LEVEL": log_level} if log_level else {}))
    log.configure("error")
    for warning in settings.warnings():
        console.err.print(Text.assemble(("Warning:", "yellow"), " ", console.plain(warning)), soft_wrap=True)
    return loaded


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def _database(
    *, makes: bool = True, log_level: settings.LogLevel | None = None
) -> Iterator[tuple[settings.Settings, database.Database]]:
    """The database for a command that only needs it for a moment; the embedded one is started if it has to be.

    A command that `makes` nothing is refused where there is no embedded one yet.
    """
    with one_line_errors():
        loaded = _load(log_level)
        if not makes:
            services.check_there_is_a_database(loaded)
        with services.database_for(loaded) as url, database.Database(url) as opened:
            if loaded.database_url is None:
                services.migrated(loaded, url)
            yield loaded, opened


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


@app.command()
def up(log_level: LogLevelOption = None) -> None:
    """Run everything until Ctrl-C: the database if it is the embedded one, migrations, Dagster's daemon and UI."""
    with one_line_errors():
        loaded = _load(log_level)
        say = console.say
        with services.single_instance(loaded):
            services.check_ports(loaded)
            with services.database_for(loaded) as url:
                services.migrated(loaded, url)
                with services.dagster_running(loaded, url, say=say) as running:
                    say(Text.assemble(("Up.", "green"), f" Dagster UI: {running.ui_url} · Ctrl-C stops"))
                    say(f"Admin page: {running.web_url} · database: {database.describe(url)}")
                    if loaded.app_url is None:
                        missing = ("not configured", "yellow")
                        say(Text.assemble("Cache invalidation is ", missing, ": set NEXT_PUBLIC_APP_URL"))
                    running.watch()


@app.command()
def down() -> None:
    """Stop the `up` or `demo` of this state folder, and whatever a killed one has left running."""
    with one_line_errors():
        console.err.print("Stopped" if services.stop_all(_load()) else "Nothing was running")


@app.command()
def demo(
    exit_: Annotated[
        bool, typer.Option("--exit", help="Stop after the job; exit code 0 only if all went well.")
    ] = False,
    as_json: JsonOption = False,
    log_level: LogLevelOption = None,
) -> None:
    """Like `up`, plus a made-up league, one post-match job followed live to its end, and its results.

    The app is played by a small HTTP server of the demo's own, which checks the key and counts the tags.
    """
    from stats_pipeline.demo import receiver, story  # noqa: PLC0415  # a server and a generator nobody else needs

    with one_line_errors():
        loaded = _load(log_level)
        today = datetime.now(ZoneInfo(loaded.timezone)).date()
        with services.single_instance(loaded), receiver.receiving() as app_server:
            services.check_ports(loaded)
            loaded = settings.load(
                STATS_LOG_LEVEL=loaded.log_level, NEXT_PUBLIC_APP_URL=app_server.url, INTERNAL_API_KEY=app_server.key
            )
            say = console.say
            say("Starting the database …")
            with services.database_for(loaded) as url, database.Database(url) as opened:
                with opened.connection() as connection:
                    migrate.migrate(connection, reference_stats=True)
                    say(story.prepare_league(connection, today))
                with services.dagster_running(loaded, url, say=say) as running:
                    with opened.connection() as connection:
                        job_id = story.play_and_enqueue(connection, today)
                    job = console.follow_job(opened, job_id, loaded.functions, timeout=story.JOB_TIMEOUT)
                    result = story.outcome(job, app_server)
                    if as_json:
                        _print_json(asdict(result))
                    else:
                        story.show_tables(opened, loaded.functions)
                        console.out.print(
                            f"Job {result.status}: started {result.seconds_to_start} s and over "
                            f"{result.seconds_to_complete} s after it was enqueued; "
                            f"{len(result.delivered_tags)} cache tags received by the demo's app."
                        )
                    good = result.is_complete(loaded.functions)
                    if not good:
                        reason = job.error_message or job.status
                        where = f"; logs in {loaded.home}/logs"
                        say(Text.assemble(("The job did not succeed:", "red"), " ", console.plain(reason), where))
                    if not exit_:
                        say(f"Admin page: {running.web_url} · Dagster UI: {running.ui_url} · Ctrl-C stops")
                        running.watch()
        if not good:
            raise typer.Exit(1)


@app.command()
def web(log_level: LogLevelOption = None) -> None:
    """Serve the admin's page and the HTTP API until Ctrl-C, for jobs that an `up` elsewhere works on."""
    from stats_pipeline.web import address, server  # noqa: PLC0415  # a web server no other command needs

    with _database(log_level=log_level) as (loaded, opened):
        services.check_port_is_free(address.address(loaded), loaded.web_port, "STATS_WEB_PORT")
        console.err.print(f"Admin page: {address.url(loaded)} · Ctrl-C stops")
        server.serve(loaded, opened.url)


@app.command("migrate")
def migrate_command(
    reference_stats: Annotated[
        bool,
        typer.Option(help="Also install the reference tables and stats functions, in a database that has none."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database to this version. Safe to repeat, and beside an app's own tables."""
    with one_line_errors():
        loaded = _load()
        with services.database_for(loaded) as url, database.connect(url, autocommit=True) as connection:
            applied = migrate.migrate(connection, reference_stats=reference_stats or loaded.database_url is None)
        if as_json:
            _print_json(asdict(applied))
            return
        for kind, names in asdict(applied).items():
            console.out.print(f"{kind.replace('_', ' ')}: {', '.join(names) or 'nothing to do'}")


@app.command()
def enqueue(
    trigger: Annotated[Trigger | None, typer.Option(help="Default: admin.")] = None,
    match_id: Annotated[int | None, typer.Option(help="The match; post-match needs one.", min=1)] = None,
    request_id: Annotated[str | None, typer.Option(help="Repeating one enqueues nothing. Default: a new UUID.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Who asked, for the audit trail.")] = None,
    tenant_id: Annotated[UUID | None, typer.Option(help="The club; default: the database's default tenant.")] = None,
    payload: Annotated[
        str | None, typer.Option(help="The whole payload as JSON, in place of the options above.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end; exit code 1 if it fails.")] = False,
    timeout: Annotated[float, typer.Option(help="With --wait: give up after so many seconds.", min=1)] = 300,
    as_json: JsonOption = False,
) -> None:
    """Enqueue a refresh and print its job id. Something must be `up` to work on it."""
    fields = {
        "--trigger": trigger,
        "--match-id": match_id,
        "--request-id": request_id,
        "--user-id": user_id,
        "--tenant-id": str(tenant_id) if tenant_id else None,
    }
    with one_line_errors():
        given = _payload_of(fields) if payload is None else _parse_payload(payload, fields)
    with _database() as (loaded, opened):
        with opened.connection() as connection:
            answer = job_status.enqueue(connection, given)
        _show_enqueued(loaded, opened, answer, wait=wait, timeout=timeout, as_json=as_json)


def _payload_of(fields: dict[str, Any]) -> dict[str, Any]:
    trigger = "admin" if fields["--trigger"] is None else fields["--trigger"]
    if trigger == "post-match" and fields["--match-id"] is None:
        raise StatsPipelineError(
            "--trigger post-match needs the match: add --match-id, or leave --trigger out to refresh without one"
        )
    return Payload(
        triggered_by=trigger,
        request_id=str(uuid4()) if fields["--request-id"] is None else fields["--request-id"],
        match_id=fields["--match-id"],
        user_id=fields["--user-id"],
        tenant_id=fields["--tenant-id"],
        timestamp=datetime.now(UTC),
    ).as_json()


def _parse_payload(text: str, fields: dict[str, Any]) -> Any:
    if given := [option for option, value in fields.items() if value is not None]:
        raise StatsPipelineError(f"--payload is the whole payload: put {', '.join(given)} into it, or leave it out")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StatsPipelineError(
            f'--payload is no JSON ({error}); give one object, such as \'{{"triggeredBy": "admin", "requestId": "1"}}\''
        ) from None


@app.command()
def retry(
    job_id: Annotated[UUID, typer.Argument(help="A failed job.")],
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow the new job to its end; exit code 1 if it fails.")
    ] = False,
    timeout: Annotated[float, typer.Option(help="With --wait: give up after so many seconds.", min=1)] = 300,
    as_json: JsonOption = False,
) -> None:
    """Enqueue a failed job again, as a new job that names the old one."""
    with _database(makes=False) as (loaded, opened):
        with opened.connection() as connection:
            answer = job_status.retry(connection, job_id)
        _show_enqueued(loaded, opened, answer, wait=wait, timeout=timeout, as_json=as_json)


def _show_enqueued(
    loaded: settings.Settings, opened: database.Database, answer: Enqueued, *, wait: bool, timeout: float, as_json: bool
) -> None:
    job = console.follow_job(opened, answer.job_id, loaded.functions, timeout=timeout) if wait else None
    if as_json:
        shown = answer if job is None else answer.model_copy(update={"status": job.status})
        _print_json(shown.model_dump(mode="json", by_alias=True))
    elif job is None:
        console.out.print(console.enqueued(answer))
    else:
        if answer.repeated:
            console.out.print(console.enqueued(answer))
        console.out.print(f"Job {job.id} {job.status}, {console.duration(job)}")
    if job is not None and job.status != "completed":
        reason = job.error_message if job.is_over else f"still {job.status} after {timeout:g} seconds; is `up` running?"
        raise StatsPipelineError(f"job {job.id}: {reason}")


@app.command()
def jobs(
    limit: Annotated[int, typer.Option(help="How many of the newest.", min=1, max=1000)] = 10,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing them until Ctrl-C.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the newest jobs, newest first."""
    if watch and as_json:
        raise typer.BadParameter("--watch is for a terminal: call `jobs --json` repeatedly instead")
    with _database(makes=False) as (_, opened):

        def read() -> list[Job]:
            with opened.connection() as connection:
                return job_status.list_jobs(connection, limit=limit)

        def tables() -> Group:
            found = read()
            with opened.connection() as connection:
                set_aside = job_status.list_set_aside(connection)
            return Group(
                console.jobs_table(found) if found else "No background jobs found",
                *([console.set_aside_table(set_aside)] if set_aside else []),
            )

        if as_json:
            _print_json([job.model_dump(mode="json") for job in read()])
        elif watch:
            with Live(tables(), console=console.out, auto_refresh=False) as live:
                while True:
                    time.sleep(1)
                    live.update(tables(), refresh=True)
        else:
            console.out.print(tables())


@app.command()
def run_direct(as_json: JsonOption = False) -> None:
    """For emergencies: do the waiting jobs in this process, without Dagster; with none waiting, refresh every tenant.

    Jobs of dead runs are given back first. Exit code 0 only if all of them completed, with their cache tags taken.
    """
    with _database() as (loaded, opened):
        job_ids = direct.run_direct(opened, loaded, console.say)
        with opened.connection() as connection:
            done = [job_status.get_job(connection, job_id) for job_id in job_ids]
        if as_json:
            _print_json([job.model_dump(mode="json") for job in done])
        elif done:
            console.out.print(console.jobs_table(done))
        if not done:
            raise StatsPipelineError("every tenant has a run that is at work already: `stats-pipeline jobs` shows it")
        if unfinished := [job for job in done if job.status != "completed"]:
            first = unfinished[0]
            reason = first.error_message or f"it is {first.status}, until the app has taken its cache tags"
            raise StatsPipelineError(f"{len(unfinished)} of {len(done)} jobs did not complete; {first.id}: {reason}")


@app.command("doctor")
def doctor_command(
    functions: Annotated[
        bool,
        typer.Option("--functions", help="Also call each stats function for each tenant, and take it back."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check settings, database, queue, stats functions, schema, Dagster and the app, and say what to do.

    Changes nothing. Exit code 0 only if there is no problem; a warning is none.
    """
    with one_line_errors():
        findings = list(doctor.examine(_load(), trying=console.say if functions else None))
        if as_json:
            _print_json([asdict(finding) for finding in findings])
        else:
            console.out.print(console.findings_table(findings))
        problems = [finding.subject for finding in findings if finding.state == "problem"]
        if problems:
            raise StatsPipelineError(f"something is wrong with: {', '.join(dict.fromkeys(problems))}")


@app.command()
def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be repaired.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare queue, rows and runs once, and repair every mismatch. The daemon does this each second by itself."""
    with _database(makes=False) as (loaded, opened):
        os.environ.update(services.dagster_environment(loaded, opened.url))
        from dagster import DagsterInstance  # noqa: PLC0415  # two seconds of imports that no other command needs

        from stats_pipeline.defs import upkeep  # noqa: PLC0415

        with DagsterInstance.get() as instance:
            repairs, problems = upkeep.repair_all(opened, loaded, instance, dry_run=dry_run)
        if as_json:
            _print_json([{"repair": type(repair).__name__, **asdict(repair)} for repair in repairs])
        elif repairs:
            for repair in repairs:
                console.out.print(console.plain(f"{'would' if dry_run else 'did'}: {repair}"))
        else:
            console.out.print("Nothing to repair")
        if problems:
            raise StatsPipelineError(f"{len(problems)} repairs failed and are set aside: {'; '.join(problems)}")
