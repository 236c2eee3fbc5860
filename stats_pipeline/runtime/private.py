"""Lists the private names of Dagster that this folder imports, and those that the installed Dagster does not have.

No other module of the package imports one. A comment beside each import gives its purpose;
`docs/upgrading-dagster.md` lists the checks for a new version of Dagster.
"""

import ast
import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
# Needed in both profiles: Dagster's own commands, its UI, and starting stopped sensors.
IN_EVERY_PROFILE = ("commands", "instance", "webserver")


class Private(NamedTuple):
    """One import: a module of this folder, and the name that it imports from a module of Dagster's."""

    user: str
    module: str
    name: str


def private_names(source: str, user: str) -> list[Private]:
    """The imports in a module's source text, in order. A module imported whole has an empty name."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and _is_private(node.module or ""):
            found += [Private(user, node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [Private(user, alias.name, "") for alias in node.names if _is_private(alias.name)]
    return found


def all_private_names() -> list[Private]:
    """The imports of this folder."""
    return [each for file in sorted(FOLDER.glob("*.py")) for each in private_names(file.read_text(), file.stem)]


def missing(users: Collection[str]) -> list[str]:
    """The names that these modules import and the installed Dagster does not have.

    A module that is not imported yet is only read as text: importing Dagster's daemon would cost 40 MB.
    """
    wanted = [each for each in all_private_names() if each.user in users]
    return [f"{module}.{name}".rstrip(".") for _, module, name in wanted if not _has(module, name)]


def _is_private(module: str) -> bool:
    """Private by its name, or a module inside one of Dagster's integrations, whose modules are undocumented."""
    package, *inside = module.split(".")
    return (package == "dagster" and any(part.startswith("_") for part in inside)) or (
        package.startswith("dagster_") and bool(inside)
    )


def _has(module: str, name: str) -> bool:
    if module in sys.modules:
        return not name or hasattr(sys.modules[module], name)
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its package does not exist either
        return False
    if spec is None or spec.origin is None:
        return False
    return not name or name in _top_level_names(Path(spec.origin).read_text(encoding="utf-8"))


def _top_level_names(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    return names
