"""The files of a checkpoint that the front end reads: in a folder, or from the Hugging Face hub."""

from pathlib import Path


def model_file(model: str, name: str) -> Path:
    """Where the file is, or would be in a folder that lacks it; raises OSError if the hub does."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, name))


def optional_model_file(model: str, name: str) -> Path | None:
    """None if the checkpoint has no such file; raises OSError if the hub can't be asked."""
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        path = model_file(model, name)
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError:
        if is_offline_mode():  # then what was not fetched is not there
            return None
        raise
    return path if path.exists() else None
