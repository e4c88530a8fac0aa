"""Uploads an exported model to the Hugging Face Hub, by the library huggingface_hub."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from unveil.errors import UnveilError

T = TypeVar("T")

SCHEME = "hf://"


def repository_of(text: str) -> str:
    """The name of a repository, "user/name", of "hf://user/name". Raises `UnveilError` if it is none."""
    name = text.removeprefix(SCHEME)
    if not text.startswith(SCHEME) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise UnveilError(f"{text!r} is no repository: expected hf://user/name, such as hf://jane/cells-vit-small")
    return name


class Repository:
    """A repository of models on the Hub, to which one export is uploaded.

    Args:
        name: "user/name".

    Raises:
        UnveilError: If the user is not logged in, the Hub does not answer, or the repository has files already.
    """

    def __init__(self, name: str) -> None:
        self.name, self.hub = name, client()
        self.ask("log in", self.hub.whoami)
        exists: bool = self.ask("look for the repository", lambda: self.hub.repo_exists(name))
        files = self.ask("list its files", lambda: self.hub.list_repo_files(name)) if exists else []
        taken = sorted(set(files) - {".gitattributes"})
        if taken:
            more = f" and {len(taken) - 3:,} more" if len(taken) > 3 else ""
            raise UnveilError(
                f"hf://{name} has files already ({', '.join(taken[:3])}{more}), which are not overwritten: choose another name, or "
                f"delete them there first"
            )

    def upload(self, files: Mapping[str, Path], *, private: bool, message: str) -> str:
        """Creates the repository if it does not exist, and writes all files in one commit.

        Args:
            files: Files of this machine, by their names in the repository.
            private: Whether a new repository is visible to its owner only. An existing one stays as it is.
            message: The message of the commit.

        Returns:
            The address of the repository.

        Raises:
            UnveilError: If the Hub refuses, or does not answer. Nothing was uploaded then.
        """
        from huggingface_hub import CommitOperationAdd

        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        url = self.ask("create the repository", lambda: self.hub.create_repo(self.name, private=private, exist_ok=True))
        self.ask("upload", lambda: self.hub.create_commit(self.name, added, commit_message=message))
        return str(url)

    def ask(self, doing: str, function: Callable[[], T]) -> T:
        """The result of a request. Raises `UnveilError` with the reason if it fails."""
        try:
            return function()
        except Exception as error:  # the errors of the library, of its client for HTTP, and of the operating system
            raise UnveilError(f"hf://{self.name}: the Hugging Face Hub did not {doing}: {reason(error)}") from None


def client() -> Any:
    """Access to the Hub, by the environment of huggingface_hub: `HF_ENDPOINT`, `HF_TOKEN`, and the token of `hf auth login`."""
    from huggingface_hub import HfApi

    return HfApi()


def reason(error: Exception) -> str:
    """One sentence for an error of the Hub, with what to do where that is known."""
    status: Any = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 or type(error).__name__ == "LocalTokenNotFoundError":
        return "there is no valid access token: run `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "the access token does not allow it: use one that may write to this name"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE is set: unset it to upload"
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
