"""`chain`: how much each step (tuning, merging, quantising) forgets, on the same tokens against the same base model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config.arguments import checked, path_of
from ..config.schema import ModelConfig
from ..config.steps import steps_of
from ..data.windows import Windows
from ..errors import ForgettingError, UsageError
from ..models import adapters, chained, comparable, loading, merges
from ..models.chained import Opened, Recipe
from ..models.gguf import GgufFile
from ..models.pair import Pair
from ..models.sources import Source
from . import one_text, passes
from .chain_result import Chain, ChainStep, parts_of
from .measure import model_config, settings_from
from .measurement import Settings
from .reading import Text, read_windows, text_source
from .sampling import Sampled

BEGINNINGS = 3
"""Number of documents on whose beginnings two tokenizers are compared."""


@checked
def chain(
    base: str | os.PathLike[str],
    steps: Sequence[str | os.PathLike[str]],
    *,
    text: Text = None,
    context: int | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    device_map: Literal["auto"] | None = None,
    trust_remote_code: bool = False,
    batch_tokens: int | None = None,
    cache_dir: str | os.PathLike[str] | None = "auto",
) -> Chain:
    """Measure each step from a base model to the deployed model: what was forgotten so far, and by which step.

    Args:
        base: a folder, Hub id, or `miniature`.
        steps: the steps in order, each as `[NAME=]MODEL[@FIELD=VALUE,...]`. MODEL is a PEFT adapter or a full model
            (folder or Hub id) or a GGUF file; if it is empty, the model of the previous step is used. Fields: `dtype`,
            `bits` (4 or 8, by bitsandbytes), `revision`, `file` (a GGUF file in a folder or Hub id), and for an adapter
            `on`, the model that it is applied to (base, before, or an earlier step's name).
        text: general text, as in `measure`; all of it is measured.
        context, revision, dtype, device, device_map, trust_remote_code, batch_tokens, cache_dir: as in `measure`.

    Raises:
        UsageError: a step that cannot be read, made, or compared with the base model; and the errors of `measure`.
        ForgettingError: the Hub cannot be reached, or memory is too small.
    """
    settings = settings_from(locals())
    given, wanted = text_source(text), steps_of(steps)
    name = path_of("base", base, "a folder, a Hub id, `miniature`")
    config = model_config(settings).model_copy(update={"source": name})
    source = loading.base_source(config)
    recipes = chained.recipes_of(wanted, config, source)
    return _Steps(config, source, settings, None if text is None else given).measured(recipes)


@dataclass
class _Steps:
    """The base model, the text, and the steps measured so far.

    Attributes:
        config, source: of the base model.
        settings: how to measure.
        given: the text; None means the default text.
        loaded: the base model without an adapter; None if it must be loaded (again).
        before: [N] values of each quantity at the previous step, by name; None at the first step.
        found: the steps measured so far.
    """

    config: ModelConfig
    source: Source
    settings: Settings
    given: Any
    loaded: loading.Base | None = None
    before: dict[str, NDArray[Any]] | None = None
    found: list[ChainStep] = field(default_factory=list)

    def base(self) -> loading.Base:
        """The base model without an adapter, loaded if necessary."""
        if self.loaded is None:
            self.loaded = loading.load_base(self.config, self.source, self.settings.placement)
        return self.loaded

    def measured(self, recipes: Sequence[Recipe]) -> Chain:
        """Measure all steps."""
        base = self.base()
        text = self.given if self.given is not None else one_text.default_text(self.config.source)
        windows, name, context, told = read_windows(
            text, base.tokenizer, [base.model], self.settings.context, None, self.settings.cache_dir
        )
        size = passes.batch_size(base.model, self.settings.batch_tokens)
        notices = (*base.notices, *told)
        for place, recipe in enumerate(recipes):
            try:
                self._step(recipe, recipes[:place], windows, (name, context, size))
            except ForgettingError as error:
                raise type(error)(f"step '{recipe.name}': {error}") from None
        return Chain(tuple(self.found), self.source.weight_hashes(), notices)

    def _step(
        self, recipe: Recipe, earlier: Sequence[Recipe], windows: Windows, text: tuple[str, int | None, int]
    ) -> None:
        name, context, size = text
        opened = self._opened(recipe)
        began = time.perf_counter()
        models = opened.pair
        notices = [*opened.notices, *_fitting(models, windows, context)]
        rows, told = comparable.shared_rows(models.base, models.tuned, windows.largest)
        values = one_text.token_values(models, windows, self.settings.cache_dir, size, rows)
        merged = self._of_merge(recipe, earlier, models)
        sampled = Sampled(windows, values, True)
        notices += [*told, *(merged or one_text.unchanged_notice(sampled))]
        so_far = one_text.measurement_of(
            models, name, context, self.settings, sampled, None, tuple(notices), began, windows
        )
        parts = parts_of(values, self.before, windows.token_documents())
        notices += _same_notice(values, self.before)
        self.before = values
        kind = _kind(recipe, models)
        step = ChainStep(recipe.name, recipe.place.name, kind, so_far, parts, recipe.hashes(), tuple(notices))
        self.found.append(step)

    def _opened(self, recipe: Recipe) -> Opened:
        opened = chained.open_step(recipe, self.base(), self.config, self.settings.placement)
        if opened.spoiled:
            self.loaded = None
        return opened

    def _of_merge(self, recipe: Recipe, earlier: Sequence[Recipe], models: Pair) -> list[str]:
        """Notices on a full model whose weights equal the base's, or contain the adapter of an earlier step wrongly."""
        if recipe.adapter is not None or recipe.derived or recipe.bits is not None:
            return []
        quantised = isinstance(recipe.place, GgufFile)
        tuned = [one for one in earlier if one.adapter is not None and isinstance(one.place, Source)]
        adapter = tuned[-1] if tuned else None
        if not quantised and merges.unchanged(models.base, models.tuned):
            which = f"the adapter of '{adapter.name}'" if adapter is not None else "an adapter"
            return [f"the weights equal the base's: {which} is not in them"]
        if adapter is None or adapter.on is not None or not isinstance(adapter.place, Source):
            return []
        self.loaded = None  # because `merges.added` puts the adapter on the base model
        found = merges.added(models.base, models.tuned, adapter.place)
        return [] if found is None else found.notices(adapter.name, quantised=quantised)


def _kind(recipe: Recipe, models: Pair) -> str:
    """What a step's model is, in words, also with a dtype that it was stored in and its base model was not."""
    asked = recipe.dtype is not None or recipe.bits is not None
    return recipe.kind if asked or models.tuned_dtype == models.dtype else f"{recipe.kind}, {models.tuned_dtype}"


def _same_notice(after: dict[str, NDArray[Any]], before: dict[str, NDArray[Any]] | None) -> list[str]:
    """A notice if a step's model gives the same numbers at every token as the model of the previous step."""
    if before is None:
        return []
    moved = [np.abs(after[name] - before[name]).max(initial=0.0) for name in ("forgetting", "kl", "data_loss_tuned")]
    if max(moved) > one_text.ROUNDING:
        return []
    how = "exactly" if max(moved) == 0 else "up to rounding"
    return [f"the model gives the same numbers as the step before at every token, {how}"]


def _fitting(models: Pair, windows: Windows, context: int | None) -> list[str]:
    """Check that a model can read windows of this length and tokenizes the text like the base model.

    Returns:
        Notices.

    Raises:
        UsageError: it cannot, or it tokenizes differently.
    """
    limit = adapters.positions(models.tuned)
    if limit is not None and context is not None and context > limit:
        raise UsageError(
            f"the model was built for {limit} tokens, but windows have {context}; give context {limit} (--context)"
        )
    if models.tuned_tokenizer is None or models.tokenizer is None:
        return []
    texts = [models.tokenizer.decode(windows.window(i)[0]) for i in _first_windows(windows)]
    return comparable.check_tokenizers(models.tokenizer, models.tuned_tokenizer, texts)


def _first_windows(windows: Windows) -> list[int]:
    """The first window of each of the first documents."""
    seen: dict[int, int] = {}
    for place, document in enumerate(windows.documents):
        seen.setdefault(int(document), place)
        if len(seen) == BEGINNINGS:
            break
    return list(seen.values())
