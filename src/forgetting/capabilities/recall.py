"""An lm-eval model that returns stored answers and asks a real model for the others. Imports lm-eval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-untyped]

from ..errors import ForgettingError

Responses = list[Any]
"""The responses to one request, one per repeat: a reply, or a log-likelihood and whether it is greedy."""


class Recalling(LM):  # type: ignore[misc]
    """Returns known responses, and asks for the others in one call per kind of request.

    Args:
        known: known responses by the Python `id` of a request.
        ask: asks the model the requests of a kind; returns the answers in order.
    """

    def __init__(self, known: Mapping[int, Responses], ask: Callable[[str, list[Any]], list[Any]]) -> None:
        super().__init__()
        self._known = {key: list(responses) for key, responses in known.items()}
        self._ask = ask

    @property
    def tokenizer_name(self) -> str:
        """An empty name; lm-eval only uses it to cache requests, which is switched off."""
        return ""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each request, and whether it is greedy."""
        found = self._answers("loglikelihood", requests)
        return [(float(value), bool(greedy)) for value, greedy in found]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The reply to each request."""
        return [str(reply) for reply in self._answers("generate_until", requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Refuse running text; loading refuses it as well, but not in tasks with several kinds of requests."""
        raise ForgettingError(f"task {requests[0].task_name}: running text (loglikelihood_rolling) is not supported")

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        missing = [request for request in requests if id(request) not in self._known]
        fresh = iter(self._ask(kind, missing) if missing else [])
        return [self._known[id(r)].pop(0) if id(r) in self._known else next(fresh) for r in requests]


def check_finite(answers: Sequence[tuple[float, bool]], requests: Sequence[Any]) -> None:
    """Refuse log-likelihoods that are not finite, among which the largest would be arbitrary.

    Raises:
        ForgettingError: names the task and item.
    """
    for (value, _), request in zip(answers, requests, strict=True):
        if not math.isfinite(value):
            raise ForgettingError(
                f"task {request.task_name}, item {request.doc_id}: the model's log-likelihood is {value}: its outputs "
                "are not finite (try dtype float32, --dtype float32)"
            )
