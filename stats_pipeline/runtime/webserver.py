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
from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
_MAX_QUERY = 1_000_000  # bytes, of who may only look
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


class _NoMutations:
    """ASGI: refuses the mutations of those who may not change anything, as some of Dagster's check no permission."""

    def __init__(self, app: ASGIApp, prefix: str, may_change: MayChange) -> None:
        self._app = app
        self._graphql = f"{prefix}/graphql"
        self._may_change = may_change

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == self._graphql and not self._may_change(scope):
            body = bytearray()
            async for chunk in Request(scope, receive).stream():
                body += chunk
                if len(body) > _MAX_QUERY:
                    return await _refuse(413, "the query is too long")(scope, receive, send)
            try:
                is_mutation = _has_mutation(bytes(body))
            except RecursionError:
                return await _refuse(400, "the query is too deep")(scope, receive, send)
            if is_mutation:
                return await _refuse(403, "who may only look may change nothing")(scope, receive, send)
            receive = _replaying(bytes(body), receive)
        return await self._app(scope, receive, send)


def _has_mutation(body: bytes) -> bool:
    """Whether a mutation could be executed; what cannot be read is answered by Dagster."""
    try:
        query = json.loads(body)["query"]
        operations = [node for node in parse(query).definitions if isinstance(node, OperationDefinitionNode)]
    except (ValueError, TypeError, KeyError, GraphQLError):
        return False
    return any(operation.operation is OperationType.MUTATION for operation in operations)


def _replaying(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay


def _refuse(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"errors": [{"message": reason}]}, status)


@contextmanager
def dagster_app(workspace: Path, *, prefix: str, may_change: MayChange) -> Iterator[ASGIApp]:
    """The UI of the instance in `DAGSTER_HOME`, for the length of the block.

    It is served below `prefix`, with the prefix in the path. `may_change` is asked with the ASGI scope of each request.
    Blocks while a code server hangs. The app calls blocking code on its event loop.
    """
    with dg.DagsterInstance.get() as instance, _Roles(instance, workspace, may_change) as context:
        app = create_app_from_workspace_process_context(context, path_prefix=prefix)
        yield _NoMutations(app, prefix, may_change)
