"""Rows of a Hub data set at one commit, read with `datasets`; no code of the data set is ever run.

Offline, `datasets` takes what it prepared last, of any revision. Here, offline rows come from the Hub's cache if it
has all files of the commit, and otherwise from what `datasets` prepared, if that is of this commit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ForgettingError, UsageError
from . import hub

Row = dict[str, Any]
COMMIT = re.compile(r"[0-9a-f]{40}")
SHARD = re.compile(r"(.*[-.])(\d+)-of-(\d+)(.*)")
"""How `datasets` and others number the files of a split: `train-00003-of-00010.parquet`."""
BESIDE = (".md", ".gitattributes", ".yaml", ".yml", "dataset_infos.json", "LICENSE")
"""Endings of files that are not data."""


def hub_rows(
    name: str,
    *,
    subset: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Iterator[Row]:
    """Rows of one split.

    Args:
        name: the Hub id.
        subset: its configuration; None means its only or default one.
        split: None means `train`.
        revision: a commit, tag or branch; None means the main branch.
        streaming: read rows as needed, without downloading everything.

    Raises:
        UsageError: no such data set, revision, subset or split, or, offline, not in the cache.
        ForgettingError: the Hub cannot be reached, or the data are damaged.
    """
    wanted, choice = f"data set '{name}'", {"split": split or "train", "streaming": streaming}
    try:
        repo = hub.find(name, revision, "dataset")
    except UsageError as refused:
        # only the cache of `datasets` may have been copied here
        found = _prepared(name, subset, choice) if revision is None or COMMIT.fullmatch(revision) else None
        if found is None:
            raise refused from None
        return _checked(found, wanted, revision)
    if not repo.cached:
        return _checked(_load(wanted, name, subset, revision=repo.commit, **choice), wanted, repo.commit)
    if _has_data(repo):
        return _each(_load(wanted, str(repo.fetch([])), subset, **choice), wanted)
    found = _prepared(name, subset, choice)
    if found is None:
        raise UsageError(f"{repo}: neither the Hub's cache nor that of `datasets` has its data")
    return _checked(found, wanted, repo.commit)


def files_at(name: str, revision: str | None) -> dict[str, str] | None:
    """The files whose rows `hub_rows` gives, each with the commit; None if that is uncertain, or there are none.

    Without the Hub these are the cached files, which may be fewer.
    """
    try:
        repo = hub.find(name, revision, "dataset")
        return dict.fromkeys(sorted(repo.files), repo.commit) if not repo.cached or _has_data(repo) else None
    except ForgettingError:
        return None


def _load(wanted: str, path: str, subset: str | None, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, subset, **options)
    except Exception as error:
        raise _explained(wanted, error) from None


def _explained(wanted: str, error: Exception) -> ForgettingError:
    """An error of `datasets` as one line; its first line names unknown subsets, splits and revisions."""
    import datasets

    cause = error.__cause__ or error
    first = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return UsageError(f"{wanted}: no such file here, and no such data set on the Hub (or no access to it)")
    if isinstance(error, datasets.exceptions.SplitsVerificationError):
        return UsageError(f"{wanted}: its rows do not match its card, so part of it is missing: {first}")
    if isinstance(error, ConnectionError | TimeoutError):
        return ForgettingError(f"{wanted}: the Hub cannot be reached: {first}")
    if isinstance(error, ValueError | FileNotFoundError | RuntimeError | datasets.exceptions.DatasetsError):
        return UsageError(f"{wanted}: {first}")
    return ForgettingError(f"{wanted}: cannot be read: {first}")


def _prepared(name: str, subset: str | None, choice: dict[str, Any]) -> Any | None:
    """What `datasets` prepared before, of any revision; None if there is nothing."""
    try:
        return _load(f"data set '{name}'", name, subset, **choice)
    except UsageError:
        raise
    except ForgettingError:
        return None


def _checked(data: Any, wanted: str, commit: str | None) -> Iterator[Row]:
    """Rows, unless `datasets` used what it had prepared of another commit."""
    for file in getattr(data, "cache_files", []):
        there = Path(file["filename"]).parent.name
        if commit is not None and COMMIT.fullmatch(there) and there != commit:
            raise UsageError(
                f"{wanted}: `datasets` has prepared commit {there[:12]} of it, not {commit[:12]} as requested; give "
                f"revision {there} to use it"
            )
    return _each(data, wanted)


def _each(data: Iterable[Row], wanted: str) -> Iterator[Row]:
    try:
        for row in data:
            yield dict(row)
    except Exception as error:  # streaming reads files here
        raise _explained(wanted, error) from None


def _has_data(repo: hub.Repo) -> bool:
    """Whether the cache has data files.

    Raises:
        UsageError: some of a set of numbered files are missing, so that a split would be incomplete.
    """
    data = [name for name in repo.files if not PurePosixPath(name).name.endswith(BESIDE)]
    found: dict[tuple[str, ...], set[int]] = {}
    for name in data:
        if match := SHARD.fullmatch(name):
            before, number, count, after = match.groups()
            found.setdefault((before, count, after), set()).add(int(number))
    for (before, count, after), numbers in found.items():
        if len(numbers) < int(count):
            raise UsageError(
                f"{repo}: the Hub's cache has {len(numbers)} of the {int(count)} files {before}*-of-{count}{after}; "
                f"download all: hf download --repo-type dataset {repo.name} --revision {repo.commit}"
            )
    return bool(data)
