"""Train the demo model from scratch: `python -m demo.train`. It takes hours.

Each training example is one block of one answer. Everything before the block is encoded causally.
The block itself is a canvas in which a random share of the tokens is replaced by random ones, and
the model learns the original tokens. Half of the canvases have self-conditioning from a first pass,
which sees more noise: in an answer it is the step before. Short blocks are most often trained on
narrower canvases, which take less time.

The encoder also learns to predict the answer token by token. This costs little and provides the
autoregressive baseline of the measurements.

Batches and noise depend on the seed, the step and the lesson only. A training that was interrupted
goes on from its last state as if it had not been.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DiffusionGemmaForBlockDiffusion, DynamicCache, PreTrainedTokenizerFast
from transformers.models.diffusion_gemma.generation_diffusion_gemma import (
    EntropyBoundSamplerConfig,
)
from transformers.utils.logging import disable_progress_bar

from demo import batches
from demo.batches import PAD, Batch
from demo.curriculum import LESSONS, MIX_STEPS, Curriculum
from demo.mixed_precision import fast_products
from demo.muon import Muon
from demo.network import Network, new_model, text_config
from demo.tokenizer import (
    END_OF_CALL,
    END_OF_TURN,
    SPECIAL_TOKENS,
    build_tokenizer,
    save_tokenizer,
)

MODEL_FOLDER = Path(__file__).parent / "model"
STATE_FOLDER = Path("build/demo-training")

CAUSAL_WEIGHT = 0.5
BALANCE_WEIGHT = 0.01
MUON_RATE, ADAM_RATE = 0.02, 2e-3  # the highest learning rates
WARMUP_STEPS = 50
PROGRESS = "progress.json"


def loss_of(network: Network, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Returns the parts of the loss and each canvas' denoising loss [B].

    The sum of the parts is minimised.
    """
    network.balance = torch.zeros(())
    hidden, cache = network.encode(batch.tokens)
    prefix = int(batch.lengths.max())
    cache = [(keys[:, :, :prefix], values[:, :, :prefix]) for keys, values in cache]
    soft = _self_conditioning(network, batch, cache)
    logits = network.decode(batch.noisy, batch.lengths, cache, soft)
    each = F.cross_entropy(logits.transpose(1, 2), batch.block, reduction="none")
    # A canvas counts as much as any other: the few tokens of a short answer say more than those of
    # a long one.
    canvases = (each * batch.weights).sum(1) / batch.weights.sum(1)
    denoising = canvases.mean()
    # Each token of the block is predicted by the hidden state before it.
    rows, positions = (batch.weights >= 1.0).nonzero(as_tuple=True)
    before = hidden[rows, batch.lengths[rows] - 1 + positions]
    causal = F.cross_entropy(network.logits(before), batch.block[rows, positions])
    balance = network.balance / (2 * len(cache))
    parts = {
        "denoising": denoising,
        "causal": CAUSAL_WEIGHT * causal,
        "balance": BALANCE_WEIGHT * balance,
    }
    return parts, canvases.detach()


