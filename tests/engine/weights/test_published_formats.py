"""Loading of published checkpoint formats, compared with their dequantised weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.random_model import Shape, write_random_model
from engine.model.checkpoint import (
    CheckpointError,
    find_checkpoint,
    find_dimensions,
    load_model,
)
from engine.sizing.dimensions import Stored
from engine.weights.quantization import QuantizedWeight, StackedWeight
from tests.engine.weights.published_models import (
    compressed_tensors,
    nvfp4,
    rewrite,
    rewrite_as_goedelmachines,
    store_compressed_nvfp4,
    store_fp8,
    store_int4,
    store_int8,
    store_modelopt_nvfp4,
)
from tests.engine.weights.test_quantized_loading import hidden, load, weights

SHAPE = Shape(layers="sf", hidden=64, mlp=96, expert=32)


def everything(_name):
    return True


def all_but_attention(name):
    return "self_attn" not in name


def only_experts(name):
    return ".experts." in name


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
OWN_FILE = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
# Name: function that stores a weight, quantised modules, metadata, its file, resulting scheme.
LAYOUTS = {
    "FP8-dynamic by RedHatAI": (
        store_fp8,
        everything,
        compressed_tensors("float-quantized", **FP8),
        "config.json",
        "fp8",
    ),
    "NVFP4 by RedHatAI": (
        store_compressed_nvfp4,
        all_but_attention,
        compressed_tensors("nvfp4-pack-quantized", **NVFP4),
        "config.json",
        "nvfp4",
    ),
    "w4a16 by llm-compressor": (
        store_int4,
        everything,
        compressed_tensors("pack-quantized", **INT4),
        "config.json",
        "int4",
    ),
    "INT8 by llm-compressor": (
        store_int8,
        everything,
        compressed_tensors("int-quantized", **INT8),
        "config.json",
        "int8",
    ),
    "NVFP4 by NVIDIA": (store_modelopt_nvfp4, only_experts, MODELOPT, "config.json", "nvfp4"),
    "NVFP4 by NVIDIA, named in its own file": (
        store_modelopt_nvfp4,
        only_experts,
        OWN_FILE,
        "hf_quant_config.json",
        "nvfp4",
    ),
}


@pytest.fixture
def folder(tmp_path):
    return write_random_model(tmp_path / "published", SHAPE)


@pytest.fixture(params=LAYOUTS)
def published(request, folder):
    store, chosen, quantization, metadata, scheme = LAYOUTS[request.param]
    dense = rewrite(folder, store, chosen, quantization, metadata)
    return folder, dense, chosen, scheme


def parts(weight):
    return weight.parts if isinstance(weight, StackedWeight) else (weight,)


def in_full(weight):
    return torch.cat(
        [
            part.dequantize(torch.float32) if isinstance(part, QuantizedWeight) else part
            for part in parts(weight)
        ],
        dim=-2,
    )


def test_a_loaded_weight_equals_its_dequantised_tensors(published):
    folder, dense, *_ = published
    model = load(folder)
    experts = "model.decoder.layers.0.experts."
    for expert in range(SHAPE.experts):
        expected = torch.cat(
            [dense[f"{experts}{expert}.{name}_proj.weight"] for name in ("gate", "up")]
        )
        gate_up = in_full(model.layers[0].experts.gate_up)[expert]
        assert torch.allclose(gate_up, expected, rtol=1e-6, atol=1e-8)
        down = in_full(model.layers[0].experts.down)[expert]
        expected = dense[f"{experts}{expert}.down_proj.weight"]
        assert torch.allclose(down, expected, rtol=1e-6, atol=1e-8)
    attention = "model.decoder.layers.1.self_attn."
    expected = torch.cat([dense[f"{attention}{name}_proj.weight"] for name in "qk"])
    assert torch.allclose(in_full(model.layers[1].attention.qkv), expected, rtol=1e-6, atol=1e-8)


def test_each_weight_stays_quantised_or_unquantised_as_stored(published):
    folder, _dense, chosen, scheme = published
    model = load(folder)
    for name, weight in weights(model).items():
        kind = {"experts": ".experts.", "attention": "self_attn", "mlp": ".mlp."}
        quantised = chosen(kind[name.split(".")[1]])
        for part in parts(weight):
            assert getattr(part, "scheme", None) == (scheme if quantised else None), name
    assert isinstance(model.self_conditioning.mlp.down, torch.Tensor)


def test_a_pass_equals_one_of_the_unquantised_checkpoint_with_the_same_weights(published, tmp_path):
    folder, dense, *_ = published
    model = load(folder)
    plain = write_random_model(tmp_path / "plain", SHAPE)
    merged = dict(load_file(plain / "model.safetensors"))
    for name in merged:
        prefix, _, last = name.rpartition(".")
        of_experts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
        if last in of_experts:
            merged[name] = torch.stack(
                [
                    torch.cat([dense[f"{prefix}.{e}.{p}.weight"] for p in of_experts[last]])
                    for e in range(SHAPE.experts)
                ]
            )
        else:
            merged[name] = dense[name].contiguous()
    save_file(merged, plain / "model.safetensors", metadata={"format": "pt"})
    assert torch.allclose(hidden(model), hidden(load(plain)), atol=1e-5)


def test_no_weight_is_a_view_of_the_files(published):
    folder, *_ = published
    model = load(folder)
    expected = hidden(model)
    file = folder / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))  # overwritten, so that a view would change
    assert torch.equal(hidden(model), expected)


def test_gate_and_up_with_the_same_global_scale_become_one_weight(folder):
    def store(weight):
        packed, scale, dense = nvfp4(weight, 1 / 0.001)
        second = torch.tensor(0.001)
        return {"weight": packed, "weight_scale": scale, "weight_scale_2": second}, dense * second

    dense = rewrite(folder, store, only_experts, MODELOPT)
    gate_up = load(folder).layers[0].experts.gate_up
    assert isinstance(gate_up, QuantizedWeight)
    experts = "model.decoder.layers.0.experts.3."
    expected = torch.cat([dense[f"{experts}{name}_proj.weight"] for name in ("gate", "up")])
    assert torch.allclose(in_full(gate_up)[3], expected)


def test_tied_copies_under_encoder_names_are_read_once(folder):
    dense = rewrite(folder, store_modelopt_nvfp4, only_experts, MODELOPT)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    copies = {
        name.replace("model.decoder.", "model.encoder.language_model."): tensor.clone()
        for name, tensor in tensors.items()
        if ".experts." in name
    }
    save_file({**tensors, **copies}, file, metadata={"format": "pt"})
    reports = []
    model = load_model(
        find_checkpoint(str(folder)),
        device=torch.device("cpu"),
        dtype=torch.float32,
        on_progress=lambda loaded, total: reports.append((loaded, total)),
    )
    down = in_full(model.layers[0].experts.down)[1]
    assert torch.allclose(down, dense["model.decoder.layers.0.experts.1.down_proj.weight"])
    assert reports[-1][0] == sum(t.nbytes for t in load_file(file).values())


@pytest.mark.parametrize("last", ["weight_packed", "weight_scale", "weight_shape"])
def test_a_missing_tensor_of_a_module_is_listed(folder, last):
    rewrite(folder, store_int4, everything, compressed_tensors("pack-quantized", **INT4))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors[f"model.decoder.layers.0.experts.2.up_proj.{last}"]
    save_file(tensors, file, metadata={"format": "pt"})
    named = "weight" if last == "weight_packed" else last
    with pytest.raises(CheckpointError, match=rf"missing: .*experts\.2\.up_proj\.{named}"):
        load(folder)


@pytest.fixture
def goedelmachines(folder):
    """The dequantised weights. Loading rounds only the products of zeros and scales, to float16."""
    return rewrite_as_goedelmachines(folder)


def test_experts_in_separate_files_equal_their_dequantised_tensors(folder, goedelmachines):
    model = load(folder)
    for index, layer in enumerate(model.each_layer()):
        prefix = f"model.decoder.layers.{index}.experts."
        for name, weight in (
            ("gate_up_proj", layer.experts.gate_up),
            ("down_proj", layer.experts.down),
        ):
            expected = goedelmachines[prefix + name]
            assert (weight.scheme, weight.group_size) == ("int4", 32)
            assert (in_full(weight) - expected).norm() < 5e-4 * expected.norm()
    assert isinstance(model.layers[0].attention.qkv, torch.Tensor)


def test_a_pass_with_experts_in_separate_files_equals_an_unquantised_one(
    folder, goedelmachines, tmp_path
):
    plain = write_random_model(tmp_path / "plain", SHAPE)
    tensors = {name: tensor.contiguous() for name, tensor in goedelmachines.items()}
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    expected = hidden(load(plain))
    assert (hidden(load(folder)) - expected).norm() < 1e-3 * expected.norm()


def test_experts_in_separate_files_are_counted_to_the_byte(folder, goedelmachines):
    dimensions = find_dimensions(str(folder))
    assert dimensions.quantized
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert dimensions.stored == Stored(files)
    for layer in load(folder).each_layer():
        of_layer = [layer.experts.gate_up, layer.experts.down]
        assert sum(weight.nbytes for weight in of_layer) == sum(
            tensor.nbytes for tensor in load_file(folder / "experts_0.safetensors").values()
        )


def test_a_layer_whose_file_of_experts_is_missing_is_listed(folder, goedelmachines):
    (folder / "experts_1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"2 missing: .*layers\.1\.experts\.dn_q, .*gu_q"):
        load(folder)


def test_an_unknown_packing_of_experts_is_refused_by_name(folder, goedelmachines):
    (folder / "w4_meta.json").write_text('{"format": "dg-w4a16-v2"}')
    with pytest.raises(CheckpointError, match="format is 'dg-w4a16-v2'; supported: 'dg-w4a16-v1'"):
        find_checkpoint(str(folder))


def test_a_tensor_without_a_module_is_listed(folder):
    rewrite(folder, store_fp8, everything, compressed_tensors("float-quantized", **FP8))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.layers.0.mlp.up_proj.weight_zero_point"] = torch.zeros(96, 1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*weight_zero_point"):
        load(folder)


def test_experts_of_different_shapes_are_refused(folder):
    rewrite(folder, store_fp8, everything, compressed_tensors("float-quantized", **FP8))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.decoder.layers.0.experts.2.down_proj.weight"
    tensors[name] = tensors[name][:, :16].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"0\.experts\.down_proj: .* differ in shape"):
        load(folder)


def test_scales_that_do_not_fit_their_weight_are_refused(folder):
    rewrite(folder, store_int4, everything, compressed_tensors("pack-quantized", **INT4))
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.decoder.layers.0.mlp.down_proj.weight_scale"] = torch.ones(64, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"mlp\.down_proj\.weight: scales \(64, 5\) do not"):
        load(folder)


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "awq"}, "quant_method is 'awq'; supported: 'compressed-tensors'"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "quant_algo is 'FP8'"),
        (compressed_tensors("marlin-24", **INT4), "group_0.format is 'marlin-24'"),
        (
            compressed_tensors("pack-quantized", **{**INT4, "num_bits": 3}),
            "weights.num_bits is 3; supported: 4",
        ),
        (
            compressed_tensors("pack-quantized", **INT4, actorder="group"),
            "weights.actorder is 'group'",
        ),
        (
            compressed_tensors("float-quantized", **{**FP8, "strategy": "block"}),
            "weights.strategy is 'block'",
        ),
    ],
)
def test_an_unsupported_format_is_refused_by_its_key(folder, quantization, named):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = quantization
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        find_checkpoint(str(folder))
