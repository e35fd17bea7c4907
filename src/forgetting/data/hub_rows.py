"""Rows of a data set of the Hub, at one commit, through `datasets`; no code of the data set is ever run.

Offline, `datasets` takes whatever it prepared last, of any revision. So here: what the Hub's cache holds of the commit,
where its files are all there; else what `datasets` prepared, where that is of this commit.
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
"""Ends of names that are not data."""


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
        subset: its configuration; None is its only or default one.
        split: None is `train`.
        revision: a commit, tag or branch; None is the main branch.
        streaming: read as they are wanted, without downloading the whole.

    Raises:
        UsageError: no such data set, revision, subset or split, or, offline, not in the cache.
        ForgettingError: the Hub cannot be reached, or the data are damaged.
    """
    wanted, choice = f"data set '{name}'", {"split": split or "train", "streaming": streaming}
    try:
        repo = hub.find(name, revision, "dataset")
    except UsageError as refused:
        # the cache of `datasets` alone may have been copied here
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
        raise UsageError(f"{repo}: none of its data are in the caches of the Hub and of `datasets`")
    return _checked(found, wanted, repo.commit)


def files_at(name: str, revision: str | None) -> dict[str, str] | None:
    """The files whose rows `hub_rows` gives, each with the commit; None where that is not certain, or there are none.

    Without the Hub they are those that its cache holds, which may be fewer.
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
    """What `datasets` raises, as one line; it names unknown subsets, splits and revisions in its first."""
    import datasets

    cause = error.__cause__ or error
    first = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return UsageError(f"{wanted}: no such file here, and no such data set on the Hub (or no access to it)")
    if isinstance(error, datasets.exceptions.SplitsVerificationError):
        return UsageError(f"{wanted}: other rows than its card says, so a part is missing: {first}")
    if isinstance(error, ConnectionError | TimeoutError):
        return ForgettingError(f"{wanted}: the Hub cannot be reached: {first}")
    if isinstance(error, ValueError | FileNotFoundError | RuntimeError | datasets.exceptions.DatasetsError):
        return UsageError(f"{wanted}: {first}")
    return ForgettingError(f"{wanted}: cannot be read: {first}")


def _prepared(name: str, subset: str | None, choice: dict[str, Any]) -> Any | None:
    """What `datasets` prepared before, of whatever revision; None where there is nothing."""
    try:
        return _load(f"data set '{name}'", name, subset, **choice)
    except UsageError:
        raise
    except ForgettingError:
        return None


def _checked(data: Any, wanted: str, commit: str | None) -> Iterator[Row]:
    """Rows, unless `datasets` took what it had prepared of another commit."""
    for file in getattr(data, "cache_files", []):
        there = Path(file["filename"]).parent.name
        if commit is not None and COMMIT.fullmatch(there) and there != commit:
            raise UsageError(
                f"{wanted}: `datasets` prepared commit {there[:12]} of it, not {commit[:12]} as asked; give revision "
                f"{there} to use it"
            )
    return _each(data, wanted)


def _each(data: Iterable[Row], wanted: str) -> Iterator[Row]:
    try:
        for row in data:
            yield dict(row)
    except Exception as error:  # streaming reads files here
        raise _explained(wanted, error) from None


def _has_data(repo: hub.Repo) -> bool:
    """Whether the cache holds data files.

    Raises:
        UsageError: some of a set of numbered files are missing: a split of them would be a part of itself.
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
                f"{repo}: the Hub's cache holds {len(numbers)} of the {int(count)} files {before}*-of-{count}{after}; "
                f"download it whole: hf download --repo-type dataset {repo.name} --revision {repo.commit}"
            )
    return bool(data)
