"""Finds a checkpoint's files in its folder or on the Hugging Face hub."""

from pathlib import Path


def model_file(model: str, name: str) -> Path:
    """Returns the file's path, in a folder even if it does not exist there.

    Raises OSError if the hub can't provide it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name))


def optional_model_file(model: str, name: str) -> Path | None:
    """Returns the file's path, or None if the checkpoint does not have it.

    Raises OSError if the hub can't be reached.
    """
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        path = model_file(model, name)
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError:
        if is_offline_mode():  # then a file that was not downloaded counts as missing
            return None
        raise
    return path if path.exists() else None
