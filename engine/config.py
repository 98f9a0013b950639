"""The worker's configuration. Each option is declared once, with its default, bounds and help.

The front end's `Settings` inherits these fields, so one environment variable or command-line option
reaches the process that needs it. This module must not import torch, because the front end imports
it too.
"""

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

_ROOT = Path(__file__).resolve().parent.parent
CONFIGS = _ROOT / "configs"
DEMO_MODEL = "demo"
DEMO_MODEL_PATH = _ROOT / "demo" / "model"

Quality = Literal["exact", "balanced", "fast"]  # when a block is final: engine/denoise/stopping.py
Format = Literal["none", "int8", "int4", "fp8"]
# Without int4: lm_head's products need formats with one scale per row.
FormatOfRest = Literal["none", "int8", "fp8"]


@dataclass(frozen=True)
class Formats:
    """The format in which each kind of matrix is held. "none" means the model's own type.

    `linears` covers the matrices of attention and of the dense MLPs. `rest` covers all other
    matrices: the embedding (also used as lm_head), self-conditioning, the routers and vision.
    """

    experts: Format = "none"
    linears: Format = "none"
    rest: FormatOfRest = "none"

    @property
    def quantized(self) -> bool:
        """Returns whether any kind of matrix is quantised."""
        return self != UNQUANTIZED

    @property
    def options(self) -> dict[str, str]:
        """Returns the formats under the names that `EngineConfig` gives them."""
        return {f"quantize_{kind}": form for kind, form in asdict(self).items()}


UNQUANTIZED = Formats()


def profile_names() -> list[str]:
    """Returns the names of all device profiles, sorted."""
    return sorted(file.stem for file in (CONFIGS / "profiles").glob("*.toml"))


