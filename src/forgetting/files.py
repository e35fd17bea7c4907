"""All file access: reading within limits, atomic writing, YAML, full disks, and removing secrets from text.

The limits are far above any real file's size. A hostile or damaged file therefore ends in one clear error, in bounded
time and memory. Nothing read here is ever executed.
"""

from __future__ import annotations

import errno
import gzip
import importlib
import io
import json
import os
import re
import tempfile
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import yaml

from . import utf8
from .errors import ForgettingError, UsageError

MAX_FILE = 2**30
"""Maximum bytes of a file that is read whole: a table, a list of prompts."""
MAX_TEXT = 2**32
"""Maximum bytes of a plain-text corpus."""
MAX_CONFIG = 2**22
"""Maximum bytes of a YAML or JSON file of settings."""
MAX_LINE = 2**26
"""Maximum bytes of one line of a JSONL file."""
PACKED = (".gz", ".zst")
"""Suffixes of compressed files, which are unpacked while they are read."""
MAX_COLUMNS = 10_000
MAX_CELLS = 10**8
MAX_NODES = 100_000
"""Maximum number of values in a YAML file, counted with its aliases written out."""
SECRET_NAMES = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
SECRET_TEXTS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-(?:(?:proj|ant|svcacct|admin|or)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{16,})"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"
    r"|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\b(?:r8|gsk|npm|rk_live|sk_live|sk_test)_[A-Za-z0-9]{20,}|\b(?:pypi-AgE|nvapi-)[A-Za-z0-9_-]{20,}"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{8,}=*"
)
"""Patterns of access tokens: Hub, OpenAI, Anthropic, GitHub, GitLab, Slack, AWS, Google, Replicate, Groq, npm, PyPI,
NVIDIA and Stripe; also a password in an address, and a bearer token."""
HIDDEN = "[secret]"


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a text file to read it as UTF-8 (see `utf8`); a .gz or .zst file is unpacked while it is read.

    Raises:
        UsageError: the file does not exist, is unreadable, damaged or in another encoding; names the file.
    """
    try:
        with path.open("rb") as file:
            yield utf8.unmarked(_unpacked(file, path), str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: damaged, or not a {path.suffix} file: {error}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UsageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _unpacked(file: BinaryIO, path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast("BinaryIO", gzip.GzipFile(fileobj=file))
    if path.suffix.lower() == ".zst":
        import pyarrow

        stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
        return io.BufferedReader(cast("io.RawIOBase", stream))
    return file


def read_text(path: Path, *, limit: int | None = None) -> str:
    """Read a whole text file.

    Args:
        path: the file; a compressed one is unpacked.
        limit: maximum bytes after unpacking; MAX_FILE by default.

    Raises:
        UsageError: the file does not exist, is unreadable, exceeds the limit, or is in another encoding; names it.
    """
    limit = MAX_FILE if limit is None else limit
    with opened(path) as file:
        if (size := path.stat().st_size) > limit:
            raise UsageError(f"{path}: {size:,} bytes; the limit for this kind of file is {limit:,}")
        content = bytearray()  # in pieces: a pipe has no size, and read(limit) would allocate the whole limit
        while len(content) <= limit and (piece := file.read(min(2**24, limit + 1 - len(content)))):
            content += piece
    if len(content) > limit:
        raise UsageError(f"{path}: more than {limit:,} bytes, the limit for this kind of file")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it to UTF-8"
        ) from None


def check_plain(path: Path) -> Path:
    """The path, if it is a regular file or missing; a UsageError for others, since a pipe or device may never end."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a plain file")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines of a file, numbered from 1; only a line feed ends a line.

    Raises:
        UsageError: unreadable, a line over MAX_LINE, or over MAX_TEXT bytes unpacked; names the file and line.
    """
    with opened(path) as file:
        number = total = 0
        packed = path.suffix.lower() in PACKED
        while line := file.readline(MAX_LINE + 1):
            number += 1
            total += len(line)
            if len(line) > MAX_LINE:
                raise UsageError(f"{path}, line {number}: longer than {MAX_LINE:,} bytes; is this a JSONL file?")
            if packed and total > MAX_TEXT:
                raise UsageError(f"{path}: unpacks to more than {MAX_TEXT:,} bytes, the limit")
            if line.strip():
                yield number, line


def parse_json(text: str | bytes, where: str, *, unique: bool = False) -> Any:
    """Parse JSON; with `unique`, refuse a key that an object repeats (Python's parser keeps the last one).

    Raises:
        UsageError: not JSON, not UTF-8, nested too deeply, or a number with thousands of digits; begins with `where`.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except KeyError as error:
        raise UsageError(f"{where}: '{error.args[0]:.60}' occurs twice in one object") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UsageError(f"{where}: not JSON: {error.msg.removesuffix(' at')} ({at}column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text ({error.reason})") from None
    except RecursionError:
        raise UsageError(f"{where}: values are nested too deeply to be read") from None
    except ValueError:  # from int(): more digits than Python converts
        raise UsageError(f"{where}: a number has thousands of digits and cannot be read") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise KeyError(next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i])))
    return found


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each non-blank line of a JSONL file.

    Raises:
        UsageError: as `read_lines` and `parse_json`, or a line is not a JSON object.
    """
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        row = parse_json(line, where, unique=True)
        if not isinstance(row, dict):
            raise UsageError(f"{where}: each line must be a JSON object, got {type(row).__name__}")
        yield number, row


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML into plain values, with keys as written.

    Aliases may repeat values, but may not expand into millions of them or contain themselves.

    Raises:
        UsageError: not YAML, a repeated key, too many values, or nested too deeply; names the line if known.
    """
    if len(text) > MAX_CONFIG:
        raise UsageError(f"{where}: {len(text):,} characters; a configuration may have at most {MAX_CONFIG:,}")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _written_out(root, where, {}, set())
        return loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not valid YAML"
        raise UsageError(f"{where}{line}: {problem}") from None
    except RecursionError:
        raise UsageError(f"{where}: values are nested too deeply to be read") from None
    except (ValueError, OverflowError, TypeError, AttributeError, IndexError) as error:
        # PyYAML's constructors for dates and numbers raise Python's own errors
        raise UsageError(f"{where}: a value cannot be read: {str(error).splitlines()[0]:.200}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's loader, but keys stay as written: YAML 1.1 reads `on:` as True and `2024:` as a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping with string keys."""
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag in _PLAIN_TAGS:
                key.tag = "tag:yaml.org,2002:str"
        return node


_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp"))


class _Dumper(yaml.SafeDumper):
    """PyYAML's dumper, but text with a NEL (U+0085) is double-quoted: unquoted, it would be read back as a space."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _text)


def dump_yaml(value: Any) -> str:
    """Dump plain values as YAML that `parse_yaml` reads back to an equal value; keys keep their order.

    Examples:
        >>> parse_yaml(dump_yaml({"a": "b\\x85c"}), "x")
        {'a': 'b\\x85c'}
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _written_out(node: yaml.Node, where: str, sizes: dict[int, int], above: set[int]) -> int:
    """How many values a node has with its aliases written out.

    Raises:
        UsageError: more than MAX_NODES, a node that contains itself, or a repeated key in a mapping.
    """
    if id(node) in sizes:
        return sizes[id(node)]
    line = f"{where}, line {node.start_mark.line + 1}"
    if id(node) in above:
        raise UsageError(f"{line}: an alias that contains itself")
    above.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UsageError(f"{line}: '{twice[:60]}' occurs twice in one mapping")
        children = [child for pair in node.value for child in pair]
    size = 1 + sum(_written_out(child, where, sizes, above) for child in children)
    if size > MAX_NODES:
        raise UsageError(f"{line}: more than {MAX_NODES:,} values with its aliases written out")
    above.discard(id(node))
    sizes[id(node)] = size
    return size


def check_table(columns: int, rows: int, where: str) -> None:
    """Refuse a table that would not fit in memory.

    Raises:
        UsageError: more than MAX_COLUMNS columns or MAX_CELLS cells.
    """
    if columns > MAX_COLUMNS:
        raise UsageError(f"{where}: {columns:,} columns; the limit is {MAX_COLUMNS:,}")
    if columns * rows > MAX_CELLS:
        raise UsageError(f"{where}: {rows:,} rows of {columns:,} columns; the limit is {MAX_CELLS:,} cells")


_bounded = threading.Lock()


@contextmanager
def memory_bound(more: int) -> Iterator[None]:
    """Limit how many more bytes of memory this process may take inside the block; allocations beyond it fail.

    Python or Arrow then raises MemoryError. The limit applies to the whole process; a second thread that enters
    meanwhile sets none. It works on Linux only; elsewhere it does nothing.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists() or not _bounded.acquire(blocking=False):
        yield
        return
    resource: Any = importlib.import_module("resource")  # POSIX only
    try:
        before = resource.getrlimit(resource.RLIMIT_AS)
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + more
        if before[0] != resource.RLIM_INFINITY and before[0] < most:
            yield
            return
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    finally:
        _bounded.release()


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Remove secrets from text: values of this process's environment, and anything that looks like a token.

    Args:
        text: text that goes into a file or a log.
        environment: os.environ by default.

    Examples:
        >>> redact("https://me:pw@host/x with hunter22", {"MY_PASSWORD": "hunter22"})
        'https://[secret]@host/x with [secret]'
    """
    for name, value in sorted((os.environ if environment is None else environment).items(), key=lambda v: -len(v[1])):
        if len(value) >= 8 and SECRET_NAMES.search(name):  # the longest first, as one may begin with another
            text = text.replace(value, HIDDEN)
    return SECRET_TEXTS.sub(HIDDEN, text)


def redact_all(value: Any) -> Any:
    """Apply `redact` to every text inside lists and mappings."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


@contextmanager
def replacing(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """Write to a new file next to `path`, which replaces `path` if the block succeeds.

    A reader, or a crash, sees the old content or the new, never a mixture. If two processes write one path at the same
    time, each has its own file, and the later one stays. Without `parents`, a missing folder is an OSError.
    """
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, text: str, *, parents: bool = True) -> Path:
    """Write a text file with `replacing`; its content is flushed to the disk before it replaces the old file."""
    with replacing(path, parents=parents) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means a full disk; some libraries give no errno, only a message."""
    words = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed writing file")
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not isinstance(error, ForgettingError) and any(word in str(error).lower() for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def refuse_link(path: Path, root: Path) -> Path:
    """Check that a path inside a folder goes through no link.

    Args:
        path: the path to be read, written or deleted.
        root: the folder, which may itself be reached through a link.

    Raises:
        UsageError: the path, or a folder between it and `root`, is a link; names it.
    """
    part = path
    while part not in (root, part.parent):
        if part.is_symlink() or _is_junction(part):
            raise _linked(part)
        part = part.parent
    return path


def refuse_links(folder: Path, *, deep: bool = True) -> None:
    """Check that a folder contains no links, so that reading, writing and deleting stay inside it.

    Args:
        folder: may itself be reached through a link, or not exist.
        deep: also check its subfolders.

    Raises:
        UsageError: names the first link.
    """
    waiting = [folder]
    while waiting:
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.is_symlink() or _is_junction(entry):
                    raise _linked(Path(entry.path))
                if deep and entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def _is_junction(path: Any) -> bool:
    """Whether a path is a Windows junction, which Python before 3.12 cannot tell."""
    asked = getattr(path, "is_junction", None)
    return asked is not None and bool(asked())


def _linked(path: Path) -> UsageError:
    return UsageError(f"{path}: a symbolic link out of the folder; replace it with the file or folder it points to")


def no_memory(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that memory ran out; libraries say so in different words."""
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc", "start new thread")
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        said = str(error).lower() if isinstance(error, RuntimeError | OSError | ImportError) else ""
        if any(word in said for word in (*words, "failed to map segment")):  # the last: while a library is loaded
            return True
        error = error.__cause__
    return False


def open_own(path: Path, mode: str, *, make: bool = True) -> IO[str]:
    """Open a run's file for writing, but never through a link.

    Raises:
        UsageError: the file is a link, a pipe or a device.
        OSError: it cannot be opened, or does not exist and may not be created.
    """

    def opener(name: str, flags: int) -> int:
        flags = flags if make else flags & ~os.O_CREAT
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    check_plain(refuse_link(path, path.parent))  # checks links on systems without the flag, such as Windows
    try:
        return open(path, mode, encoding="utf-8", newline="\n", opener=opener)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(path) from None
        raise


@contextmanager
def hold(path: Path) -> Iterator[IO[str]]:
    """Lock a file, so that at most one process holds it; the operating system unlocks it when the process dies.

    filelock locks the whole file with `flock`; on Windows it locks the first byte. What the holder writes about itself
    therefore begins at the second byte.

    Yields:
        The file, open for appending.

    Raises:
        BlockingIOError: another process holds it.
        ForgettingError: the file is a link, or its file system has no locks.
    """
    from filelock import lock_descriptor, unlock_descriptor

    with open_own(path, "a") as file:
        try:
            free = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            raise ForgettingError(
                f"{path}: cannot be locked ({error.strerror}), so two processes could run the same run; "
                "store the study on a file system with locks (on NFS: mount it with locks)"
            ) from None
        if not free:
            raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path))
        try:
            yield file
        finally:
            unlock_descriptor(file.fileno())  # a process forked meanwhile also has the file open
