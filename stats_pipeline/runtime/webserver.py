"""Dagster's UI as an ASGI app, to be put behind a guard: read-only for whom the guard does not let change anything.

Who that is, where the app is served, and who may ask for what is the caller's affair.
"""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from dagster._core.workspace.context import (  # what the UI shows, for the process and for one request
    WorkspaceProcessContext,
    WorkspaceRequestContext,
)
from dagster._core.workspace.load_target import WorkspaceFileTarget  # the workspace file
from dagster_webserver.app import create_app_from_workspace_process_context  # the UI, to put a guard in front of it
from graphql import FieldNode, GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.types import ASGIApp

Kind = Literal["graphql", "log", "dump", "notebook", "report", "about"]
MayChange = Callable[[MutableMapping[str, Any]], bool]

# The app's addresses that are neither files nor the UI's one page, without the prefix. A name that ends with a slash is
# the beginning of addresses.
ADDRESSES: Mapping[str, Kind] = {
    "/graphql": "graphql",
    "/logs/": "log",  # what a run has printed
    "/download_debug/": "dump",  # all events of a run
    "/notebook": "notebook",
    "/dagit/notebook": "notebook",
    "/report_asset_materialization/": "report",
    "/report_asset_check/": "report",
    "/report_asset_observation/": "report",
    "/server_info": "about",
    "/dagit_info": "about",
}
_MAX_TOKENS = 8_000  # the UI's largest query has some thousands
_MAX_MUTATIONS = 5  # the UI sends one at a time
# Files that the UI asks for without the prefix.
FILES_AT_THE_ROOT = frozenset({"/favicon-run-pending.svg", "/favicon-run-success.svg", "/favicon-run-failed.svg"})


class _Roles(WorkspaceProcessContext):
    """Decides for each request whether it may change anything."""

    def __init__(self, instance: dg.DagsterInstance, workspace: Path, may_change: MayChange) -> None:
        self._may_change = may_change
        target = WorkspaceFileTarget([str(workspace)])
        super().__init__(instance, version=dg.__version__, workspace_load_target=target)

    def create_request_context(self, source: Any = None) -> WorkspaceRequestContext:
        # Without a request there is nobody who may.
        may_change = source is not None and self._may_change(source.scope)
        return WorkspaceRequestContext(
            instance=self.instance,
            current_workspace=self.get_current_workspace(),
            process_context=self,
            version=self.version,
            source=source,
            read_only=not may_change,
        )


class UnreasonableQuery(ValueError):
    """No page of the UI sends such a query; the message says what is wrong with it."""


def mutations_of(body: bytes) -> list[str]:
    """The names of the mutations that the body of a request to `/graphql` could execute.

    Empty if it cannot be read: Dagster answers that itself. Takes 0.1 s of CPU at most. Raises `UnreasonableQuery`,
    also for mutations whose names cannot be told.
    """
    try:
        query = json.loads(body)["query"]
        document = parse(query, max_tokens=_MAX_TOKENS)
    except GraphQLError as error:
        if "tokens" in error.message:
            raise UnreasonableQuery("the query is too long") from None
        return []
    except RecursionError:
        raise UnreasonableQuery("the query is too deep") from None
    except (ValueError, TypeError, KeyError):
        return []
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    found = [operation for operation in operations if operation.operation is OperationType.MUTATION]
    chosen = [each for operation in found for each in operation.selection_set.selections]
    names = [each.name.value for each in chosen if isinstance(each, FieldNode)]
    if len(names) < len(chosen) or len(names) > _MAX_MUTATIONS:
        raise UnreasonableQuery(f"name each mutation, and at most {_MAX_MUTATIONS}")
    return names


@contextmanager
def dagster_app(workspace: Path, *, prefix: str, may_change: MayChange) -> Iterator[ASGIApp]:
    """The UI of the instance in `DAGSTER_HOME`, for the length of the block.

    It is served below `prefix`, with the prefix in the path. `may_change` is asked with the ASGI scope of each request.
    Blocks while a code server hangs. The app calls blocking code on its event loop.
    """
    with dg.DagsterInstance.get() as instance, _Roles(instance, workspace, may_change) as context:
        yield create_app_from_workspace_process_context(context, path_prefix=prefix)
