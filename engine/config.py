"""What the worker reads from its configuration: each option once, with default, bounds and help.

The front end's `Settings` inherits these fields, so that one environment variable or command-line
option reaches the process that needs it. Imports no torch: the front end reads this file too.
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

Format = Literal["none", "int8", "int4", "fp8"]
FormatOfRest = Literal["none", "int8", "fp8"]  # one scale a row, which lm_head's products need


@dataclass(frozen=True)
class Formats:
    """In which format each kind of matrix is held. "none" is the model's own type.

    `linears` are the matrices of attention and of the dense MLPs. `rest` are all others: the
    embedding, which is lm_head too, self-conditioning, the routers and vision.
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
        """Returns the formats as `EngineConfig` names them."""
        return {f"quantize_{kind}": form for kind, form in asdict(self).items()}


UNQUANTIZED = Formats()


def profile_names() -> list[str]:
    """Of all device profiles that there are."""
    return sorted(file.stem for file in (CONFIGS / "profiles").glob("*.toml"))


class EngineConfig(BaseModel):
    """Everything that `python -m engine` needs to know; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        default=DEMO_MODEL,
        min_length=1,
        description="A checkpoint: 'demo' for the built-in model, a folder, or a Hugging Face id.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where the model runs; auto takes the GPU if there is one.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="The weights' type in memory; auto is bfloat16 on a GPU, float32 on a CPU.",
    )
    gguf: str = Field(
        default="",
        description="A GGUF file to take the weights from, a path or owner/name/file.gguf; "
        "configuration and tokenizer stay those of model. It has no vision.",
    )
    profile: str = Field(
        default="auto",
        description="The device profile, whose values stand for what is told by neither option nor "
        f"variable: {', '.join(profile_names())}; auto goes by the GPU's name and memory, none "
        "takes none. docs/devices.md has them.",
    )
    quantize_experts: Format = Field(
        default="none",
        description="Quantise the experts' weights of an unquantised checkpoint while loading.",
    )
    quantize_linears: Format = Field(
        default="none",
        description="The same for attention's and the dense MLPs' weights.",
    )
    quantize_rest: FormatOfRest = Field(
        default="none",
        description="The same for all other matrices: the embedding, which is lm_head too, "
        "self-conditioning's, the routers' and vision's. It saves memory; time it may cost.",
    )
    quantized_cache: bool = Field(
        default=True,
        description="Keep what was quantised in the user's cache folder, for a quicker next start.",
    )
    max_context: int = Field(
        default=32768,
        ge=64,
        description="Most tokens of prompt and answer together, where the model allows as many.",
    )
    prefill_chunk: int = Field(
        default=1024,
        ge=1,
        description="Most tokens encoded in one pass; a cancel is heard between passes.",
    )
    max_active: int = Field(
        default=4,
        ge=1,
        description="Most requests that denoise together; each has a KV cache of its own.",
    )
    early_end: bool = Field(
        default=False,
        description="Finish a block when it is stable and confident up to its end token.",
    )
    speculate: bool = Field(
        default=False,
        description="Bet on a canvas that is nearly done: commit it and start the next block in "
        "the same pass. Saves passes where a pass' rows cost little.",
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        default="auto",
        description="Capture denoising passes as CUDA graphs; auto does on a GPU. Where that fails "
        "the log says so.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the network's layers for denoising passes (torch.compile): seconds or "
        "minutes at first use. Where that fails the log says so.",
    )
    prefix_cache_mib: int = Field(
        default=2048,
        ge=0,
        description="Device memory, in MiB, for keys and values of earlier prompts; 0 keeps none.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        description="CPU threads of the worker; 0 is one for a narrow model, else torch's choice.",
    )

    @field_validator("profile")
    @classmethod
    def _known(cls, name: str) -> str:
        known = ["auto", "none", *profile_names()]
        if name not in known:
            raise ValueError(f"{name!r} is no profile; there are: {', '.join(known)}")
        return name

    @property
    def formats(self) -> Formats:
        return Formats(self.quantize_experts, self.quantize_linears, self.quantize_rest)

    @property
    def model_path(self) -> str:
        """Returns `model` as Transformers understands it: a folder's path or a Hugging Face id."""
        return str(DEMO_MODEL_PATH) if self.model == DEMO_MODEL else self.model


class Hardware(BaseModel):
    """A device as its maker describes it. The operations are dense, with 32-bit accumulation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu_names: list[str] = Field(min_length=1, description="Parts of the driver's names for it.")
    memory_gib: float = Field(gt=0)
    reserve_gib: float = Field(
        ge=0, description="Of that memory, what others have: the driver, a desktop, the system."
    )
    shared_memory: bool = Field(
        default=False, description="Whether the GPU has no memory of its own, but the system's."
    )
    bandwidth_gb_s: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    fp8_tflops: float = Field(gt=0)

    def is_of(self, gpu_name: str) -> bool:
        """Whether the driver's name is one of this device's."""
        return any(part in gpu_name for part in self.gpu_names)

    @property
    def usable_bytes(self) -> int:
        return round((self.memory_gib - self.reserve_gib) * 2**30)


class ProfileSettings(BaseModel):
    """The options that a profile sets, every profile all of them: the same as `EngineConfig`'s."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantize_experts: Format
    quantize_linears: Format
    max_context: int
    prefill_chunk: int
    max_active: int
    speculate: bool
    prefix_cache_mib: int


class Reasons(BaseModel):
    """Why a profile's settings are what they are, for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str = Field(min_length=1)
    context: str = Field(min_length=1)
    batch: str = Field(min_length=1)
    speculation: str = Field(min_length=1)
    prefix_budget: str = Field(min_length=1)


class DeviceProfile(BaseModel):
    """One file of `configs/profiles/`; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(min_length=1)
    hardware: Hardware | None = None  # None: for a model, on any device
    settings: ProfileSettings
    why: Reasons

    @classmethod
    def read(cls, name: str) -> "DeviceProfile":
        """Raises pydantic's ValidationError, which names the key."""
        return cls.model_validate(
            tomllib.loads((CONFIGS / "profiles" / f"{name}.toml").read_text())
        )
