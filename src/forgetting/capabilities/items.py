"""A user's own items: reads a JSONL file, checks it line by line, and writes the lm-eval task that runs it.

A line is `{"prompt": ..., "choices": [...], "answer": <index or text of the right choice>}`. Without choices it is
`{"prompt": ..., "answer": "free text"}`, or has a list of accepted answers. Optional fields: `id`, `category` (results
are also given by category), `cluster` (shared by items about the same passage).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError, did_you_mean
from .answers import write

FIELDS = ("id", "prompt", "choices", "answer", "category", "cluster")
FINAL_ANSWER = r"(?s)^\s*(?:.*?\b[Tt]he answer is (?:the |a |an )?)?(.+?)\s*\.?\s*$"
"""Extracts what follows `The answer is`, or else the whole reply, without the final full stop."""
MAX_GENERATED = 64
"""Default for the maximum tokens of a reply."""
READER = "items_beside.py"
READER_TEXT = '''"""Reads the items in this folder, even if it was moved. The tasks of this folder call it."""

import json
from pathlib import Path

import datasets


def read(file, **_):
    with (Path(__file__).parent / file).open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
'''


def read_items(path: Path) -> list[dict[str, Any]]:
    """Read and check the items of a file; either all or none have choices.

    Raises:
        UsageError: a malformed or repeated item, or none; names the file, line and field.
    """
    rows: list[dict[str, Any]] = []
    prompts: dict[str, int] = {}
    for number, row in files.json_rows(path):
        where = f"{path}, line {number}"
        item = _item(row, where)
        if rows and ("choices" in item) != ("choices" in rows[0]):
            raise UsageError(f"{where}: choices: some items have them and some do not; put them in two files")
        if item["prompt"] in prompts:
            raise UsageError(f"{where}: prompt: the same as in line {prompts[item['prompt']]}")
        prompts[item["prompt"]] = number
        rows.append({"id": str(row.get("id", f"line-{number}")), **item})
    if not rows:
        raise UsageError(
            f'{path}: no items; each line must be {{"prompt": ..., "answer": ...}}, with or without "choices"'
        )
    return rows


def _item(row: dict[str, Any], where: str) -> dict[str, Any]:
    for name in row:
        if name not in FIELDS:
            raise UsageError(f"{where}: no field '{name}'; {did_you_mean(name, FIELDS)}")
    prompt, answer, choices = row.get("prompt"), row.get("answer"), row.get("choices")
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{where}: prompt: got {_shown(prompt)}; give a string")
    for name, value in row.items():
        if _broken(value):
            raise UsageError(f"{where}: {name}: contains half of a surrogate pair, which is not a character")
    item: dict[str, Any] = {"prompt": prompt, "category": "", "cluster": ""}
    for name in ("category", "cluster"):
        if row.get(name) is not None:
            item[name] = str(row[name])
    if choices is None:
        answers = answer if isinstance(answer, list) else [answer]
        if not answers or not all(isinstance(a, str | int | float) and str(a).strip() for a in answers):
            raise UsageError(f"{where}: answer: got {_shown(answer)}; give a string, or a list of accepted strings")
        # as they are extracted from a reply: the answer `U.S.` would otherwise never equal the reply `U.S.`
        return {**item, "answers": list(dict.fromkeys(re.findall(FINAL_ANSWER, str(a))[0] for a in answers))}
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UsageError(f"{where}: choices: got {_shown(choices)}; give a list of at least two strings")
    if len(set(choices)) < len(choices):
        raise UsageError(f"{where}: choices: one of them occurs twice")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        allowed = f"give an index from 0 to {len(choices) - 1}, or the text of a choice"
        raise UsageError(f"{where}: answer: got {_shown(answer)}; {allowed}")
    return {**item, "choices": choices, "gold": answer}


def _broken(value: Any) -> bool:
    """Whether a text, or a list of texts, contains half a surrogate pair, which UTF-8 cannot encode."""
    if isinstance(value, list):
        return any(map(_broken, value))
    return isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def task_name(text: str) -> str:
    """A name for an lm-eval task, with safe characters only."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_").lower()[:64] or "items"


def write_task(
    folder: Path,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    judged: bool = False,
    max_generated: int = MAX_GENERATED,
) -> Path:
    """Write items, and an lm-eval task that the `lm_eval` command can also run, even after the folder is moved.

    Args:
        folder: folder for `<name>.jsonl` and `<name>.yaml`.
        name: name of the task.
        rows: items from `read_items`; judged items have `prompt` and `expect`.
        judged: whether replies are judged afterwards instead of compared with an answer.
        max_generated: maximum tokens of a reply.

    Returns:
        Path of the YAML file.

    Raises:
        UsageError: the folder cannot be written.
    """
    folder = folder.resolve()
    write(folder / READER, READER_TEXT)
    write(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    config: dict[str, Any] = {
        "task": name,
        "dataset_kwargs": {"file": f"{name}.jsonl"},
        "test_split": "test",
        "fewshot_split": "test",  # given explicitly, so that lm-eval leaves the asked item out of its own examples
        "doc_to_text": "prompt",  # a field, because lm-eval turns a template's text into a number if it is all digits
        "metadata": {"version": 1.0},
    }
    if not judged and "choices" in rows[0]:
        config |= {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
        config["metric_list"] = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc",)]
    else:
        generation = {"until": ["\n\n"], "do_sample": False, "max_gen_toks": max_generated}
        config |= {"output_type": "generate_until", "generation_kwargs": generation}
        if judged:
            config |= {"doc_to_target": "expect", "metric_list": [{"metric": "bypass"}], "num_fewshot": 0}
        else:
            matched = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
            final = [{"function": "regex", "regex_pattern": FINAL_ANSWER}, {"function": "take_first"}]
            config |= {"doc_to_target": "answers", "metric_list": [matched]}
            config["filter_list"] = [{"name": "final-answer", "filter": final}]
    # paths in `data_files` are absolute or relative to the current folder; `!function` is relative to this YAML
    loader = f"custom_dataset: !function {Path(READER).stem}.read\n"
    return write(folder / f"{name}.yaml", files.dump_yaml(config) + loader)
