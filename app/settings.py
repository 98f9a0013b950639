"""The options of the front end. Each is declared once, with its default, bounds, unit and help.

`Settings` inherits the worker's options, so that one environment variable reaches the process that
uses it. An option comes from the command line (`--port`), else from the environment (`EASEL_PORT`).
If neither sets one of the worker's options, the device profile may. Otherwise its default applies.
Settings do not change after the start.
"""

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.logs import LogFormat
from engine.config import DEMO_MODEL, EngineConfig

PREFIX = "EASEL_"

_HOST_NAME = re.compile(r"\*|(\*\.)?[\w-]+(\.[\w-]+)*|\[[0-9a-fA-F:.]+\]", re.ASCII)


class Settings(EngineConfig, BaseSettings):
    """Every option of `easel serve`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on. 127.0.0.1 can be reached from this machine only, "
        "0.0.0.0 from every network that the machine is in.",
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="Port to listen on. 0 takes any free port and prints it.",
    )
    served_model_name: str = Field(
        default="",
        description="The model's name in the API, or several separated by commas, of which the "
        "first is used where a request names none. If not set, the name is demo for the demo "
        "model, the Hugging Face id for a model on the hub, and the folder's own name for a "
        "folder.",
    )
    api_key: SecretStr = Field(
        default=SecretStr(""),
        description="API key that clients must send, or several separated by commas. If neither "
        "this nor api_key_file is set, clients need no key. 'KEY priority=10' gives requests with "
        "this key the priority 10, unless they set a worse one. Everyone on this machine can read "
        "the options of a running command, so prefer api_key_file.",
    )
    api_key_file: Path | None = Field(
        default=None,
        description="File with further API keys, one per line, in the same form. Lines that begin "
        "with # are skipped.",
    )
    share_prefixes: bool = Field(
        default=True,
        description="Whether requests may reuse the kept prefixes of requests with another API "
        "key. This saves time if the keys belong to one person. false: a request finds only "
        "prefixes of its own key, so cached_tokens says nothing about what others have sent.",
    )
    metrics_open: bool = Field(
        default=True, description="Allow clients to read /metrics without an API key."
    )
    cors_origins: str = Field(
        default="",
        description="Web origins whose pages may use the server, separated by commas. * allows "
        "all. If not set, requests of pages of other origins are refused.",
    )
    allowed_hosts: str = Field(
        default="",
        description="Host names under which the server may be reached besides localhost, "
        "127.0.0.1 and [::1], without ports, separated by commas. *.example.com allows all names "
        "that end in it, * allows all. If not set, other names are refused only if host is an "
        "address that other machines can't reach.",
    )
    image_hosts: str = Field(
        default="",
        description="Hosts from which images may be fetched, separated by commas. A host without a "
        "port allows only the standard ports, 80 for http and 443 for https. If not set, images "
        "must be sent as data URLs.",
    )
    chat_template: Path | None = Field(
        default=None,
        description="File with the chat template (Jinja) to use. If not set, the checkpoint's own "
        "is used.",
    )
    max_queue: int = Field(
        default=64,
        ge=1,
        description="Maximum number of answers that run or wait at the same time. Further requests "
        "get status 429. A quarter of the places is kept from requests with a worse priority than "
        "0, or than an API key's.",
    )
    thinking_budget: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="Maximum number of tokens that all thoughts of an answer have together, unless "
        "its request sets another. A thought that has used it up is closed there, and the answer "
        "begins. If not set, only a request or the answer's own limit bounds thoughts.",
    )
    request_timeout_s: float = Field(
        default=600,
        gt=0,
        description="Maximum time for an answer in seconds, from the arrival of its request, "
        "unless the request sets its own timeout. A client that reads nothing for this long is "
        "disconnected.",
    )
    worker_silence_s: float = Field(
        default=120,
        gt=0,
        description="Time in seconds for which a worker that has loaded the model may be silent "
        "before it counts as hung, is killed and started again. Ten times the longest earlier pass "
        "of the same size is allowed in any case, and five times this setting for the first one.",
    )
    receive_timeout_s: float = Field(
        default=30,
        gt=0,
        description="Time in seconds in which the headers of a request must arrive, counted from "
        "their first byte, and then its body. A body gets one more second for each 16 KiB of it. "
        "Requests that take longer get status 408.",
    )
    stream_idle_s: float = Field(
        default=15,
        gt=0,
        description="Time in seconds without an event after which a stream sends a keep-alive, so "
        "that clients and proxies do not take the connection for dead.",
    )
    max_body_bytes: int = Field(
        default=32 * 2**20,
        ge=1024,
        description="Maximum size of a request body in bytes, before and after it is decoded if it "
        "is compressed. Larger bodies get status 413.",
    )
    max_text_bytes: int = Field(
        default=4 * 2**20,
        ge=1024,
        description="Maximum size of a request body in bytes without images and other files in "
        "base64. Larger bodies get status 413.",
    )
    responses_kept: int = Field(
        default=256,
        ge=1,
        description="Maximum number of responses of /v1/responses that are kept in memory for "
        "later requests. The least recently used ones are deleted first, of the API key that has "
        "the most.",
    )
    responses_kept_bytes: int = Field(
        default=64 * 2**20,
        ge=0,
        description="Maximum size of all kept responses together in bytes, including their "
        "conversations. 0 keeps none.",
    )
    least_label_mass: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Share of all probability, from 0 to 1, that the labels of a question of "
        "/v1/decisions must have together. With less the model means something else than one of "
        "the answers, and the question is refused.",
    )
    shutdown_grace_s: int = Field(
        default=30,
        ge=0,
        description="Time in seconds that running answers have to finish after SIGTERM or SIGINT, "
        "before they are cancelled.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Lowest level that is logged: debug, info, warning or error. Prompts and "
        "answers are not logged at any level.",
    )
    log_format: LogFormat = Field(
        default="text",
        description="Format of the log: text for people, or json for one JSON object per line.",
    )

    @field_validator("api_key_file", "chat_template", "thinking_budget", mode="before")
    @classmethod
    def _not_set(cls, value: object) -> object:
        return None if value == "" else value  # an empty path would be the current folder

    @field_validator("api_key")
    @classmethod
    def _has_keys(cls, value: SecretStr) -> SecretStr:
        """Refuse a value that was meant to have a key. Without one the server is open to all."""
        if value.get_secret_value() and not listed(value.get_secret_value()):
            raise ValueError("the value is set, but has no key")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _has_host_names(cls, value: str) -> str:
        if value and not listed(value):
            raise ValueError(f"{value!r} has no name")
        for name in listed(value):
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not a host name without a port, such as box.example.com or [::1]"
                )
        return value

    @field_validator("served_model_name")
    @classmethod
    def _has_names(cls, value: str) -> str:
        if value and not listed(value):
            raise ValueError(f"{value!r} has no name")
        return value

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """Returns the names that requests may give the model, the first of them its own."""
        names = dict.fromkeys(listed(self.served_model_name))
        if names:
            return tuple(names)
        folder = Path(self.model).expanduser()
        if self.model == DEMO_MODEL or not folder.is_dir():
            return (self.model,)
        return (os.path.basename(os.path.abspath(folder)) or self.model,)

    def engine_config(self) -> EngineConfig:
        """Returns the worker's options that are set explicitly. A device profile may set others."""
        explicit = self.model_fields_set & set(EngineConfig.model_fields)
        return EngineConfig(**self.model_dump(include=explicit))


def listed(value: str) -> list[str]:
    """Returns the parts of a setting's value that commas separate, without the empty ones."""
    return [each.strip() for each in value.split(",") if each.strip()]


def server_url(host: str, port: int) -> str:
    """Returns the address of a server that listens there."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def unknown_variables() -> list[str]:
    """Returns the EASEL_ variables in the environment that name no setting, as misspelt ones do."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
