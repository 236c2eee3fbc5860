"""The catalog compared with the app's own list of functions; and the error messages for an invalid catalog."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stats_pipeline import catalog
from stats_pipeline.catalog import OPTIONAL_STATS_FUNCTIONS, STATS_FUNCTIONS, dependents, select_functions
from stats_pipeline.errors import CatalogError
from stats_pipeline.settings import PROJECT_ROOT, SQL_ROOT
from stats_pipeline_tests.reference import APP, FUNCTIONS, RPCS, TABLES, TEN

SECTION = "stats_update.functions.update_assists"
GOOD = """
[stats_update.functions.update_assists]
name = "call-update-assists"
summary = "Who passes to whom."
cache_tags = ["assists"]
tables = ["aggregated_assists"]
reads = ["players", "matches"]
"""
SQL_NAMES = 'must be a list of names in SQL, such as ["players"]'
KEYS = "it may be one of name, cache_tags, tables, reads, summary, timeout_seconds, after, optional"


def test_names_rpcs_and_tags_are_the_apps() -> None:
    ours = [f"{function.name} {function.rpc} {','.join(function.cache_tags)}" for function in STATS_FUNCTIONS]
    assert [line for line in ours if line.split()[1] in TEN] == APP


def test_ten_of_the_reference_set_are_always_part_of_a_refresh() -> None:
    always = {function.rpc for function in STATS_FUNCTIONS}
    assert [rpc for rpc in RPCS if rpc not in always] == ["update_aggregated_player_teammate_stats"]


def test_eleven_tags_are_invalidated_by_the_reference_set() -> None:
    tags = [tag for function in FUNCTIONS[:10] for tag in function.cache_tags]
    assert len(tags) == len(set(tags)) == 11


def test_no_function_of_the_reference_set_reads_what_another_one_fills() -> None:
    for function in FUNCTIONS:
        file = SQL_ROOT / "stats" / f"{function.rpc}.sql"
        mentioned = set(re.findall(r"public\.(\w+)", file.read_text()))
        assert mentioned & set(TABLES) <= set(function.tables), function.rpc


def test_optional_functions_run_only_when_they_are_named() -> None:
    assert select_functions() == STATS_FUNCTIONS
    [named] = [function for function in OPTIONAL_STATS_FUNCTIONS if function.rpc == RPCS[-1]]
    assert select_functions((named.rpc,)) == (*STATS_FUNCTIONS, named)


def test_what_comes_after_a_function_directly_or_through_others() -> None:
    first, second, third, fourth, fifth = FUNCTIONS[:5]
    chain = (
        first,
        replace(second, after=(first.rpc,)),
        replace(third, after=(second.rpc, first.rpc)),
        replace(fourth, after=(third.rpc,)),
        replace(fifth, after=()),
    )
    assert dependents(first.rpc, chain) == {second.rpc, third.rpc, fourth.rpc}
    assert dependents(third.rpc, chain) == {fourth.rpc}
    assert dependents(fifth.rpc, chain) == set()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "catalog.toml"


def test_an_entry_has_defaults(file: Path) -> None:
    file.write_text(GOOD)
    [function] = catalog.read(file)
    assert (function.rpc, function.tables) == ("update_assists", ("aggregated_assists",))
    assert (function.timeout_seconds, function.after, function.optional) == (45, (), False)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "call-update-assists"', "", f"{SECTION}.name is missing: it must be a text"),
        ('name = "call-update-assists"', 'name = " "', f"{SECTION}.name must be a text"),
        ('["assists"]', '"assists"', f'{SECTION}.cache_tags must be a list of texts, such as ["season_stats"]'),
        ('["assists"]', "[7]", f'{SECTION}.cache_tags must be a list of texts, such as ["season_stats"]'),
        ('["aggregated_assists"]', "[]", f"{SECTION}.tables {SQL_NAMES}, and not empty"),
        ('"matches"]', '"public.matches"]', f"{SECTION}.reads {SQL_NAMES}"),
        ('"matches"]', '"aggregated_assists"]', f"{SECTION}.reads must not name what it fills itself: aggregated_assi"),
        ("reads", "timeout_seconds = 0\nreads", f"{SECTION}.timeout_seconds must be a whole number from 1 to 3600"),
        ("reads", 'timeout_seconds = "9"\nreads', f"{SECTION}.timeout_seconds must be a whole number from 1 to 3600"),
        ("reads", "timeout_seconds = true\nreads", f"{SECTION}.timeout_seconds must be a whole number from 1 to 3600"),
        ("reads", 'optional = "no"\nreads', f"{SECTION}.optional must be true or false"),
        ("reads", "timeout = 9\nreads", f"{SECTION}.timeout is not known; {KEYS}"),
        ("reads", 'rpc = "update_assists"\nreads', f"{SECTION} must be a section, with name, "),
        ("reads", 'after = ["nobody"]\nreads', f"{SECTION}.after names nobody; it may name the functions that are not"),
        ("reads", 'after = ["update_assists"]\nreads', f"{SECTION}.after must not lead back to itself"),
        ("update_assists]", '"update assists"]', "stats_update.functions.update assists must end with a name in SQL"),
        ("[stats_update.", "[stats_updates.", "stats_updates is not known; it may be stats_update"),
        (".functions.", ".function.", "stats_update.function is not known; it may be functions"),
        (GOOD, "", "stats_update must be a section that is not empty"),
        (GOOD, "[stats_update]\nfunctions = 7", "stats_update.functions must be a section that is not empty"),
        (GOOD, "[stats_update.functions]\nupdate_assists = 7", f"{SECTION} must be a section, with name, "),
        (GOOD, GOOD.replace("update_assists", "update_more") + GOOD, "stats_update.functions.update_more.name must be"),
    ],
)
def test_a_wrong_catalog_is_named_with_the_key_and_what_it_may_be(file: Path, old: str, new: str, problem: str) -> None:
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(CatalogError) as refused:
        catalog.read(file)
    assert str(refused.value).startswith(f"{file}: {problem}")
    assert "\n" not in str(refused.value)


def test_a_table_is_filled_by_one_function(file: Path) -> None:
    file.write_text(GOOD + GOOD.replace("update_assists", "update_more").replace("call-update-assists", "more"))
    with pytest.raises(CatalogError, match="tables must name tables that nothing else fills: aggregated_assists is"):
        catalog.read(file)


def test_functions_that_come_after_each_other_are_refused(file: Path) -> None:
    first = GOOD + 'after = ["update_more"]\n'
    second = re.sub("assists", "more", GOOD) + 'after = ["update_assists"]\n'
    file.write_text(first + second)
    with pytest.raises(CatalogError, match=rf"{SECTION}\.after must not lead back to itself"):
        catalog.read(file)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"[stats_update", "is not TOML: Expected"), (b"# \xff", "utf-8"), (None, "cannot be read: No such file")],
)
def test_a_file_that_is_no_catalog_is_named(file: Path, content: bytes | None, problem: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CatalogError, match=f"^{re.escape(str(file))}.*{problem}"):
        catalog.read(file)


def test_a_command_with_a_wrong_catalog_says_so_in_one_line(tmp_path: Path) -> None:
    shutil.copytree(PROJECT_ROOT / "stats_pipeline", tmp_path / "stats_pipeline")
    file = tmp_path / "stats_pipeline" / "catalog.toml"
    file.write_text("[stats_updates]")
    ran = subprocess.run(
        [sys.executable, "-m", "stats_pipeline", "jobs"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr == f"Error: {file}: stats_updates is not known; it may be stats_update\n"
