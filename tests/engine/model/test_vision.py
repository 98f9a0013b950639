"""Images in the worker: which are accepted, and checkpoints whose vision is refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.random_model import Shape, write_random_model
from engine.config import EngineConfig
from engine.loading import build_denoiser
from engine.messages import (
    Block,
    Failed,
    GenerateRequest,
    Image,
    Sampling,
    decode_to_worker,
    encode,
)
from engine.model.checkpoint import CheckpointError, find_checkpoint, load_model
from engine.model.diffusion_gemma import UnsupportedModelError
from engine.model.vision import Projection, Vision, is_vision
from engine.worker import Worker
from tests.parity.tiny_models import IMAGE, write_image_processor, write_seeing_model

SHAPE = Shape(confidence_threshold=1e-9, entropy_bound=6.0)
SIDE = 6  # pixels, of the square that an image token stands for


def new_image(rows=5, columns=7, start=3, seed=0):
    height, width = rows * SIDE, columns * SIDE
    pixels = np.random.default_rng(seed).integers(0, 256, height * width * 3, dtype=np.uint8)
    return Image(start, rows * columns, height, width, pixels.tobytes())


def request(*images, request_id="a", length=60):
    prompt = [20 + n % (SHAPE.vocab - 20) for n in range(length)]
    for image in images:
        prompt[image.start : image.end] = [IMAGE] * image.tokens
    return GenerateRequest(request_id, prompt, 20, Sampling(seed=1), images=list(images))


def build_worker(folder, **config):
    config = EngineConfig(model=str(folder), device="cpu", max_context=256, **config)
    denoiser = build_denoiser(config)
    denoiser.sampler = dataclasses.replace(denoiser.sampler, end_tokens=frozenset(), padding=None)
    return Worker(denoiser, config)


def tokens_of(messages, request_id="a"):
    return [t for m in messages if isinstance(m, Block) and m.id == request_id for t in m.tokens]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_seeing_model(tmp_path_factory.mktemp("seeing"), SHAPE)


@pytest.fixture(scope="module")
def worker(folder):
    return build_worker(folder)


@pytest.mark.parametrize("scheme", ["int8", "fp8"])
def test_a_quantised_tower_works_like_one_with_its_dequantised_weights(folder, worker, scheme):
    config = EngineConfig(
        model=str(folder), device="cpu", quantize_rest=scheme, quantized_cache=False
    )
    vision = build_denoiser(config).vision
    quantised = [module for module in vision.modules() if isinstance(module, Projection)]
    assert len(quantised) == 2 * 7 + 1  # two layers, and the projector to the language model
    with torch.inference_mode():
        embeddings = vision(new_image())
        for module in quantised:
            whole = module.weight.dequantize(torch.float32)
            delattr(module, "weight")
            module.weight = torch.nn.Parameter(whole)
        torch.testing.assert_close(embeddings, vision(new_image()), rtol=1e-4, atol=1e-5)
        unquantised = worker._denoiser.vision(new_image())
    assert 0 < (embeddings - unquantised).norm() < 0.1 * unquantised.norm()


def test_a_request_with_images_reaches_the_worker_unchanged():
    sent = request(new_image())
    assert decode_to_worker(encode(sent)) == sent


def test_an_image_larger_than_a_prefill_chunk_fits_the_kv_cache(folder, worker):
    # The tokens before the image fill a sliding layer's entries for stored tokens, so that the
    # image only has the entries for a pass.
    seeing = request(new_image(rows=7, columns=10, start=80), length=152)
    expected = tokens_of(worker.generate(seeing))
    assert len(expected) == 20
    assert tokens_of(build_worker(folder, prefill_chunk=1).generate(seeing)) == expected


def test_a_request_with_images_changes_no_answer_of_others_in_its_passes(worker):
    each = [
        request(new_image(), request_id="a"),
        request(request_id="b"),
        request(new_image(seed=1), request_id="c"),
        request(
            new_image(rows=1, columns=9), new_image(rows=4, columns=1, start=15), request_id="d"
        ),
    ]
    alone = {one.id: tokens_of(worker.generate(one), one.id) for one in each}
    assert len({tuple(tokens) for tokens in alone.values()}) == len(each)
    for one in each:
        worker.handle(one)
    messages = []
    while not worker.idle:
        messages += worker.step()
    assert {one.id: tokens_of(messages, one.id) for one in each} == alone


def test_a_model_without_an_image_processor_fails_requests_with_images(tmp_path):
    blind = build_worker(write_random_model(tmp_path, SHAPE))
    (failed,) = blind.handle(request(new_image()))
    assert isinstance(failed, Failed)
    assert len(tokens_of(blind.generate(request()))) == 20


@pytest.mark.parametrize(
    "images",
    [
        [{"tokens": 36}],
        [{"tokens": 0, "height": 0, "pixels": b""}],
        [{"height": 31, "pixels": bytes(31 * 42 * 3)}],  # not a whole number of tokens
        [{"pixels": b"too few"}],
        [{"tokens": 35, "height": -30, "width": -42, "pixels": bytes(30 * 42 * 3)}],
        [{"start": 26}],  # beyond the prompt
        [{"start": -1}],
        [{}, {"start": 37}],  # overlapping
        [{"start": 20}, {"start": 0, "tokens": 1, "height": 6, "width": 6, "pixels": bytes(108)}],
        [{"tokens": 77, "height": 66, "pixels": bytes(66 * 42 * 3)}],  # more than 70
    ],
)
def test_images_that_the_model_cannot_accept_fail(worker, images):
    good = new_image()
    fields = {name: getattr(good, name) for name in Image.__struct_fields__}
    wrong = [Image(**{**fields, **changes}) for changes in images]
    sent = GenerateRequest("a", [IMAGE] * 60, 20, Sampling(seed=1), images=wrong)
    (failed,) = worker.handle(sent)
    assert isinstance(failed, Failed)
    assert worker.idle


def test_out_of_memory_in_the_tower_fails_only_the_current_request(worker, monkeypatch):
    expected = tokens_of(worker.generate(request(new_image())))

    def exhausted(self, image):
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patched:
        patched.setattr(Vision, "forward", exhausted)
        messages = list(worker.generate(request(new_image(seed=5), request_id="b")))
    assert [type(m) for m in messages] == [Failed]
    assert tokens_of(worker.generate(request(new_image()))) == expected


@pytest.fixture
def own_folder(tmp_path):
    return write_seeing_model(tmp_path, SHAPE)


def change(folder, name, **changes):
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "'SiglipImageProcessor'; supported"),
        ({"do_resize": False, "do_convert_rgb": False}, "do_resize is False.*do_convert_rgb is"),
    ],
)
def test_an_image_processor_of_another_model_is_refused(own_folder, changes, named):
    change(own_folder, "preprocessor_config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=named):
        find_checkpoint(str(own_folder))


def build_vision(folder, dtype=torch.float32):
    return Vision(find_checkpoint(str(folder)).vision, device=torch.device("cpu"), dtype=dtype)


def test_an_image_processor_that_does_not_fit_the_tower_is_refused(own_folder):
    write_image_processor(own_folder, patch_size=4)
    with pytest.raises(UnsupportedModelError, match="patch_size is 4, vision_config's 2"):
        build_vision(own_folder)


def test_more_patches_in_a_row_than_the_tower_has_positions_are_refused(own_folder):
    change(own_folder, "preprocessor_config.json", max_soft_tokens=140)
    with pytest.raises(UnsupportedModelError, match="140 needs 420 positions"):
        build_vision(own_folder)


def test_a_processor_for_something_else_does_not_count_as_an_image_processor(own_folder):
    (own_folder / "preprocessor_config.json").unlink()
    (own_folder / "processor_config.json").write_text('{"feature_extractor": {}}')
    assert find_checkpoint(str(own_folder)).vision is None


def test_a_missing_vision_tensor_is_listed(own_folder):
    file = own_folder / "model.safetensors"
    tensors = {name: each for name, each in load_file(file).items() if "input_proj" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    vision = build_vision(own_folder)
    with pytest.raises(CheckpointError, match=r"1 missing: .*patch_embedder\.input_proj"):
        load_model(
            find_checkpoint(str(own_folder)),
            device=torch.device("cpu"),
            dtype=torch.float32,
            vision=vision,
        )


def test_every_vision_tensor_of_the_file_belongs_to_a_tensor_of_the_tower(own_folder):
    names = [n for n in load_file(own_folder / "model.safetensors") if is_vision(n)]
    assert sorted(build_vision(own_folder).tensors()) == sorted(names)


def test_the_frequencies_of_a_tower_in_half_precision_stay_float32(own_folder):
    vision = build_vision(own_folder, torch.bfloat16)
    assert {each.dtype for each in vision.parameters()} == {torch.bfloat16}
    assert vision.tower.encoder.rotary_emb.inv_freq.dtype == torch.float32
