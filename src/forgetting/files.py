"""Everything that touches a file: reading within limits, atomic writing, YAML, a full disk, secrets kept out.

Limits are far above any honest file, so that a hostile or damaged one ends in one clear error in bounded time and
memory. Nothing read here is ever executed.
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

from .errors import ForgettingError, UsageError

MAX_FILE = 2**30
"""Bytes of a file that is read whole: a table, a list of prompts."""
MAX_TEXT = 2**32
"""Bytes of a corpus of plain text."""
MAX_CONFIG = 2**22
"""Bytes of a YAML or JSON file of settings."""
MAX_LINE = 2**26
"""Bytes of one line of a JSONL file."""
PACKED = (".gz", ".zst")
"""Suffixes of compressed files that are unpacked while they are read."""
MAX_COLUMNS = 10_000
MAX_CELLS = 10**8
MAX_NODES = 100_000
"""Values of a YAML file once its aliases are written out."""
SECRET_NAMES = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
SECRET_TEXTS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bsk-(?:(?:proj|ant|svcacct|admin|or)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{16,})"
    r"|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_[A-Za-z0-9_]{16,}"
    r"|\bglpat-[A-Za-z0-9_-]{16,}|\bxox[abeoprs]-[A-Za-z0-9-]{10,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{30,}"
    r"|\b(?:r8|gsk|npm|rk_live|sk_live|sk_test)_[A-Za-z0-9]{20,}|\b(?:pypi-AgE|nvapi-)[A-Za-z0-9_-]{20,}"
    r"|(?<=://)[^\s/@:]*:[^\s/@]+(?=@)|(?<=[Bb]earer )[A-Za-z0-9._~+/-]{8,}=*"
)
"""Tokens by their form: of the Hub, OpenAI, Anthropic, GitHub, GitLab, Slack, AWS, Google, Replicate, Groq, npm, PyPI,
NVIDIA, Stripe; a password in an address; a bearer token."""
HIDDEN = "[secret]"


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read bytes from; one whose name ends in .gz or .zst is unpacked on the way.

    Raises:
        UsageError: no such file, unreadable, or damaged; names the file.
    """
    try:
        with path.open("rb") as file:
            yield _unpacked(file, path)
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


def read_text(path: Path, *, limit: int | None = None, encoding: str = "utf-8") -> str:
    """A whole text file.

    Args:
        path: a file; unpacked where it is packed.
        limit: bytes, unpacked; MAX_FILE by default.
        encoding: `utf-8`, or `utf-8-sig` where a mark at the start is to be skipped.

    Raises:
        UsageError: no such file, unreadable, longer than the limit, or not UTF-8; names the file.
    """
    limit = MAX_FILE if limit is None else limit
    with opened(path) as file:
        if (size := path.stat().st_size) > limit:
            raise UsageError(f"{path}: {size:,} bytes; at most {limit:,} are read from such a file")
        content = bytearray()  # in pieces: a pipe or device has no size, and read(limit) takes all of it in memory
        while len(content) <= limit and (piece := file.read(min(2**24, limit + 1 - len(content)))):
            content += piece
    if len(content) > limit:
        raise UsageError(f"{path}: more than {limit:,} bytes; no more are read from such a file")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        why = "it begins as UTF-16 does" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else error.reason
        raise UsageError(f"{path}: not UTF-8 text ({why} at byte {error.start})") from None


def check_plain(path: Path) -> Path:
    """A path of a study's own file; a UsageError where a pipe or device, which might never end, lies there."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: not a plain file")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, numbered from 1; a line ends in a line feed and nothing else.

    Raises:
        UsageError: no such file, unreadable, a line longer than MAX_LINE, or more than MAX_TEXT bytes packed in it;
            names the file and line.
    """
    with opened(path) as file:
        number = total = 0
        packed = path.suffix.lower() in PACKED
        while line := file.readline(MAX_LINE + 1):
            number += 1
            total += len(line)
            if len(line) > MAX_LINE:
                raise UsageError(f"{path}, line {number}: longer than {MAX_LINE:,} bytes; is it a JSONL file?")
            if packed and total > MAX_TEXT:
                raise UsageError(f"{path}: more than {MAX_TEXT:,} bytes once unpacked; no more are read")
            if line.strip():
                yield number, line


