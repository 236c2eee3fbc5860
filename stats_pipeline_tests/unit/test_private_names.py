"""Private names of Dagster's: where they are imported, that each has a reason, and that the page lists them."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

from stats_pipeline.runtime import private
from stats_pipeline.settings import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "stats_pipeline"
PAGE = PROJECT_ROOT / "docs" / "upgrading-dagster.md"
EVERY_USER = {each.user for each in private.all_private_names()}


def test_only_the_runtime_imports_any() -> None:
    users = {
        file.relative_to(PACKAGE).parent
        for file in PACKAGE.rglob("*.py")
        if private.private_names(file.read_text(), file.stem)
    }
    assert users == {Path("runtime")}


def test_the_page_lists_them_all_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)`: (.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    listed = [
        private.Private(user, module, name) for user, module, names, _ in rows for name in re.findall(r"`(\w+)`", names)
    ]
    assert sorted(listed) == sorted(private.all_private_names())


def test_each_import_says_why() -> None:
    silent = []
    for file in private.FOLDER.glob("*.py"):
        source = file.read_text()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ImportFrom):
                continue
            statement = ast.get_source_segment(source, node)
            if statement and private.private_names(statement, file.stem):
                lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
                if not any("#" in line for line in lines):
                    silent.append(f"{file.name}: {statement}")
    assert silent == []


def test_the_installed_dagster_has_them() -> None:
    assert private.missing(EVERY_USER) == []


LOOKED_UP = {
    ("dagster._core.events", "EngineEventData"): True,  # is imported with Dagster
    ("dagster._core.events", "MovedElsewhere"): False,
    ("dagster._daemon.cli", "main"): True,  # is only read
    ("dagster._daemon.cli", "moved_elsewhere"): False,
    ("dagster._daemon.moved_elsewhere", "main"): False,
    ("dagster._moved_elsewhere.cli", "main"): False,
    ("dagster._daemon.cli", ""): True,
}


def test_a_name_is_looked_up_without_importing_its_module() -> None:
    code = (
        "import json, sys, dagster; from stats_pipeline.runtime import private; "
        "print(json.dumps([private._has(*each) for each in json.loads(sys.argv[1])])); "
        "sys.exit('dagster._daemon.cli' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(list(LOOKED_UP))]
    looked = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(looked.stdout) == list(LOOKED_UP.values())
