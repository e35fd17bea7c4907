"""Models behind an OpenAI-compatible server (vLLM, llama.cpp, TGI), asked by lm-eval's own completion backends.

Prompts are rendered and cut into tokens here, as for a model in memory, and sent as token ids, so that both ways ask
the same; with `text_prompts` replies are asked for by text, which the server then cuts itself. Keys and further headers
come from the environment alone, and are neither stored nor shown.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ..config.schema import ModelConfig
from ..errors import ForgettingError, UsageError
from ..files import parse_json, redact
from .console import quiet
from .explain import explained

Backend = Literal["openai", "openai-chat"]
BACKENDS: dict[str, str] = {"openai": "completions", "openai-chat": "chat/completions"}
"""What `--backend` takes, and the end of the address that is asked."""
KEY, HEADERS = "OPENAI_API_KEY", "FORGETTING_SERVER_HEADERS"
CONTEXT = 2048
"""Tokens of prompt and reply where the tokenizer's folder does not say how many the model was built for."""
TRIES, SECONDS = 3, 300


@dataclass(frozen=True)
class Served:
    """A model behind a server.

    Attributes:
        url: what is asked, as given.
        model: its name there.
        backend: completions, or chat completions.
        text_prompts: send prompts as text where no log-probabilities are asked for.
        tokenizer: with which prompts are cut; None of chat completions.
        folder: in which that lies.
        batch_size: requests at a time.
    """

    url: str
    model: str
    backend: Backend
    text_prompts: bool = False
    tokenizer: Any = field(repr=False, default=None)
    folder: Path | None = None
    batch_size: int | None = None

    @property
    def name(self) -> str:
        """In messages and results."""
        return f"{self.model} at {self.url}"

    @property
    def key(self) -> str:
        """Under which its answers are stored: its address and name, since nothing names its content."""
        return f"served:{hashlib.sha256(json.dumps([self.url, self.model, self.backend]).encode()).hexdigest()}"

    def ask(self, kind: str, requests: Sequence[Any], seed: int) -> list[Any]:
        """Answers to lm-eval's requests of a kind, in order.

        Raises:
            UsageError: the server refuses what is asked, or gives no log-probabilities of a prompt.
            ForgettingError: it cannot be reached.
        """
        from requests import RequestException

        try:
            found: list[Any] = getattr(self._lm(kind, seed), kind)(self._requests(requests))
        except RequestException as error:
            raise _unreachable(self.name, error) from None
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            what = "log-probabilities of the prompt (logprobs with echo)" if kind == "loglikelihood" else "a completion"
            raise UsageError(
                f"{self.name}: its answers do not contain {what}, as the OpenAI completions API does "
                f"({explained(error)}); suites that need them cannot be evaluated on this server"
            ) from None
        if len(found) != len(requests):
            raise ForgettingError(f"{self.name}: gave {len(found)} answers to {len(requests)} requests")
        return found

    def _lm(self, kind: str, seed: int) -> Any:
        """lm-eval's backend."""
        from . import served_lm

        how: dict[str, Any] = {"base_url": _address(self.url, self.backend), "model": self.model, "seed": seed}
        how |= {"header": _headers(), "max_retries": TRIES, "timeout": SECONDS}
        if self.backend == "openai-chat":
            return served_lm.Chat(**how)
        as_text = self.text_prompts and kind == "generate_until"
        batch = 1 if as_text else self.batch_size or 1
        how |= {"max_length": _context(self.folder), "tokenized_requests": not as_text, "batch_size": batch}
        return served_lm.completions(self.tokenizer, str(self.folder), **how)

    def _requests(self, requests: Sequence[Any]) -> list[Any]:
        """As they are; of chat completions with their messages as lm-eval marks them."""
        if self.backend == "openai":
            return list(requests)
        from . import served_lm

        return [served_lm.as_messages(request) for request in requests]


class Messages:
    """In place of a tokenizer for chat completions: messages stay messages, and the server renders them."""

    chat_template = "messages"
    backend_tokenizer = None
    special_tokens_map: Mapping[str, str] = {}

    def get_vocab(self) -> dict[str, int]:
        """Nothing: it cuts no text."""
        return {}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        """The messages as JSON."""
        return json.dumps(messages, ensure_ascii=False)


