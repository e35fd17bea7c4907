"""The store of models' answers: `<folder>/<model>/<suite>.jsonl`, one row per item and filter.

`<folder>/<model>/meta.json` records the model and the settings of the rows. Rows of another model, or with other
settings, are an error and are not changed. An item is asked again only if the model would be shown something else.
Scores are always recomputed from the stored responses.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..display.numbers import counted
from ..errors import ForgettingError, UsageError

SCHEMA = 1
LIVE = "live"
"""Key of a loaded model. Its content is unknown, so its stored answers are never reused."""
FIELDS: dict[str, str] = {
    "model": "base, tuned, or <run_id>@<step> in a study",
    "suite": "the suite's name",
    "group": "the requested task, or group of tasks",
    "task": "lm-eval's name of the task",
    "filter": "lm-eval's name of the filter that extracted the answer from the reply",
    "doc_id": "number of the item in its task",
    "doc_hash": "lm-eval's hash of the item",
    "prompt_hash": "lm-eval's hash of the prompt as the model saw it",
    "request_hash": "hash of everything the model was shown: prompts, options, generation settings, tokenizer",
    "responses": "what the model returned: log-likelihoods and whether they are greedy, or replies; null if it may "
    "not be kept, and in an item's rows for further filters",
    "prompt": "the question",
    "target": "the right answer",
    "answer": "the model's answer: the option it chose, or what the filter extracted from its reply",
    "reply": "the whole reply; null if it may not be kept, or if nothing was generated",
    "reply_key": "hash of prompt and reply, to match hand labels",
    "metric": "lm-eval's metric that is used as the score",
    "higher_is_better": "whether a higher value of the metric is better; null if replies are judged",
    "score": "between 0 and 1, higher is better: the metric, or 1 - the metric; null if replies are judged",
    "options": "number of options to choose from, 0 for a free answer",
    "category": "category that results are also given for",
    "cluster": "items of one passage share it; empty if there is none",
    "expect": "refuse or answer, for judged replies",
    "refused": "the rules' verdict, for judged replies",
}
"""Fields of a row and what they mean."""
PAIRING = ("task", "filter", "doc_id", "doc_hash", "prompt_hash")
"""Fields that identify an item, by which the answers of two models are paired."""
READ = (
    *(*PAIRING, "prompt", "target", "answer", "reply", "reply_key"),
    *("metric", "score", "options", "category", "cluster", "expect", "refused"),
)
"""Fields that results use; every version has written them."""


class AnswerStore:
    """Stores the answers of several models to the same suites in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, model: str, suite: str) -> Path:
        """The file with one model's answers to one suite.

        Raises:
            UsageError: the file is a link or behind one, a pipe or a device; names it.
        """
        return self._file(model, f"{suite}.jsonl")

    def _file(self, model: str, name: str) -> Path:
        folder = self.folder / re.sub(r"[^A-Za-z0-9._@-]", "-", model)
        return files.check_plain(files.refuse_link(folder / name, self.folder))

    def has(self, model: str, key: str, suite: str, asked: Mapping[str, Any]) -> bool:
        """Whether the store has the answers of a model to a suite.

        Args:
            model: name of the model in the store.
            key: hash of the model's content.
            suite: name of the suite.
            asked: the settings that, besides the model and the items, determine the answers.

        Raises:
            UsageError: the stored answers are of another model, or with other settings (except for fewer items); names
                both. Also if there are any and the model is a loaded one.
            ForgettingError: the stored metadata are damaged, or of another version.
        """
        meta = self._meta(model)
        if not meta:
            return False
        if key == LIVE:
            raise UsageError(
                f"{self.folder}: contains answers of a {model} model that may not be the loaded one; "
                "choose another folder with out, or give the model by folder or Hub id"
            )
        if meta["key"] != key:
            there = meta["key"]
            raise UsageError(
                f"{self.folder}: contains answers of another {model} model, or the model has changed since "
                f"(stored {there[:24]}, now {key[:24]}); choose another folder with out (--out)"
            )
        if not self.path(model, suite).exists():
            return False
        before = meta["suites"].get(suite, {})
        differing = [name for name in asked if before.get(name) != asked[name] and not _more(name, before, asked)]
        if differing:
            name = differing[0]
            raise UsageError(
                f"{self.folder}: {suite} was asked with another {name} (stored {before.get(name)}, now {asked[name]}); "
                "choose another folder with out (--out)"
            )
        return True

    def check_writable(self) -> None:
        """Check that answers can be stored, before any model is asked.

        Raises:
            UsageError: the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            if files.no_room(error):
                raise
            raise UsageError(f"{self.folder}: cannot be written: {error.strerror or error}") from None

    def write(
        self, model: str, key: str, suite: str, asked: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Store a suite's answers. The rows are written first, so that a crash cannot leave metadata without rows.

        Raises:
            UsageError: the folder cannot be written.
        """
        text = "".join(json.dumps({"model": model, "suite": suite, **row}, ensure_ascii=False) + "\n" for row in rows)
        meta = self._meta(model) or {"schema": SCHEMA, "key": key, "suites": {}}
        meta["suites"][suite] = dict(asked)
        write(self.path(model, suite), text)
        write(self._meta_file(model), json.dumps(meta, indent=1) + "\n")

    def read(self, model: str, suite: str) -> list[dict[str, Any]]:
        """Read the rows of a suite.

        Raises:
            ForgettingError: a line is damaged; names it.
        """
        file, rows = self.path(model, suite), []
        for number, line in files.read_lines(file):
            try:
                row = files.parse_json(line, "")
            except UsageError:
                row = None
            if not isinstance(row, dict) or any(name not in row for name in READ):
                raise ForgettingError(f"{file}, line {number}: damaged; delete the file to ask again")
            rows.append(row)
        return rows

    def models(self) -> list[str]:
        """Names of the models that answered."""
        return sorted(file.parent.name for file in self.folder.glob("*/meta.json"))

    def suites(self, model: str) -> list[str]:
        """Names of the suites that a model answered, in the order in which they were stored."""
        meta = self._meta(model)
        return [name for name in meta.get("suites", {}) if self.path(model, name).exists()]

    def asked(self, model: str, suite: str) -> dict[str, Any]:
        """The settings stored with a model's answers to a suite."""
        return dict(self._meta(model)["suites"][suite])

    def _meta_file(self, model: str) -> Path:
        return self._file(model, "meta.json")

    def _meta(self, model: str) -> dict[str, Any]:
        file = self._meta_file(model)
        if not file.exists():
            return {}
        try:
            meta = files.parse_json(files.read_text(file), str(file))
        except UsageError as error:
            raise ForgettingError(f"{error}: damaged; delete its folder to ask again") from None
        if not isinstance(meta, dict):
            raise ForgettingError(f"{file}: damaged; delete its folder to ask again")
        if meta.get("schema") != SCHEMA:
            raise ForgettingError(
                f"{file}: written by another version (schema {meta.get('schema')}; this version reads {SCHEMA})"
            )
        suites = meta.get("suites")
        if (
            not isinstance(meta.get("key"), str)
            or not isinstance(suites, dict)
            or not all(map(_is_object, suites.values()))
        ):
            raise ForgettingError(f"{file}: damaged; delete its folder to ask again")
        return meta


