"""Compares prompts with images with Transformers, from the data URL on.

The reference's masks are made as in its `generate`: its encoder, when called directly, computes the
mask of image tokens but does not use it.
"""

from dataclasses import dataclass

import pytest
import torch
from transformers import DynamicCache, Gemma4ImageProcessorPil

from app.prompting.conversation import ImagePart, ImageUrl
from app.prompting.images import ImageReader
from bench.passes import decode
from engine.config import EngineConfig
from engine.messages import Block, GenerateRequest, Image, Sampling
from engine.model.rows import ImageRows, Segment
from engine.worker import Worker
from tests.parity.conftest import load_pair
from tests.parity.test_generation import BLOCKS, END_NOWHERE
from tests.parity.test_logits import TOLERANCE, assert_same_cache, new_cache
from tests.parity.tiny_models import (
    BEGIN_OF_IMAGE,
    END_OF_IMAGE,
    IMAGE,
    SEEING_SHAPES,
    write_seeing_model,
)
from tests.pictures import data_url, noise_picture, read_pictures

ONE = [(30, 55)]
TWO = [(90, 64), (13, 200)]  # heights and widths in pixels


@pytest.fixture(scope="module", params=SEEING_SHAPES)
def folder(request, tmp_path_factory):
    return write_seeing_model(tmp_path_factory.mktemp("seeing"), SEEING_SHAPES[request.param])


@pytest.fixture(scope="module")
def pair(folder):
    return load_pair(folder)


@dataclass(frozen=True)
class Prompt:
    """The same prompt as tokens and images for Easel, and as inputs for the reference."""

    tokens: list[int]
    images: list[Image]
    reference: dict[str, torch.Tensor]


@pytest.fixture
def make_prompt(pair, folder):
    """Returns a function that makes a prompt with pictures of these sizes between random words."""
    reader, processor = (
        ImageReader.find(str(folder)),
        Gemma4ImageProcessorPil.from_pretrained(folder),
    )

    def make(sizes, seed=0, picture_seed=0):
        pictures = [noise_picture(*size, seed=picture_seed + n) for n, size in enumerate(sizes)]
        words = iter(torch.tensor(pair.prompt(20 * (len(sizes) + 1), seed)).split(20))
        rendered = next(words).tolist()
        for part in words:
            rendered += [IMAGE, *part.tolist()]
        read = read_pictures(
            reader, [ImagePart(ImageUrl(data_url(picture)), "url") for picture in pictures]
        )
        tokens, images = reader.insert(rendered, read)
        features = processor(pictures, return_tensors="pt")
        return Prompt(
            tokens,
            images,
            {
                "pixel_values": features["pixel_values"],
                "image_position_ids": features["image_position_ids"],
                "mm_token_type_ids": (torch.tensor([tokens]) == IMAGE).long(),
            },
        )

    return make


def encode_both(pair, prompt, ends=()):
    """Encode the prompt into both caches, and return these. Our chunks end at `ends`."""
    tokens, encoder = torch.tensor([prompt.tokens]), pair.reference.model.encoder
    theirs = DynamicCache(config=pair.reference.config.get_text_config())
    ours, start = new_cache(pair, capacity=512, pass_tokens=512), 0
    with torch.inference_mode():
        masks = encoder.create_masks_for_generate(
            config=pair.reference.config,
            inputs_embeds=torch.empty(*tokens.shape, 0),
            attention_mask=torch.ones_like(tokens),
            cache=theirs,
            position_ids=torch.arange(tokens.shape[1])[None],
            mm_token_type_ids=prompt.reference["mm_token_type_ids"],
        )
        encoder(
            input_ids=tokens,
            attention_mask=masks,
            cache=theirs,
            pixel_values=prompt.reference["pixel_values"],
            image_position_ids=prompt.reference["image_position_ids"],
        )
        for end in (*ends, len(prompt.tokens)):
            images = tuple(
                ImageRows(image.start - start, pair.denoiser.vision(image))
                for image in prompt.images
                if start <= image.start < end
            )
            part = torch.tensor(prompt.tokens[start:end])
            pair.denoiser.model.run([Segment(ours, part, causal=True, images=images)])
            ours.advance(end - start)
            start = end
    return theirs, ours


@pytest.mark.parametrize("sizes", [ONE, TWO])
def test_prefill_writes_the_same_keys_and_values(pair, make_prompt, sizes):
    assert_same_cache(pair, *encode_both(pair, make_prompt(sizes)))


