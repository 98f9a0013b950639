"""The image's entry point: it chooses a model for `serve` if none is named, then becomes `easel`.

With a GPU on which the released model fits, that model is served, and otherwise the demo model. The
device profile and the plan decide whether it fits. The choice is logged on stderr, and EASEL_MODEL
or --model is never overruled. Nothing here imports torch, which would take seconds.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from engine.config import EngineConfig
from engine.sizing.dimensions import RELEASED_MODEL, known_dimensions
from engine.sizing.gpu import Gpu, first_gpu
from engine.sizing.plan import gb, make_plan
from engine.sizing.profiles import apply_profile, profile_for, usable_bytes

_DEMO = (
    "serving the demo model, which knows only a few small tasks. "
    "Set EASEL_MODEL to serve another: a Hugging Face id, or a folder in a volume."
)


def main() -> None:
    """Replace this process by `easel`, so that Docker's signals reach `easel`."""
    arguments = sys.argv[1:]
    if chooses_model(arguments, os.environ):
        gpu = None if wants_cpu(arguments, os.environ) else first_gpu()
        chosen, why = choose_model(gpu)
        print(f"easel: EASEL_MODEL is not set{why}", file=sys.stderr, flush=True)
        os.environ.update(chosen)
    os.execvp("easel", ["easel", *arguments])


def chooses_model(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Returns whether the command is `serve` and no model is named.

    An empty EASEL_MODEL names none. Compose sets it if the file .env has the name without a value.
    """
    serves = arguments[:1] == ["serve"] and "--help" not in arguments
    return serves and not _setting("model", arguments, environment)


def wants_cpu(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Returns whether the device is set to the CPU."""
    return _setting("device", arguments, environment) == "cpu"


def choose_model(gpu: Gpu | None) -> tuple[dict[str, str], str]:
    """Returns environment variables for `easel`, and the end of the log line that gives the reason.

    `gpu` is the driver's first one, or None if no GPU can be used.
    """
    if gpu is None:
        return {"EASEL_MODEL": "demo"}, (
            f", and there is no GPU to use (docker run --gpus all provides one): {_DEMO}"
        )
    dimensions, profile = known_dimensions(RELEASED_MODEL), profile_for(gpu)
    assert dimensions is not None
    config = apply_profile(EngineConfig(model=RELEASED_MODEL), profile, quantized=False)
    needed = make_plan(dimensions, config, cuda=True).total
    memory = f"{gb(gpu.memory_bytes)} of {gpu.name}"
    if needed > usable_bytes(gpu):
        return {"EASEL_MODEL": "demo"}, f", and {RELEASED_MODEL} does not fit the {memory}: {_DEMO}"
    # Only on this device: on a CPU the model would take 100 GB of memory and minutes for a block.
    return {"EASEL_MODEL": RELEASED_MODEL, "EASEL_DEVICE": "cuda"}, (
        f": serving {RELEASED_MODEL}, which with the profile {profile} takes {gb(needed)} of the "
        f"{memory}. The first start downloads 51.6 GB into /cache; -v easel-cache:/cache keeps "
        "them for the next container. EASEL_MODEL=demo serves the demo model without a download."
    )


def _setting(name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    """Returns a setting of `easel serve`, from its option or else its variable; '' if not set."""
    option = f"--{name}"
    for each, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if each == option:
            return following
        if each.startswith(f"{option}="):
            return each.removeprefix(f"{option}=")
    return environment.get(f"EASEL_{name.upper()}", "")


if __name__ == "__main__":
    main()
