"""Where a model or an adapter lies: a local folder, or a repository of the Hub at one commit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..data import hub
from ..errors import UsageError
from . import bounds

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Suffixes of what lies beside the weights: configurations, vocabularies, chat templates."""


@dataclass(frozen=True)
class Source:
    """A model or adapter by name, found once: what is loaded of it is of one content.

    Attributes:
        name: what the user called it.
        local: its folder; None of a Hub id.
        repo: its repository at a commit; None of a local folder.
        code: whether Python files come with it.
    """

    name: str
    local: Path | None
    repo: hub.Repo | None
    code: bool = False

    def has(self, file: str) -> bool:
        """Whether it has a file."""
        return file in self.repo.files if self.repo is not None else self._folder().joinpath(file).is_file()

    def files(self) -> list[str]:
        """Names of the files at its top."""
        if self.repo is not None:
            return sorted(name for name in self.repo.files if "/" not in name)
        return sorted(path.name for path in self._folder().iterdir() if path.is_file())

    def holds_weights(self) -> bool:
        """Whether it has weights of a whole model, in safetensors."""
        return any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in self.files())

    def is_adapter(self) -> bool:
        """Whether it is an adapter and not a whole model.

        Raises:
            UsageError: it is both.
        """
        if not self.has(ADAPTER_CONFIG):
            return False
        if not (self.has(CONFIG) and self.holds_weights()):
            return True
        if not self.has(ADAPTER_WEIGHTS) and not self.has("adapter_model.bin"):
            return False  # what is left of an adapter that was merged
        raise UsageError(
            f"model '{self.name}': this {self.place} holds both a full model and an adapter; move {CONFIG} or "
            f"{ADAPTER_CONFIG} to another place, so that one is left"
        )

    def models_inside(self) -> list[str]:
        """Folders in it that hold a model or an adapter: checkpoints of a run, say; in their natural order."""
        found = {str(PurePosixPath(name).parent) for name in self.inside(CONFIG, ADAPTER_CONFIG)}
        return sorted(found, key=_natural)

    def inside(self, *files: str) -> list[str]:
        """Paths of such files, one folder down; "*" is any."""
        if self.repo is not None:
            paths = [PurePosixPath(name) for name in self.repo.files]
            return [str(p) for p in paths if len(p.parts) == 2 and any(p.match(f"*/{file}") for file in files)]
        folder = self._folder()
        return [p.relative_to(folder).as_posix() for file in files for p in folder.glob(f"*/{file}")]

    def config(self) -> Path:
        """The folder that holds its configuration, tokenizer and, where it is asked for, code; of the Hub, no more.

        Raises:
            UsageError, ForgettingError: as `hub.Repo.fetch`.
        """
        return self._folder() if self.repo is None else self.repo.fetch(self._small())

    def weights(self) -> Path:
        """The folder that holds the whole model.

        Raises:
            UsageError: no safetensors weights in it.
            ForgettingError: as `hub.Repo.fetch`.
        """
        if not self.holds_weights():
            pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in self.files())
            why = " (pickled weights are refused: convert them to safetensors)" if pickled else ""
            if any(name.endswith(".distcp") or name.startswith("global_step") for name in self.inside("*")):
                why = " (sharded training state: merge it first, with `accelerate merge-weights` or zero_to_fp32.py)"
            raise UsageError(f"model '{self.name}': no *.safetensors weights in this {self.place}{why}")
        if self.repo is None:
            return self._folder()
        return self.repo.fetch([*self._small(), *self._shards(self.repo)])

    def adapter(self) -> Path:
        """The folder that holds the whole adapter.

        Raises:
            UsageError: its weights are not safetensors.
            ForgettingError: as `hub.Repo.fetch`.
        """
        if not self.has(ADAPTER_WEIGHTS):
            raise UsageError(
                f"adapter '{self.name}': no {ADAPTER_WEIGHTS} in this {self.place} (pickled weights are refused)"
            )
        return self._folder() if self.repo is None else self.repo.fetch([*self._small(), ADAPTER_WEIGHTS])

    def weight_hashes(self) -> dict[str, str]:
        """The sha256 of each file of weights that is loaded, by its name.

        Raises:
            UsageError, ForgettingError: as `weights` and `adapter`.
        """
        if self.is_adapter():
            return file_hashes([self.adapter() / ADAPTER_WEIGHTS])
        folder = self.weights()
        if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
            return file_hashes([folder / WEIGHTS])
        return file_hashes(folder / name for name in sorted(shards(folder / INDEX, f"model '{self.name}': {INDEX}")))

    @property
    def commit(self) -> str | None:
        """Of a Hub id."""
        return None if self.repo is None else self.repo.commit

    @property
    def place(self) -> str:
        """In words, what it is, for `not in this ...`."""
        if self.repo is None:
            return "folder"
        return "repository, as far as the Hub's cache holds it" if self.repo.cached else "repository"

    def content(self) -> str:
        """What names its content: the Hub commit, or `sha256:...` over a local folder's configuration and weights."""
        return self.commit or f"sha256:{folder_hash(str(self._folder()))}"

    def _folder(self) -> Path:
        if self.local is None:
            raise AssertionError("a Hub id has no folder before it is fetched")
        return self.local

    def _small(self) -> list[str]:
        if self.repo is None:
            return []
        found = [name for name in self.files() if name.endswith(SMALL)]
        found += [name for name in self.repo.files if PurePosixPath(name).match("additional_chat_templates/*.jinja")]
        return found + [name for name in self.repo.files if self.code and name.endswith(".py")]

    def _shards(self, repo: hub.Repo) -> list[str]:
        if repo.files >= {INDEX}:
            index = repo.fetch([INDEX]) / INDEX
            named = shards(index, f"model '{self.name}': {INDEX}")
            if lacking := sorted(named - repo.files):
                raise UsageError(f"model '{self.name}': {INDEX} names {lacking[0]}, which this repository lacks")
            return sorted(named)
        if not self.has(WEIGHTS):
            found = next(name for name in self.files() if name.endswith(".safetensors"))
            raise UsageError(f"model '{self.name}': no {WEIGHTS} in this repository; {found} is not read")
        return [WEIGHTS]


