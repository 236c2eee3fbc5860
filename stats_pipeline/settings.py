"""The only reader of the environment. Every variable, its default and its check are here.

`load()` validates and raises `SettingsError` naming the variable; `warnings()` lists what was ignored; a child process
is given `Settings.environment()`. `.env.example` lists the same variables, and a test keeps the two in step. The use of
a value belongs to the module that uses it.
"""

import difflib
import ipaddress
import json
import os
import re
import ssl
import zoneinfo
from collections.abc import Collection, Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, get_args
from urllib.parse import quote, unquote_plus, urlsplit
from uuid import UUID

import psycopg
from croniter import CroniterError, croniter
from psycopg.conninfo import conninfo_to_dict
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

from stats_pipeline.catalog import OPTIONAL_STATS_FUNCTIONS, StatsFunction, select_functions
from stats_pipeline.errors import SettingsError

VERSION = metadata.version("stats-pipeline")
_PACKAGE = Path(__file__).resolve().parent
IS_INSTALLED = (_PACKAGE / "sql").is_dir()  # in a checkout it is at the top level
FILES_ROOT = _PACKAGE if IS_INSTALLED else _PACKAGE.parent  # of the files that are not Python
SQL_ROOT = FILES_ROOT / "sql"
# The folder of `.env` and of the state folder. An installed package is never written to.
PROJECT_ROOT = Path() if IS_INSTALLED else FILES_ROOT
# Needed by a child process to find a package that is not installed.
IMPORT_PATH = {} if IS_INSTALLED else {"PYTHONPATH": str(PROJECT_ROOT)}
MAX_SESSION_HOURS = 720
LOOPBACK = "127.0.0.1"
LEAST_CONNECTIONS = 11  # with which any run can work while a page and the Dagster UI are open: see database/budget.py