@dataclass(frozen=True)
class Server:
    """How models behind OpenAI-compatible servers are asked.

    Keys come from OPENAI_API_KEY, further headers from FORGETTING_SERVER_HEADERS as JSON.

    Attributes:
        backend: `openai`, completions; or `openai-chat`, chat completions, which give no log-probabilities.
        tokenizer: that of the models, by folder or Hub id; needed for completions.
        base_model, tuned_model: their names there; None is the only one that a server lists.
        text_prompts: send prompts as text and not as tokens where replies are generated.
    """

    backend: Backend
    tokenizer: str | os.PathLike[str] | None = None
    base_model: str | None = None
    tuned_model: str | None = None
    text_prompts: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: a backend that is none, or a tokenizer where none is used, or none where one is.
        """
        if self.backend not in BACKENDS:
            raise UsageError(f"backend '{self.backend}'; allowed: {', '.join(BACKENDS)}")
        if self.tokenizer is not None and not isinstance(self.tokenizer, str | os.PathLike):
            raise UsageError(f"tokenizer: got {type(self.tokenizer).__name__}; allowed: a folder or Hub id")
        if self.backend == "openai" and self.tokenizer is None:
            raise UsageError(
                "backend openai: needs tokenizer (--tokenizer), the folder or Hub id of the served models' tokenizer, "
                "to turn prompts into tokens"
            )
        if self.backend == "openai-chat" and (self.tokenizer is not None or self.text_prompts):
            raise UsageError("backend openai-chat: the server renders messages; leave out tokenizer and text_prompts")


class ServedSubject:
    """Two served models, in the place of two in memory.

    Args:
        urls: of the servers' base and tuned model.
        server: how they are asked.
        batch_size: requests at a time.

    Raises:
        UsageError: an address that is none, a package that is missing, a model that a server does not list.
        ForgettingError: a server cannot be reached.
    """

    def __init__(self, urls: tuple[str, str], server: Server, batch_size: int | None) -> None:
        if importlib.util.find_spec("tenacity") is None:
            raise UsageError("backend: lm-eval needs tenacity for servers; pip install 'forgetting[served]'")
        for url in urls:
            _check_url(url)
        self.backend = server.backend
        self._tokenizer = None if server.tokenizer is None else os.fspath(server.tokenizer)
        self._text, self._batch = server.text_prompts, batch_size
        names = (server.base_model, server.tuned_model)
        self._served = [(url, name or _only_model(url)) for url, name in zip(urls, names, strict=True)]
        self.names = tuple(f"{name} at {url}" for url, name in self._served)
        if self._served[0] == self._served[1]:
            raise UsageError(f"base and tuned are the same model, {self.names[0]}; give two models or servers")

    @cached_property
    def _loaded(self) -> tuple[Any, Path | None]:
        """The tokenizer, and where it lies."""
        if self._tokenizer is None:
            return Messages(), None
        from ..models import sources
        from ..models.loading import load_tokenizer

        config = ModelConfig(source=self._tokenizer)
        source = sources.find(self._tokenizer)
        return load_tokenizer(config, source), source.config()

    @property
    def tokenizer(self) -> Any:
        """With which prompts are rendered and cut."""
        return self._loaded[0]

    def key(self, side: int) -> str:
        """Under which the answers of base (0) or tuned (1) model are stored."""
        return self.model(side).key

    def model(self, side: int) -> Served:
        """Base (0) or tuned (1)."""
        url, name = self._served[side]
        tokenizer, folder = self._loaded
        return Served(url, name, self.backend, self._text, tokenizer, folder, self._batch)

    def check_tasks(self, suite: str, tasks: Mapping[str, Any]) -> None:
        """Refuse a suite that needs log-probabilities where the server gives none.

        Raises:
            UsageError: names the suite and what it needs.
        """
        if self.backend == "openai":
            return
        needing = [
            name for name, task in tasks.items() if any(r.request_type != "generate_until" for r in task.instances)
        ]
        if needing:
            raise UsageError(
                f"suite {suite}: {needing[0]} needs log-probabilities of given answers, which chat completions do not "
                "give; use --backend openai, or leave the suite out"
            )


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"'{redact(url)}': not a server address; give one such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"'{parts.scheme}://{parts.hostname}{parts.path}': give the address without a user, key or query; a key "
            f"is read from {KEY}, other headers from {HEADERS} as JSON"
        )


def _address(url: str, backend: str) -> str:
    """Where completions are asked for: the address as given, with its end where that is missing."""
    url, end = url.rstrip("/"), BACKENDS[backend]
    return url if url.endswith(f"/{end}") else f"{url}/{end}"


def _headers() -> dict[str, str]:
    """Those of every request, from the environment.

    Raises:
        UsageError: not JSON of texts.
    """
    found = {"Authorization": f"Bearer {key}"} if (key := os.environ.get(KEY)) else {}
    if given := os.environ.get(HEADERS):
        try:
            more = parse_json(given, HEADERS)
        except UsageError:
            more = None
        if not isinstance(more, dict) or not all(isinstance(value, str) for value in more.values()):
            raise UsageError(f'{HEADERS}: not a JSON object of texts, such as {{"X-Key": "..."}}')
        found |= more
    return found or {"Accept": "application/json"}  # of no headers lm-eval would send an empty key


def _only_model(url: str) -> str:
    """The one model that a server lists.

    Raises:
        UsageError: it lists none or several.
        ForgettingError: it cannot be reached.
    """
    import requests

    base = url.rstrip("/")
    for end in BACKENDS.values():
        base = base.removesuffix(f"/{end}")
    where = f"{base}/models"
    try:
        answer = requests.get(where, headers=_headers(), timeout=30)
        answer.raise_for_status()
        listed = answer.json()
        names = [str(one["id"]) for one in listed["data"]]
    except requests.RequestException as error:
        raise _unreachable(where, error) from None
    except (ValueError, KeyError, TypeError):
        names = []
    if len(names) != 1:
        said = f"lists {', '.join(names[:8])}" if names else "lists no model"
        raise UsageError(f"{where}: {said}; choose the models with --base-model and --tuned-model")
    return names[0]


def _unreachable(what: str, error: Any) -> ForgettingError:
    """A request that failed, as one line without what was sent."""
    quiet()
    answer = getattr(error, "response", None)
    if answer is None:
        return ForgettingError(f"{what}: cannot be reached ({type(error).__name__})")
    said = redact(" ".join(str(answer.text).split()))[:200]
    if answer.status_code in (401, 403):
        return UsageError(f"{what}: access refused ({answer.status_code}); set {KEY}, or {HEADERS}")
    kind = UsageError if answer.status_code < 500 else ForgettingError
    hint = "; a server that does not accept token ids needs --text-prompts" if answer.status_code in (400, 422) else ""
    return kind(f"{what}: returned {answer.status_code}: {said}{hint}")


def _context(folder: Path | None) -> int:
    """Tokens of prompt and reply that the model was built for, by the configuration beside its tokenizer."""
    from ..models import bounds, sources

    file = None if folder is None else folder / sources.CONFIG
    found = bounds.read_config(file).get("max_position_embeddings") if file is not None and file.is_file() else None
    return found if isinstance(found, int) and found > 1 else CONTEXT