def shards(index: Path, where: str) -> set[str]:
    """The files that an index names.

    Raises:
        UsageError: a damaged index; `where` names it.
    """
    found = bounds.read_config(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UsageError(f"{where}: damaged")
    return set(found.values())


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts checkpoint-100 after checkpoint-20."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def find(name: str, revision: str | None = None, *, code: bool = False) -> Source:
    """What a name stands for.

    Args:
        name: a folder, a Hub id, or `miniature`.
        revision: of a Hub id: a commit, tag or branch.
        code: whether Python files are wanted, too.

    Raises:
        UsageError: no such folder or Hub id, a file, or a revision of a folder.
        ForgettingError: the Hub cannot be reached, and its cache lacks it.
    """
    folder = local_folder(name)
    if folder is None:
        return Source(name, None, hub.find(name, revision), code)
    if revision is not None:
        raise UsageError(f"model '{name}': a folder here, which has no revisions; leave revision '{revision}' out")
    return Source(name, folder, None, code)


def local_folder(name: str) -> Path | None:
    """The folder that a name stands for; None of what may be a Hub id.

    Raises:
        UsageError: a file, or a path where no folder is.
    """
    if name == "miniature":
        from ..data.miniature import MODEL_DIR

        return MODEL_DIR
    try:
        path = Path(name).expanduser()
        there = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, no such user
        raise UsageError(f"model '{name:.80}': no folder: {getattr(error, 'strerror', None) or error}") from None
    if there[0]:
        raise UsageError(f"model '{name}': a file; give the folder that holds the model's or adapter's files")
    if there[1]:
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise UsageError(f"model '{name}': no such folder")
    return None


def folder_hash(folder: str) -> str:
    """A sha256 over the config and weights of a local folder; kept while the files stay the same."""
    files = [Path(folder) / CONFIG, *sorted(Path(folder).glob("*.safetensors"))]
    return _hash(tuple((path, *_stamp(path)) for path in files))


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _hash(stamped: tuple[tuple[Path, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *stamp in stamped:
        digest.update(path.name.encode())
        digest.update(_file_digest(path, *stamp))
    return digest.hexdigest()


@lru_cache(maxsize=512)
def _file_digest(path: Path, *_stamp: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def file_hashes(files: Iterable[Path]) -> dict[str, str]:
    """The sha256 of each file by its name, in hexadecimal; kept while the files stay the same."""
    return {path.name: _file_digest(path, *_stamp(path)).hex() for path in files}
