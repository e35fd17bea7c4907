"""A stand-in for the Hub: its cache (refs, snapshots, blobs) and a small server for requests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

Content = Path | Mapping[str, bytes]


def contents(source: Content) -> dict[str, bytes]:
    """Path -> bytes of a folder."""
    if isinstance(source, Path):
        return {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    return dict(source)


def commit_of(files: Mapping[str, bytes]) -> str:
    """A commit hash derived from the content."""
    return hashlib.sha1(b"".join(k.encode() + v for k, v in sorted(files.items()))).hexdigest()


@dataclass
class HubCache:
    """A cache in huggingface_hub's layout; models and data sets are added from folders."""

    folder: Path

    def add(self, name: str, source: Content, ref: str = "main", kind: str = "model") -> str:
        """Add a repository at a branch or tag; its commit."""
        files = contents(source)
        commit = commit_of(files)
        repo = self.folder / f"{kind}s--{name.replace('/', '--')}"
        (repo / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / ref).write_text(commit)
        (repo / "blobs").mkdir(exist_ok=True)
        for path, data in files.items():
            blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            pointer = repo / "snapshots" / commit / path
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if not pointer.exists():
                pointer.symlink_to(blob)
        return commit

    def drop(self, name: str, path: str, kind: str = "model") -> None:
        """Remove a file, as after an interrupted download."""
        (found,) = (self.folder / f"{kind}s--{name.replace('/', '--')}" / "snapshots").glob(f"*/{path}")
        found.unlink()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """An empty cache, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return HubCache(tmp_path / "hub")


@dataclass
class HubServer:
    """Answers as the Hub does for what was added; `requests` are those received."""

    url: str = ""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    broken: bool = False
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, source: Content, ref: str = "main") -> str:
        """Add a model at a branch or tag; its commit."""
        files = contents(source)
        self.repos.setdefault(name, {}).update({ref: files, commit_of(files): files})
        return commit_of(files)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path."""
        if self.broken:
            return 503, {}, b"down"
        parts = path.strip("/").split("?")[0].split("/")
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        ref = rest[1].replace("%2F", "/") if rest else "main"
        files = self.repos[name].get(ref)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit = commit_of(files)
        if api and rest[:1] == ["tree"]:
            listed = [{"type": "file", "path": p, "size": len(d), "oid": "0" * 40} for p, d in files.items()]
            return 200, {}, json.dumps(listed).encode()
        if api:
            info = {"id": name, "sha": commit, "siblings": [{"rfilename": p} for p in files], "tags": []}
            return 200, {}, json.dumps(info).encode()
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        data = files.get("/".join(rest[2:]))
        if data is None:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        return 200, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}, data


@contextmanager
def serving() -> Iterator[HubServer]:
    """A server on this machine."""
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub_server(hub_cache: HubCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub that can be reached, and an empty cache."""
    from huggingface_hub import constants

    with serving() as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub
