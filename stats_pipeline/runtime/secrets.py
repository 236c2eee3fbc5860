"""Switches off Dagster's loader of a `.env`: `secrets` in dagster.yaml.

Dagster's own loader reads `.env` in the folder that a process was started from, and its values override the
environment: tags and the app's key would go to the address it names. The only reader of settings is `settings.py`.
"""

from collections.abc import Mapping
from typing import Any, Self

from dagster._core.secrets.loader import SecretsLoader  # the base class that Dagster requires
from dagster._serdes import ConfigurableClass, ConfigurableClassData  # a class that dagster.yaml names


class NoSecrets(SecretsLoader, ConfigurableClass):
    """Adds nothing to the environment of a run."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:  # noqa: ARG003
        return cls(inst_data)

    def get_secrets_for_environment(self, location_name: str | None) -> Mapping[str, str]:  # noqa: ARG002
        return {}
