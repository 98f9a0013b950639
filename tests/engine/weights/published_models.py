"""Writes tiny checkpoints in the layouts of published ones and returns their dequantised weights.

The layouts are spelled out here in numbers and bits, independently of the code that reads them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

IGNORED = ("self_conditioning", "router", "embed", "vision", "norm", "scalar", "lm_head")
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])


def linearised(tensors):
    """Returns the tensors with each projection of each expert as a module of its own."""
    modules = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, weight in enumerate(tensor):
                gate, up = weight.chunk(2)
                modules[f"{prefix}.{expert}.gate_proj.weight"] = gate
                modules[f"{prefix}.{expert}.up_proj.weight"] = up
        elif last == "down_proj":
            for expert, weight in enumerate(tensor):
                modules[f"{prefix}.{expert}.down_proj.weight"] = weight
        else:
            modules[name] = tensor
    return modules


def rewrite(folder: Path, store, chosen, quantization, metadata="config.json"):
    """Store every chosen module's weight in another format. Returns all weights, dequantised.

    `store(weight)` returns the stored tensors, by their last names, and the dequantised weight.
    """
    file = folder / "model.safetensors"
    tensors: dict[str, torch.Tensor] = {}
    dense: dict[str, torch.Tensor] = {}
    for name, tensor in linearised(load_file(file)).items():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight") and not any(i in name for i in IGNORED) and chosen(name):
            stored, dense[name] = store(tensor)
            tensors |= {f"{module}.{last}": each.contiguous() for last, each in stored.items()}
        else:
            tensors[name] = dense[name] = tensor.contiguous()
    save_file({n: t.clone() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    if metadata == "config.json":
        config = json.loads((folder / metadata).read_text())
        (folder / metadata).write_text(json.dumps({**config, "quantization_config": quantization}))
    else:
        (folder / metadata).write_text(json.dumps(quantization))
    return dense


def store_fp8(weight):
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def store_int8(weight):
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale.bfloat16()}, (
        codes.float() * scale.bfloat16().float()
    )


def store_int4(weight, group=32):
    """Store eight numbers -8 .. 7 in an int32, each plus 8, the first in the lowest bits."""
    rows, inputs = weight.shape
    grouped = weight.view(rows, -1, group)
    scale = (grouped.abs().amax(-1) / 7).bfloat16()
    numbers = (grouped / scale[..., None].float()).round().clamp(-8, 7)
    dense = (numbers * scale[..., None].float()).view(rows, inputs)
    words = torch.zeros(rows, inputs // 8, dtype=torch.int64)
    for position in range(8):
        words += (numbers.view(rows, inputs)[:, position::8].long() + 8) << (4 * position)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    shape = torch.tensor([rows, inputs])
    return {"weight_packed": words, "weight_scale": scale, "weight_shape": shape}, dense


def nvfp4(weight, factor):
    """Returns packed e2m1 codes, the scales of 16 weights, and the dequantised weight * factor."""
    rows, inputs = weight.shape
    grouped = (weight * factor).view(rows, -1, 16)
    scale = (grouped.abs().amax(-1) / 6).to(torch.float8_e4m3fn)
    scaled = grouped / scale.float()[..., None].clamp(min=1e-9)
    codes = (scaled[..., None] - E2M1).abs().argmin(-1)
    dense = (E2M1[codes] * scale.float()[..., None]).view(rows, inputs)
    codes = codes.view(rows, inputs).to(torch.uint8)
    return codes[:, 0::2] + 16 * codes[:, 1::2], scale, dense


def store_compressed_nvfp4(weight):
    """The second scale is the factor by which the weights were multiplied."""
    factor = 448 * 6 / weight.abs().max()
    packed, scale, dense = nvfp4(weight, factor)
    return {
        "weight_packed": packed,
        "weight_scale": scale,
        "weight_global_scale": factor.reshape(1),
        "input_global_scale": torch.tensor(3.0),
    }, dense / factor


def store_modelopt_nvfp4(weight):
    """The second scale is the factor by which a reader has to multiply."""
    second = weight.abs().max() / (448 * 6)
    packed, scale, dense = nvfp4(weight, 1 / second)
    return {
        "weight": packed,
        "weight_scale": scale,
        "weight_scale_2": second,
        "input_scale": torch.tensor(3.0),
    }, dense * second


def compressed_tensors(layout, **weights):
    """Returns `quantization_config` of config.json as llm-compressor writes it."""
    group = {
        "format": None,
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": {"actorder": None, "dynamic": False, "symmetric": True, **weights},
    }
    return {
        "config_groups": {"group_0": group},
        "format": layout,
        "ignore": ["lm_head", "re:.*embed.*", "re:.*router", "re:.*self_conditioning.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def rewrite_as_goedelmachines(folder: Path, group=32):
    """Move the experts, in four bits, to files of their own. Returns all weights, dequantised."""
    file = folder / "model.safetensors"
    tensors, dense = load_file(file), {}
    for name in [name for name in tensors if ".experts." in name]:
        prefix, _, last = name.rpartition(".")
        stored, dense[name] = store_asymmetric(tensors.pop(name), group)
        short = {"gate_up_proj": "gu", "down_proj": "dn"}[last]
        layer = name.split(".layers.")[1].split(".")[0]
        path = folder / f"experts_{layer}.safetensors"
        others = load_file(path) if path.exists() else {}
        save_file(others | {f"{prefix}.{short}_{k}": t for k, t in stored.items()}, path)
    save_file({n: t.clone() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    (folder / "w4_meta.json").write_text(json.dumps({"format": "dg-w4a16-v1"}))
    return tensors | dense


def store_asymmetric(weight, group):
    """Store [E, N, K] as codes 0 .. 15, even inputs low: an element is (code - zero) * scale."""
    grouped = weight.view(*weight.shape[:-1], -1, group)
    least, most = grouped.amin(-1), grouped.amax(-1)
    scale = ((most - least) / 15).half()
    zero = (-least / scale.float()).round().clamp(0, 15).half()
    codes = (grouped / scale.float()[..., None] + zero.float()[..., None]).round().clamp(0, 15)
    dense = (codes - zero.float()[..., None]) * scale.float()[..., None]
    codes = codes.to(torch.uint8).flatten(-2)
    return {"q": codes[..., 0::2] + 16 * codes[..., 1::2], "s": scale, "z": zero}, dense.flatten(-2)
