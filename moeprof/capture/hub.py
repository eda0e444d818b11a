"""Single files of a Hugging Face repository: from the local cache if they lie there, else from the hub.

The client repeats a failed look-up five times over half a minute, so the host's name is resolved first: without a
network the answer comes at once. Workers then load from the cache too.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

from moeprof.core.errors import ModelError

RESOLVE_S = 3.0


def hub_file(model: str, repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository, or None when the repository has no such file.

    Args:
        model: the workload's name for it, for messages.
        repository: ``org/name``.
        name: of the file.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        ModelError: no such repository or revision, no permission, or no network and no copy in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not the user's to read
    try:
        return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise ModelError(f"model {model}: {repository!r} is neither a local folder nor a hub id ({error})") from error
    except LocalEntryNotFoundError:
        pass
    if not is_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the workers, which start later
        if _knows(repository, revision):
            return None
        raise ModelError(
            f"model {model}: {repository} is no local folder, not in the hub's cache, and the hub cannot be reached; "
            "check the spelling or the network, or download it elsewhere and give the folder"
        )
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except RepositoryNotFoundError as error:
        why = "the hub has no such model, or it is private; check the spelling, or log in with `hf auth login`"
        raise ModelError(f"model {model}: {repository}: {why}") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {model}: {repository} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but it means: no connection
        raise ModelError(f"model {model}: {repository}: the hub did not answer; try again later") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model {model}: {repository}: the hub did not give {name} ({type(error).__name__})"
        ) from error


def is_reachable() -> bool:
    """Whether the hub may be asked: not switched off, and its host (or a proxy) has an address."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or os.environ.get("ALL_PROXY"):
        return True  # the proxy resolves names
    found: list[bool] = []
    host = urlsplit(constants.ENDPOINT).hostname or ""
    thread = threading.Thread(target=lambda: found.append(_resolves(host)), daemon=True)
    thread.start()  # a resolver without a network may take its time
    thread.join(RESOLVE_S)
    return bool(found and found[0])


def _resolves(host: str) -> bool:
    try:
        return bool(socket.getaddrinfo(host, 443))
    except OSError:
        return False


def _knows(repository: str, revision: str | None) -> bool:
    """True when the cache has the repository's config, so that a missing file is missing there too."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str)
