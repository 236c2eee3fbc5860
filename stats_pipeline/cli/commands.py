"""The command line. Each command is a few lines: the work is done by the modules it calls.

Exit code 1: the work failed, and one line on standard error says why and what to do. Exit code 2: invalid usage.
"""

from typing import Annotated

import typer

from stats_pipeline import settings
from stats_pipeline.cli import console, deployment, jobs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for commands in (deployment.app, jobs.app):
    app.add_typer(commands)


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
