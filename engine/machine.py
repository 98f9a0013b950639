"""What this machine has for the engine, as JSON: `python -m engine.machine`.

`easel doctor` runs it in a process of its own, because the front end never imports torch. It loads
no model. It raises nothing for what is missing, only for what is broken.
"""

import json
import shutil
from importlib import metadata
from typing import Any

import torch


def facts() -> dict[str, Any]:
    """Returns versions, and the GPU as torch sees it, or None. Sizes are in bytes."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "compiler": shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"),
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        found["gpu"] = {
            "name": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "free": free,
            "total": total,
        }
    return found


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(facts()))
