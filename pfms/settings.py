"""The settings: the only reader of `config.env` and of the environment."""

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pfms.errors import StartError
from pfms.hosts import normal_host, normal_origin
from pfms.plugin.adaptations import adaptations

CONFIG_FILE = "config.env"
KIB, MIB, GIB = 2**10, 2**20, 2**30
_ROOT_PATH = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._~-]+)+")
_LONGEST_DAYS = 36_500  # a century; much more would overflow a date


class Settings(BaseSettings):
    """What an operator can set, each as `PFMS_<NAME>`; `config.env` explains them in order."""

    model_config = SettingsConfigDict(
        env_prefix="PFMS_",
        frozen=True,
        extra="forbid",
        env_file_encoding="utf-8",
        allow_inf_nan=False,
    )

    host: str = Field("127.0.0.1", min_length=1)  # empty would mean every interface
    port: int = Field(2024, ge=0, le=65535)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    workspace: Path = Path("workspace")

    plugin_command: str = Field("spleenseg", min_length=1)
    executor: Literal["warm", "fresh", "ray"] = "warm"
    adaptations_off: Annotated[tuple[str, ...], NoDecode] = ()
    devices: str = Field("auto", min_length=1)
    jobs_per_device: int = Field(1, ge=1)
    runs_per_process: int = Field(1, ge=1)

    ray_address: str = ""
    ray_resource: str = Field("pfms", min_length=1)
    ray_slots: int = Field(0, ge=0)
    ray_scratch: Path | None = None

    queue_limit: int = Field(1000, ge=1)
    max_jobs_per_caller: int = Field(0, ge=0)
    max_uploads_per_caller: int = Field(0, ge=0)
    max_bytes_per_caller: ByteSize = Field(ByteSize(0), ge=0)
    job_timeout_seconds: float = Field(1800, gt=0)
    judge_seconds: float = Field(300, gt=0)
    grace_seconds: float = Field(2, ge=0)
    drain_seconds: float = Field(30, ge=0)
    max_attempts: int = Field(2, ge=1)
    memory_limit: Literal["auto"] | ByteSize = "auto"
    max_run_memory: ByteSize = Field(ByteSize(0), ge=0)
    max_log_bytes: ByteSize = Field(ByteSize(16 * MIB), ge=64 * KIB)

    max_upload_bytes: ByteSize = Field(ByteSize(2 * GIB), gt=0)
    max_volume_bytes: ByteSize = Field(ByteSize(8 * GIB), gt=0)
    max_grid_voxels: int = Field(500_000_000, gt=0)
    min_free_bytes: ByteSize = Field(ByteSize(5 * GIB), ge=0)

    keep_volumes_hours: float = Field(0, ge=0, le=24 * _LONGEST_DAYS)
    keep_records_days: float = Field(0, ge=0, le=_LONGEST_DAYS)

    idle_seconds: float = Field(60, gt=0)
    max_connections: int = Field(2000, ge=1)
    max_connections_per_address: int = Field(256, ge=1)

    tokens_file: Path | None = None
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_scopes_claim: str = Field("scope", min_length=1)
    insecure: bool = False
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    hostnames: Annotated[tuple[str, ...], NoDecode] = ()
    root_path: str = ""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()

    metrics: Literal["token", "open", "off"] = "token"
    audit_log: Path | None = None
    log_format: Literal["text", "json"] = "text"

    @field_validator(
        "cors_origins", "hostnames", "trusted_proxies", "adaptations_off", mode="before"
    )
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator(
        "tls_certificate", "tls_key", "tokens_file", "audit_log", "ray_scratch", mode="before"
    )
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("insecure", mode="before")
    @classmethod
    def _no_if_empty(cls, value: object) -> object:
        return False if value == "" else value

    @property
    def asks_who_calls(self) -> bool:
        """Whether calls need a token."""
        return self.tokens_file is not None or bool(self.oidc_issuer)

    @field_validator("workspace", mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        if value == "":  # Path("") is the working folder
            raise ValueError("name a folder")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in origins:
            raise ValueError("name each origin; * would let every web page in")
        return tuple(normal_origin(origin) for origin in origins)

    @field_validator("hostnames")
    @classmethod
    def _are_hosts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_name_or_pattern(name) for name in names)

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, networks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(network)) for network in networks)

    @field_validator("root_path")
    @classmethod
    def _is_prefix(cls, path: str) -> str:
        if path and not _ROOT_PATH.fullmatch(path):
            raise ValueError("write a path such as /pfms, without a slash at its end")
        return path

    @field_validator("adaptations_off")
    @classmethod
    def _are_adaptations(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        adaptations(names)
        return names

    @field_validator(
        "memory_limit",
        "max_bytes_per_caller",
        "max_run_memory",
        "max_log_bytes",
        "max_upload_bytes",
        "max_volume_bytes",
        "min_free_bytes",
        mode="before",
    )
    @classmethod
    def _one_number_and_unit(cls, value: object) -> object:
        return value if value == "auto" else number_and_unit(value)


def number_and_unit(value: object) -> object:
    """Check the form of a size before ByteSize reads it, which would take 2,5GiB for 2 bytes.

    Raises:
        ValueError: It is neither a number nor a number and a unit.
    """
    if isinstance(value, str) and not re.fullmatch(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*", value):
        raise ValueError("write a size as 2GiB, 500MB, or a number of bytes")
    return value


def _name_or_pattern(text: str) -> str:
    if text == "*":
        return text
    try:
        star = "*." if text.startswith("*.") else ""
        return star + normal_host(text.removeprefix("*."))
    except ValueError:
        raise ValueError(
            "write host names without scheme, port and path, such as pfms.example,*.clinic.example"
        ) from None


def load_settings(config_file: Path | None = None, **overrides: Any) -> Settings:
    """Read the settings: overrides win over the environment, it over `config.env`, then defaults.

    Args:
        config_file: Read instead of `config.env` in the working directory, which may be absent.
        **overrides: Settings from the command line, by field name; None overrides nothing.

    Raises:
        StartError: A value is not valid, or the file names something that is not a setting.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(_env_file=config_file or CONFIG_FILE, **given)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).upper()
        if first["type"] == "extra_forbidden":
            detail = f"{CONFIG_FILE} sets {name}, which is not a setting."
        else:
            name = f"PFMS_{name.removeprefix('PFMS_')}"
            detail = f"{name}={first['input']!r} is not valid: {first['msg']}."
        raise StartError(detail, "Correct it there or in the environment.") from None
