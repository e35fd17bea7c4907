"""Hugging Face Hub repositories, each at one commit, from the Hub or from its cache on this machine.

A name and revision are resolved to a commit once, with a single request and no retries. A mistyped name therefore fails
within seconds, while the libraries below would retry for every file. Everything is then loaded at that commit.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import ForgettingError, UsageError

Kind = Literal["model", "dataset"]
WORDS = {"model": "model", "dataset": "data set"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repo:
    """A repository at one commit.

    Attributes:
        name: its Hub id.
        kind: `model` or `dataset`.
        commit: the full hash.
        files: paths of its files; for a cached repository, those in the cache.
        cached: whether the Hub was not asked or did not answer, so that only the cache is available.
    """

    name: str
    kind: Kind
    commit: str
    files: frozenset[str]
    cached: bool

    def __str__(self) -> str:
        return f"{WORDS[self.kind]} '{self.name}'"

    def fetch(self, wanted: Iterable[str]) -> Path:
        """The cache folder with these files; missing ones are downloaded.

        Raises:
            UsageError: no access to them, or they are not cached and the Hub may not be asked.
            ForgettingError: the download failed.
        """
        from huggingface_hub import snapshot_download, try_to_load_from_cache

        names = sorted(set(wanted))
        missing = [
            name
            for name in names
            if not isinstance(
                try_to_load_from_cache(self.name, name, revision=self.commit, repo_type=self.kind), str | Path
            )
        ]
        if missing and self.cached:
            raise UsageError(
                f"{self}: the Hub's cache lacks {missing[0]} of commit {self.commit[:12]}, and the Hub "
                f"{'is not asked (HF_HUB_OFFLINE is set)' if _offline() else 'cannot be reached'}"
            )
        try:
            return Path(
                snapshot_download(
                    self.name,
                    repo_type=self.kind,
                    revision=self.commit,
                    allow_patterns=[glob.escape(name) for name in missing],
                    local_files_only=not missing,
                )
            )
        except Exception as error:  # each transport raises its own errors
            raise _explained(str(self), self.name, self.commit, error, "cannot be downloaded") from None


def find(name: str, revision: str | None = None, kind: Kind = "model") -> Repo:
    """Resolve a Hub id.

    Args:
        name: `organisation/name`, or a name without organisation.
        revision: a commit, tag or branch; None means the main branch.
        kind: `model` or `dataset`.

    Raises:
        UsageError: not a Hub id, no such repository or revision, no access to it, or, offline, not in the cache.
        ForgettingError: the Hub cannot be reached and the cache does not have it.
    """
    what = f"{WORDS[kind]} '{name}'" + (f" at revision '{revision}'" if revision else "")
    if _offline():
        found = _in_cache(name, revision, kind)
        if found is None:
            raise UsageError(
                f"{what}: no such file or folder here, and not in the Hub's cache; the Hub is not asked because "
                "HF_HUB_OFFLINE is set"
            )
        return found
    from huggingface_hub import HfApi, constants

    api, limit = HfApi(), constants.HF_HUB_ETAG_TIMEOUT
    try:
        info = (api.model_info if kind == "model" else api.dataset_info)(name, revision=revision, timeout=limit)
    except Exception as error:  # the transport is httpx or another one, depending on the version
        failure = _explained(what, name, revision, error)
        found = None if isinstance(failure, UsageError) else _in_cache(name, revision, kind)
        if found is None:
            raise failure from None
        log.warning("%s: the Hub cannot be reached; using commit %s from its cache", what, found.commit[:12])
        return found
    files = frozenset(sibling.rfilename for sibling in info.siblings or ())
    return Repo(name, kind, str(info.sha), files, cached=False)


def _offline() -> bool:
    from huggingface_hub import is_offline_mode

    return bool(is_offline_mode())


def _in_cache(name: str, revision: str | None, kind: Kind) -> Repo | None:
    """What the cache has of a revision; None if it has nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        # without a pattern: the folder of the commit, whatever it contains
        found = snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise _explained(f"{WORDS[kind]} '{name}'", name, revision, error) from None
    folder = Path(found)
    files = frozenset(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return Repo(name, kind, folder.name, files, cached=True)


def _explained(what: str, name: str, revision: str | None, error: Exception, failing: str = "") -> ForgettingError:
    """An error of the Hub's client as one line."""
    from huggingface_hub import errors

    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{what}: no such file or folder here, and not a Hub id")
    if isinstance(error, errors.GatedRepoError):
        return UsageError(
            f"{what}: gated; accept its conditions at https://huggingface.co/{name}, then log in (`hf auth login`, or "
            "HF_TOKEN)"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return UsageError(
            f"{what}: no such file or folder here, and no such repository on the Hub; if it is private, log in "
            "(`hf auth login`, or HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{what}: exists on the Hub, but has no commit, tag or branch '{revision}'")
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return UsageError(f"{what}: the Hub refuses access; check your token with `hf auth whoami` ({first})")
        return ForgettingError(f"{what}: the Hub returned an error ({status}); try again later")
    return ForgettingError(
        f"{what}: {failing or 'no such file or folder here, and the Hub cannot be reached'}: {first}"
    )
