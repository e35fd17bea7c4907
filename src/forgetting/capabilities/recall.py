"""An lm-eval model that answers from the store what is stored, and asks the live model the rest. Imports lm-eval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM  # type: ignore[import-untyped]

from ..errors import ForgettingError

Responses = list[Any]
"""Of one request, one a repeat: a reply, or a log-likelihood and whether it is greedy."""


class Recalling(LM):  # type: ignore[misc]
    """Gives the known responses, and asks for the others in one call a kind of request.

    Args:
        known: by the `id` of a request, its responses.
        ask: asks the live model requests of a kind, in order.
    """

    def __init__(self, known: Mapping[int, Responses], ask: Callable[[str, list[Any]], list[Any]]) -> None:
        super().__init__()
        self._known = {key: list(responses) for key, responses in known.items()}
        self._ask = ask

    @property
    def tokenizer_name(self) -> str:
        """Names nothing: lm-eval asks for it to cache requests, which is switched off."""
        return ""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """A log-likelihood, and whether it is greedy, of each request."""
        found = self._answers("loglikelihood", requests)
        return [(float(value), bool(greedy)) for value, greedy in found]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """A reply to each request."""
        return [str(reply) for reply in self._answers("generate_until", requests)]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Refused when tasks are loaded; a task of several kinds of requests comes here."""
        raise ForgettingError(f"task {requests[0].task_name}: running text (loglikelihood_rolling) is not supported")

    def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        missing = [request for request in requests if id(request) not in self._known]
        fresh = iter(self._ask(kind, missing) if missing else [])
        return [self._known[id(r)].pop(0) if id(r) in self._known else next(fresh) for r in requests]


def check_finite(answers: Sequence[tuple[float, bool]], requests: Sequence[Any]) -> None:
    """Refuse log-likelihoods that are no numbers: the largest of them would be an accident.

    Raises:
        ForgettingError: names the task and item.
    """
    for (value, _), request in zip(answers, requests, strict=True):
        if not math.isfinite(value):
            raise ForgettingError(
                f"task {request.task_name}, item {request.doc_id}: the model's log-likelihood is {value}: its outputs "
                "are not finite (try dtype float32, --dtype float32)"
            )
