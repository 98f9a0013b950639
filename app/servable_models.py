"""`easel models`: which models this machine can serve, with which profile, and how large they are.

These are the demo model, the configured one, the released one, and the checkpoints of a
DiffusionGemma that are in the hub's cache or in given folders. Nothing is downloaded. The hub is
asked about the configured model only, as `easel plan` does it.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from app.plan_report import PlanError, Report, make_report
from app.settings import Settings
from engine.config import DEMO_MODEL
from engine.sizing.dimensions import RELEASED_MODEL
from engine.sizing.model_files import ModelFiles, ModelFilesError
from engine.sizing.plan import gb
from engine.sizing.weight_files import find_weights

Where = Literal["built in", "configured", "downloaded", "folder", "on the hub"]

_CONFIG = "config.json"


@dataclass(frozen=True)
class ServableModel:
    """A model as `--model` names it. `report` is its plan, or why it has none."""

    name: str
    where: Where
    report: Report | str

    @property
    def fits(self) -> bool:
        return isinstance(self.report, Report) and self.report.fits


def servable_models(settings: Settings, folders: Iterable[Path] = ()) -> list[ServableModel]:
    """Returns the models, each once, planned for this machine with the other settings."""
    places: dict[str, tuple[Where, str]] = {DEMO_MODEL: ("built in", DEMO_MODEL)}
    if settings.model not in places:
        places[settings.model] = ("configured", settings.model)
    for name, snapshot in _downloaded():
        places.setdefault(name, ("downloaded", str(snapshot)))
    for folder in folders:
        for file in sorted([*folder.glob(_CONFIG), *folder.glob(f"*/{_CONFIG}")]):
            if _is_ours(file):
                places.setdefault(str(file.parent), ("folder", str(file.parent)))
    places.setdefault(RELEASED_MODEL, ("on the hub", RELEASED_MODEL))
    return [
        ServableModel(name, where, _report(settings, name, path))
        for name, (where, path) in places.items()
    ]


def models_json(models: Iterable[ServableModel]) -> list[dict[str, Any]]:
    """Returns the models as JSON. Sizes are in bytes."""
    return [{"model": each.name, "where": each.where, **_figures(each)} for each in models]


def print_models(models: Iterable[ServableModel], console: Console) -> None:
    """Print a table, and below it why models can't be served."""
    table, reasons = Table(title_justify="left"), list[str]()
    table.add_column("model", overflow="fold")
    for column in ("where", "profile", "fits"):
        table.add_column(column, no_wrap=True)
    for column in ("weights", "in all"):
        table.add_column(column, no_wrap=True, justify="right")
    for each in models:
        if isinstance(each.report, str):
            table.add_row(each.name, each.where, "", "no", "", "")
            reasons.append(each.report)
            continue
        plan, device = each.report.plan, each.report.device
        table.title = f"On {device.name}, with {gb(device.memory_bytes)} of memory"
        fits, weights = "yes" if each.fits else "no", gb(sum(plan.weights.values()))
        table.add_row(each.name, each.where, each.report.profile, fits, weights, gb(plan.total))
        if not each.fits:
            reasons.append(each.report.verdict)
    console.print(table)
    for reason in reasons:
        console.print(reason, markup=False)


def _figures(model: ServableModel) -> dict[str, Any]:
    if isinstance(model.report, str):
        return {"fits": False, "message": model.report}
    plan = model.report.plan
    return {
        "device": model.report.device.name,
        "profile": model.report.profile,
        "weights": sum(plan.weights.values()),
        "total": plan.total,
        "memory": model.report.device.memory_bytes,
        "fits": model.report.fits,
        "message": model.report.verdict,
    }


def _report(settings: Settings, name: str, path: str) -> Report | str:
    if name != settings.model:
        settings = settings.model_copy(update={"model": path, "revision": "", "gguf": ""})
    try:
        if Path(settings.model_path).is_dir() and not settings.gguf:
            find_weights(ModelFiles(settings.model_path))
        return make_report(settings, "auto")
    except (PlanError, ModelFilesError) as error:
        return str(error)


def _downloaded() -> Iterator[tuple[str, Path]]:
    """Yields the repositories in the hub's cache, and the folder of what their main branch was."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        main = repository / "refs" / "main"
        if main.is_file():
            snapshot = repository / "snapshots" / main.read_text().strip()
            if _is_ours(snapshot / _CONFIG):
                yield "/".join(repository.name.split("--")[1:]), snapshot


def _is_ours(config: Path) -> bool:
    """Returns whether the file is the configuration of a DiffusionGemma."""
    try:
        values = json.loads(config.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and values.get("model_type") == "diffusion_gemma"
