"""What each process of `up` is given of the settings and of the user's environment.

That it gets nothing else is shown in `test_forking.py`.
"""

from pathlib import Path

import pytest

from stats_pipeline.deployment.up import Deployment
from stats_pipeline.settings import Settings

DOORS_OWN = {"ADMIN_PASSWORD": "the admin's", "VIEWER_PASSWORD": "the viewer's", "CRON_SECRET": "the scheduler's own"}
RUNS_OWN = {"STATS_HTTP_PROXY": "http://proxy:3128", "STATS_APP_HEADERS": '{"x-bypass": "protected"}'}
HOSTILE = {
    "PGHOST": "nowhere",
    "DAGSTER_HOME": "/nowhere",
    "PYTHONSTARTUP": "/nowhere",
    "https_proxy": "http://nowhere",
}


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    given = {"STATS_HOME": str(tmp_path), "INTERNAL_API_KEY": "the key of the app's own"}
    settings = Settings(_env_file=None, **given, **DOORS_OWN, **RUNS_OWN)  # type: ignore[arg-type]
    (tmp_path / "dagster").mkdir()
    return Deployment(settings, "postgresql://here/database", print)


def test_secrets_go_only_to_the_processes_that_need_them(deployment: Deployment) -> None:
    for_dagster, for_door = deployment._for_dagster(), deployment._for_door()
    assert RUNS_OWN.items() <= for_dagster.items()
    assert DOORS_OWN.items() <= for_door.items()
    assert not for_dagster.keys() & DOORS_OWN.keys()
    assert not for_door.keys() & RUNS_OWN.keys()
    for environment in (for_dagster, for_door):
        assert environment["STATS_DATABASE_URL"] == "postgresql://here/database"
        assert environment["INTERNAL_API_KEY"] == "the key of the app's own"


def test_the_users_environment_does_not_reach_them(deployment: Deployment) -> None:
    started: list[object] = []
    deployment._supervisor.start = started.append  # type: ignore[method-assign, assignment]
    deployment._logs.mkdir()
    child = deployment._start("daemon", lambda: None, deployment._for_dagster())
    assert started == [child]
    assert not child.environment.keys() & HOSTILE.keys() - {"DAGSTER_HOME"}
    assert child.environment["DAGSTER_HOME"] == str(deployment.settings.dagster_home)
    assert child.environment["PATH"]
