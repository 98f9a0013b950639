"""Train the demo model from scratch: `python -m demo.train`, about an hour on one CPU core.

Each training example is one block of one answer. Everything before the block is encoded causally.
The block itself is a canvas in which a random share of the tokens is replaced by random ones, and
the model learns the original tokens. Half of the canvases have self-conditioning from a first
pass.

The encoder also learns to predict the answer token by token. This costs little and provides the
autoregressive baseline of the measurements.

The batches depend on the seed only.
"""

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache, PreTrainedTokenizerFast
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSamplerConfig,
)

from demo.muon import Muon
from demo.network import CANVAS, Network, new_model, text_config
from demo.tasks import training_example
from demo.tokenizer import (
    END_OF_CALL,
    END_OF_TURN,
    SPECIAL_TOKENS,
    build_tokenizer,
    encode_example,
    save_tokenizer,
)

PAD = SPECIAL_TOKENS["<pad>"]
MODEL_FOLDER = Path(__file__).parent / "model"

PREFIXES = 32
CANVASES = 2  # per prefix, each with its own noise, because encoding is most of a step's work
# Examples that are sorted by length together, so that batches need little padding.
POOL = 16 * PREFIXES
PURE_NOISE_SHARE = 0.3
PADDING_WEIGHT = 0.2  # of the loss at positions behind the end token
CAUSAL_WEIGHT = 0.1
BALANCE_WEIGHT = 0.01
WARMUP_STEPS = 50
DECAY_SHARE = 0.65  # the last part of the steps, in which the learning rate falls linearly to zero
# Fixed answers are learned fast, copied ones more slowly and computed ones most slowly: at a weight
# of 2, `count` reached 38 % and `add` 68 % in 2,600 steps, when the other tasks reached 98 %.
TASK_WEIGHTS = {
    "greet": 0.4,
    "help": 0.2,
    "series": 0.4,
    "weather_call": 0.8,
    "weather_result": 0.8,
    "weather_refused": 0.2,
    "remember_name": 0.7,
    "remember_colour": 0.7,
    "default": 0.5,
    "count": 5.0,
    "echo": 1.5,
    "repeat": 1.5,
    "reverse": 1.5,
    "add": 4.0,
    "sort": 2.0,
}


@dataclass(frozen=True)
class Batch:
    """B blocks and the prefixes before them. P varies from batch to batch."""

    tokens: Tensor  # [B, P + C] prefixes and clean blocks, padded at the right
    lengths: Tensor  # [B] of the prefixes
    block: Tensor  # [B, C] clean blocks, padded behind the end token
    weights: Tensor  # [B, C] of the loss
    noisy: Tensor  # [CANVASES * B, C] all blocks with noise, CANVASES times with different noise


def batches(tokenizer: PreTrainedTokenizerFast, vocab_size: int, seed: int) -> Iterator[Batch]:
    """Yield random batches without end."""
    random, generator = Random(seed), torch.Generator().manual_seed(seed)
    while True:
        pool = []
        for _ in range(POOL):
            prompt, answer = encode_example(tokenizer, training_example(random, TASK_WEIGHTS))
            start = random.randrange(0, len(answer), CANVAS)
            pool.append((prompt + answer[:start], answer[start : start + CANVAS]))
        pool.sort(key=lambda pair: len(pair[0]))
        parts = [pool[i : i + PREFIXES] for i in range(0, POOL, PREFIXES)]
        random.shuffle(parts)
        for part in parts:
            yield _batch(part, vocab_size, generator)


def _batch(
    pairs: list[tuple[list[int], list[int]]], vocab_size: int, generator: torch.Generator
) -> Batch:
    longest = max(len(prefix) for prefix, _ in pairs)
    tokens = torch.full((len(pairs), longest + CANVAS), PAD)
    block = torch.full((len(pairs), CANVAS), PAD)
    weights = torch.full((len(pairs), CANVAS), PADDING_WEIGHT)
    for row, (prefix, answer) in enumerate(pairs):
        tokens[row, : len(prefix) + len(answer)] = torch.tensor(prefix + answer)
        block[row, : len(answer)] = torch.tensor(answer)
        weights[row, : len(answer)] = 1.0
    clean = block.repeat(CANVASES, 1)
    level = torch.rand(len(clean), 1, generator=generator)
    level[torch.rand(len(clean), 1, generator=generator) < PURE_NOISE_SHARE] = 1.0
    noise = torch.randint(0, vocab_size, clean.shape, generator=generator)
    replaced = torch.rand(clean.shape, generator=generator) < level
    lengths = torch.tensor([len(prefix) for prefix, _ in pairs])
    return Batch(tokens, lengths, block, weights, torch.where(replaced, noise, clean))


