"""What determines the windows of a corpus: the content of its files, how they are read, the tokenizer, and this code.

Times and sizes of files do not count: an edit that preserves both is still an edit.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config.schema import TextConfig
from ..errors import ForgettingError
from .folders import SAVED, files_of
from .hub_rows import files_at
from .sources import is_hub_id

SMALL = 2**22
"""Bytes of a corpus below which reading it again is as fast as looking for a cached copy."""
LARGE = 2**30
"""Bytes of a corpus above which, if few documents are needed, hashing it would take longer than reading those."""
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pandas", "pyarrow")
"""Packages whose versions can change tokens."""
PLACES = ("name_or_path", "vocab_file", "is_local", "local_files_only")
"""Attributes in which a tokenizer keeps where it was loaded from."""


def corpus_key(config: TextConfig, tokenizer: Any, context: int) -> str | None:
    """A sha256 of everything that determines the windows of a corpus; equal keys mean equal windows.

    Returns:
        None if it cannot be determined (a slow or custom tokenizer, an unreadable file), or the corpus is not worth
        caching: it is small, of the miniature, or so large that hashing it takes longer than reading what is needed.
    """
    how = _tokenizer(tokenizer)
    content = None if how is None else _content(config)
    if content is None:
        return None
    settings = config.model_dump(mode="json") | {"source": Path(config.source).name}
    versions = {name: version(name) for name in LIBRARIES}
    parts = [type(config).__name__, settings, content, how, context, versions, _code()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _content(config: TextConfig) -> Mapping[str, str | None] | None:
    """Hashes of the files that a corpus is read from, by name; for a Hub data set, the commit."""
    if config.source.startswith("miniature:"):
        return None
    if is_hub_id(config.source):
        return files_at(config.source, config.revision)
    files = _files(config)
    try:
        return None if files is None else {name: _hash(path) for name, path in files.items()}
    except OSError:  # the error is reported where the file is read
        return None


def _files(config: TextConfig) -> dict[str, Path | None] | None:
    """The files of a local corpus by name; None if caching is not worth it.

    A file that is not read but appears in a notice has None as its path.
    """
    path = Path(config.source).expanduser()
    try:
        names: dict[str, Path | None] = {path.name: path} if not path.is_dir() else _in_folder(path, config)
        size = sum(file.stat().st_size for file in names.values() if file is not None)
    except (OSError, ValueError, ForgettingError):
        return None
    too_large = config.max_documents is not None and size > LARGE
    return names if size >= SMALL and not too_large else None


def _in_folder(folder: Path, config: TextConfig) -> dict[str, Path | None]:
    if any((folder / name).exists() for name in SAVED):
        found = chosen = sorted(path for path in folder.rglob("*") if path.is_file())
    else:
        found, chosen = files_of(folder, config)
    read = set(chosen)
    return {path.relative_to(folder).as_posix(): path if path in read else None for path in found}


def _hash(path: Path | None) -> str | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokenizer(tokenizer: Any) -> str | None:
    """A sha256 of a fast tokenizer of transformers; None for others."""
    if not getattr(tokenizer, "is_fast", False) or not type(tokenizer).__module__.startswith("transformers."):
        return None
    # truncation and padding, which come before the tokens, are set by each call
    backend = tokenizer.backend_tokenizer.to_str().partition('"added_tokens"')[2]
    kept = {key: value for key, value in tokenizer.init_kwargs.items() if key not in PLACES}
    parts = [
        type(tokenizer).__qualname__,
        backend,
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        kept,
        [getattr(tokenizer, name, None) for name in ("split_special_tokens", "add_bos_token", "add_eos_token")],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@functools.cache
def _code() -> str:
    """A sha256 of the code that reads corpora, so that results of an older version are not reused."""
    return hashlib.sha256(
        b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).hexdigest()