def _self_conditioning(
    network: Network, batch: Batch, cache: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """Returns soft embeddings [B, C, D] for B canvases.

    The first half comes from a first pass over the same canvases with more noise. The second half
    is zeros.
    """
    half = len(batch.noisier)
    soft = torch.zeros(*batch.noisy.shape, network.text.hidden_size)
    with torch.no_grad():
        balance = network.balance
        first = [(keys[:half], values[:half]) for keys, values in cache]
        logits = network.decode(batch.noisier, batch.lengths[:half], first, None)
        network.balance = balance
        temperature = 0.4 + 0.4 * torch.rand(half, 1, 1)
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
        Muon(matrices, lr=MUON_RATE, momentum=0.95),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_share(training: "Training") -> float:
    """Returns the share of the highest rate. Behind the lessons it falls linearly to zero."""
    return min(1.0, (training.step + 1) / WARMUP_STEPS, training.curriculum.remaining)


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


@dataclass
class Training:
    """What a training needs to go on: the model, its optimisers, and what was done so far."""

    model: DiffusionGemmaForBlockDiffusion
    steppers: list[torch.optim.Optimizer]
    curriculum: Curriculum
    step: int = 0
    seconds: float = 0.0

    @property
    def progress(self) -> dict[str, Any]:
        """What was done so far, which `take_up` takes up again."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "curriculum": self.curriculum.state,
        }

    def take_up(self, progress: dict[str, Any]) -> None:
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.curriculum.load(progress["curriculum"])

    def save(self, file: Path) -> None:
        """Write all of it to a file. One that is there stays whole until the new one is."""
        state = {
            "model": self.model.state_dict(),
            "steppers": [stepper.state_dict() for stepper in self.steppers],
            "progress": self.progress,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        torch.save(state, new)
        new.replace(file)

    def load(self, file: Path) -> None:
        """Read all of it from a file that `save` wrote."""
        state = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for stepper, each in zip(self.steppers, state["steppers"], strict=True):
            stepper.load_state_dict(each)
        self.take_up(state["progress"])

    def save_checkpoint(self, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
        """Write an unfinished checkpoint, which can be served, with the progress beside it."""
        save(self.model, tokenizer, folder)
        (folder / PROGRESS).write_text(json.dumps(self.progress, indent=2) + "\n")


class Means:
    """Running means of numbers by name."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def add(self, name: str, number: float, share: float = 0.03) -> None:
        self._means[name] = self._means.get(name, number) * (1 - share) + share * number

    def __str__(self) -> str:
        return "  ".join(f"{name} {mean:.4f}" for name, mean in self._means.items())


def train_step(
    training: Training, batch: Batch, *, seed: int
) -> tuple[dict[str, float], list[float]]:
    """Make a step. Returns the parts of the loss, and each canvas' denoising loss."""
    network, peaks = Network(training.model), [MUON_RATE, ADAM_RATE]
    # CPython randomises only the hashes of strings and bytes. That of two integers is the same in
    # every process. It is kept, so that a saved state goes on to the same weights.
    torch.manual_seed(hash((seed, training.step)))
    for stepper, peak in zip(training.steppers, peaks, strict=True):
        stepper.param_groups[0]["lr"] = peak * learning_rate_share(training)
        stepper.zero_grad()
    with fast_products():
        parts, each = loss_of(network, batch)
    torch.stack(list(parts.values())).sum().backward()
    torch.nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    for stepper in training.steppers:
        stepper.step()
    training.step += 1
    losses = each.tolist()
    training.curriculum.add(batch.tasks, losses)
    return {name: part.item() for name, part in parts.items()}, losses


def next_pool(
    training: Training, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> Iterator[Batch]:
    """Returns the batches of the next steps. A training is saved and goes on only between pools."""
    training.curriculum.advance()
    return batches.pool_of_batches(
        tokenizer,
        text_config(training.model).vocab_size,
        seed,
        training.step // batches.POOL_BATCHES,
        training.curriculum.weights(),
        narrow_share=training.curriculum.narrow_share,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--lessons", type=int, default=len(LESSONS), help="number of the lessons to give"
    )
    parser.add_argument(
        "--mix-steps", type=int, default=MIX_STEPS, help="steps with all tasks after the lessons"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the weights, examples and noise"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads to use")
    parser.add_argument(
        "--out", type=Path, default=MODEL_FOLDER, help="folder to write the trained checkpoint to"
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=STATE_FOLDER,
        help="folder of the training's state, from which it goes on, and of unfinished checkpoints",
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="an unfinished checkpoint from which a training without a state goes on",
    )
    parser.add_argument(
        "--save-minutes", type=float, default=5.0, help="minutes between two saved states"
    )
    options = parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)  # of the vision tower, whose weights Transformers makes
    state, unfinished = options.state / "state.pt", options.state / "model"
    start = unfinished if state.exists() else options.start
    # Another version of the tasks would give the words other ids than those that were learned.
    tokenizer = (
        PreTrainedTokenizerFast.from_pretrained(start) if start else build_tokenizer(options.seed)
    )
    model = (
        DiffusionGemmaForBlockDiffusion.from_pretrained(start, dtype=torch.float32)
        if start
        else new_model(options.seed, heads=True)
    )
    curriculum = Curriculum(LESSONS[: options.lessons], options.mix_steps)
    training = Training(model, optimisers(model), curriculum)
    check_forward(model, next(next_pool(training, tokenizer, seed=options.seed)))
    if state.exists():
        training.load(state)
    elif start:  # the optimisers begin anew
        training.take_up(json.loads((start / PROGRESS).read_text()))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {training.step} steps done", flush=True)
    means, tasks, saved = Means(), Means(), time.monotonic()
    while curriculum.remaining > 0:
        started = time.monotonic()
        for batch in next_pool(training, tokenizer, seed=options.seed):
            parts, losses = train_step(training, batch, seed=options.seed)
            for name, part in parts.items():
                means.add(name, part)
            for task, loss in zip(batch.tasks, losses, strict=True):
                tasks.add(task, loss, share=0.01)
        training.seconds += time.monotonic() - started
        minutes = training.seconds / 60
        print(f"step {training.step}  {curriculum}  {means}  {minutes:.1f} min", flush=True)
        done = curriculum.remaining == 0
        if done or time.monotonic() - saved > 60 * options.save_minutes:
            print(f"denoising by task: {tasks}", flush=True)
            training.save_checkpoint(tokenizer, unfinished)
            training.save(state)
            if done:
                save(model, tokenizer, options.out)
            saved = time.monotonic()


if __name__ == "__main__":
    main()