def loss_of(network: Network, batch: Batch) -> dict[str, Tensor]:
    """Returns the parts of the loss. Their sum is minimised."""
    network.balance = torch.zeros(())
    hidden, cache = network.encode(batch.tokens)
    prefix = batch.tokens.shape[1] - CANVAS
    cache = [
        (
            keys[:, :, :prefix].repeat(CANVASES, 1, 1, 1),
            values[:, :, :prefix].repeat(CANVASES, 1, 1, 1),
        )
        for keys, values in cache
    ]
    lengths = batch.lengths.repeat(CANVASES)
    soft = _self_conditioning(network, batch.noisy, lengths, cache)
    logits = network.decode(batch.noisy, lengths, cache, soft)
    clean, weights = batch.block.repeat(CANVASES, 1), batch.weights.repeat(CANVASES, 1)
    each = F.cross_entropy(logits.transpose(1, 2), clean, reduction="none")
    denoising = (each * weights).sum() / weights.sum()
    # Each token of the block is predicted by the hidden state before it.
    rows = torch.arange(len(batch.lengths))[:, None]
    before = hidden[rows, batch.lengths[:, None] - 1 + torch.arange(CANVAS)]
    counted = batch.weights == 1.0
    causal = F.cross_entropy(network.logits(before[counted]), batch.block[counted])
    balance = network.balance / (2 * len(cache))
    return {
        "denoising": denoising,
        "causal": CAUSAL_WEIGHT * causal,
        "balance": BALANCE_WEIGHT * balance,
    }


def _self_conditioning(
    network: Network, noisy: Tensor, lengths: Tensor, cache: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Returns soft embeddings [N, C, D] for N canvases.

    The first half comes from a first pass, and the second half is zeros.
    """
    half = len(noisy) // 2
    soft = torch.zeros(*noisy.shape, network.text.hidden_size)
    with torch.no_grad():
        balance = network.balance
        first = [(keys[:half], values[:half]) for keys, values in cache]
        logits = network.decode(noisy[:half], lengths[:half], first, None)
        network.balance = balance
        temperature = 0.4 + 0.6 * torch.rand(half, 1, 1)
        soft[:half] = network.soft_embeddings(logits, temperature)
    return soft


def optimisers(
    model: DiffusionGemmaForBlockDiffusion,
) -> list[torch.optim.Optimizer]:
    """Returns Muon for the layers' matrices, and AdamW for all other parameters of the decoder.

    The others are the embedding, norms, scales and routers.
    """
    decoder = model.model.decoder
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in decoder.named_parameters():
        inner = parameter.dim() >= 2 and "embed_tokens" not in name and "router" not in name
        (matrices if inner else others).append(parameter)
    return [
        Muon(matrices, lr=0.03, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_share(step: int, steps: int) -> float:
    decay_from = (1 - DECAY_SHARE) * steps
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (steps - decay_from))


def check_forward(model: DiffusionGemmaForBlockDiffusion, batch: Batch) -> None:
    """Raises AssertionError if the training forward differs from Transformers'.

    This is checked before training, because a training with a wrong forward would be lost.
    """
    network, row = Network(model), 0
    length = int(batch.lengths[row])
    with torch.no_grad():
        _, cache = network.encode(batch.tokens)
        noisy = batch.noisy[: len(batch.lengths)]
        soft = torch.randn(*noisy.shape, network.text.vocab_size)
        ours = network.decode(
            noisy, batch.lengths, cache, network.soft_embeddings(soft, torch.ones(()))
        )[row]
        past = DynamicCache(config=model.config.get_text_config())
        model.model.encoder(input_ids=batch.tokens[row : row + 1, :length], cache=past)
        theirs = model(
            decoder_input_ids=batch.noisy[row : row + 1],
            cache=past,
            self_conditioning_logits=soft[row : row + 1],
        ).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def save(
    model: DiffusionGemmaForBlockDiffusion, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Write a complete checkpoint in float16, in the released layout."""
    model.generation_config.update(
        bos_token_id=SPECIAL_TOKENS["<bos>"],
        eos_token_id=[SPECIAL_TOKENS["<eos>"], END_OF_TURN, END_OF_CALL],
        pad_token_id=PAD,
        max_denoising_steps=48,
        sampler_config=EntropyBoundSamplerConfig(entropy_bound=0.1),
        t_min=0.4,
        t_max=0.8,
        stability_threshold=1,
        confidence_threshold=0.005,
    )
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.half().save_pretrained(folder)
    model.float().load_state_dict(weights)  # training goes on with the unrounded weights
    save_tokenizer(tokenizer, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3600, help="number of training steps")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights, examples and noise"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads to use")
    parser.add_argument(
        "--out", type=Path, default=MODEL_FOLDER, help="folder to write the checkpoint to"
    )
    parser.add_argument(
        "--save-every", type=int, default=200, help="number of steps between checkpoints"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer, model = build_tokenizer(options.seed), new_model(options.seed)
    data = batches(tokenizer, text_config(model).vocab_size, options.seed)
    check_forward(model, next(data))
    network, steppers = Network(model), optimisers(model)
    peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
    count = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{count:,} parameters, {options.steps} steps of {PREFIXES * CANVASES} canvases", flush=True
    )
    started, means = time.monotonic(), dict.fromkeys(["denoising", "causal", "balance"], math.nan)
    for step in range(options.steps):
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * learning_rate_share(step, options.steps)
            stepper.zero_grad()
        parts = loss_of(network, next(data))
        torch.stack(list(parts.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for stepper in steppers:
            stepper.step()
        for name, part in parts.items():
            last = means[name]
            means[name] = part.item() if math.isnan(last) else 0.97 * last + 0.03 * part.item()
        if step % 20 == 19 or step + 1 == options.steps:
            shown = "  ".join(f"{name} {mean:.4f}" for name, mean in means.items())
            minutes = (time.monotonic() - started) / 60
            print(f"step {step + 1}/{options.steps}  {shown}  {minutes:.1f} min", flush=True)
        if (step + 1) % options.save_every == 0 or step + 1 == options.steps:
            save(model, tokenizer, options.out)


if __name__ == "__main__":
    main()
