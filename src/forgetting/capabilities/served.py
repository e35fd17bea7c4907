"""Models on an OpenAI-compatible server (vLLM, llama.cpp, TGI), asked through lm-eval's completion backends.

Prompts are rendered and tokenised here and sent as token ids, so that a served model is asked the same as a loaded one.
With `text_prompts`, prompts for generated replies are sent as text, which the server tokenises. API keys and further
headers come only from the environment, and are neither stored nor shown.
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
from ..display.numbers import several
from ..errors import ForgettingError, UsageError
from ..files import parse_json, redact
from .console import quiet
from .explain import explained

Backend = Literal["openai", "openai-chat"]
BACKENDS: dict[str, str] = {"openai": "completions", "openai-chat": "chat/completions"}
"""Values of `--backend`, and the last part of the address for requests."""
KEY, HEADERS = "OPENAI_API_KEY", "FORGETTING_SERVER_HEADERS"
"""Environment variables with the API key, and with further headers as JSON."""
CONTEXT = 2048
"""Context length in tokens, if the configuration next to the tokenizer does not give it."""
TRIES, SECONDS = 3, 300


@dataclass(frozen=True)
class Served:
    """A model on a server.

    Attributes:
        url: the server's address as given.
        model: name of the model on the server.
        backend: completions, or chat completions.
        text_prompts: whether prompts for generated replies are sent as text.
        tokenizer: the tokenizer for prompts; `Messages` for chat completions.
        folder: folder of the tokenizer.
        batch_size: prompts per HTTP request, if they are sent as token ids; None means 1.
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
        """The name in messages and results."""
        return f"{self.model} at {self.url}"

    @property
    def key(self) -> str:
        """The key under which its answers are stored: a hash of address, name and backend; its content is unknown."""
        return f"served:{hashlib.sha256(json.dumps([self.url, self.model, self.backend]).encode()).hexdigest()}"

    def ask(self, kind: str, requests: Sequence[Any], seed: int) -> list[Any]:
        """Send lm-eval's requests of one kind; returns the answers in order.

        Raises:
            UsageError: the server refuses a request, or does not return log-probabilities of a prompt.
            ForgettingError: the server cannot be reached.
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
            raise ForgettingError(
                f"{self.name}: gave {several(len(found), 'answer')} to {several(len(requests), 'request')}"
            )
        return found

    def _lm(self, kind: str, seed: int) -> Any:
        """lm-eval's backend for requests of a kind."""
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
        """The requests; for chat completions, with messages in lm-eval's format."""
        if self.backend == "openai":
            return list(requests)
        from . import served_lm

        return [served_lm.as_messages(request) for request in requests]


class Messages:
    """Stands in for a tokenizer with chat completions: messages are kept as JSON, and the server renders them."""

    chat_template = "messages"
    backend_tokenizer = None
    special_tokens_map: Mapping[str, str] = {}

    def get_vocab(self) -> dict[str, int]:
        """An empty vocabulary."""
        return {}

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        """The messages as JSON."""
        return json.dumps(messages, ensure_ascii=False)


@dataclass(frozen=True)
class Server:
    """Settings for models on OpenAI-compatible servers.

    The API key comes from OPENAI_API_KEY, further headers from FORGETTING_SERVER_HEADERS as JSON.

    Attributes:
        backend: `openai` for completions, or `openai-chat` for chat completions, which give no log-probabilities.
        tokenizer: the models' tokenizer, by folder or Hub id; needed for completions.
        base_model, tuned_model: names of the models on the server; None uses the only one that the server lists.
        text_prompts: send prompts for generated replies as text instead of tokens.
    """

    backend: Backend
    tokenizer: str | os.PathLike[str] | None = None
    base_model: str | None = None
    tuned_model: str | None = None
    text_prompts: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            UsageError: an unknown backend, a missing tokenizer, or a setting that the backend does not use.
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
    """Two served models, to be used like two loaded ones (`Subject`).

    Args:
        urls: addresses of the base and the tuned model's server.
        server: settings of the servers.
        batch_size: see `Served`.

    Raises:
        UsageError: an invalid address, a missing package, or a model that must be chosen by name.
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
        """The tokenizer and its folder."""
        if self._tokenizer is None:
            return Messages(), None
        from ..models import sources
        from ..models.loading import load_tokenizer

        config = ModelConfig(source=self._tokenizer)
        source = sources.find(self._tokenizer)
        return load_tokenizer(config, source), source.config()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that renders and tokenises prompts."""
        return self._loaded[0]

    def key(self, side: int) -> str:
        """The key under which the answers of the base (0) or tuned (1) model are stored."""
        return self.model(side).key

    def model(self, side: int) -> Served:
        """The base (0) or tuned (1) model."""
        url, name = self._served[side]
        tokenizer, folder = self._loaded
        return Served(url, name, self.backend, self._text, tokenizer, folder, self._batch)

    def check_tasks(self, suite: str, tasks: Mapping[str, Any]) -> None:
        """Refuse a suite that needs log-probabilities if the server does not give them.

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
    """The address for requests: the given one, with the backend's last part added if it is missing."""
    url, end = url.rstrip("/"), BACKENDS[backend]
    return url if url.endswith(f"/{end}") else f"{url}/{end}"


def _headers() -> dict[str, str]:
    """Headers of every request, from the environment.

    Raises:
        UsageError: the variable is not a JSON object of texts.
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
    return found or {"Accept": "application/json"}  # without any header lm-eval would send an empty key


def _only_model(url: str) -> str:
    """The only model that a server lists.

    Raises:
        UsageError: the server lists none or several.
        ForgettingError: the server cannot be reached.
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
    """The error for a failed request, in one line that does not contain what was sent."""
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
    """The model's context length in tokens, from the configuration next to its tokenizer, or else CONTEXT."""
    from ..models import bounds, sources

    file = None if folder is None else folder / sources.CONFIG
    found = bounds.read_config(file).get("max_position_embeddings") if file is not None and file.is_file() else None
    return found if isinstance(found, int) and found > 1 else CONTEXT
