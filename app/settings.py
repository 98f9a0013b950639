"""What the front end can be told: each option once, with default, bounds, unit and help.

Inherits the worker's options, so that one environment variable reaches the process that needs
it. From the environment (`EASEL_PORT`) or the command line (`--port`); frozen after the start. What
neither tells of the worker's options, its device profile does, and else the default.
"""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.logs import LogFormat
from engine.config import EngineConfig

PREFIX = "EASEL_"


class Settings(EngineConfig, BaseSettings):
    """Every option of `easel serve`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes any that is free."
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        description="A key that clients must send, or several with commas between; empty: none. "
        "'KEY priority=10' gives the key's requests a priority that they need not send.",
    )
    api_key_file: Path | None = Field(
        default=None, description="A file with more such keys, one a line."
    )
    metrics_open: bool = Field(
        default=True, description="Whether /metrics can be read without a key."
    )
    cors_origins: str = Field(
        default="",
        description="Web origins whose pages may ask, with commas between; * for all.",
    )
    image_hosts: str = Field(
        default="",
        description="Hosts from which images are fetched, with commas between; empty: data URLs "
        "only.",
    )
    max_queue: int = Field(
        default=64, ge=1, description="Most requests open at once; one more is answered 429."
    )
    request_timeout_s: float = Field(
        default=600,
        gt=0,
        description="Seconds that an answer may take from its arrival on, unless the request says; "
        "and that a client may read nothing of what is sent to it.",
    )
    max_body_bytes: int = Field(
        default=32 * 2**20, ge=1024, description="Largest request body, in bytes."
    )
    responses_kept: int = Field(
        default=256,
        ge=1,
        description="Most responses of /v1/responses kept for later requests; of more, the least "
        "recently used one goes.",
    )
    responses_kept_bytes: int = Field(
        default=64 * 2**20,
        ge=0,
        description="Most that kept responses may hold, their conversations included, in bytes.",
    )
    shutdown_grace_s: int = Field(
        default=30, ge=0, description="Seconds that running answers get to finish at SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severity that is logged. Prompts and answers never are.",
    )
    log_format: LogFormat = Field(
        default="text",
        description="Form of the log: text for people, or json, one object a line.",
    )

    def engine_config(self) -> EngineConfig:
        """The worker's part: what was told, so that a device profile can set the rest."""
        told = self.model_fields_set & set(EngineConfig.model_fields)
        return EngineConfig(**self.model_dump(include=told))


def listed(value: str) -> list[str]:
    """A setting that has commas between."""
    return [each.strip() for each in value.split(",") if each.strip()]


def unknown_variables() -> list[str]:
    """EASEL_ variables in the environment that name no setting: most likely misspelt."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
