"""What the worker reads from its configuration: each option once, with default, bounds and help.

The front end's `Settings` inherits these fields, so that one environment variable or command-line
option reaches the process that needs it. Imports no torch: the front end reads this file too.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

DEMO_MODEL = "demo"
DEMO_MODEL_PATH = Path(__file__).resolve().parent.parent / "demo" / "model"


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
    quantize_experts: Literal["none", "int8", "int4", "fp8"] = Field(
        default="none",
        description="Quantise the experts' weights of an unquantised checkpoint while loading.",
    )
    quantize_linears: Literal["none", "int8", "int4", "fp8"] = Field(
        default="none",
        description="The same for attention's and the dense MLPs' weights. Router, embeddings, "
        "norms, self-conditioning and vision are never quantised.",
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
    narrow_canvas: bool = Field(
        default=False,
        description="Where max_tokens leaves less than a canvas, denoise only as much.",
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

    @property
    def model_path(self) -> str:
        """`model` as Transformers understands it: a folder's path or a Hugging Face id."""
        return str(DEMO_MODEL_PATH) if self.model == DEMO_MODEL else self.model