# Parameters that dashboards and other clients add to a database URL, and that libpq does not know.
_FOREIGN_PARAMETERS = {
    *("pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "schema", "statement_cache_size"),
    *("prepared_statements", "sslaccept", "sslidentity", "single_use_connections", "uselibpqcompat"),
    *("supa", "workaround"),
}
# In a URL: behind it is a pooler in transaction mode. libpq takes the parameter, and uses it for nothing, since each of
# our connections has a name. Written for `pgbouncer=true`, as the app's own URL has it, or by hand.
TRANSACTION_POOLER = "transaction pooler"
# Set for a process whose environment holds all of its settings: it reads no `.env`.
_COMPLETE = "STATS_SETTINGS_COMPLETE"
# Written by our own commands for the processes they start, or read by the app.
LOG_FD = "STATS_LOG_FD"  # the standard error of the command that started this process
# Variables of earlier versions, and what takes their place.
_GONE = {
    "STATS_UI_PORT": "there is one port, STATS_PORT",
    "STATS_WEB_PORT": "there is one port, STATS_PORT",
    "STATS_UI_URL": "there is one address, STATS_PUBLIC_URL",
}
_NOT_SETTINGS = {"STATS_DAGSTER_URL", "STATS_PIPELINE_URL", _COMPLETE, LOG_FD}
# Variables that libpq, beneath each of our connections, would read without our knowledge.
_LIBPQ = {option.envvar.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.envvar} | {
    *("PGSERVICEFILE", "PGSYSCONFDIR", "PGLOCALEDIR"),
}
_IN_A_HEADER = re.compile(r"[ -~]*")  # other characters may be encoded differently by the two sides
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_OUR_HEADERS = {
    *("authorization", "accept", "accept-encoding", "user-agent", "host", "connection", "keep-alive", "te", "trailer"),
    *("content-type", "content-length", "content-encoding", "transfer-encoding", "upgrade", "expect"),
    *("proxy-authorization", "proxy-connection"),
}


# Instead of the defaults: under Dagster's own launcher and executor it takes ten times as long from a lease to the
# first op, and a process per op leaves gaps in the heartbeats.
_STOCK_PATIENCE = {"lease_seconds": 300, "dead_after": 60.0}

LogLevel = Literal["debug", "info", "warning", "error"]
Runtime = Literal["fast", "stock"]


class Settings(BaseSettings):
    """All settings. Durations are seconds."""

    model_config = SettingsConfigDict(
        env_file=PROJECT_ROOT / ".env",
        env_file_encoding="utf-8-sig",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
    )

    # Database. Unset means the embedded PostgreSQL in the state folder.
    database_url: SecretStr | None = Field(None, validation_alias="STATS_DATABASE_URL")
    home: Path = Field(PROJECT_ROOT / ".stats-pipeline", validate_default=True, validation_alias="STATS_HOME")

    # The app. Without a URL, invalidation is reported as not configured.
    app_url: AnyHttpUrl | None = Field(None, validation_alias="NEXT_PUBLIC_APP_URL")
    internal_api_key: SecretStr | None = Field(None, min_length=16, validation_alias="INTERNAL_API_KEY")
    app_headers_json: SecretStr | None = Field(None, validation_alias="STATS_APP_HEADERS")
    http_proxy: SecretStr | None = Field(None, validation_alias="STATS_HTTP_PROXY")
    ca_file: Path | None = Field(None, validation_alias="STATS_CA_FILE")
    cache_timeout: float = Field(5.0, ge=0.1, le=60, validation_alias="STATS_CACHE_TIMEOUT_SECONDS")
    cache_deadline: int = Field(900, ge=1, le=604_800, validation_alias="STATS_CACHE_DEADLINE_SECONDS")

    # Clubs and the nightly refresh. Without tenants: one job for the database's default tenant.
    tenants: Annotated[tuple[UUID, ...], NoDecode] = Field((), validation_alias="STATS_TENANTS")
    cron: str = Field("0 2 * * *", validation_alias="STATS_CRON")
    timezone: str = Field("UTC", validation_alias="STATS_TIMEZONE")
    optional_functions: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="STATS_OPTIONAL_FUNCTIONS")

    # The most connections that one deployment opens, Dagster's included; and where Dagster keeps its own tables. Unset:
    # in the same database.
    max_connections: int = Field(12, ge=LEAST_CONNECTIONS, le=1000, validation_alias="STATS_MAX_CONNECTIONS")
    dagster_database_url: SecretStr | None = Field(None, validation_alias="STATS_DAGSTER_DATABASE_URL")

    # Runs.
    max_runs: int = Field(4, ge=1, le=100, validation_alias="STATS_MAX_RUNS")
    max_attempts: int = Field(3, ge=1, le=20, validation_alias="STATS_MAX_ATTEMPTS")
    lease_seconds: int = Field(30, ge=5, le=3600, validation_alias="STATS_LEASE_SECONDS")
    dead_after: float = Field(6.0, ge=2, le=600, validation_alias="STATS_DEAD_AFTER_SECONDS")

    # Our executor, launcher, storage, daemon and hooks, or Dagster's. Unset: `fast` under `up`, otherwise `stock`.
    runtime: Runtime | None = Field(None, validation_alias="STATS_RUNTIME")

    # The log lines on standard error.
    log_level: LogLevel = Field("info", validation_alias="STATS_LOG_LEVEL")

    # Days of history to keep; 0 keeps everything.
    retention_days: int = Field(0, ge=0, le=3650, validation_alias="STATS_RETENTION_DAYS")

    # The one server. Loopback by default.
    host: str = Field(LOOPBACK, validation_alias="STATS_HOST")
    own_port: int | None = Field(None, ge=1, le=65535, validation_alias="STATS_PORT")
    hosts_port: int | None = Field(None, ge=1, le=65535, validation_alias="PORT")
    public_url: AnyHttpUrl | None = Field(None, validation_alias="STATS_PUBLIC_URL")
    # The proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks, or `*`.
    forwarded_allow_ips: str | None = Field(None, validation_alias="FORWARDED_ALLOW_IPS")

    # Who may use page, API and the Dagster UI. No secret has a default; without a password, a login link and loopback.
    admin_password: SecretStr | None = Field(None, min_length=8, validation_alias="ADMIN_PASSWORD")
    viewer_password: SecretStr | None = Field(None, min_length=8, validation_alias="VIEWER_PASSWORD")
    cron_secret: SecretStr | None = Field(None, min_length=16, validation_alias="CRON_SECRET")
    session_hours: int = Field(12, ge=1, le=MAX_SESSION_HOURS, validation_alias="STATS_SESSION_HOURS")
    read_only: bool = Field(False, validation_alias="STATS_READ_ONLY")

    @field_validator("tenants", "optional_functions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator(
        "internal_api_key",
        "cron_secret",
        "admin_password",
        "viewer_password",
        "database_url",
        "dagster_database_url",
        "http_proxy",
        "app_headers_json",
        mode="before",
    )
    @classmethod
    def _strip(cls, value: object) -> object:
        return value.strip() if isinstance(value, str) else value

    @field_validator("internal_api_key", "cron_secret")
    @classmethod
    def _fits_in_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _IN_A_HEADER.fullmatch(value.get_secret_value()):
            raise ValueError(
                "has a character that no HTTP header can carry: use letters, digits and punctuation of ASCII"
            )
        return value

    @field_validator("admin_password", "viewer_password")
    @classmethod
    def _can_be_typed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().isprintable():
            raise ValueError("has a character that cannot be typed, such as a line break: remove it")
        return value

    @field_validator("home", "ca_file")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return value and value.expanduser().absolute()  # child processes may have another working directory

    @field_validator("home")
    @classmethod
    def _fits_in_addresses(cls, value: Path) -> Path:
        # Addresses of sockets: libpq splits a host at commas, gRPC decodes a path as a URI.
        if found := re.search(r"[,#?%\x00-\x1f\x7f]", str(value)):
            raise ValueError(f"is {str(value)!r}: choose a folder without {found[0]!r} in its path")
        return value

    @field_validator("ca_file")
    @classmethod
    def _has_certificates(cls, value: Path | None) -> Path | None:
        try:
            if value is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
        except (OSError, ValueError):
            raise ValueError("must be a readable file of certificates in PEM format") from None
        return value

    @field_validator("database_url", "dagster_database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        url, _ = _without_foreign_parameters(value.get_secret_value())
        scheme, _, rest = url.partition("://")
        if scheme not in ("postgresql", "postgres"):
            raise ValueError("must start with postgresql://")
        # libpq would read the rest of a password as host, port or database, which are shown.
        if rest.count("@") > 1 or "/" in rest.rpartition("@")[0]:
            raise ValueError(
                "must have user and password percent-encoded, and no @ after them: write @ as %40, / as %2F, "
                ": as %3A, ? as %3F, # as %23, % as %25"
            )
        try:
            conninfo_to_dict(url)
        except (psycopg.ProgrammingError, ValueError):  # its message may quote the password
            if unknown := _unknown_parameter(url):
                raise ValueError(f"has the parameter {unknown}, which PostgreSQL does not know: remove it") from None
            raise ValueError("must be a URL such as postgresql://user:password@host:5432/name") from None
        return SecretStr(url)

    @field_validator("app_url")
    @classmethod
    def _is_address_only(cls, value: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if value is None:
            return None
        if value.username is not None or value.password is not None:
            raise ValueError("must not have user:password@, which would replace the key: use STATS_APP_HEADERS")
        if value.query is not None or value.fragment is not None:
            raise ValueError("must not have a query or a fragment: a route is added to it; use STATS_APP_HEADERS")
        return value

    @field_validator("public_url")
    @classmethod
    def _is_origin(cls, value: AnyHttpUrl | None) -> AnyHttpUrl | None:
        if value is None:
            return None
        others = (value.username, value.password, value.query, value.fragment)
        if value.path not in (None, "/") or any(part is not None for part in others):
            raise ValueError("must have only scheme, host and port, such as https://stats.example.com")
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_networks(cls, value: str | None) -> str | None:
        if value is None or value.strip() == "*":
            return value and "*"
        parts = [part.strip() for part in value.split(",")]
        try:
            for part in parts:
                ipaddress.ip_network(part)
        except ValueError:  # uvicorn would believe nobody, and not say so
            raise ValueError(
                "must be IP addresses or networks such as 10.0.0.0/8, separated by commas; or * for any"
            ) from None
        return ",".join(parts)

    @field_validator("app_headers_json")
    @classmethod
    def _are_headers(cls, value: SecretStr | None) -> SecretStr | None:
        try:
            headers = _parse_headers(value)
        except ValueError:
            raise ValueError("""must be a JSON object of strings, such as {"x-name": "value"}""") from None
        for name, content in headers.items():
            if not _HEADER_NAME.fullmatch(name) or not _IN_A_HEADER.fullmatch(content) or content != content.strip():
                raise ValueError("has a name or a value that no HTTP header can carry")
            if name.lower() in _OUR_HEADERS:
                raise ValueError(f"must not have {name.lower()}, which is ours to set")
        return value

    @field_validator("http_proxy")
    @classmethod
    def _is_proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            is_proxy = parts.scheme == "http" and parts.hostname and parts.port != 0 and parts.path in ("", "/")
        except ValueError:
            is_proxy = False
        if not is_proxy or parts.query or parts.fragment or not re.fullmatch("[!-~]+", value.get_secret_value()):
            raise ValueError("must be a URL such as http://proxy.example.com:3128, or http://user:password@…")
        return value

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        # Without R (a random time) and W (a working day), which Dagster rejects or draws anew each time.
        if len(value.split()) != 5 or not croniter.is_valid(value) or re.search(r"(^|[\s,])r|\dw", value, re.I):
            raise ValueError("must be a cron expression of five fields, such as '0 2 * * *'")
        try:
            croniter(" ".join([*value.split()[:4], "*"])).get_next()
            croniter(value).get_next()
        except CroniterError:
            raise ValueError("names a day that never comes, such as 30 February: name one that does") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, value: str) -> str:
        try:
            zoneinfo.ZoneInfo(value)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):  # unknown, a path outside, a folder of zones
            raise ValueError("must be an IANA time zone, such as Europe/London") from None
        return value

    @field_validator("optional_functions")
    @classmethod
    def _are_optional_functions(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        known = {function.rpc for function in OPTIONAL_STATS_FUNCTIONS}
        if unknown := set(value) - known:
            raise ValueError(f"names {', '.join(sorted(unknown))}; it may name {', '.join(sorted(known))}")
        return value

    @model_validator(mode="after")
    def _app_needs_key(self) -> "Settings":
        if self.app_url is not None and self.internal_api_key is None:
            raise ValueError("INTERNAL_API_KEY must be set when NEXT_PUBLIC_APP_URL is: the app checks it")
        return self

    @model_validator(mode="after")
    def _viewer_is_another(self) -> "Settings":
        if self.viewer_password is not None and self.admin_password is None:
            raise ValueError("ADMIN_PASSWORD must be set when VIEWER_PASSWORD is: somebody must be the admin")
        if self.viewer_password is not None and self.viewer_password == self.admin_password:
            raise ValueError("VIEWER_PASSWORD must differ from ADMIN_PASSWORD: it decides who somebody is")
        return self

    @property
    def port(self) -> int:
        """The port to listen on: ours, else the host's, else 8080."""
        return self.own_port or self.hosts_port or 8080

    @property
    def loopback_host(self) -> str:
        """The address to listen on if only this machine may connect."""
        return self.host if is_loopback(self.host) else LOOPBACK

    @property
    def app_headers(self) -> dict[str, str]:
        """The headers sent to the app besides our own."""
        return _parse_headers(self.app_headers_json)

    @property
    def functions(self) -> tuple[StatsFunction, ...]:
        """The stats functions of one refresh."""
        return select_functions(self.optional_functions)

    @cached_property
    def dagster_home(self) -> Path:
        """The folder of Dagster's local files under `up`, with the `dagster.yaml` that `up` writes."""
        return self.home / "dagster"

    def for_dagster(self) -> "Settings":
        """These settings for a process of Dagster's: with a profile, and with the time limits that it needs."""
        if self.runtime == "fast":
            return self
        # Compared by value: a copy of `.env.example` sets all of them.
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        patience = {name: ours for name, ours in _STOCK_PATIENCE.items() if getattr(self, name) == defaults[name]}
        return self.model_copy(update={"runtime": "stock", **patience})

    def environment(self, *, without: Collection[str] = ()) -> dict[str, str]:
        """These settings as the variables of a child process, which then reads no `.env`; some may be left out."""
        given = {_COMPLETE: "1"}
        for name, field in Settings.model_fields.items():
            value = getattr(self, name)
            if field.validation_alias not in without and value != field.get_default():
                given[str(field.validation_alias)] = _as_text(value)
        return given


def load(**overrides: str) -> Settings:
    """Read and check the environment, and the `.env` in `PROJECT_ROOT`; `overrides` are variables that override both.

    Removes the variables that libpq would read from the environment: only `STATS_DATABASE_URL` says which database is
    used, and how to reach it. Raises `SettingsError`.
    """
    is_complete = _COMPLETE in os.environ
    if not is_complete:
        _check_env_file()
    from_environment, from_file = ({}, {}) if is_complete else _variables()
    given = from_file | from_environment
    problems = [f"{name} is gone: {instead}" for name, instead in _GONE.items() if given.get(name)]
    try:
        loaded = Settings(**({"_env_file": None} if is_complete else {}), **overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems += [_explain(problem) for problem in error.errors(include_input=False)]
    if problems:
        raise SettingsError("; ".join(problems))
    for name in _LIBPQ & os.environ.keys():
        del os.environ[name]
        _taken_out.add(name)
    return loaded


_taken_out: set[str] = set()


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def log_fd() -> int | None:
    """The open file that this process was given for its log lines; None: its own standard error.

    A process that was started by a library may not have inherited the file, or may have another one under its number.
    """
    given = os.environ.get(LOG_FD, "")
    try:
        fd = int(given.partition(":")[0])
        return fd if given == named_fd(fd) else None
    except (ValueError, OSError):
        return None


def named_fd(fd: int) -> str:
    """An open file of this process, described so that another process can tell whether it has the same file."""
    status = os.fstat(fd)
    return f"{fd}:{status.st_dev}:{status.st_ino}"


def warnings() -> list[str]:
    """One line for each variable of the environment or `.env` that has no effect. To be called after `load()`."""
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    from_environment, from_file = _variables()
    said = [
        f"{name} is PostgreSQL's and has no effect: put what it says into STATS_DATABASE_URL"
        for name in sorted(_taken_out)
    ]
    for name in sorted((from_environment.keys() | from_file.keys()) - known - _NOT_SETTINGS):
        # `.env` is ours: a name in it that resembles one of the app's is a misspelling, not another program's variable.
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6 if name.startswith("STATS_") else 0.85)
        if name.startswith("STATS_") or (near and name in from_file):
            said.append(f"{name} is not known and has no effect" + (f": did you mean {near[0]}?" if near else ""))
    for name in ("STATS_DATABASE_URL", "STATS_DAGSTER_DATABASE_URL"):
        url = from_environment.get(name) or from_file.get(name) or ""
        if dropped := _without_foreign_parameters(url)[1]:
            said.append(f"{name}: {', '.join(dropped)} dropped, which PostgreSQL does not know")
    return said


def _variables() -> tuple[dict[str, str | None], dict[str, str | None]]:
    """All variables of the environment, and all of `.env`."""
    sources = EnvSettingsSource(Settings), DotEnvSettingsSource(Settings)
    from_environment, from_file = ({name.upper(): value for name, value in s.env_vars.items()} for s in sources)
    return from_environment, from_file


def _check_env_file() -> None:
    """Raises `SettingsError` if there is a `.env` that cannot be read as UTF-8 text."""
    file = Settings.model_config.get("env_file")
    if not isinstance(file, Path) or not file.is_file():
        return
    try:
        readable = "\0" not in file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        readable = False
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}: let this user read it, or remove it") from None
    if not readable:
        raise SettingsError(f"{file} is not UTF-8 text: save it as UTF-8")


def _as_text(value: object) -> str:
    """A value as the text of a variable."""
    if isinstance(value, SecretStr):
        return str(value.get_secret_value())
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse_headers(value: SecretStr | None) -> dict[str, str]:
    headers = json.loads(value.get_secret_value()) if value is not None else {}
    if not isinstance(headers, dict) or not all(isinstance(content, str) for content in headers.values()):
        raise ValueError
    return headers


def _without_foreign_parameters(url: str) -> tuple[str, list[str]]:
    """The URL without parameters that libpq does not accept, and their names. `pgbouncer=true` is not lost."""
    credentials, at, rest = url.rpartition("@")
    base, mark, query = rest.partition("?")
    if "pgbouncer=true" in query.split("&"):
        pooled = f"fallback_application_name={quote(TRANSACTION_POOLER)}"
        query = query.replace("pgbouncer=true", pooled)
        url = f"{credentials}{at}{base}?{query}"
    names = {part: unquote_plus(part.partition("=")[0]) for part in query.split("&")}
    kept = "&".join(part for part, name in names.items() if name not in _FOREIGN_PARAMETERS)
    dropped = [name for name in names.values() if name in _FOREIGN_PARAMETERS]
    return (credentials + at + base + (mark if kept else "") + kept if dropped else url), dropped


def _unknown_parameter(url: str) -> str | None:
    """The first parameter that libpq rejects, if it looks like a name."""
    for part in url.rpartition("@")[2].partition("?")[2].split("&"):
        name = part.partition("=")[0]
        try:
            conninfo_to_dict(f"postgresql://?{name}=1")
        except psycopg.ProgrammingError:
            return name if re.fullmatch("[A-Za-z_]{1,40}", name) else None
    return None


_FIELDS: Mapping[str, FieldInfo] = {str(field.validation_alias): field for field in Settings.model_fields.values()}


def _explain(problem: ErrorDetails) -> str:
    """The problem in our words, without the value."""
    if problem["type"] == "value_error":
        text = problem["msg"].removeprefix("Value error, ")
        return f"{problem['loc'][0]} {text}" if problem["loc"] else text
    variable = str(problem["loc"][0])
    return f"{variable} {_must(_FIELDS[variable])}"


def _must(field: FieldInfo) -> str:
    limits = {name: getattr(limit, name) for limit in field.metadata for name in getattr(limit, "__slots__", ())}
    if field.annotation in (int, float, int | None):
        number = "a number" if field.annotation is float else "a whole number"
        return f"must be {number} from {limits['ge']:g} to {limits['le']:g}"
    if field.annotation is bool:
        return "must be true or false"
    if field.validation_alias == "STATS_LOG_LEVEL":
        return f"must be one of {', '.join(get_args(LogLevel))}"
    if field.validation_alias == "STATS_RUNTIME":
        return f"must be one of {', '.join(get_args(Runtime))}"
    if "min_length" in limits:
        return f"must have {limits['min_length']} characters or more"
    if field.annotation == AnyHttpUrl | None:
        return "must be a URL such as https://app.example.com"
    if field.validation_alias == "STATS_TENANTS":
        return "must be UUIDs, separated by commas"
    return "has a value that cannot be read"
