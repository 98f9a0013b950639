"""Compares the network's numbers with Transformers', in float32 and within 1e-4 absolute."""

import torch
from transformers import DynamicCache

from bench.passes import decode, encode
from engine.model.kv_cache import KVCache

TOLERANCE = {"atol": 1e-4, "rtol": 0.0}


def new_cache(pair, capacity=256, pass_tokens=64):
    return KVCache(
        pair.denoiser.model.dimensions.layers,
        capacity=capacity,
        pass_tokens=pass_tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def encode_both(pair, prompt, chunks):
    """Encode the prompt into both caches, and return these. Ours is filled in these chunks."""
    theirs = DynamicCache(config=pair.reference.config.get_text_config())
    ours = new_cache(pair)
    with torch.inference_mode():
        pair.reference.model.encoder(input_ids=torch.tensor([prompt]), cache=theirs)
        for part in torch.tensor(prompt).split(chunks):
            encode(pair.denoiser.model, part, ours)
    return theirs, ours


def assert_same_cache(pair, theirs, ours):
    for index, (shape, layer) in enumerate(
        zip(pair.denoiser.model.dimensions.layers, theirs.layers, strict=True)
    ):
        stored = ours.stored(index)
        nothing = torch.empty(shape.kv_heads, 0, shape.head_size)
        keys, values = ours.write(index, nothing, nothing)
        assert layer.keys.shape[2] == stored > 0
        torch.testing.assert_close(keys, layer.keys[0], **TOLERANCE)
        torch.testing.assert_close(values, layer.values[0], **TOLERANCE)


def test_prefill_writes_the_same_keys_and_values(pair):
    assert_same_cache(pair, *encode_both(pair, pair.prompt(), chunks=[29]))


def test_prefill_in_chunks_writes_the_same_keys_and_values(pair):
    assert_same_cache(pair, *encode_both(pair, pair.prompt(), chunks=[11, 1, 17]))


def test_a_prompt_shorter_than_every_window_is_kept_whole(pair):
    assert_same_cache(pair, *encode_both(pair, pair.prompt(3), chunks=[3]))


def decoder_logits(pair, soft, theirs_logits):
    """Returns both models' logits for one random canvas after the same prompt."""
    theirs, ours = encode_both(pair, pair.prompt(), chunks=[29])
    model = pair.denoiser.model
    canvas = torch.randint(
        0,
        model.dimensions.vocab_size,
        (model.dimensions.canvas_length,),
        generator=torch.Generator().manual_seed(1),
    )
    with torch.inference_mode():
        expected = pair.reference(
            cache=theirs,
            decoder_input_ids=canvas[None],
            self_conditioning_logits=theirs_logits,
        ).logits[0]
        logits = decode(model, canvas, soft, ours) @ model.embedding.T
        return (logits / model.config.softcap).tanh() * model.config.softcap, expected


def test_first_step_has_the_same_logits(pair):
    torch.testing.assert_close(*decoder_logits(pair, None, None), **TOLERANCE)


def test_self_conditioned_step_has_the_same_logits(pair):
    model = pair.denoiser.model
    shape = (1, model.dimensions.canvas_length, model.dimensions.vocab_size)
    logits = 4 * torch.randn(shape, generator=torch.Generator().manual_seed(2))
    soft = logits[0].softmax(-1) @ model.embedding * model.embedding_scale
    torch.testing.assert_close(*decoder_logits(pair, soft, logits), **TOLERANCE)
