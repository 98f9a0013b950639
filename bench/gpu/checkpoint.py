"""Writes a checkpoint of the released width with random weights, which a server can load."""

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaTextConfig

from bench.gpu.device import DEVICE, HALF, TINY, tiny
from bench.random_weights import network_config, random_network
from bench.synthetic import Trial
from engine.config import DEMO_MODEL_PATH, Formats
from engine.model.weight_map import weight_targets
from engine.sizing.dimensions import Dimensions

_STEPS = 8  # denoising steps a block
_FILE_BYTES = 2e9  # a file is written as soon as its tensors have more


def write_checkpoint(folder: Path, layers: int) -> None:
    """Write a checkpoint of the released model's first layers and its last one into `folder`.

    The tokenizer and the chat template are those of the demo model.
    """
    dimensions = Trial("26b", layers, DEVICE).dimensions
    if TINY:
        dimensions = tiny(dimensions)
    folder.mkdir(parents=True)
    DiffusionGemmaConfig(
        text_config=_text_config(dimensions), canvas_length=dimensions.canvas_length
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(DEMO_MODEL_PATH / name, folder)
    generation = json.loads((DEMO_MODEL_PATH / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(
        json.dumps({**generation, "max_denoising_steps": _STEPS})
    )
    _write_weights(folder, dimensions)


def _text_config(dimensions: Dimensions) -> DiffusionGemmaTextConfig:
    sliding, full = dimensions.layers[0], dimensions.layers[-1]
    assert sliding.window is not None
    return DiffusionGemmaTextConfig(  # type: ignore[call-arg]  # it does not declare all fields
        vocab_size=dimensions.vocab_size,
        hidden_size=dimensions.hidden_size,
        intermediate_size=dimensions.mlp_size,
        num_hidden_layers=len(dimensions.layers),
        layer_types=[
            "sliding_attention" if layer.window else "full_attention" for layer in dimensions.layers
        ],
        num_attention_heads=dimensions.query_heads,
        num_key_value_heads=sliding.kv_heads,
        num_global_key_value_heads=full.kv_heads,
        head_dim=sliding.head_size,
        global_head_dim=full.head_size,
        sliding_window=sliding.window,
        num_experts=dimensions.experts,
        top_k_experts=dimensions.experts_per_token,
        moe_intermediate_size=dimensions.expert_size,
        max_position_embeddings=dimensions.max_positions,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
        use_bidirectional_attention="vision",
    )


def _write_weights(folder: Path, dimensions: Dimensions) -> None:
    network = random_network(
        network_config(dimensions),
        formats=Formats(),
        device=DEVICE,
        dtype=HALF,
    )
    files: dict[str, str] = {}  # of each tensor, by its name
    tensors: dict[str, Tensor] = {}  # those that are not written yet

    def write() -> None:
        file = f"model-{len(files):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(tensors, file))
        tensors.clear()

    for target in weight_targets(network):
        weight = getattr(target.module, target.attribute).detach().cpu()
        if len(target.parts) == 1:
            tensors[target.name] = weight.contiguous()
        else:
            parts = weight.split([shape[0] for shape in target.parts.values()])
            tensors.update((n, p.contiguous()) for n, p in zip(target.parts, parts, strict=True))
        if sum(tensor.nbytes for tensor in tensors.values()) > _FILE_BYTES:
            write()
    if tensors:
        write()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )
