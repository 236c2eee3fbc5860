"""Settings as an operator meets them: defaults, `.env.example`, and one line for each value that is wrong."""

import re
from pathlib import Path
from uuid import UUID

import pytest

from stats_pipeline import database, settings
from stats_pipeline.errors import SettingsError

VARIABLES = {str(field.validation_alias): field for field in settings.Settings.model_fields.values()}
TENANT = "8f14e45f-ceea-467f-9d0c-3a1b2c3d4e5f"


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `.env` in the checkout is the developer's own."""
    monkeypatch.setitem(settings.Settings.model_config, "env_file", None)


def example() -> dict[str, str]:
    lines = (settings.PROJECT_ROOT / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_example_lists_exactly_the_variables_that_are_read() -> None:
    assert example().keys() == VARIABLES.keys()


def test_example_shows_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = settings.load()
    for name, value in example().items():
        monkeypatch.setenv(name, value)
    assert settings.load() == defaults


def test_an_example_value_is_empty_only_where_the_default_is_none_or_depends_on_the_folder() -> None:
    assert {name for name, value in example().items() if not value} == {
        name for name, field in VARIABLES.items() if field.default in (None, ()) or isinstance(field.default, Path)
    }


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("STATS_DATABASE_URL", "mysql://localhost/app", "must start with postgresql://"),
        ("STATS_DATABASE_URL", "postgresql://localhost/app?no=option", "must be a URL such as"),
        ("NEXT_PUBLIC_APP_URL", "app.example.com", "valid URL"),
        ("STATS_CACHE_TIMEOUT_SECONDS", "0", "greater than 0"),
        ("STATS_CACHE_TIMEOUT_SECONDS", "soon", "number"),
        ("STATS_CACHE_DEADLINE_SECONDS", "0", "greater than or equal to 1"),
        ("STATS_CACHE_DEADLINE_SECONDS", "1.5", "integer"),
        ("STATS_TENANTS", f"{TENANT},the-other-club", "UUID"),
        ("STATS_CRON", "0 2 * *", "five fields"),
        ("STATS_CRON", "61 2 * * *", "five fields"),
        ("STATS_TIMEZONE", "Europe/Londinium", "IANA"),
        ("STATS_OPTIONAL_FUNCTIONS", "update_everything", "update_aggregated_player_teammate_stats"),
        ("STATS_MAX_RUNS", "0", "greater than or equal to 1"),
        ("STATS_MAX_ATTEMPTS", "0", "greater than or equal to 1"),
        ("STATS_LEASE_SECONDS", "4", "greater than or equal to 5"),
        ("STATS_DEAD_AFTER_SECONDS", "1", "greater than or equal to 2"),
        ("STATS_RETENTION_DAYS", "-1", "greater than or equal to 0"),
        ("STATS_UI_URL", "localhost:3000", "URL scheme should be"),
        ("STATS_WEB_PORT", "0", "greater than or equal to 1"),
        ("ADMIN_PASSWORD", "short", "at least 8"),
        ("STATS_SESSION_HOURS", "0", "greater than or equal to 1"),
        ("STATS_UI_PORT", "65536", "less than or equal to 65535"),
        ("STATS_UI_PORT", "http", "integer"),
        ("STATS_UI_URL", "dagster.example.com", "valid URL"),
        ("CRON_SECRET", "fifteen letters", "at least 16"),
        ("STATS_READ_ONLY", "perhaps", "boolean"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        settings.load()
    message = str(caught.value)
    assert message.startswith(f"{variable} ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_both_spellings_of_the_databases_scheme_are_known(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    url = f"{scheme}://someone:hunter2@db.example.com:6543/app"
    monkeypatch.setenv("STATS_DATABASE_URL", url)
    assert database.database_url(settings.load()) == url
    assert database.describe(url) == "db.example.com:6543/app"
    assert database.sqlalchemy_url(url, schema="dagster").startswith("postgresql+psycopg2://someone:hunter2@/app?")


def test_every_variable_that_can_be_wrong_has_a_case_above() -> None:
    (cases,) = (
        mark.args[1]
        for mark in test_a_bad_value_is_one_line_that_names_the_variable.pytestmark  # type: ignore[attr-defined]
    )
    any_text = {"STATS_HOME", "INTERNAL_API_KEY", "STATS_HOST"}
    assert {variable for variable, *_ in cases} == VARIABLES.keys() - any_text


def test_several_bad_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATS_UI_PORT", "0")
    monkeypatch.setenv("STATS_CRON", "never")
    with pytest.raises(SettingsError, match=r"STATS_CRON .*; STATS_UI_PORT "):
        settings.load()


def test_an_app_without_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXT_PUBLIC_APP_URL", "https://app.example.com")
    with pytest.raises(SettingsError, match=r"^INTERNAL_API_KEY must be set"):
        settings.load()


@pytest.mark.parametrize("variable", ["STATS_DATABASE_URL", "INTERNAL_API_KEY"])
def test_secrets_are_in_no_message_and_no_repr(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "postgresql://someone:hunter2@localhost/app")
    assert "hunter2" not in repr(settings.load())

    monkeypatch.setenv("STATS_DATABASE_URL", "mysql://someone:hunter2@localhost/app")
    with pytest.raises(SettingsError) as caught:
        settings.load()
    assert "hunter2" not in str(caught.value)


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATS_TENANTS", f" {TENANT}, 00000000-0000-0000-0000-000000000001,")
    monkeypatch.setenv("STATS_OPTIONAL_FUNCTIONS", "update_aggregated_player_teammate_stats")
    loaded = settings.load()
    assert loaded.tenants == (UUID(TENANT), UUID("00000000-0000-0000-0000-000000000001"))
    assert len(loaded.functions) == 11


def test_nothing_else_reads_the_environment() -> None:
    """`os.environ` is passed on to child processes in one module; no other looks a variable up."""
    readers = {
        file.relative_to(settings.PROJECT_ROOT).as_posix()
        for file in (settings.PROJECT_ROOT / "stats_pipeline").rglob("*.py")
        if re.search(r"os\.(environ\[|environ\.get|getenv)", file.read_text())
    }
    assert readers == set()
