"""General text for mitigations: which text it is, its windows, and the check that it is not measured on."""

from __future__ import annotations

from ...config.schema import RunConfig, TextConfig
from ...data.passages import count_shared
from ...data.prepared import Corpora
from ...data.windows import Windows
from ...display.numbers import several
from ...errors import UsageError


def chosen_text(name: str, text: TextConfig | None, run: RunConfig) -> TextConfig:
    """The general text of a mitigation: as configured; in studies of the miniature, its encyclopedia by default.

    Raises:
        UsageError: none is given, and there is no default.
    """
    if text is not None:
        return text
    if run.text.source.startswith("miniature:"):
        return TextConfig(source="miniature:encyclopedia")
    raise UsageError(
        f"mitigations.{name}.text: required, but missing; give general text other than the measured one, such as "
        "{source: FILE_OR_HUB_ID}"
    )


class GeneralTexts:
    """The general texts that a study's mitigations need; each is read once during the life of this object."""

    def __init__(self, corpora: Corpora) -> None:
        """Set up; reads nothing yet."""
        self.corpora = corpora

    def windows(self, text: TextConfig) -> Windows:
        """The windows of a text."""
        return self.corpora.text(text).windows

    def refuse_measured(self, name: str, text: TextConfig, run: RunConfig) -> None:
        """Refuse a text that shares a document, or a line of at least 80 characters, with what the run is measured on.

        Raises:
            UsageError: names the mitigation, the text and what it shares.
        """
        mine = self.corpora.text(text).passages
        further = [one for one in run.texts.values() if isinstance(one, TextConfig)]
        measured = {f"the measured text {one.source}": self.corpora.text(one).passages for one in (run.text, *further)}
        measured[f"the held-out part of {run.dataset_name}"] = self.corpora.dataset(run.dataset)[1].passages
        for where, theirs in measured.items():
            shared = count_shared(mine, theirs)
            if shared:
                raise UsageError(
                    f"mitigations.{name}.text: {text.source} shares {several(shared, 'passage')} with {where}; "
                    "measured text must not be trained on: give another text"
                )
