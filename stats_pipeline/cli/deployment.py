"""The commands that run, install, examine and repair a deployment."""

import os
import secrets
import sys
from dataclasses import asdict
from datetime import date, datetime
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer
from rich.text import Text

from stats_pipeline import database, log, settings
from stats_pipeline.cli import console
from stats_pipeline.cli.base import (
    JsonOption,
    LogLevelOption,
    judging,
    load,
    one_line_errors,
    opened_database,
    print_json,
    turn,
)
from stats_pipeline.database import budget, migrate
from stats_pipeline.deployment import doctor, up
from stats_pipeline.errors import StatsPipelineError
from stats_pipeline.jobs import queue, run_direct
from stats_pipeline.jobs.reconcile import read
from stats_pipeline.web import address

if TYPE_CHECKING:
    from stats_pipeline.demo import receiver

app = typer.Typer()

_EMERGENCY_SECONDS = 10  # that `run-direct` waits for its connections


@app.command("up")
def up_command(log_level: LogLevelOption = None) -> None:
    """Run everything until Ctrl-C.

    Starts the embedded database (unless STATS_DATABASE_URL is set), applies migrations, runs the admin page and
    Dagster's code server, daemon and UI, and restarts any of them that dies.
    """
    with one_line_errors():
        loaded = load(log_level)
        say = console.say
        address.require_a_key(loaded, is_terminal=sys.stderr.isatty())
        with up.single_instance(loaded):
            up.check_ports(loaded)
            up.wait_for_database(loaded, say)
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
        console.err.print("Stopped" if up.stop_all(load()) else "Nothing was running")


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
        loaded = load(log_level)
        today = datetime.now(ZoneInfo(loaded.timezone)).date()
        with up.single_instance(loaded), receiver.Receiver() as app_server:
            up.check_ports(loaded)
            loaded = settings.load(
                STATS_LOG_LEVEL=loaded.log_level, NEXT_PUBLIC_APP_URL=app_server.url, INTERNAL_API_KEY=app_server.key
            )
            say = console.say
            say("Starting the database …")
            up.wait_for_database(loaded, say)
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

    with database.Database(url, max_connections=0, slots=budget.slots(loaded), shared=1) as opened:
        with opened.connection() as connection:
            job_id = story.play_and_enqueue(connection, today)
        job = console.follow_job(opened, job_id, loaded.functions, timeout=story.JOB_TIMEOUT, shown=not as_json)
        result = story.outcome(job, app_server.received())
        if as_json:
            print_json(asdict(result))
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

    with opened_database(log_level=log_level) as (loaded, opened):
        up.check_port_is_free(address.address(loaded), loaded.port, "STATS_PORT")
        address.require_a_key(loaded, is_terminal=sys.stderr.isatty())
        start_key = secrets.token_bytes(32)
        console.say(f"{_door(loaded, start_key)} · Ctrl-C stops")
        server.serve(loaded, opened.url, start_key=start_key)


def _door(loaded: settings.Settings, start_key: bytes) -> str:
    """Where the page is. Without a password, the link that lets in once: on a terminal only."""
    if loaded.admin_password is None:
        if sys.stderr.isatty():
            return f"Open once, to log in: {address.login_link(loaded, start_key)}"
        return "Set ADMIN_PASSWORD to open the page: there is no terminal here to show a login link on"
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
        loaded = load()
        with (
            turn(loaded),
            up.database_for(loaded) as url,
            database.connect(url, autocommit=True) as connection,
        ):
            applied = migrate.migrate(connection, reference_stats=reference_stats or loaded.database_url is None)
        if as_json:
            print_json(asdict(applied))
            return
        for kind, names in asdict(applied).items():
            console.out.print(f"{kind.replace('_', ' ')}: {', '.join(names) or 'nothing to do'}")


@app.command("run-direct")
def run_direct_command(as_json: JsonOption = False) -> None:
    """For emergencies: process jobs without Dagster.

    Jobs of crashed runs are queued again first. If no job is waiting, the statistics of every club are refreshed once.
    Exit code 1 unless every job completed and the app confirmed its cache tags.
    """
    with opened_database(two=True, patience=_EMERGENCY_SECONDS) as (loaded, opened):
        job_ids = run_direct.run_direct(opened, judging(loaded), console.say)
        with opened.connection() as connection:
            done = [queue.get_job(connection, job_id) for job_id in job_ids]
        if as_json:
            print_json([job.model_dump(mode="json") for job in done])
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
        with turn(loaded):
            findings = list(doctor.examine(loaded, trying=console.say if functions else None))
        if as_json:
            print_json([asdict(finding) for finding in findings])
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
    with opened_database(makes=False, two=True) as (loaded, opened):  # the other one is for Dagster's tables
        read(opened)  # fails if the database is not migrated, before Dagster creates its tables there
        os.environ.update(up.dagster_environment(loaded, opened.url))
        from dagster import DagsterInstance  # noqa: PLC0415  # two seconds of imports that no other command needs

        from stats_pipeline.defs.runs import repair_all  # noqa: PLC0415

        with DagsterInstance.get() as instance:
            repairs, problems = repair_all(opened, judging(loaded), instance, dry_run=dry_run)
        if as_json:
            print_json([{"repair": type(repair).__name__, **asdict(repair)} for repair in repairs])
        elif repairs:
            for repair in repairs:
                console.out.print(console.plain(f"{'Would' if dry_run else 'Done:'} {repair}"), soft_wrap=True)
        else:
            console.out.print("Nothing to repair")
        if problems:
            raise StatsPipelineError(f"{len(problems)} repairs failed and will be tried again: {'; '.join(problems)}")
