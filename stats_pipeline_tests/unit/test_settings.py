"""Settings as an operator sees them: defaults, `.env.example`, and one line for each wrong value."""

import os
import re
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
from pydantic import SecretStr

from stats_pipeline import database, settings
from stats_pipeline.catalog import STATS_FUNCTIONS
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
        ("STATS_DATABASE_URL", "postgresql://localhost/app?no=option", "has the parameter no, which"),
        ("NEXT_PUBLIC_APP_URL", "app.example.com", "must be a URL such as"),
        ("STATS_CACHE_TIMEOUT_SECONDS", "0", "must be a number from 0.1 to 60"),
        ("STATS_CACHE_TIMEOUT_SECONDS", "soon", "must be a number from 0.1 to 60"),
        ("STATS_CACHE_DEADLINE_SECONDS", "0", "must be a whole number from 1 to 604800"),
        ("STATS_CACHE_DEADLINE_SECONDS", "1.5", "whole number"),
        ("STATS_TENANTS", f"{TENANT},the-other-club", "must be UUIDs, separated by commas"),
        ("STATS_CRON", "0 2 * *", "five fields"),
        ("STATS_CRON", "61 2 * * *", "five fields"),
        ("STATS_TIMEZONE", "Europe/Londinium", "IANA"),
        ("STATS_OPTIONAL_FUNCTIONS", "update_everything", "update_aggregated_player_teammate_stats"),
        ("STATS_MAX_RUNS", "0", "from 1 to 100"),
        ("STATS_MAX_ATTEMPTS", "0", "from 1 to 20"),
        ("STATS_MAX_CONNECTIONS", "10", "must be a whole number from 11 to 1000"),
        ("STATS_MAX_CONNECTIONS", "a dozen", "must be a whole number from 11 to 1000"),
        ("STATS_DAGSTER_DATABASE_URL", "postgresql://me:hush@hush@localhost/app", "@ as %40"),
        ("STATS_LEASE_SECONDS", "4", "from 5 to 3600"),
        ("STATS_DEAD_AFTER_SECONDS", "nan", "must be a number from 2 to 600"),
        ("STATS_RETENTION_DAYS", "-1", "from 0 to 3650"),
        ("STATS_PUBLIC_URL", "localhost:3000", "must be a URL such as"),
        ("FORWARDED_ALLOW_IPS", "proxy.example.com", "must be IP addresses or networks"),
        ("FORWARDED_ALLOW_IPS", "127.0.0.1,*", "must be IP addresses or networks"),
        ("FORWARDED_ALLOW_IPS", "127.0.0.1,", "must be IP addresses or networks"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8", "must be IP addresses or networks"),
        ("PORT", "0", "must be a whole number from 1 to 65535"),
        ("ADMIN_PASSWORD", "short", "must have 8 characters or more"),
        ("STATS_SESSION_HOURS", "0", "from 1 to 720"),
        ("STATS_PORT", "65536", "must be a whole number from 1 to 65535"),
        ("STATS_PORT", "http", "must be a whole number from 1 to 65535"),
        ("STATS_PUBLIC_URL", "https://stats.example.com/club", "must have only scheme, host and port"),
        ("STATS_PUBLIC_URL", "https://me:hush@stats.example.com", "must have only scheme, host and port"),
        ("STATS_PUBLIC_URL", "https://stats.example.com?", "must have only scheme, host and port"),
        ("VIEWER_PASSWORD", "short", "must have 8 characters or more"),
        ("VIEWER_PASSWORD", "pass\nword", "cannot be typed"),
        ("CRON_SECRET", "fifteen letters", "must have 16 characters or more"),
        ("STATS_CRON", "0 2 30 2 *", "a day that never comes"),
        ("STATS_CRON", "0 2 31 4,6,9,11 *", "a day that never comes"),
        ("STATS_CRON", "0 2 30 2 1", "a day that never comes"),  # Dagster refuses the day of the month
        ("STATS_CRON", "0 2 15w * *", "five fields"),
        ("STATS_CRON", "r 2 * * *", "five fields"),
        ("INTERNAL_API_KEY", "fifteen letters", "must have 16 characters or more"),
        ("INTERNAL_API_KEY", f" {'a' * 15}\n", "must have 16 characters or more"),
        ("INTERNAL_API_KEY", "0123456789\n0123456789", "no HTTP header can carry"),
        ("INTERNAL_API_KEY", "pässword-0123456789", "no HTTP header can carry"),
        ("INTERNAL_API_KEY", "0123456789\udcff0123456789", "no HTTP header can carry"),
        ("CRON_SECRET", "0123456789\t0123456789", "no HTTP header can carry"),
        ("ADMIN_PASSWORD", "pass\nword", "cannot be typed"),
        ("ADMIN_PASSWORD", "password\udcff", "cannot be typed"),
        ("STATS_DATABASE_URL", "postgresql://me:hush\udcff@localhost/app", "must be a URL such as"),
        ("NEXT_PUBLIC_APP_URL", "https://app.example.com/?x-vercel-protection-bypass=hush", "STATS_APP_HEADERS"),
        ("NEXT_PUBLIC_APP_URL", "https://app.example.com/?", "must not have a query"),
        ("NEXT_PUBLIC_APP_URL", "https://app.example.com/#top", "must not have a query or a fragment"),
        ("NEXT_PUBLIC_APP_URL", "https://me:hush@app.example.com", "must not have user:password@"),
        ("NEXT_PUBLIC_APP_URL", "https://hush@app.example.com", "must not have user:password@"),
        ("STATS_APP_HEADERS", "x-name: hush", "must be a JSON object"),
        ("STATS_APP_HEADERS", '["hush"]', "must be a JSON object"),
        ("STATS_APP_HEADERS", '{"x-name": 1}', "must be a JSON object"),
        ("STATS_APP_HEADERS", '{"x-name": "hush\\nx-other: 1"}', "no HTTP header can carry"),
        ("STATS_APP_HEADERS", '{"x name": "hush"}', "no HTTP header can carry"),
        ("STATS_APP_HEADERS", '{"Authorization": "hush"}', "must not have authorization"),
        ("STATS_HTTP_PROXY", "proxy.example.com:3128", "must be a URL such as http://proxy.example.com:3128"),
        ("STATS_HTTP_PROXY", "socks5://me:hush@127.0.0.1:1080", "must be a URL such as http://"),
        ("STATS_HTTP_PROXY", "http://me:hush@proxy.example.com:port", "must be a URL such as http://"),
        ("STATS_CA_FILE", "/nowhere/ca.pem", "PEM"),
        ("STATS_CA_FILE", __file__, "PEM"),
        ("STATS_DATABASE_URL", "postgresql://me:hush/hush@localhost/app", "/ as %2F"),
        ("STATS_DATABASE_URL", "postgresql://me:hush@hush@localhost/app", "@ as %40"),
        ("STATS_DATABASE_URL", "postgresql://me:hush%zz@localhost/app", "must be a URL such as"),
        ("STATS_DATABASE_URL", "postgresql://me:hush@localhost/app?pool=1&connect_timeout=3", "the parameter pool,"),
        ("STATS_READ_ONLY", "perhaps", "must be true or false"),
        ("STATS_LOG_LEVEL", "loud", "must be one of debug, info, warning, error"),
        ("STATS_RUNTIME", "quick", "must be one of fast, stock"),
        *(("STATS_HOME", f"/tmp/a{character}b", "choose a folder without") for character in ",#?%"),
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
    assert "hush" not in message
    assert "\n" not in message


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_both_spellings_of_the_databases_scheme_are_known(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    url = f"{scheme}://someone:hunter2@db.example.com:6543/app"
    monkeypatch.setenv("STATS_DATABASE_URL", url)
    assert database.database_url(settings.load()) == url
    assert database.describe(url) == "db.example.com:6543/app"
    assert database.sqlalchemy_url(url, schema="dagster").startswith("postgresql+psycopg2://someone:hunter2@/app?")


def test_dagsters_own_launcher_is_given_more_time_unless_a_setting_says_how_much() -> None:
    def patience(**variables: str) -> tuple[int, float]:
        taken = settings.Settings.model_validate(variables).for_dagster()
        return taken.lease_seconds, taken.dead_after

    assert patience(STATS_RUNTIME="fast") == (30, 6)
    assert patience() == patience(STATS_RUNTIME="stock") == (300, 60)
    assert patience(STATS_LEASE_SECONDS="20", STATS_DEAD_AFTER_SECONDS="9") == (20, 9)


def test_every_variable_that_can_be_wrong_has_a_case_above() -> None:
    (cases,) = (
        mark.args[1]
        for mark in test_a_bad_value_is_one_line_that_names_the_variable.pytestmark  # type: ignore[attr-defined]
    )
    any_text = {"STATS_HOST"}
    assert {variable for variable, *_ in cases} == VARIABLES.keys() - any_text


def test_several_bad_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATS_PORT", "0")
    monkeypatch.setenv("STATS_WEB_PORT", "8080")
    monkeypatch.setenv("STATS_CRON", "never")
    with pytest.raises(SettingsError, match=r"^STATS_WEB_PORT is gone.*; STATS_CRON .*; STATS_PORT "):
        settings.load()


@pytest.mark.parametrize(
    ("variable", "instead"),
    [("STATS_UI_PORT", "STATS_PORT"), ("STATS_WEB_PORT", "STATS_PORT"), ("STATS_UI_URL", "STATS_PUBLIC_URL")],
)
def test_a_variable_that_is_gone_is_refused_with_what_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, variable: str, instead: str
) -> None:
    monkeypatch.setenv(variable, "")
    settings.load()
    monkeypatch.setenv(variable, "3000")
    with pytest.raises(SettingsError, match=rf"^{variable} is gone: there is one \w+, {instead}$"):
        settings.load()


def test_the_port_is_ours_or_else_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load().port == 8080
    monkeypatch.setenv("PORT", "10000")
    assert settings.load().port == 10_000
    monkeypatch.setenv("STATS_PORT", "9000")
    assert settings.load().port == 9000


def test_a_viewer_has_a_password_of_its_own_beside_the_admins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWER_PASSWORD", "only to look at")
    with pytest.raises(SettingsError, match=r"^ADMIN_PASSWORD must be set when VIEWER_PASSWORD is"):
        settings.load()
    monkeypatch.setenv("ADMIN_PASSWORD", " only to look at ")
    with pytest.raises(SettingsError, match=r"^VIEWER_PASSWORD must differ from ADMIN_PASSWORD") as caught:
        settings.load()
    assert "look at" not in str(caught.value)
    monkeypatch.setenv("ADMIN_PASSWORD", "to do everything")
    assert settings.load().viewer_password == SecretStr("only to look at")


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
    assert len(loaded.functions) == len(STATS_FUNCTIONS) + 1


@pytest.mark.parametrize(
    ("given", "believed"),
    [("", None), (" * ", "*"), ("127.0.0.1", "127.0.0.1"), (" 10.0.0.0/8, ::1 ", "10.0.0.0/8,::1")],
)
def test_trusted_proxies_are_handed_on_as_they_are_read(
    monkeypatch: pytest.MonkeyPatch, given: str, believed: str | None
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", given)
    loaded = settings.load()
    assert loaded.forwarded_allow_ips == believed
    assert loaded.environment().get("FORWARDED_ALLOW_IPS") == believed


def test_nothing_else_reads_the_environment() -> None:
    """`os.environ` is passed on to child processes in one module; no other looks a variable up."""
    readers = {
        file.relative_to(settings.PROJECT_ROOT).as_posix()
        for file in (settings.PROJECT_ROOT / "stats_pipeline").rglob("*.py")
        if re.search(r"os\.(environ\[|environ\.get|getenv)", file.read_text())
    }
    assert readers == {"stats_pipeline/settings.py"}


@pytest.mark.parametrize("variable", ["INTERNAL_API_KEY", "CRON_SECRET", "ADMIN_PASSWORD"])
def test_white_space_around_a_secret_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "\t sixteen letters! \r\n")
    loaded = settings.load()
    assert {loaded.internal_api_key, loaded.cron_secret, loaded.admin_password} - {None} == {
        SecretStr("sixteen letters!")
    }


@pytest.mark.parametrize(
    ("given", "used", "dropped"),
    [
        ("?pgbouncer=false&connection_limit=1", "", "pgbouncer, connection_limit"),
        ("?sslmode=require&pgbouncer=true", "?sslmode=require&fallback_application_name=transaction%20pooler", None),
        (
            "?schema=app&sslmode=require&pool_timeout=0&connect_timeout=3",
            "?sslmode=require&connect_timeout=3",
            "schema",
        ),
        ("?sslmode=require&supa=base-pooler.x", "?sslmode=require", "supa"),
        ("?sslmode=require", "?sslmode=require", None),
    ],
)
def test_what_other_clients_add_to_the_databases_url_is_dropped_with_a_word(
    monkeypatch: pytest.MonkeyPatch, given: str, used: str, dropped: str | None
) -> None:
    url = "postgresql://postgres.ref:pa%3Fss?w#rd@pooler.supabase.com:5432/postgres"
    monkeypatch.setenv("STATS_DATABASE_URL", url + given)
    assert settings.load().database_url == SecretStr(url + used)
    said = settings.warnings()
    assert [bool(dropped)] * len(said) == [True] * bool(dropped)
    assert dropped is None or f"STATS_DATABASE_URL: {dropped}" in said[0]
    assert "rd" not in "".join(said).replace("words", "")


@pytest.fixture
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(settings.Settings.model_config, "env_file", tmp_path / ".env")
    return tmp_path / ".env"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_a_file_that_is_not_utf_8_is_one_line(env_file: Path, encoding: str) -> None:
    env_file.write_text("STATS_CRON=0 3 * * *\nADMIN_PASSWORD=pässword\n", encoding=encoding)
    with pytest.raises(SettingsError, match=rf"^{re.escape(str(env_file))} is not UTF-8 text: save it as UTF-8$"):
        settings.load()


def test_a_byte_order_mark_is_no_part_of_the_first_name(env_file: Path) -> None:
    env_file.write_text("STATS_CRON=0 3 * * *\n", encoding="utf-8-sig")
    assert settings.load().cron == "0 3 * * *"
    assert settings.warnings() == []


def test_names_that_are_not_known_are_said_with_the_nearest(monkeypatch: pytest.MonkeyPatch, env_file: Path) -> None:
    env_file.write_text("STATS_DATABSE_URL=x\nINTERNAL_APIKEY=x\nPOSTGRES_PASSWORD=x\nADMIN_PASSWORD=\n")
    monkeypatch.setenv("STATS_PORT_OF_THE_USERS_INTERFACE", "1")
    monkeypatch.setenv("STATS_MAXRUNS", "1")
    monkeypatch.setenv("STATSD_HOST", "a statsd server's")
    monkeypatch.setenv("NEXT_PUBLIC_API_URL", "another program's")
    settings.load()
    assert settings.warnings() == [
        "INTERNAL_APIKEY is not known and has no effect: did you mean INTERNAL_API_KEY?",
        "STATS_DATABSE_URL is not known and has no effect: did you mean STATS_DATABASE_URL?",
        "STATS_MAXRUNS is not known and has no effect: did you mean STATS_MAX_RUNS?",
        "STATS_PORT_OF_THE_USERS_INTERFACE is not known and has no effect",
    ]


def test_the_command_line_warns_on_standard_error_once(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from stats_pipeline.cli.commands import app; app()", "down"],
        env={**os.environ, "STATS_HOME": str(tmp_path), "STATS_CRONN": "[/red]"},
        cwd=settings.PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stderr.count("Warning: STATS_CRONN is not known and has no effect: did you mean STATS_CRON?\n") == 1
    assert ran.stdout == ""


def test_a_child_is_given_all_settings_but_those_that_are_left_out(
    monkeypatch: pytest.MonkeyPatch, env_file: Path
) -> None:
    env_file.write_text("STATS_CRON=0 3 * * *\nADMIN_PASSWORD=from the file\nCRON_SECRET=a secret of the file's\n")
    for name, value in {
        "STATS_TENANTS": f"{TENANT}, {TENANT}",
        "STATS_READ_ONLY": "true",
        "STATS_HOME": "a home",
    }.items():
        monkeypatch.setenv(name, value)
    loaded = settings.load()
    given = loaded.environment(without=["CRON_SECRET"])
    assert given.keys() == {
        *("STATS_CRON", "ADMIN_PASSWORD", "STATS_TENANTS", "STATS_READ_ONLY", "STATS_HOME", "STATS_SETTINGS_COMPLETE")
    }
    for name in ("STATS_TENANTS", "STATS_READ_ONLY", "STATS_HOME"):
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert settings.load() == loaded.model_copy(update={"cron_secret": None})  # though the file has one


def test_what_libpq_would_read_is_taken_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGOPTIONS", "PGSERVICEFILE", "PGHOSTADDR", "PGAPPNAME"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(settings, "_taken_out", set())
    settings.load()
    assert not [name for name in os.environ if name.startswith("PG")]
    assert [said.split()[0] for said in settings.warnings()] == [
        "PGAPPNAME",
        "PGHOSTADDR",
        "PGOPTIONS",
        "PGSERVICEFILE",
    ]