def parse_json(text: str | bytes, where: str, *, unique: bool = False) -> Any:
    """A JSON value; with `unique`, a key that stands twice in one object is refused, of which Python takes the last.

    Raises:
        UsageError: not JSON, not UTF-8, nested too deeply, or a number of thousands of digits; `where` names it.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except KeyError as error:
        raise UsageError(f"{where}: '{error.args[0]:.60}' stands twice in one object") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UsageError(f"{where}: not JSON: {error.msg.removesuffix(' at')} ({at}column {error.colno})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 text ({error.reason})") from None
    except RecursionError:
        raise UsageError(f"{where}: not read: its values are nested too deeply") from None
    except ValueError:  # of int(): more digits than Python converts
        raise UsageError(f"{where}: not read: a number in it has thousands of digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise KeyError(next(name for i, (name, _) in enumerate(pairs) if any(name == other for other, _ in pairs[:i])))
    return found


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSONL file that is not blank.

    Raises:
        UsageError: as `read_lines` and `parse_json`, or a line that is no object.
    """
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        row = parse_json(line, where, unique=True)
        if not isinstance(row, dict):
            raise UsageError(f"{where}: needs a JSON object a line, got {type(row).__name__}")
        yield number, row


def parse_yaml(text: str, where: str) -> Any:
    """A YAML value of plain kinds, keys as they are written.

    Aliases may repeat values, but not multiply into millions, nor contain themselves.

    Raises:
        UsageError: not YAML, a key twice, too many values, or nested too deeply; names the line where there is one.
    """
    if len(text) > MAX_CONFIG:
        raise UsageError(f"{where}: {len(text):,} characters; at most {MAX_CONFIG:,} are read as configuration")
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
        raise UsageError(f"{where}: not read: its values are nested too deeply") from None
    except (ValueError, OverflowError, TypeError, AttributeError, IndexError) as error:
        # PyYAML's constructors of dates and numbers let Python's own errors through
        raise UsageError(f"{where}: a value cannot be read: {str(error).splitlines()[0]:.200}") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's, with keys as they are written: YAML 1.1 takes `on:` for True, `2024:` for a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping, its keys texts."""
        node = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag in _PLAIN_TAGS:
                key.tag = "tag:yaml.org,2002:str"
        return node


_PLAIN_TAGS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "timestamp"))


class _Dumper(yaml.SafeDumper):
    """PyYAML's, with text that holds a NEL (U+0085) in double quotes: as it is, it would be read back as a space."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if "\x85" in text else None)


_Dumper.add_representer(str, _text)


def dump_yaml(value: Any) -> str:
    """A value of plain kinds as YAML that `parse_yaml` reads back to an equal one; keys keep their order.

    Examples:
        >>> parse_yaml(dump_yaml({"a": "b\\x85c"}), "x")
        {'a': 'b\\x85c'}
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _written_out(node: yaml.Node, where: str, sizes: dict[int, int], above: set[int]) -> int:
    """How many values a node stands for with its aliases written out.

    Raises:
        UsageError: more than MAX_NODES, a node inside itself, or a key twice in one mapping.
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
            raise UsageError(f"{line}: '{twice[:60]}' stands twice in one mapping")
        children = [child for pair in node.value for child in pair]
    size = 1 + sum(_written_out(child, where, sizes, above) for child in children)
    if size > MAX_NODES:
        raise UsageError(f"{line}: more than {MAX_NODES:,} values once its aliases are written out")
    above.discard(id(node))
    sizes[id(node)] = size
    return size


def check_table(columns: int, rows: int, where: str) -> None:
    """Refuse a table that would not fit in memory.

    Raises:
        UsageError: more than MAX_COLUMNS columns or MAX_CELLS cells.
    """
    if columns > MAX_COLUMNS:
        raise UsageError(f"{where}: {columns:,} columns; at most {MAX_COLUMNS:,} are read")
    if columns * rows > MAX_CELLS:
        raise UsageError(f"{where}: {rows:,} rows of {columns:,} columns; at most {MAX_CELLS:,} cells are read")


_bounded = threading.Lock()


@contextmanager
def memory_bound(more: int) -> Iterator[None]:
    """Inside, this process takes no more than so many bytes of memory beyond what it has: what asks for them fails.

    Raises a MemoryError where Python or Arrow asks. The limit is the whole process's; of several threads at once one
    has its own, and it is there on Linux alone.
    """
    statm = Path("/proc/self/statm")
    if not statm.exists() or not _bounded.acquire(blocking=False):
        yield
        return
    resource: Any = importlib.import_module("resource")  # of POSIX systems alone
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
    """Text without the secrets of this process's environment and without what looks like a token.

    Args:
        text: on its way into a file or a log.
        environment: os.environ by default.

    Examples:
        >>> redact("https://me:pw@host/x with hunter22", {"MY_PASSWORD": "hunter22"})
        'https://[secret]@host/x with [secret]'
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= 8 and SECRET_NAMES.search(name):
            text = text.replace(value, HIDDEN)
    return SECRET_TEXTS.sub(HIDDEN, text)


