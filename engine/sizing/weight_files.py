"""Decides which of a checkpoint's files hold its weights, and how large a quantised one is.

The decision is that of Transformers: `transformers_weights` of config.json names the file, else it
is `model.safetensors`, else the files that `model.safetensors.index.json` names. Files that only
lie beside these, such as an earlier version's, do not count. Complete shards without an index are
read too, unlike by Transformers.

Plain Python.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from engine.sizing.dimensions import PROCESSOR_FILES, QUANTIZED_FILES, W4_FILE, Dimensions, Stored
from engine.sizing.model_files import ModelFiles, ModelFilesError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d{5}-of-(\d{5})\.safetensors")
_EXPERTS = re.compile(r"experts_[^/]*\.safetensors")  # GoedelMachines', which no index names
_BY_CONFIG = ", which config.json names as transformers_weights"
_LISTED = 8  # names that an error lists at most


def find_weights(files: ModelFiles) -> dict[str, int] | None:
    """Returns the files that hold the weights: their sizes in bytes by name, sorted.

    Returns None for a model on the hub if the hub can't be asked which files it has.

    Raises ModelFilesError, which names the missing files, if there are no weights or not all.
    """
    sizes = files.sizes
    if sizes is None:
        return None
    names, named_by = _names(files, sizes)
    if W4_FILE in sizes:
        names += [name for name in sizes if _EXPERTS.fullmatch(name)]
    found = {name: _size(files, sizes, name) for name in sorted(set(names))}
    missing = [name for name, size in found.items() if size is None]
    if missing:
        raise ModelFilesError(
            f"{files.model}: weight files are missing: {listed(missing)}{named_by}"
        )
    return {name: size for name, size in found.items() if size is not None}


def with_files(dimensions: Dimensions, files: ModelFiles) -> Dimensions:
    """Returns the dimensions, completed from the checkpoint's other files.

    These show if the checkpoint is quantised and how large its quantised weights are. The size
    stays unknown if the hub can't be asked for it. Without an image processor's file the model
    takes no images.

    Raises ModelFilesError if weights of a quantised checkpoint are missing.
    """
    takes_images = any(files.has(name) for name in PROCESSOR_FILES)
    quantized = dimensions.quantized or any(files.has(name) for name in QUANTIZED_FILES)
    weights = find_weights(files) if quantized else None
    return replace(
        dimensions,
        tower=dimensions.tower if takes_images else None,
        quantized=quantized,
        stored=None if weights is None else Stored(sum(weights.values())),
    )


def listed(names: list[str]) -> str:
    """Returns names as text for an error, which does not list more than a few."""
    unlisted = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {unlisted} more" if unlisted > 0 else "")


def _names(files: ModelFiles, sizes: Mapping[str, int]) -> tuple[list[str], str]:
    """Returns the names of the files with weights, and who names them, as part of an error."""
    named = (files.optional_json("config.json") or {}).get("transformers_weights")
    if isinstance(named, str):
        return _indexed(files, named) if named.endswith(".json") else ([named], _BY_CONFIG)
    if _SINGLE in sizes:
        return [_SINGLE], ""
    if _INDEX in sizes:
        return _indexed(files, _INDEX)
    totals = sorted({match[1] for name in sizes if (match := _SHARD.fullmatch(name))})
    shards = [
        [f"model-{number:05}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
        for total in totals
    ]
    complete = [names for names in shards if all(name in sizes for name in names)]
    if len(complete) > 1:
        sets = " and ".join(f"{names[0]} to {names[-1]}" for names in complete)
        raise ModelFilesError(
            f"{files.model}: without {_INDEX} only one set of weight files may exist, not {sets}"
        )
    if shards:
        return (complete or shards)[0], f" ({_INDEX} does not exist either)"
    return [_SINGLE], _other_weights(sizes)


def _indexed(files: ModelFiles, index: str) -> tuple[list[str], str]:
    weight_map = files.json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise ModelFilesError(
            f"{files.model}: {index} has no weight_map that names a file for each tensor"
        )
    return sorted(set(weight_map.values())), f", which {index} names"


def _other_weights(sizes: Mapping[str, int]) -> str:
    """Returns what to do with weights in other formats, as part of an error."""
    for name in sorted(sizes):
        if name.endswith(".gguf"):
            return f"; the option --gguf loads {name}"
        if re.fullmatch(r"pytorch_model.*\.bin", name):
            return (
                f"; {name} can't be read: convert it, by loading and saving the model with "
                "Transformers"
            )
    return ""


def _size(files: ModelFiles, sizes: Mapping[str, int], name: str) -> int | None:
    if name in sizes or files.folder is None:
        return sizes.get(name)
    path = files.folder / name  # in a subfolder
    return path.stat().st_size if path.is_file() else None
