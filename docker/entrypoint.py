"""The image's entry point: chooses a model for `serve` if nobody has, then becomes `easel`.

A person who starts the image with a GPU wants the released model, and without one wants to see
something: the choice is told on stderr, and EASEL_MODEL or --model is never overruled. Whether the
released model fits a GPU, its device profile and the plan say. Nothing here imports torch, which
would take seconds to say whether there is a GPU.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from engine.config import EngineConfig
from engine.sizing.dimensions import known_dimensions
from engine.sizing.gpu import Gpu, first_gpu
from engine.sizing.plan import gb, make_plan
from engine.sizing.profiles import apply_profile, profile_for, usable_bytes

RELEASED_MODEL = "google/diffusiongemma-26B-A4B-it"

_DEMO = (
    "serving the demo model, which knows only a few small tasks. "
    "Name another with EASEL_MODEL: a Hugging Face id, or a folder in a volume."
)


def main() -> None:
    """Replace this process by `easel`, so that it is the one which Docker's signals reach."""
    arguments = sys.argv[1:]
    if chooses_model(arguments, os.environ):
        gpu = None if wants_cpu(arguments, os.environ) else first_gpu()
        chosen, why = choose_model(gpu)
        print(f"easel: EASEL_MODEL is not set{why}", file=sys.stderr, flush=True)
        os.environ.update(chosen)
    os.execvp("easel", ["easel", *arguments])


def chooses_model(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether this is a `serve` for which nobody has named a model.

    An empty EASEL_MODEL names none: a line without a value in Compose's file .env makes one.
    """
    serves = arguments[:1] == ["serve"] and "--help" not in arguments
    return serves and not _told("model", arguments, environment)


def wants_cpu(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether this `serve` was told to leave the GPU alone."""
    return _told("device", arguments, environment) == "cpu"


def choose_model(gpu: Gpu | None) -> tuple[dict[str, str], str]:
    """The variables that `easel` gets, and the rest of the sentence that says why.

    `gpu` is the driver's first one, None if there is none to use.
    """
    if gpu is None:
        return {"EASEL_MODEL": "demo"}, (
            f", and there is no GPU to use (docker run --gpus all gives one): {_DEMO}"
        )
    dimensions, profile = known_dimensions(RELEASED_MODEL), profile_for(gpu)
    assert dimensions is not None
    config = apply_profile(EngineConfig(model=RELEASED_MODEL), profile, quantized=False)
    needed = make_plan(dimensions, config, cuda=True).total
    memory = f"{gb(gpu.memory_bytes)} of {gpu.name}"
    if needed > usable_bytes(gpu):
        return {"EASEL_MODEL": "demo"}, f", and {RELEASED_MODEL} does not fit the {memory}: {_DEMO}"
    # On this device or not at all: on a CPU the model would take 100 GB and minutes a block.
    return {"EASEL_MODEL": RELEASED_MODEL, "EASEL_DEVICE": "cuda"}, (
        f": serving {RELEASED_MODEL}, which with the profile {profile} takes {gb(needed)} of the "
        f"{memory}. The first start downloads 51.6 GB into /cache; -v easel-cache:/cache keeps "
        "them for the next container. EASEL_MODEL=demo serves the demo model, at once."
    )


def _told(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a setting of `easel serve` was given, as an option or in the environment; else ''."""
    option = f"--{name}"
    for each, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if each == option:
            return following
        if each.startswith(f"{option}="):
            return each.removeprefix(f"{option}=")
    return environment.get(f"EASEL_{name.upper()}", "")


if __name__ == "__main__":
    main()
