"""A checkpoint's files: those of a folder, or those of a repository on the Hugging Face hub.

Both processes and `easel plan` find a checkpoint's files here. All files of a repository come from
one commit, even if its branch moves in the meantime. This module knows nothing of what the files
mean, except that an adapter's configuration makes a checkpoint one that cannot be served.

Plain Python. The hub's client is slow to import, so it is imported only for a model on the hub.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
_ADAPTER_FILE = "adapter_config.json"
_POINTER = b"version https://git-lfs.github.com/spec/"  # how a git-lfs pointer begins


class ModelFilesError(ValueError):
    """A model does not exist, or one of its files is missing or damaged. The text names it."""


@dataclass(frozen=True)
class ModelFiles:
    """The files of `model`, which is a folder or a Hugging Face id.

    `revision` is a branch, a tag or a commit of the repository; "" means its main branch.
    """

    model: str
    revision: str = ""

    def __post_init__(self) -> None:
        """Raises ModelFilesError if the model is neither a readable folder nor a Hugging Face id.

        It is also raised if a folder is given with a revision.
        """
        if self.folder is None:
            if not _HUB_ID.fullmatch(self.model):
                raise ModelFilesError(
                    f"model {self.model!r}: there is no such folder, and it is not a Hugging Face "
                    "id like owner/name"
                )
        elif self.revision:
            raise ModelFilesError(
                f"revision is {self.revision!r}, but model {self.model!r} is a folder; only a "
                "model on the Hugging Face hub has revisions"
            )
        elif not os.access(self.folder, os.R_OK | os.X_OK):
            raise ModelFilesError(f"model {self.model!r} is a folder that may not be read")

    @cached_property
    def folder(self) -> Path | None:
        """Returns the model's folder, or None if the model is on the hub."""
        path = Path(self.model).expanduser()
        return path if path.is_dir() else None

    @cached_property
    def commit(self) -> str:
        """Returns the commit of the repository that all files come from, or "" for a folder.

        If the hub can't be reached, it is the commit that the revision had when it was last read.
        Raises ModelFilesError if the repository or the revision does not exist.
        """
        if self.folder is not None:
            return ""
        from huggingface_hub import HfApi

        with self._hub_errors():
            return HfApi().resolve_revision(self.model, revision=self.revision or None).resolved

    @cached_property
    def sizes(self) -> Mapping[str, int] | None:
        """Returns the sizes in bytes of all files by name, or None if the hub can't be asked.

        Files in subfolders are included for a repository, but not for a folder. Raises
        ModelFilesError if the repository or the revision does not exist.
        """
        if self.folder is not None:
            return {
                path.name: path.stat().st_size for path in self.folder.iterdir() if path.is_file()
            }
        from huggingface_hub import HfApi, RepoFile, get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        try:
            files = get_cached_repo_tree(self.model, revision=self.commit)
            return {file.path: file.size for file in files}
        except CachedRepoTreeNotFoundError:
            pass
        try:
            with self._hub_errors():
                entries = HfApi().list_repo_tree(self.model, recursive=True, revision=self.commit)
                return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
        except ModelFilesError as error:
            logger.info("the sizes of the files are not known: %s", error)
            return None

    def file(self, name: str) -> Path:
        """Returns a file's path, which exists. Downloads the file if the model is on the hub.

        Raises ModelFilesError if there is no such file, or if the hub can't provide it.
        """
        path = self.optional_file(name)
        if path is None:
            raise ModelFilesError(f"{self.model}: {name} is missing")
        return path

    def optional_file(self, name: str) -> Path | None:
        """Returns a file's path, or None if the model does not have it.

        Without a network, a file that has not been downloaded counts as missing if
        HF_HUB_OFFLINE is set. Raises ModelFilesError if the hub can't be reached otherwise.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.exists() else None
        if self.sizes is not None and name not in self.sizes:
            return None
        from huggingface_hub import hf_hub_download, is_offline_mode
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

        with self._hub_errors():
            try:
                return Path(hf_hub_download(self.model, name, revision=self.commit))
            except RemoteEntryNotFoundError:
                return None
            except LocalEntryNotFoundError:
                if is_offline_mode():
                    return None
                raise

    def has(self, name: str) -> bool:
        """Returns whether the model has a file.

        The file is downloaded only if the hub's list of files is not known. If the hub can't be
        reached at all, this returns whether the file was downloaded before.
        """
        if self.sizes is not None:
            return name in self.sizes
        try:
            return self.optional_file(name) is not None
        except ModelFilesError:
            return False

    def begin(self, name: str, count: int) -> bytes | None:
        """Returns the first `count` bytes of a file on the hub, which is not downloaded.

        Returns fewer if the file is shorter, and None if the hub can't be asked.
        """
        from huggingface_hub import get_session, get_token, hf_hub_url

        token = get_token()
        headers = {"range": f"bytes=0-{count - 1}"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        data = bytearray()
        try:
            with self._hub_errors():
                url = hf_hub_url(self.model, name, revision=self.commit)
                with get_session().stream(
                    "GET", url, headers=headers, follow_redirects=True
                ) as response:
                    response.raise_for_status()
                    for chunk in response.iter_bytes():
                        data += chunk
                        if len(data) >= count:  # also if the server has ignored the range
                            break
        except ModelFilesError as error:
            logger.info("%s can't be read on the hub: %s", name, error)
            return None
        return bytes(data[:count])

    def json(self, name: str) -> dict[str, Any]:
        """Returns the JSON object in a file.

        Raises ModelFilesError if the file is missing or is not a JSON object.
        """
        return read_json(self.file(name))

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """Returns the JSON object in a file, or None if the model does not have the file.

        Raises ModelFilesError if the file is not a JSON object.
        """
        path = self.optional_file(name)
        return None if path is None else read_json(path)

    def download(self, patterns: Sequence[str]) -> Path:
        """Returns the folder with all files that match one of the patterns.

        Downloads them if the model is on the hub. Raises ModelFilesError if the hub can't provide
        them.
        """
        if self.folder is not None:
            return self.folder
        from huggingface_hub import snapshot_download

        with self._hub_errors():
            return Path(
                snapshot_download(self.model, revision=self.commit, allow_patterns=list(patterns))
            )

    def refuse_adapter(self) -> None:
        """Raises ModelFilesError if the checkpoint is an adapter, or weights beside one.

        Nothing applies adapters, so the answers would be those of another model. If the hub can't
        be asked which files it has, an adapter beside weights is not noticed.
        """
        if not self.has(_ADAPTER_FILE):
            return
        adapter = self.json(_ADAPTER_FILE)
        base = adapter.get("base_model_name_or_path")
        of_base = f" for {base!r}" if isinstance(base, str) and base else ""
        if not self.has("config.json"):
            raise ModelFilesError(
                f"{self.model} holds only an adapter{of_base} and no model. Adapters are not "
                "applied: merge it into its base model first, for example with peft's "
                "merge_and_unload and save_pretrained, and serve the merged model"
            )
        raise ModelFilesError(
            f"{self.model} has {_ADAPTER_FILE}, the configuration of an adapter{of_base}. Adapters "
            "are not applied: merge it first, for example with peft's merge_and_unload and "
            f"save_pretrained. If the weights are merged already, remove {_ADAPTER_FILE}"
        )

    @contextmanager
    def _hub_errors(self) -> Iterator[None]:
        """Turn whatever the hub's client raises inside the block into a ModelFilesError."""
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
            RevisionResolutionError,
        )

        # The client's own handler would write its warnings a second time, and not as the log does.
        logging.getLogger("huggingface_hub").handlers.clear()
        try:
            yield
        except Exception as error:  # some come from the HTTP library that the client uses
            match error:
                case ModelFilesError():
                    raise
                case GatedRepoError():
                    reason = "the hub gives it only to users who were granted access (HF_TOKEN)"
                case RepositoryNotFoundError():
                    reason = (
                        "there is no such folder, and the hub does not have it, or gives no access "
                        "to it (HF_TOKEN)"
                    )
                case RevisionNotFoundError():
                    reason = f"the hub has no revision {self.revision!r} of it"
                case LocalEntryNotFoundError() | RevisionResolutionError():
                    reason = self._unreachable(error.__cause__ or error)
                case _:
                    reason = one_line(error)
            raise ModelFilesError(f"model {self.model!r}: {reason}") from error

    def _unreachable(self, error: BaseException) -> str:
        """Returns why files on the hub can't be had without it, and how to do without it."""
        from huggingface_hub import is_offline_mode

        is_offline = is_offline_mode()
        reason = (
            "HF_HUB_OFFLINE is set"
            if is_offline
            else f"the hub can't be reached ({one_line(error)})"
        )
        return (
            f"it is not a folder, it was not downloaded completely before, and {reason}. To serve "
            f"it offline, run `hf download {self.model} --local-dir FOLDER` where there is a "
            "network, and give FOLDER as the model"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises ModelFilesError, which names the file, if it can't be read or is not a JSON object.
    """
    try:
        if is_pointer(file):
            raise ModelFilesError(pointer_fault(file))
        value = json.loads(file.read_bytes())
    except ModelFilesError:
        raise
    except OSError as error:
        raise ModelFilesError(f"{file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{file} is not JSON: {error}. Download it again") from error
    if not isinstance(value, dict):
        raise ModelFilesError(f"{file} holds a {type(value).__name__} instead of a JSON object")
    return value


def is_pointer(file: Path) -> bool:
    """Returns whether the file is a git-lfs pointer, which stands for a file not downloaded.

    Raises OSError if it can't be read.
    """
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def pointer_fault(file: Path) -> str:
    """Returns an error's text for a file that is a git-lfs pointer."""
    return (
        f"{file} is a git-lfs pointer and not the file itself: run `git lfs pull` in its folder, "
        "or download the file again"
    )


def one_line(error: BaseException) -> str:
    """Returns the error's text in one line."""
    return " ".join(str(error).split()) or type(error).__name__
