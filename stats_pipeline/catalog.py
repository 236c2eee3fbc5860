"""The stats functions, as data: the name, inputs, outputs, cache tags and timeout of each.

This module reads and checks `catalog.toml`, which lists them. Ops, assets, results, tags and the CLI's live table all
follow from it. How a function is run belongs to `defs/`, what it computes to `sql/stats/`.
"""

import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from stats_pipeline.errors import CatalogError

CATALOG = Path(__file__).with_name("catalog.toml")
DEFAULT_TIMEOUT_SECONDS = 45  # the whole refresh took this long before; a single function that needs longer is stuck

# Valid as a name in PostgreSQL and as the name of an op or an output in Dagster.
_SqlName = Annotated[str, StringConstraints(pattern="^[A-Za-z_][A-Za-z0-9_]{0,62}$")]
_Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
_SQL_NAMES = 'a list of names in SQL, such as ["players"]'


@dataclass(frozen=True)
class StatsFunction:
    """One entry. `after` names the RPCs whose output this one reads; the reference set has none."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: Annotated[_Text, Field(description="a text")]
    rpc: Annotated[_SqlName, Field(description="a name in SQL, of letters, digits and _")]
    cache_tags: Annotated[tuple[_Text, ...], Field(description='a list of texts, such as ["season_stats"]')]
    tables: Annotated[tuple[_SqlName, ...], Field(min_length=1, description=f"{_SQL_NAMES}, and not empty")]
    reads: Annotated[tuple[_SqlName, ...], Field(description=_SQL_NAMES)]
    summary: Annotated[_Text, Field(description="a text")]
    timeout_seconds: Annotated[int, Field(strict=True, ge=1, le=3600, description="a whole number from 1 to 3600")] = (
        DEFAULT_TIMEOUT_SECONDS
    )
    after: Annotated[tuple[_SqlName, ...], Field(description=_SQL_NAMES)] = ()
    optional: Annotated[bool, Field(strict=True, description="true or false")] = False


_Entry = TypeAdapter(StatsFunction)
_MAY_BE = {key: field["description"] for key, field in _Entry.json_schema()["properties"].items()}
_KEYS = ", ".join(key for key in _MAY_BE if key != "rpc")


def read(file: Path) -> tuple[StatsFunction, ...]:
    """The functions of a catalog, in its order, including the optional ones.

    Raises `CatalogError`, which names the file, the key and its allowed values.
    """
    try:
        functions = _parse(tomllib.loads(file.read_text(encoding="utf-8")))
        if problem := next(_contradictions(functions), None):
            raise ValueError(problem)
    except OSError as error:
        raise CatalogError(f"{file} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise CatalogError(f"{file} is not TOML: {error}") from None
    except ValueError as error:  # also for invalid UTF-8
        raise CatalogError(f"{file}: {error}") from None
    return functions


def _parse(content: Mapping[str, Any]) -> tuple[StatsFunction, ...]:
    functions = _section(_section(content, "", "stats_update"), "stats_update", "functions")
    return tuple(_entry(rpc, entry) for rpc, entry in functions.items())


def _section(parent: Mapping[str, Any], path: str, name: str) -> Mapping[str, Any]:
    """The only key that a section may have. It must itself be a section that is not empty."""
    if unknown := parent.keys() - {name}:
        raise ValueError(f"{'.'.join(filter(None, (path, min(unknown))))} is not known; it may be {name}")
    section = parent.get(name)
    if not isinstance(section, dict) or not section:
        raise ValueError(f"{'.'.join(filter(None, (path, name)))} must be a section that is not empty")
    return section


def _entry(rpc: str, entry: object) -> StatsFunction:
    path = f"stats_update.functions.{rpc}"
    if not isinstance(entry, dict) or "rpc" in entry:
        raise ValueError(f"{path} must be a section, with {_KEYS}")
    try:
        return _Entry.validate_python({"rpc": rpc, **entry})
    except ValidationError as error:
        raise ValueError(_explain(path, error.errors(include_input=False)[0])) from None


def _explain(path: str, problem: ErrorDetails) -> str:
    key = str(problem["loc"][0])
    if key == "rpc":
        return f"{path} must end with {_MAY_BE[key]}"
    if key not in _MAY_BE:
        return f"{path}.{key} is not known; it may be one of {_KEYS}"
    is_missing = " is missing: it" if problem["type"] == "missing" else ""
    return f"{path}.{key}{is_missing} must be {_MAY_BE[key]}"


def _contradictions(functions: Sequence[StatsFunction]) -> Iterator[str]:
    """One sentence per contradiction between the entries."""
    always = {function.rpc for function in functions if not function.optional}
    filled = Counter(table for function in functions for table in function.tables)
    names = Counter(function.name for function in functions)
    for function in functions:
        path = f"stats_update.functions.{function.rpc}"
        if names[function.name] > 1:
            yield f"{path}.name must be another one: {function.name} is there twice"
        if twice := [table for table in function.tables if filled[table] > 1]:
            yield f"{path}.tables must name tables that nothing else fills: {twice[0]} is there twice"
        if both := set(function.reads) & set(function.tables):
            yield f"{path}.reads must not name what it fills itself: {min(both)}"
        if unknown := set(function.after) - always:
            yield f"{path}.after names {min(unknown)}; it may name the functions that are not optional"
        if function.rpc in dependents(function.rpc, functions):
            yield f"{path}.after must not lead back to itself"


def dependents(rpc: str, functions: Collection[StatsFunction]) -> set[str]:
    """The RPCs that come after this one, directly or through others."""
    found: set[str] = set()
    waiting = {rpc}
    while later := {each.rpc for each in functions if waiting & set(each.after)} - found:
        found |= later
        waiting = later
    return found


ALL_STATS_FUNCTIONS = read(CATALOG)
STATS_FUNCTIONS = tuple(function for function in ALL_STATS_FUNCTIONS if not function.optional)
OPTIONAL_STATS_FUNCTIONS = tuple(function for function in ALL_STATS_FUNCTIONS if function.optional)


def select_functions(optional_rpcs: tuple[str, ...] = ()) -> tuple[StatsFunction, ...]:
    """The functions that are always part of a refresh, and the optional ones that are named."""
    return STATS_FUNCTIONS + tuple(f for f in OPTIONAL_STATS_FUNCTIONS if f.rpc in optional_rpcs)