def redact_all(value: Any) -> Any:
    """`redact` on every text inside lists and mappings."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_all(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(item) for item in value]
    return value


@contextmanager
def replacing(path: Path, *, parents: bool = True) -> Iterator[Path]:
    """A new, empty file beside `path`, to be written; it takes the place of `path` where that went well.

    A reader, or a crash, sees the old content or the new and nothing between. Of two processes that write one path at
    once each has a file of its own, and the later one's stays. Without `parents`, a folder that has gone is an OSError.
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
    """Write a text file by `replacing`; it is on the disk when this returns."""
    with replacing(path, parents=parents) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return path


def no_room(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk is full; libraries hide the errno in words."""
    words = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed writing file")
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if not isinstance(error, ForgettingError) and any(word in str(error).lower() for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def refuse_link(path: Path, root: Path) -> Path:
    """A path inside a folder; neither it nor what is between the two may be a link.

    Args:
        path: to be read, written or deleted.
        root: the folder, which may itself be reached through a link.

    Raises:
        UsageError: a link; names it.
    """
    part = path
    while part not in (root, part.parent):
        if part.is_symlink() or _is_junction(part):
            raise _linked(part)
        part = part.parent
    return path


def refuse_links(folder: Path, *, deep: bool = True) -> None:
    """Refuse a folder in which a link lies: what is read, written or deleted through it would lie elsewhere.

    Args:
        folder: may itself be reached through a link, or not exist.
        deep: look into the folders in it, too.

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
    """Whether a path is what Windows has beside links; Python before 3.12 cannot tell."""
    asked = getattr(path, "is_junction", None)
    return asked is not None and bool(asked())


def _linked(path: Path) -> UsageError:
    return UsageError(f"{path}: a symbolic link, which leads out of the folder; put what it leads to in its place")


def no_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out; libraries say it in words."""
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc", "start new thread")
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        said = str(error).lower() if isinstance(error, RuntimeError | OSError | ImportError) else ""
        if any(word in said for word in (*words, "failed to map segment")):  # the last, of a library that is loaded
            return True
        error = error.__cause__
    return False


def open_own(path: Path, mode: str, *, make: bool = True) -> IO[str]:
    """Open a file of a run for writing; a link in its place, which would lead the writing elsewhere, is refused.

    Raises:
        UsageError: the file is a link, a pipe or a device.
        OSError: it cannot be opened, or is not there and is not to be made.
    """

    def opener(name: str, flags: int) -> int:
        flags = flags if make else flags & ~os.O_CREAT
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    check_plain(refuse_link(path, path.parent))  # links: where the flag does not exist, as on Windows
    try:
        return open(path, mode, encoding="utf-8", newline="\n", opener=opener)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _linked(path) from None
        raise


@contextmanager
def hold(path: Path) -> Iterator[IO[str]]:
    """Hold a file that at most one process holds at a time; the operating system lets go when the process dies.

    The lock is filelock's: `flock` of the whole file, on Windows of its first byte. What the holder says of itself
    therefore begins at the second one.

    Yields:
        The file, open for appending.

    Raises:
        BlockingIOError: it is held.
        ForgettingError: the file is a link, or its file system has no locks.
    """
    from filelock import lock_descriptor, unlock_descriptor

    with open_own(path, "a") as file:
        try:
            free = lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            raise ForgettingError(
                f"{path}: cannot be locked ({error.strerror}), so two processes could do the same run; "
                "store the study on a file system with locks (on NFS: mount it with locks)"
            ) from None
        if not free:
            raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", str(path))
        try:
            yield file
        finally:
            unlock_descriptor(file.fileno())  # a process forked meanwhile has the file open, too
