"""GGUF files as llama.cpp converts the model, compared with the `gguf` package's reading of them.

Blocks of K-quants are random bits with small scales, because any bits are a valid block.
"""

import struct

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.random_model import Shape, write_random_model
from engine.config import UNQUANTIZED, EngineConfig
from engine.loading import build_denoiser
from engine.model.checkpoint import (
    CheckpointError,
    find_checkpoint,
    find_dimensions,
    load_model,
)
from engine.sizing.gguf_header import GgufError, read_tensors
from engine.sizing.plan import DoesNotFitError
from engine.sizing.weights import weight_bytes
from engine.weights.quantization import QuantizedWeight, StackedWeight
from tests.engine.weights.test_quantized_loading import hidden

TYPE = gguf.GGMLQuantizationType
SHAPE = Shape(layers="sf", hidden=256, mlp=96, expert=32)
CPU = torch.device("cpu")

PLAIN = {
    "model.decoder.embed_tokens.weight": "token_embd.weight",
    "model.decoder.norm.weight": "output_norm.weight",
    "model.decoder.self_conditioning.pre_norm.weight": "self_cond_pre_norm.weight",
    "model.decoder.self_conditioning.gate_proj.weight": "self_cond_gate.weight",
    "model.decoder.self_conditioning.up_proj.weight": "self_cond_up.weight",
    "model.decoder.self_conditioning.down_proj.weight": "self_cond_down.weight",
}
IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "layer_scalar": "layer_output_scale.weight",
}


def q4_k_m(name):
    """Returns the type that llama.cpp's Q4_K_M has for this tensor.

    Rows whose length is not a multiple of 256 are Q8_0 or Q5_0.
    """
    if name in ("token_embd.weight", "self_cond_gate.weight") or "attn_v" in name:
        return TYPE.Q6_K
    if "attn_output" in name:
        return TYPE.BF16
    if "ffn_down" in name or "self_cond_down" in name:
        return TYPE.Q5_0 if "blk.1" in name else TYPE.Q8_0
    return TYPE.Q4_K


def q8_0(_name):
    return TYPE.Q8_0


def gguf_name(name):
    if name in PLAIN:
        return PLAIN[name]
    if name.startswith("model.encoder.language_model.layers."):
        return f"blk.{name.split('.')[4]}.enc_layer_output_scale.weight"
    _model, _decoder, _layers, layer, last = name.split(".", 4)
    return f"blk.{layer}.{IN_LAYER[last]}"