def _more(name: str, before: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether a setting asks for the same items as before, and more."""
    then, now = before.get(name), asked[name]
    return name == "limit" and then is not None and (now is None or now > then)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def write(path: Path, text: str) -> Path:
    """Write a file in the folder of answers.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        return files.write_atomically(path, text)
    except OSError as error:
        if files.no_room(error):
            raise
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


def reply_key(prompt: str, reply: str) -> str:
    """A hash of a prompt and a reply, independent of the model."""
    return hashlib.sha256(f"{prompt}\0{reply}".encode()).hexdigest()[:16]


def pair_up(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    """Pair the rows of both models by item, prompt and filter, in order.

    Raises:
        ForgettingError: an item was not asked of both models, in the same words.
    """

    def keyed(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, ...], Mapping[str, Any]]:
        return {tuple(row[name] for name in PAIRING): row for row in rows}

    one, other = keyed(before), keyed(after)
    if one.keys() != other.keys():
        # an item has a row per filter, and if its words differ, rows of both models
        alone = sorted({(key[0], key[2]) for key in one.keys() ^ other.keys()})
        raise ForgettingError(
            f"{counted(len(alone), 'item', 'was')} not asked of both models in the same words; the first: "
            f"item {alone[0][1]} of {alone[0][0]}; delete the stored answers to ask again"
        )
    return [(one[key], other[key]) for key in one]
