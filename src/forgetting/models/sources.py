"""Where a model or an adapter is: a local folder, or a Hub repository at one commit."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ..data import hub
from ..display.numbers import natural
from ..errors import UsageError
from . import bounds

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (
    "pickled weights are refused: convert them to safetensors, with torch.load(FILE, weights_only=True) and "
    "safetensors.torch.save_file"
)
SMALL = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Suffixes of files next to the weights: configurations, vocabularies, chat templates."""


@dataclass(frozen=True)
class Source:
    """A model or adapter by name, found once, so that everything loaded from it has the same content.

    Attributes:
        name: the user's name for it.
        local: its folder; None for a Hub id.
        repo: its repository at a commit; None for a local folder.
        code: whether its Python files are included.
    """

    name: str
    local: Path | None
    repo: hub.Repo | None
    code: bool = False

    def has(self, file: str) -> bool:
        """Whether it has a file."""
        return file in self.repo.files if self.repo is not None else self._folder().joinpath(file).is_file()

    def files(self) -> list[str]:
        """Names of its top-level files."""
        if self.repo is not None:
            return sorted(name for name in self.repo.files if "/" not in name)
        return sorted(path.name for path in self._folder().iterdir() if path.is_file())

    def holds_weights(self) -> bool:
        """Whether it has a whole model's weights, in safetensors."""
        return any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in self.files())

    def is_adapter(self) -> bool:
        """Whether it is an adapter rather than a whole model.

        Raises:
            UsageError: it is both.
        """
        if not self.has(ADAPTER_CONFIG):
            return False
        if not (self.has(CONFIG) and self.holds_weights()):
            return True
        if not self.has(ADAPTER_WEIGHTS) and not self.has("adapter_model.bin"):
            return False  # left over from an adapter that was merged
        raise UsageError(
            f"model '{self.name}': this {self.place} contains both a full model and an adapter; move {CONFIG} or "
            f"{ADAPTER_CONFIG} elsewhere, so that one remains"
        )

    def models_inside(self) -> list[str]:
        """Folders in it that contain a model or an adapter, such as a run's checkpoints; in natural order."""
        found = {str(PurePosixPath(name).parent) for name in self.inside(CONFIG, ADAPTER_CONFIG)}
        return sorted(found, key=natural)

    def inside(self, *files: str) -> list[str]:
        """Paths of the files with one of these names, one folder down; "*" matches any name."""
        if self.repo is not None:
            paths = [PurePosixPath(name) for name in self.repo.files]
            return [str(p) for p in paths if len(p.parts) == 2 and any(p.match(f"*/{file}") for file in files)]
        folder = self._folder()
        return [p.relative_to(folder).as_posix() for file in files for p in folder.glob(f"*/{file}")]

    def config(self) -> Path:
        """A folder with its configuration, tokenizer and, if requested, code; from the Hub, nothing else.

        Raises:
            UsageError, ForgettingError: as `hub.Repo.fetch`.
        """
        return self._folder() if self.repo is None else self.repo.fetch(self._small())

    def weights(self) -> Path:
        """A folder with the whole model.

        Raises:
            UsageError: it has no safetensors weights.
            ForgettingError: as `hub.Repo.fetch`.
        """
        if not self.holds_weights():
            pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in self.files())
            why = f" ({PICKLED})" if pickled else ""
            if any(name.endswith(".distcp") or name.startswith("global_step") for name in self.inside("*")):
                why = " (sharded training state: merge it first, with `accelerate merge-weights` or zero_to_fp32.py)"
            raise UsageError(f"model '{self.name}': this {self.place} has no *.safetensors weights{why}")
        if self.repo is None:
            return self._folder()
        return self.repo.fetch([*self._small(), *self._shards(self.repo)])

    def adapter(self) -> Path:
        """A folder with the whole adapter.

        Raises:
            UsageError: its weights are not safetensors.
            ForgettingError: as `hub.Repo.fetch`.
        """
        if not self.has(ADAPTER_WEIGHTS):
            raise UsageError(f"adapter '{self.name}': this {self.place} has no {ADAPTER_WEIGHTS} ({PICKLED})")
        return self._folder() if self.repo is None else self.repo.fetch([*self._small(), ADAPTER_WEIGHTS])

    def weight_hashes(self) -> dict[str, str]:
        """The sha256 of each weight file that is loaded, by name.

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
        """The commit of a Hub id."""
        return None if self.repo is None else self.repo.commit

    @property
    def place(self) -> str:
        """What it is, for messages: `folder` or `repository`."""
        if self.repo is None:
            return "folder"
        return "repository, as far as it is cached," if self.repo.cached else "repository"

    def content(self) -> str:
        """An identifier of its content: the Hub commit, or `sha256:...` over a local configuration and weights."""
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
        """The files of its weights; of two sets, the one that transformers reads, as in a folder."""
        if self.has(WEIGHTS):
            return [WEIGHTS]
        if not self.has(INDEX):
            found = next(name for name in self.files() if name.endswith(".safetensors"))
            raise UsageError(f"model '{self.name}': this repository has no {WEIGHTS}; {found} cannot be read")
        index = repo.fetch([INDEX]) / INDEX
        named = shards(index, f"model '{self.name}': {INDEX}")
        if lacking := sorted(named - repo.files):
            raise UsageError(f"model '{self.name}': {INDEX} names {lacking[0]}, which this repository does not have")
        return sorted(named)


def shards(index: Path, where: str) -> set[str]:
    """The files that an index names.

    Raises:
        UsageError: a damaged index; the message begins with `where`.
    """
    found = bounds.read_config(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise UsageError(f"{where}: damaged")
    return set(found.values())


def find(name: str, revision: str | None = None, *, code: bool = False) -> Source:
    """Find the model or adapter that a name means.

    Args:
        name: a folder, a Hub id, or `miniature`.
        revision: for a Hub id: a commit, tag or branch.
        code: whether to include Python files.

    Raises:
        UsageError: no such folder or Hub id, a file, or a revision for a folder.
        ForgettingError: the Hub cannot be reached, and it is not cached.
    """
    folder = local_folder(name)
    if folder is None:
        return Source(name, None, hub.find(name, revision), code)
    if revision is not None:
        raise UsageError(f"model '{name}': a local folder, which has no revisions; leave out revision '{revision}'")
    return Source(name, folder, None, code)


def local_folder(name: str) -> Path | None:
    """The folder that a name means; None if it may be a Hub id.

    Raises:
        UsageError: a file, or a path without a folder.
    """
    if name == "miniature":
        from ..data.miniature import MODEL_DIR

        return MODEL_DIR
    try:
        path = Path(name).expanduser()
        there = path.is_file(), path.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, no such user
        raise UsageError(f"model '{name:.80}': not a folder: {getattr(error, 'strerror', None) or error}") from None
    if there[0]:
        raise UsageError(f"model '{name}': a file; give the folder that contains the model's or adapter's files")
    if there[1]:
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or "\\" in name:
        raise UsageError(f"model '{name}': no such folder")
    return None


def folder_hash(folder: str) -> str:
    """A sha256 over the config and weights of a local folder; cached while the files are unchanged."""
    files = [Path(folder) / CONFIG, *sorted(Path(folder).glob("*.safetensors"))]
    return _hash(tuple((path, *_stamp(path)) for path in files))


def code_hash(kind: type) -> str:
    """A sha256 over the Python files of a model's class, if they came with the model; "" for a class of a library.

    A folder's content (`folder_hash`) does not cover them, and a commit does not say whether they were used.
    """
    if not kind.__module__.startswith("transformers_modules."):
        return ""
    files = sorted(Path(inspect.getfile(kind)).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


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
    """The hexadecimal sha256 of each file by name; cached while the files are unchanged."""
    return {path.name: _file_digest(path, *_stamp(path)).hex() for path in files}