def stored(weight, kind, seed):
    """Returns a weight's bytes; for K-quants those of random blocks of about the same magnitude."""
    if kind in (TYPE.Q4_K, TYPE.Q6_K):
        size = {TYPE.Q4_K: 144, TYPE.Q6_K: 210}[kind]
        generator = np.random.default_rng(seed)
        shape = (*weight.shape[:-1], weight.shape[-1] // 256, size)
        blocks = generator.integers(0, 256, shape, dtype=np.uint8)
        scales = slice(0, 4) if kind is TYPE.Q4_K else slice(208, 210)
        small = generator.uniform(1e-4, 3e-4, (*shape[:-1], (scales.stop - scales.start) // 2))
        blocks[..., scales] = small.astype(np.float16).view(np.uint8)
        return blocks.reshape(*weight.shape[:-1], -1)
    return gguf.quantize(weight, kind)


def write(file, folder, kinds, *, architecture="diffusion-gemma", change=lambda tensors: tensors):
    """Write a checkpoint's language model as GGUF. Returns its tensors, dequantised."""
    writer, dense = gguf.GGUFWriter(file, architecture), {}
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "ä", ""])  # arrays that the reader skips
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, 2.5])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("rope_freqs.weight", np.ones(16, dtype=np.float32))
    tensors = load_file(folder / "model.safetensors")
    text = {n: t for n, t in tensors.items() if "vision" not in n}
    for seed, (name, tensor) in enumerate(change(text).items()):
        weight, own = tensor.numpy(), gguf_name(name)
        linear = weight.ndim > 1 and "router" not in name
        kind = kinds(own) if linear else TYPE.F32
        data = stored(weight, kind, seed)
        writer.add_tensor(own, data, raw_dtype=kind)
        dense[name] = torch.from_numpy(np.array(gguf.dequantize(data, kind)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense


@pytest.fixture
def folder(tmp_path):
    return write_random_model(tmp_path / "model", SHAPE)


def load(folder, file, **options):
    checkpoint = find_checkpoint(str(folder), str(file))
    return load_model(checkpoint, device=CPU, dtype=torch.float32, **options)


@pytest.mark.parametrize("kinds", [q8_0, q4_k_m])
def test_a_pass_equals_one_with_the_weights_that_the_package_dequantises(folder, tmp_path, kinds):
    dense = write(tmp_path / "model.gguf", folder, kinds)
    model = load(folder, tmp_path / "model.gguf")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | dense, folder / "model.safetensors", metadata={"format": "pt"})
    plain = load_model(find_checkpoint(str(folder)), device=CPU, dtype=torch.float32)
    expected = hidden(plain)
    most = 2e-3 if kinds is q4_k_m else 1e-6  # Q4_K's scales and zeros are products and are rounded
    assert (hidden(model) - expected).norm() < most * expected.norm()
    experts = model.layers[0].experts
    for name, weight in (("gate_up_proj", experts.gate_up), ("down_proj", experts.down)):
        expected = dense[f"model.decoder.layers.0.experts.{name}"]
        error = (weight.dequantize(torch.float32) - expected).norm() / expected.norm()
        assert error < 5e-4


def test_loaded_weights_keep_the_number_of_bits_they_have_in_the_file(folder, tmp_path):
    write(tmp_path / "model.gguf", folder, q4_k_m)
    model = load(folder, tmp_path / "model.gguf")
    first, second = model.each_layer()
    assert (first.experts.gate_up.scheme, first.experts.gate_up.group_size) == ("int4", 32)
    assert (first.experts.down.scheme, first.experts.down.group_size) == ("int8", 32)
    assert [(w.scheme, w.group_size) for w in first.attention.qkv.parts] == [
        ("int4", 32),
        ("int4", 32),
        ("int8", 16),
    ]
    assert isinstance(second.attention.qkv, QuantizedWeight)  # a full layer has no v_proj
    assert isinstance(first.attention.out, torch.Tensor)
    assert isinstance(model.embedding, torch.nn.Parameter)
    assert isinstance(model.self_conditioning.mlp.down, QuantizedWeight)


@pytest.mark.parametrize("kind", [TYPE.Q8_0, TYPE.Q5_0, TYPE.Q6_K])
def test_codes_and_scales_are_read_exactly(folder, tmp_path, kind):
    dense = write(
        tmp_path / "model.gguf",
        folder,
        lambda name: kind if "attn_q" in name else TYPE.Q8_0,
    )
    queries = load(folder, tmp_path / "model.gguf").layers[1].attention.qkv
    queries = queries if kind is TYPE.Q8_0 else queries.parts[0]
    expected = dense["model.decoder.layers.1.self_attn.q_proj.weight"]
    dequantized = queries.dequantize(torch.float32)[: expected.shape[0]]
    assert torch.equal(dequantized, expected)


def test_progress_counts_every_byte(folder, tmp_path):
    write(tmp_path / "model.gguf", folder, q8_0)
    reports = []
    load(folder, tmp_path / "model.gguf", on_progress=lambda *numbers: reports.append(numbers))
    assert reports == sorted(reports)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reports[-1][0] == sum(int(tensor.n_bytes) for tensor in reader.tensors)


def held_bytes(model):
    """Returns the bytes of all weights, quantised or not."""
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    for module in model.modules():
        for weight in vars(module).values():
            if isinstance(weight, QuantizedWeight | StackedWeight):
                total += weight.nbytes
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kinds", [q8_0, q4_k_m])
def test_the_header_predicts_the_size_of_the_weights_to_the_byte(folder, tmp_path, kinds, dtype):
    file = tmp_path / "model.gguf"
    write(file, folder, kinds)
    checkpoint = find_checkpoint(str(folder), str(file))
    model = load_model(checkpoint, device=CPU, dtype=dtype)
    dimensions = find_dimensions(str(folder), str(file))
    assert (dimensions.quantized, dimensions.tower) == (True, None)
    sizes = weight_bytes(dimensions, UNQUANTIZED, element_bytes=dtype.itemsize)
    assert sizes == {"as stored": held_bytes(model)}


def test_a_file_that_does_not_fit_is_refused_before_its_weights_are_read(
    folder, tmp_path, monkeypatch
):
    write(tmp_path / "model.gguf", folder, q8_0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")
    monkeypatch.setattr("engine.loading.choose_device", lambda _config: torch.device("cuda"))
    monkeypatch.setattr("engine.loading.free_memory", lambda _device: 2**20)
    monkeypatch.setattr("engine.loading.find_checkpoint", lambda *_: pytest.fail("reads on"))
    config = EngineConfig(model=str(folder), gguf=str(tmp_path / "model.gguf"))
    refusal = r"\(weights \d.*\), but Some GPU has 1\.0 MB for it\."
    with pytest.raises(DoesNotFitError, match=refusal):
        build_denoiser(config)


def test_the_header_locates_each_tensor_where_the_package_does(folder, tmp_path):
    write(tmp_path / "model.gguf", folder, q4_k_m)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert [(t.name, t.shape, t.kind, t.start) for t in read_tensors(tmp_path / "model.gguf")] == [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset)
        for t in reader.tensors
    ]


def test_missing_and_unexpected_tensors_are_listed(folder, tmp_path):
    def change(tensors):
        tensors.pop("model.decoder.layers.1.experts.down_proj")
        tensors["model.decoder.self_conditioning.gate_proj.weight"] = torch.ones(3, 256)
        return tensors

    write(tmp_path / "model.gguf", folder, q8_0, change=change)
    with pytest.raises(
        CheckpointError, match=r"1 missing: .*1\.experts\.down_proj; 1 mis-shaped: .*gate_proj"
    ):
        load(folder, tmp_path / "model.gguf")


def test_an_unsupported_type_is_named(folder, tmp_path):
    write(tmp_path / "model.gguf", folder, lambda _name: TYPE.Q4_1)
    with pytest.raises(CheckpointError, match=r"embed_tokens.*stored as Q4_1; supported: F32, "):
        load(folder, tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"token_embd.* is stored as Q4_1; supported: F32, "):
        find_dimensions(str(folder), str(tmp_path / "model.gguf"))


def test_a_file_of_another_model_is_refused(folder, tmp_path):
    write(tmp_path / "model.gguf", folder, q8_0, architecture="gemma4")
    with pytest.raises(CheckpointError, match="architecture is 'gemma4'; supported"):
        load(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no such thing" * 10, "it does not begin with 'GGUF'"),
        (b"", "empty"),
        (b"GGUF", "requires"),
        (struct.pack("<4sIQQ", b"GGUF", 1, 0, 0), "its version is 1; supported: 2 and 3"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "little-endian"),
        (struct.pack("<4sIQQQI", b"GGUF", 3, 0, 1, 0, 99), "the unknown kind 99"),
        (struct.pack("<4sIQQQIIQ", b"GGUF", 3, 0, 2, 0, 9, 4, 2**63), "."),
    ],
)
def test_a_file_that_is_not_gguf_is_refused(folder, tmp_path, data, why):
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"model\.gguf is not a GGUF file: .*{why}"):
        find_dimensions(str(folder), str(tmp_path / "model.gguf"))


def test_a_file_that_ends_too_soon_is_refused(folder, tmp_path):
    file = tmp_path / "model.gguf"
    write(file, folder, q8_0)
    whole = file.read_bytes()
    for size in range(4, read_tensors(file)[0].start, 97):
        file.write_bytes(whole[:size])
        with pytest.raises(GgufError, match="not a GGUF file"):
            read_tensors(file)
    file.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"weight: the file ends before the tensor does"):
        load(folder, file)


@pytest.mark.parametrize("name", ["nowhere.gguf", "/nowhere/at/all.gguf", "owner/name"])
def test_a_missing_file_is_named(folder, name):
    with pytest.raises(CheckpointError, match=f"gguf '{name}' is neither a file nor"):
        find_checkpoint(str(folder), name)