def test_prefill_in_chunks_between_images_writes_the_same_keys_and_values(pair, make_prompt):
    prompt = make_prompt(TWO)
    first, second = prompt.images
    ends = [7, first.start, first.end, first.end + 3, second.end]
    assert_same_cache(pair, *encode_both(pair, prompt, ends))


@pytest.mark.parametrize("sizes", [ONE, TWO])
def test_first_step_has_the_same_logits(pair, make_prompt, sizes):
    theirs, ours = encode_both(pair, make_prompt(sizes))
    model = pair.denoiser.model
    canvas = torch.arange(model.dimensions.canvas_length) + 50
    with torch.inference_mode():
        expected = pair.reference(cache=theirs, decoder_input_ids=canvas[None]).logits[0]
        logits = decode(model, canvas, None, ours) @ model.embedding.T
    logits = (logits / model.config.softcap).tanh() * model.config.softcap
    torch.testing.assert_close(logits, expected, **TOLERANCE)


def request_of(prompt, max_tokens, seed):
    return GenerateRequest("r", prompt.tokens, max_tokens, Sampling(seed), images=prompt.images)


@pytest.mark.parametrize("sizes", [ONE, TWO])
@pytest.mark.parametrize("seed", [0, 1])
def test_answers_of_three_blocks_are_token_identical(pair, same_noise, make_prompt, sizes, seed):
    same_noise(seed)
    prompt, length = make_prompt(sizes, seed), BLOCKS * pair.denoiser.model.dimensions.canvas_length
    generated = pair.reference.generate(
        torch.tensor([prompt.tokens]),
        max_new_tokens=length,
        eos_token_id=[END_NOWHERE],
        **prompt.reference,
    )
    blocks = pair.answer(request_of(prompt, length, seed), end_tokens=frozenset())
    tokens = [token for block in blocks for token in block.tokens]
    assert tokens == generated.sequences[0, len(prompt.tokens) :].tolist()


@pytest.fixture
def run(pair):
    """Returns a function that makes one block of an answer and returns its `Block`."""
    pair.denoiser.forget_prefixes()

    def one_block(prompt, prefill_chunk=512):
        config = EngineConfig(prefill_chunk=prefill_chunk)
        request = request_of(prompt, pair.denoiser.model.dimensions.canvas_length, seed=3)
        return next(
            message
            for message in list(Worker(pair.denoiser, config).generate(request))
            if isinstance(message, Block)
        )

    return one_block


@pytest.mark.parametrize("chunk", [1, 10, 60, 75])
def test_the_prefill_chunk_changes_no_token(pair, make_prompt, run, chunk):
    prompt = make_prompt(TWO)
    whole = run(prompt)
    pair.denoiser.forget_prefixes()
    assert run(prompt, chunk).tokens == whole.tokens


def test_the_same_images_are_not_encoded_again(make_prompt, run):
    first, again = run(make_prompt(TWO)), run(make_prompt(TWO))
    assert first.cached_tokens == 0
    assert again.cached_tokens == len(make_prompt(TWO).tokens)
    assert again.tokens == first.tokens


def test_another_image_at_the_same_position_is_not_taken_for_a_kept_one(pair, make_prompt, run):
    prompt, other = make_prompt(TWO), make_prompt(TWO, picture_seed=9)
    assert prompt.tokens == other.tokens
    alone = run(other)
    pair.denoiser.forget_prefixes()
    run(prompt)
    beside = run(other)
    # If a sliding layer has lost the tokens before the image, nothing can be restored.
    lost = any((shape.window or 512) < 200 for shape in pair.denoiser.model.dimensions.layers)
    assert beside.cached_tokens == (0 if lost else prompt.images[0].start)
    assert beside.tokens == alone.tokens


def test_images_change_the_answer(pair, make_prompt, run):
    answers = {tuple(run(make_prompt(TWO, picture_seed=seed)).tokens) for seed in (0, 9)}
    assert len(answers) == 2


def test_each_image_is_between_its_tags(make_prompt):
    prompt = make_prompt(TWO)
    for image in prompt.images:
        around = prompt.tokens[image.start - 1], prompt.tokens[image.end]
        assert around == (BEGIN_OF_IMAGE, END_OF_IMAGE)
        assert prompt.tokens[image.start : image.end] == [IMAGE] * image.tokens
