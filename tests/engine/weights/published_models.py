"""Tiny checkpoints written in the layouts of published ones, and what their weights stand for.

Written here with numbers and bits spelled out, not with the code that reads them.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

IGNORED = ("self_conditioning", "router", "embed", "vision", "norm", "scalar", "lm_head")
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])


def linearised(tensors):
    """The tensors with each layer's experts as a module for each of them and each projection."""
    found = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, weight in enumerate(tensor):
                gate, up = weight.chunk(2)
                found[f"{prefix}.{expert}.gate_proj.weight"] = gate
                found[f"{prefix}.{expert}.up_proj.weight"] = up
        elif last == "down_proj":
            for expert, weight in enumerate(tensor):
                found[f"{prefix}.{expert}.down_proj.weight"] = weight
        else:
            found[name] = tensor
    return found


def rewrite(folder: Path, store, chosen, quantization, metadata="config.json"):
    """Store every chosen module's weight another way; gives back what the weights stand for.

    `store(weight)` gives the tensors by their last names, and what they stand for.
    """
    file = folder / "model.safetensors"
    tensors, stood_for = {}, {}
    for name, tensor in linearised(load_file(file)).items():
        module = name.removesuffix(".weight")
        if name.endswith("_proj.weight") and not any(i in name for i in IGNORED) and chosen(name):
            stored, dense = store(tensor)
            tensors |= {f"{module}.{last}": each.contiguous() for last, each in stored.items()}
            stood_for[name] = dense
        else:
            tensors[name] = stood_for[name] = tensor.contiguous()
    save_file({n: t.clone() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    if metadata == "config.json":
        config = json.loads((folder / metadata).read_text())
        (folder / metadata).write_text(json.dumps({**config, "quantization_config": quantization}))
    else:
        (folder / metadata).write_text(json.dumps(quantization))
    return stood_for


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
    """Eight numbers -8 .. 7 in an int32, each plus 8, the first in the lowest bits."""
    rows, inputs = weight.shape
    grouped = weight.view(rows, -1, group)
    scale = (grouped.abs().amax(-1) / 7).bfloat16()
    numbers = (grouped / scale[..., None].float()).round().clamp(-8, 7)
    dense = (numbers * scale[..., None].float()).view(rows, inputs)
    words = torch.zeros(rows, inputs // 8, dtype=torch.int64)
    for place in range(8):
        words += (numbers.view(rows, inputs)[:, place::8].long() + 8) << (4 * place)
    words = torch.where(words >= 2**31, words - 2**32, words).int()
    shape = torch.tensor([rows, inputs])
    return {"weight_packed": words, "weight_scale": scale, "weight_shape": shape}, dense


def nvfp4(weight, factor):
    """e2m1 codes two a byte, the scales of 16, and what they stand for without the factor."""
    rows, inputs = weight.shape
    grouped = (weight * factor).view(rows, -1, 16)
    scale = (grouped.abs().amax(-1) / 6).to(torch.float8_e4m3fn)
    scaled = grouped / scale.float()[..., None].clamp(min=1e-9)
    codes = (scaled[..., None] - E2M1).abs().argmin(-1)
    dense = (E2M1[codes] * scale.float()[..., None]).view(rows, inputs)
    codes = codes.view(rows, inputs).to(torch.uint8)
    return codes[:, 0::2] + 16 * codes[:, 1::2], scale, dense


def store_compressed_nvfp4(weight):
    """The second scale is what the weights were multiplied by."""
    factor = 448 * 6 / weight.abs().max()
    packed, scale, dense = nvfp4(weight, factor)
    return {
        "weight_packed": packed,
        "weight_scale": scale,
        "weight_global_scale": factor.reshape(1),
        "input_global_scale": torch.tensor(3.0),
    }, dense / factor


def store_modelopt_nvfp4(weight):
    """The second scale is what they are to be multiplied by."""
    second = weight.abs().max() / (448 * 6)
    packed, scale, dense = nvfp4(weight, 1 / second)
    return {
        "weight": packed,
        "weight_scale": scale,
        "weight_scale_2": second,
        "input_scale": torch.tensor(3.0),
    }, dense * second


def compressed_tensors(layout, **weights):
    """config.json's quantization_config as llm-compressor writes it."""
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
    """Experts in four bits in files of their own; gives back what all weights stand for."""
    file = folder / "model.safetensors"
    tensors, stood_for = load_file(file), {}
    for name in [name for name in tensors if ".experts." in name]:
        prefix, _, last = name.rpartition(".")
        stored, stood_for[name] = store_asymmetric(tensors.pop(name), group)
        short = {"gate_up_proj": "gu", "down_proj": "dn"}[last]
        layer = name.split(".layers.")[1].split(".")[0]
        path = folder / f"experts_{layer}.safetensors"
        others = load_file(path) if path.exists() else {}
        save_file(others | {f"{prefix}.{short}_{k}": t for k, t in stored.items()}, path)
    save_file({n: t.clone() for n, t in tensors.items()}, file, metadata={"format": "pt"})
    (folder / "w4_meta.json").write_text(json.dumps({"format": "dg-w4a16-v1"}))
    return tensors | stood_for


def store_asymmetric(weight, group):
    """[E, N, K]: codes 0 .. 15, even inputs low, less the zero's code and times the scale."""
    grouped = weight.view(*weight.shape[:-1], -1, group)
    least, most = grouped.amin(-1), grouped.amax(-1)
    scale = ((most - least) / 15).half()
    zero = (-least / scale.float()).round().clamp(0, 15).half()
    codes = (grouped / scale.float()[..., None] + zero.float()[..., None]).round().clamp(0, 15)
    dense = (codes - zero.float()[..., None]) * scale.float()[..., None]
    codes = codes.to(torch.uint8).flatten(-2)
    return {"q": codes[..., 0::2] + 16 * codes[..., 1::2], "s": scale, "z": zero}, dense.flatten(-2)
