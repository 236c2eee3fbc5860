"""The app's routes from the documentation, run by Node exactly as printed there, called by the real pipeline."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stats_pipeline.jobs.invalidation import ROUTE, CacheClient
from stats_pipeline.settings import PROJECT_ROOT
from stats_pipeline_tests.web.conftest import API_KEY, CRON, CRON_SECRET, ENQUEUE, Served, settings

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="there is no node here: install Node 18 or newer")

PAGE = (PROJECT_ROOT / "docs" / "app-integration.md").read_text()
BLOCKS = re.findall(r"```ts\n(.*?)```", PAGE, re.DOTALL)

# What Next.js does around a route, as far as a route can tell.
SERVER = """
import { createServer } from 'node:http';
import { Readable } from 'node:stream';
import * as route from './route.mjs';

const server = createServer(async (incoming, outgoing) => {
  const handler = route[incoming.method];
  const body = incoming.method === 'GET' ? undefined : Readable.toWeb(incoming);
  const { method, headers, url } = incoming;
  const request = new Request(`http://app${url}`, { method, headers, body, duplex: 'half' });
  const response = await handler(request);
  outgoing.writeHead(response.status, { 'content-type': response.headers.get('content-type') });
  outgoing.end(Buffer.from(await response.arrayBuffer()));
});
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
"""
# Version 16 warns when the second argument is missing; here that is an error, and so is a tag that Next.js refuses.
NEXT_CACHE = """
export function revalidateTag(tag, profile) {
  if (arguments.length !== (process.env.NEXT_MAJOR === '16' ? 2 : 1)) throw new TypeError('wrong arguments');
  if (tag === 'refused') throw new Error('refused');
}
"""


def route(path: str) -> str:
    """The block that says it belongs at this path, without its types."""
    (found,) = (block for block in BLOCKS if block.startswith(f"// app{path}/route.ts"))
    return re.sub(r": (string\[\]|string\b|Request\b)", "", found)


@contextmanager
def app(folder: Path, code: str, **environment: str) -> Iterator[str]:
    """An app with this one route."""
    package = folder / "node_modules" / "next"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "next", "type": "module", "exports": {"./cache": "./cache.js"}}')
    (package / "cache.js").write_text(NEXT_CACHE)
    (folder / "route.mjs").write_text(code)
    (folder / "server.mjs").write_text(SERVER)
    with subprocess.Popen(
        [str(NODE), "server.mjs"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


@pytest.fixture(params=["14", "15", "16"])
def invalidation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An app whose route is the one of the documentation, for each version of Next.js."""
    code = route(ROUTE)
    if request.param == "16":
        (line,) = (block for block in BLOCKS if block.startswith("const invalidate"))
        code, changed = re.subn(r"const invalidate = .*\n", re.sub(r": string\b", "", line), code)
        assert changed == 1
    with app(tmp_path, code, INTERNAL_API_KEY=API_KEY, NEXT_MAJOR=request.param) as url:
        yield url


def test_the_app_takes_tags_and_says_which_it_could_not(invalidation: str) -> None:
    client = CacheClient(settings(NEXT_PUBLIC_APP_URL=invalidation, INTERNAL_API_KEY=API_KEY))
    try:
        taken = client.invalidate(["season_stats", "half_season_stats"], request_id="1")
        assert (taken.taken, taken.problem) == (frozenset({"season_stats", "half_season_stats"}), None)
        partly = client.invalidate(["season_stats", "refused"], request_id="2")
        assert partly.taken == {"season_stats"}
        assert "refused" in (partly.problem or "")
    finally:
        client.close()


def test_the_app_refuses_a_wrong_key_and_is_closed_without_one(invalidation: str, tmp_path: Path) -> None:
    client = CacheClient(settings(NEXT_PUBLIC_APP_URL=invalidation, INTERNAL_API_KEY="another key altogether"))
    try:
        assert "401" in (client.invalidate(["season_stats"], request_id="1").problem or "")
    finally:
        client.close()
    with app(tmp_path / "keyless", route(ROUTE)) as keyless:
        for given in ("Bearer ", "Bearer undefined", ""):
            response = httpx.post(keyless + ROUTE, json={"tags": []}, headers={"Authorization": given.strip()})
            assert response.status_code == 401


def test_the_apps_own_enqueue_route_passes_the_call_on(
    guarded: Served, tmp_path: Path, query: Callable[..., list[dict[str, Any]]]
) -> None:
    with app(tmp_path, route(ENQUEUE), STATS_PIPELINE_URL=guarded.url, INTERNAL_API_KEY=API_KEY) as url:
        answer = httpx.post(url + ENQUEUE, json={"triggeredBy": "post-match", "matchId": 1, "requestId": "1"})
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        assert httpx.post(url + ENQUEUE, json={"triggeredBy": "nobody"}).status_code == 400
    assert query("select count(*) as n from public.background_job_status") == [{"n": 1}]


def test_the_apps_own_cron_route_passes_the_call_on_once_a_day(
    guarded: Served, tmp_path: Path, query: Callable[..., list[dict[str, Any]]]
) -> None:
    with app(tmp_path, route(CRON), STATS_PIPELINE_URL=guarded.url, CRON_SECRET=CRON_SECRET) as url:
        assert httpx.get(url + CRON).status_code == 401
        for _ in range(2):
            assert httpx.get(url + CRON, headers={"Authorization": f"Bearer {CRON_SECRET}"}).status_code == 202
    assert query("select count(*) as n from public.background_job_status") == [{"n": 1}]