class EngineConfig(BaseModel):
    """The configuration of `python -m engine`. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default=DEMO_MODEL,
        min_length=1,
        description="The checkpoint to serve: 'demo' for the built-in model, a folder, or a "
        "Hugging Face id.",
    )
    revision: str = Field(
        default="",
        description="The branch, tag or commit of model on the Hugging Face hub. All files of the "
        "model come from it, and from the same commit for as long as the server runs. Empty means "
        "the repository's main branch.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="The device that runs the model: cpu or cuda. auto uses the GPU if torch "
        "finds one, and the CPU otherwise.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="The type in which unquantised weights and the KV cache are held: float32 or "
        "bfloat16. auto means bfloat16 on a GPU and float32 on a CPU.",
    )
    gguf: str = Field(
        default="",
        description="A GGUF file to load the weights from: a path, or owner/name/file.gguf on the "
        "Hugging Face hub. A revision may follow, as in owner/name/file.gguf@main. The "
        "configuration and the tokenizer still come from model. GGUF files have no vision, so "
        "images are refused. Empty means that the weights come from model.",
    )
    profile: str = Field(
        default="auto",
        description="The device profile, which replaces the defaults of several options: "
        f"{', '.join(profile_names())}. Options and environment variables override it. auto "
        "chooses by the GPU's name and memory, none uses no profile. docs/devices.md lists the "
        "profiles.",
    )
    quantize_experts: Format = Field(
        default="none",
        description="The format to which the experts' weights are quantised while they are loaded: "
        "int8, int4 or fp8. none leaves them as they are, which is the only choice for a "
        "checkpoint that is already quantised.",
    )
    quantize_linears: Format = Field(
        default="none",
        description="As quantize_experts, but for the weights of attention and of the dense MLPs.",
    )
    quantize_rest: FormatOfRest = Field(
        default="none",
        description="As quantize_experts, but for all other matrices and without int4. These are "
        "the embedding (also used as lm_head), self-conditioning, the routers and vision. This "
        "saves memory but may cost time.",
    )
    quantized_cache: bool = Field(
        default=True,
        description="Whether to keep weights that were quantised while loading in the user's cache "
        "folder, which makes the next start faster.",
    )
    quantized_cache_gb: float = Field(
        default=100,
        ge=0,
        description="Maximum size of the kept quantised weights in GB (10^9 bytes). When more are "
        "kept, those that were used longest ago are deleted, but never those of a running server.",
    )
    max_context: int = Field(
        default=32768,
        ge=64,
        description="Maximum number of tokens of a prompt and its answer together. If the model's "
        "own limit is lower, that limit applies.",
    )
    prefill_chunk: int = Field(
        default=1024,
        ge=1,
        description="Maximum number of tokens encoded in one pass. A cancelled request ends "
        "between passes, so it ends sooner with a smaller value.",
    )
    max_active: int = Field(
        default=4,
        ge=1,
        description="Maximum number of answers that denoise together. For each, a KV cache of "
        "max_context tokens is allocated at the start.",
    )
    quality: Quality = Field(
        default="exact",
        description="How soon a block counts as final, unless a request says so: exact is the "
        "checkpoint's own rule, balanced and fast save denoising steps and can cost accuracy. "
        "docs/quality.md says how much.",
    )
    early_end: bool = Field(
        default=False,
        description="Whether to ignore the positions behind a canvas' first end token when "
        "deciding if the block is finished. This can save denoising steps.",
    )
    speculate: bool = Field(
        default=False,
        description="Whether to speculate that a nearly finished canvas is final: its draft is "
        "committed and the next block is started in the same pass. This saves passes. It saves "
        "time where the additional rows of such a pass cost little.",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        default="auto",
        description="Whether to capture denoising passes as CUDA graphs: auto does so on a GPU, "
        "off never does. If capturing fails, a warning is logged and passes run without graphs.",
    )
    prefix_cache_mib: int = Field(
        default=2048,
        ge=0,
        description="Device memory, in MiB, for keeping keys and values of earlier prompts and "
        "answers, so that later requests with the same prefix need not encode it. 0 keeps none.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="Number of CPU threads that the worker uses. 0 means one thread for a narrow "
        "model on a CPU, and torch's own choice otherwise.",
    )

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        known = ["auto", "none", *profile_names()]
        if name not in known:
            raise ValueError(f"{name!r} is not a profile; available: {', '.join(known)}")
        return name

    @property
    def formats(self) -> Formats:
        return Formats(self.quantize_experts, self.quantize_linears, self.quantize_rest)

    @property
    def model_path(self) -> str:
        """Returns `model` in the form that Transformers takes: a folder or a Hugging Face id."""
        return str(DEMO_MODEL_PATH) if self.model == DEMO_MODEL else self.model


class Hardware(BaseModel):
    """A device's figures as its maker publishes them.

    Operations per second are those of dense products with 32-bit accumulation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_names: list[str] = Field(
        min_length=1, description="Strings, one of which is part of the name in the driver."
    )
    memory_gib: float = Field(gt=0)
    reserve_gib: float = Field(
        ge=0, description="The part of memory_gib that the driver, a desktop or the system uses."
    )
    shared_memory: bool = Field(
        default=False, description="Whether the GPU uses the system's memory and has none itself."
    )
    bandwidth_gb_s: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    fp8_tflops: float = Field(gt=0)

    def is_of(self, gpu_name: str) -> bool:
        """Returns whether a GPU with this name in the driver is this device."""
        return any(part in gpu_name for part in self.gpu_names)

    @property
    def usable_bytes(self) -> int:
        return round((self.memory_gib - self.reserve_gib) * 2**30)


class ProfileSettings(BaseModel):
    """The options that a profile sets, named as in `EngineConfig`.

    Every profile sets them all, except `quality`, which costs accuracy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantize_experts: Format
    quantize_linears: Format
    max_context: int
    prefill_chunk: int
    max_active: int
    speculate: bool
    prefix_cache_mib: int
    quality: Quality = "exact"


class Reasons(BaseModel):
    """The reasons for a profile's settings, as text for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field(min_length=1)
    context: str = Field(min_length=1)
    batch: str = Field(min_length=1)
    speculation: str = Field(min_length=1)
    prefix_budget: str = Field(min_length=1)


class DeviceProfile(BaseModel):
    """One file of `configs/profiles/`. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(min_length=1)
    hardware: Hardware | None = None  # None: the profile is for a model, on any device
    settings: ProfileSettings
    why: Reasons

    @classmethod
    def read(cls, name: str) -> "DeviceProfile":
        """Returns the profile with this name.

        Raises pydantic's ValidationError, which names the wrong key, or OSError if the file cannot
        be read.
        """
        return cls.model_validate(
            tomllib.loads((CONFIGS / "profiles" / f"{name}.toml").read_text())
        )
