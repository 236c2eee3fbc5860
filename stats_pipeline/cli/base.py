"""What commands have in common: options, errors as one line, settings, the database for the length of a command."""

import json
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Annotated, Any, NoReturn

import psycopg
import typer
from rich.text import Text

from stats_pipeline import database, log, settings
from stats_pipeline.cli import console
from stats_pipeline.database import budget
from stats_pipeline.deployment import up
from stats_pipeline.errors import StatsPipelineError, is_permanent, one_line

LogLevelOption = Annotated[
    settings.LogLevel | None, typer.Option(help="How much to log to standard error. Default: STATS_LOG_LEVEL, or info.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


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
        fail(str(error))
    except psycopg.Error as error:
        advice = "run `stats-pipeline migrate` to update its schema" if is_permanent(error) else "try again"
        fail(f"STATS_DATABASE_URL: the database rejected the call: {one_line(error)}; {advice}")
    except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
        path = os.fsdecode(error.filename or "")
        fail(f"STATS_HOME: {path}: {error.strerror}; choose a folder that this user may write to")
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def fail(problem: str) -> NoReturn:
    console.err.print(Text.assemble(("Error:", "red"), " ", console.plain(problem)), soft_wrap=True)
    raise typer.Exit(1) from None


def load(log_level: settings.LogLevel | None = None) -> settings.Settings:
    """The settings; prints warnings about them. A command logs errors only, the processes it starts the given level."""
    loaded = settings.load(**({"STATS_LOG_LEVEL": log_level} if log_level else {}))
    log.configure("error")
    for warning in settings.warnings():
        console.err.print(Text.assemble(("Warning:", "yellow"), " ", console.plain(warning)), soft_wrap=True)
    return loaded


def _interrupt() -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def turn(loaded: settings.Settings) -> Iterator[None]:
    """One of the deployment's connections, for the length of the block: waits for it if none is free."""
    slots = budget.slots(loaded)
    if slots is None:
        yield
        return
    if (held := slots.try_to_take("other")) is None:
        _say_that_it_waits(loaded, "one")
        held = slots.take("other")
    with held:
        yield


def _say_that_it_waits(loaded: settings.Settings, count: str) -> None:
    console.say(f"All {loaded.max_connections} connections (STATS_MAX_CONNECTIONS) are in use: waiting for {count} …")


@contextmanager
def opened_database(
    *, makes: bool = True, two: bool = False, patience: float = math.inf, log_level: settings.LogLevel | None = None
) -> Iterator[tuple[settings.Settings, database.Database]]:
    """The database, for the length of one command; the embedded one is started if it is not running.

    A command has one connection of the deployment's budget, and lets others have it between two uses; with `two` it
    holds as many as a run, one of them for this, or goes on without after `patience`, seconds. Without `makes`, the
    command fails if the embedded database does not exist yet.
    """
    with one_line_errors(), ExitStack() as stack:
        loaded = load(log_level)
        if not makes:
            up.check_there_is_a_database(loaded)
        if two and not budget.take_room_for_a_command(
            loaded, lambda: _say_that_it_waits(loaded, "two"), patience=patience
        ):
            console.say(f"None became free within {patience:g} seconds: going on with more than STATS_MAX_CONNECTIONS")
        slots = None if two else budget.slots(loaded)
        with nullcontext() if two else turn(loaded):
            url = stack.enter_context(up.database_for(loaded))
            if loaded.database_url is None:
                up.migrated(loaded, url)
        own, shared = (1, 0) if slots is None else (0, 1)
        yield loaded, stack.enter_context(database.Database(url, max_connections=own, slots=slots, shared=shared))


def judging(loaded: settings.Settings) -> settings.Settings:
    """The settings by which a command tells dead runs from live ones: in `stock`, with the time that its runs need."""
    return loaded.for_dagster() if loaded.runtime == "stock" else loaded


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")
