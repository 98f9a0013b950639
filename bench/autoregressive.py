"""Block diffusion compared with token-by-token decoding by the same weights.

The autoregressive side decodes greedily with the encoder and its KV cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.compare import Row, Show, alternate, of_case, silent
from bench.generate import ROOM
from bench.passes import encode
from bench.sides import demo_prompt, load_both
from engine.config import DEMO_MODEL_PATH, EngineConfig
from engine.denoise.denoiser import Denoiser
from engine.messages import Block, GenerateRequest, Sampling
from engine.model.kv_cache import KVCache
from engine.worker import Worker

COLUMNS = [
    "diffusion_tokens_s",
    "autoregressive_tokens_s",
    "diffusion_passes",
    "autoregressive_passes",
    "ratio",
]
QUESTIONS = {
    "a short answer": "hello",
    "a sentence": "What is the capital of Norway?",
    "two blocks": "What can you do?",
    "four blocks": "Count to 50",
}


def rows(rounds: int, show: Show = silent) -> Iterator[Row]:
    show("loading the demo model")
    denoiser, _ = load_both(DEMO_MODEL_PATH)
    worker = Worker(denoiser, EngineConfig())
    for case, question in QUESTIONS.items():
        prompt = demo_prompt(question)
        lengths: dict[str, int] = {}

        def blocks(prompt: list[int] = prompt, lengths: dict[str, int] = lengths) -> None:
            denoiser.forget_prefixes()
            request = GenerateRequest("bench", prompt, ROOM, Sampling(seed=0))
            made = [m for m in worker.generate(request) if isinstance(m, Block)]
            lengths["blocks"] = sum(len(block.tokens) for block in made)
            lengths["passes"] = sum(block.denoising_steps for block in made)

        def tokens(prompt: list[int] = prompt, lengths: dict[str, int] = lengths) -> None:
            lengths["tokens"] = len(token_by_token(denoiser, prompt, ROOM))

        row = alternate(blocks, tokens, rounds=rounds, show=of_case(show, case))
        # The ratio is per token, because the two answers may differ in length.
        scale = lengths["blocks"] / lengths["tokens"]
        yield {
            "case": f"{case}: {lengths['blocks']} tokens",
            "diffusion_tokens_s": lengths["blocks"] / row["easel_ms"] * 1e3,
            "autoregressive_tokens_s": lengths["tokens"] / row["transformers_ms"] * 1e3,
            "diffusion_passes": lengths["passes"],
            "autoregressive_passes": lengths["tokens"],
            **{key: row[key] * scale for key in ("ratio", "ratio_low", "ratio_high")},
        }


@torch.inference_mode()
def token_by_token(denoiser: Denoiser, prompt: list[int], room: int) -> list[int]:
    """Decode greedily with the encoder, up to an end token or `room` tokens. Returns the answer."""
    model = denoiser.model
    assert isinstance(model.embedding, Tensor), "the demo model is not quantised"
    cache = KVCache(
        model.dimensions.layers,
        capacity=len(prompt) + room,
        pass_tokens=len(prompt),
        dtype=model.dtype,
        device=model.device,
    )
    answer: list[int] = []
    tokens = torch.tensor(prompt)
    while len(answer) < room:
        hidden = encode(model, tokens, cache)[-1]
        tokens = (model.embedding @ hidden).argmax()[None]
        answer.append(int(tokens))
        if answer[-1] in denoiser.sampler.end_tokens:
            break
    return answer
