"""The commands in the documentation work: every `$ ` line of README and docs is run or resolved."""

import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest

from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.acceptance.conftest import Result
from stats_pipeline_tests.links import PAGES

SERVERS = {"up", "web"}  # they run until Ctrl-C; other tests run them


def commands(prefix: str) -> list[str]:
    """The commands in `console` blocks that start so, each once."""
    found = {}
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found.update({line[2:].strip(): page for line in lines if line.startswith(f"$ {prefix}")})
    return list(found)


def test_every_command_in_the_docs_is_known() -> None:
    """A command that neither test below covers would be a command nobody has tried."""
    every = set(commands(""))
    assert every
    assert every == {*commands(".venv/bin/stats-pipeline"), *commands("make"), *commands(".venv/bin/python")}


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command: str) -> None:
    target, *arguments = shlex.split(command)[1:] or ["help"]
    subprocess.run(["make", "--dry-run", target, *arguments], cwd=PROJECT_ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", commands(".venv/bin/python"))
def test_scripts_have_the_options_that_are_named(command: str) -> None:
    """Benchmarks take minutes: here their `--help` must know the options."""
    _, *script = itertools.takewhile(lambda word: not word.startswith("--"), shlex.split(command))
    shown = subprocess.run(
        [sys.executable, *script, "--help"],
        cwd=PROJECT_ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    ).stdout
    for option in re.findall(r"--[\w-]+", command):
        assert option in shown


@pytest.mark.parametrize("command", commands(".venv/bin/stats-pipeline"))
def test_commands_do_what_they_say(command: str, cli: Callable[..., Result]) -> None:
    name, *arguments = shlex.split(command)[1:]
    if name in SERVERS:
        arguments = ["--help"]
    result = cli(name, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout
