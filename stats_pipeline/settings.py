"""The only reader of the environment. Every variable, its default and its check are here.

`load()` validates and raises `SettingsError` naming the variable. `.env.example` lists the same variables, and a test
keeps the two in step. What a value is used for belongs to the module that uses it.
"""

import zoneinfo
from functools import cached_property
from pathlib import Path
from typing import Annotated
from uuid import UUID

import psycopg
from croniter import croniter
from psycopg.conninfo import conninfo_to_dict
from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stats_pipeline.catalog import OPTIONAL_STATS_FUNCTIONS, StatsFunction, select_functions
from stats_pipeline.errors import SettingsError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SQL_ROOT = PROJECT_ROOT / "sql"


class Settings(BaseSettings):
    """All settings. Durations are seconds."""

    model_config = SettingsConfigDict(
        env_file=PROJECT_ROOT / ".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    # Database. Unset means the embedded PostgreSQL in the state folder.
    database_url: SecretStr | None = Field(None, validation_alias="STATS_DATABASE_URL")
    home: Path = Field(PROJECT_ROOT / ".stats-pipeline", validation_alias="STATS_HOME")

    # The app. Without a URL, invalidation is reported as not configured.
    app_url: AnyHttpUrl | None = Field(None, validation_alias="NEXT_PUBLIC_APP_URL")
    internal_api_key: SecretStr | None = Field(None, validation_alias="INTERNAL_API_KEY")
    cache_timeout: float = Field(5.0, gt=0, le=60, validation_alias="STATS_CACHE_TIMEOUT_SECONDS")
    cache_deadline: int = Field(900, ge=1, validation_alias="STATS_CACHE_DEADLINE_SECONDS")

    # Clubs and the nightly refresh. No tenants means one job for the database's default tenant.
    tenants: Annotated[tuple[UUID, ...], NoDecode] = Field((), validation_alias="STATS_TENANTS")
    cron: str = Field("0 2 * * *", validation_alias="STATS_CRON")
    timezone: str = Field("UTC", validation_alias="STATS_TIMEZONE")
    optional_functions: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="STATS_OPTIONAL_FUNCTIONS")

    # Runs.
    max_runs: int = Field(4, ge=1, le=100, validation_alias="STATS_MAX_RUNS")
    max_attempts: int = Field(3, ge=1, le=20, validation_alias="STATS_MAX_ATTEMPTS")
    lease: int = Field(30, ge=5, le=3600, validation_alias="STATS_LEASE_SECONDS")
    dead_after: float = Field(6.0, ge=2, le=600, validation_alias="STATS_DEAD_AFTER_SECONDS")

    # Days of history to keep; 0 keeps everything.
    retention_days: int = Field(0, ge=0, le=3650, validation_alias="STATS_RETENTION_DAYS")

    # Servers. Loopback unless told otherwise.
    host: str = Field("127.0.0.1", validation_alias="STATS_HOST")
    ui_port: int = Field(3000, ge=1, le=65535, validation_alias="STATS_UI_PORT")
    ui_url: AnyHttpUrl | None = Field(None, validation_alias="STATS_UI_URL")
    web_port: int = Field(8080, ge=1, le=65535, validation_alias="STATS_WEB_PORT")

    # Who may use the admin's page and the HTTP API. No secret has a default; without a password, loopback only.
    admin_password: SecretStr | None = Field(None, min_length=8, validation_alias="ADMIN_PASSWORD")
    cron_secret: SecretStr | None = Field(None, min_length=16, validation_alias="CRON_SECRET")
    session_hours: int = Field(12, ge=1, le=720, validation_alias="STATS_SESSION_HOURS")
    read_only: bool = Field(False, validation_alias="STATS_READ_ONLY")

    @field_validator("tenants", "optional_functions", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("home")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()  # child processes may have another working directory

    @field_validator("database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must start with postgresql://")
        try:
            conninfo_to_dict(value.get_secret_value() if value is not None else "")
        except psycopg.ProgrammingError:  # its message may quote the password
            raise ValueError("must be a URL such as postgresql://user:password@host:5432/name") from None
        return value

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        if len(value.split()) != 5 or not croniter.is_valid(value):
            raise ValueError("must be a cron expression of five fields, such as '0 2 * * *'")
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

    @property
    def functions(self) -> tuple[StatsFunction, ...]:
        """What one refresh runs."""
        return select_functions(self.optional_functions)

    @cached_property
    def dagster_home(self) -> Path:
        """Where Dagster keeps its local files; holds a link to the project's `dagster.yaml`."""
        return self.home / "dagster"


def load() -> Settings:
    """Read and check the environment (and `.env` in the project's folder). Raises `SettingsError`."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors(include_input=False))) from None


def _explain(problem: ErrorDetails) -> str:
    variable = str(problem["loc"][0]) if problem["loc"] else ""
    return f"{variable} {problem['msg'].removeprefix('Value error, ')}".strip()
