"""A measurement or a chain on a model card: a section of README.md, its `model-index`, and `.eval_results/*.yaml`.

huggingface_hub writes the Hub's two formats: `model-index` in a model card's metadata
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md), and evaluation results
(https://huggingface.co/docs/hub/eval-results), which the Hub lists if the data set is one of its benchmarks.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..display.markdown import code, escaped
from ..display.numbers import fixed, p_value, signed
from ..errors import UsageError, visible
from ..files import dump_yaml, parse_json, read_text, write_atomically

BEGIN, END = "<!-- forgetting: begin -->", "<!-- forgetting: end -->"
CARD, RESULTS = "README.md", Path(".eval_results") / "forgetting.yaml"
METRICS = {
    "forgetting": "Forgetting (excess over the base model), nats/token",
    "kl": "KL divergence from the base model, nats/token",
    "agreement": "Top tokens shared with the base model",
}
"""The metrics that are written: column and displayed name."""
TASK = "text-generation"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE = re.compile(r"\.(jsonl?|txt|csv|tsv|parquet|arrow|md|gz|zst|xz|bz2)$", re.IGNORECASE)
SHA = re.compile(r"[0-9a-f]{64}")
MAX_RESULT = 2**26
"""Largest size of a result file, in bytes."""


@dataclass(frozen=True)
class Measured:
    """The result on one text.

    Attributes:
        text: name of the text.
        row: the row that `measure` writes; for a chain, the row of the step whose weights are in the folder.
        shared: has the base model and the numbers of tokens and documents: the whole result of a chain, else the row.
        chain: all rows of a chain; empty for a measurement.
    """

    text: str
    row: Mapping[str, Any]
    shared: Mapping[str, Any]
    chain: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        files: paths of the files.
        notices: what the user should know about the result.
    """

    files: tuple[Path, ...]
    notices: tuple[str, ...]


def read_result(path: Path) -> dict[str, Any]:
    """Read a result that `measure`, `check` or `chain` wrote with --json.

    Raises:
        UsageError: the file does not exist or is not a JSON object.
    """
    found = parse_json(read_text(path, limit=MAX_RESULT), str(path))
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not a JSON object; give the --json output of `measure`, `check` or `chain`")
    return found


def write_card(
    folder: Path, result: Mapping[str, Any], where: str, *, dataset: str | None = None, task: str = "forgetting"
) -> Written:
    """Write a result into the card in a model's folder; writing the same result again changes nothing.

    Args:
        folder: folder of the model or adapter.
        result: a result of `measure`, `check`, `profile` or `chain`, as plain data.
        where: where the result comes from, for messages.
        dataset: the Hub data set to list the result under; default the text, if it is a Hub data set.
        task: the task of that data set.

    Raises:
        UsageError: no such folder, not such a result, a result of other weights, an unreadable card, or a `dataset`
            that is not a Hub id.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; give the folder with the model or adapter")
    if dataset is not None and not HUB_ID.fullmatch(dataset):
        raise UsageError(f"--dataset '{dataset}': not the id of a Hub data set; give one such as Salesforce/wikitext")
    found, notices = _measured(folder, result, where)
    card = folder / CARD
    text = _card_with(card, folder, found)
    files = [write_atomically(card, text)]
    listed = [(one, dataset or _dataset_of(one.text)) for one in found]
    entries = [_entry(one, name, task if len(found) == 1 else f"{task}-{i + 1}")
               for i, (one, name) in enumerate(listed) if name is not None]  # fmt: skip
    if entries:
        from huggingface_hub import eval_result_entries_to_yaml

        (folder / RESULTS).parent.mkdir(exist_ok=True)
        files.append(write_atomically(folder / RESULTS, dump_yaml(eval_result_entries_to_yaml(entries))))
    else:
        notices.append(
            f"no {RESULTS.as_posix()}: the Hub lists results by its data sets, but '{found[0].text}' is not one; "
            "choose one with --dataset"
        )
    return Written(tuple(files), tuple(notices))


def _measured(folder: Path, result: Mapping[str, Any], where: str) -> tuple[list[Measured], list[str]]:
    """The result on each text, after checking it against the folder's weights, and notices."""
    if isinstance(result.get("steps"), list):
        return [_of_chain(folder, result, where)], []
    texts = result.get("texts")
    rows = texts.values() if isinstance(texts, Mapping) else [result]
    found = []
    for row in rows:
        if not isinstance(row, Mapping) or "forgetting" not in row:
            raise UsageError(f"{where}: not a result of `measure`, `check` or `chain`: it has no field forgetting")
        _check_row(row, where)
        _check_shared(row, where)
        found.append(Measured(str(row["text"]), row, row))
    if not found:
        raise UsageError(f"{where}: texts: empty")
    hashes = _hashes(found[0].row, where)
    if not hashes:
        return found, ["the result names no weight files: it may not be about this folder's model"]
    if (other := _other(folder, hashes)) is not None:
        raise UsageError(f"{where}: measured on other weights than those in {folder}: {other}; measure this model")
    return found, []


def _of_chain(folder: Path, result: Mapping[str, Any], where: str) -> Measured:
    """The chain's step whose weights are in the folder; the last one if several match."""
    steps = result["steps"]
    for i, row in enumerate(steps):
        if not isinstance(row, Mapping) or not isinstance(row.get("name"), str):
            raise UsageError(f"{where}: steps[{i}]: not a step of `chain`")
        _check_row(row, f"{where}: steps[{i}]")
        for name in ("step_forgetting", "step_p_holm"):
            _number(row, name, f"{where}: steps[{i}]", optional=name == "step_p_holm")
        _number(row, "step_forgetting_se", f"{where}: steps[{i}]", optional=True)
        if not isinstance(row.get("kind"), str):
            raise UsageError(f"{where}: steps[{i}]: kind: missing")
    _check_shared(result, where)
    hashes = [_hashes(row, where) for row in steps]
    here = [row for row, of in zip(steps, hashes, strict=True) if of and _other(folder, of) is None]
    if not here:
        names = ", ".join(row["name"] for row in steps)
        raise UsageError(f"{where}: none of its steps ({names}) has the weights in {folder}")
    return Measured(str(result["text"]), here[-1], result, steps)


def _check_row(row: Mapping[str, Any], where: str) -> None:
    for name in METRICS:
        _number(row, name, where)
        _number(row, f"{name}_se", where, optional=True)
        if name == "agreement" and not 0 <= row[name] <= 1:
            raise UsageError(f"{where}: agreement: got {row[name]}; allowed: 0 to 1")


def _check_shared(row: Mapping[str, Any], where: str) -> None:
    for name in ("text_tokens", "text_documents"):
        _number(row, name, where)
    for name in ("base", "text"):
        if not isinstance(row.get(name), str):
            raise UsageError(f"{where}: {name}: missing")


def _number(row: Mapping[str, Any], name: str, where: str, *, optional: bool = False) -> None:
    value = row.get(name)
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{where}: {name}: got {value!r:.40}; allowed: a number")


def _hashes(row: Mapping[str, Any], where: str) -> dict[str, str]:
    found = row.get("sha256") or {}
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and "/" not in name and "\\" not in name and SHA.fullmatch(str(sha))
        for name, sha in found.items()
    ):
        raise UsageError(f"{where}: sha256: allowed: hashes of files by their names")
    return dict(found)


def _other(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """What is wrong with the first file that is missing or has another hash; None if all files match."""
    for name, sha in hashes.items():
        path = folder / name
        if not path.is_file():
            return f"it has no {name}"
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha:
                return f"{name} has another SHA-256"
    return None


def _card_with(path: Path, folder: Path, found: Sequence[Measured]) -> str:
    """The card's whole text with this result's section and metrics, replacing earlier ones."""
    from huggingface_hub import ModelCard, metadata_load

    text = read_text(path) if path.is_file() else f"---\n{{}}\n---\n\n# {folder.resolve().name}\n"
    if not text.startswith("---"):
        text = f"---\n{{}}\n---\n{text}"
    try:
        card = ModelCard(text)
    except Exception as error:  # someone else's file: PyYAML and huggingface_hub raise many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: its metadata cannot be read: {first}") from None
    data: Any = card.data
    if path.is_file() and len((metadata_load(path) or {}).get("model-index") or []) > 1:
        raise UsageError(f"{path}: model-index: it names several models; keep one")
    ours = {(TASK, visible(one.text), metric) for one in found for metric in METRICS}
    before = data.get("eval_results") or []
    kept = [one for one in before if (one.task_type, one.dataset_name, one.metric_type) not in ours]
    data.model_name = data.get("model_name") or folder.resolve().name
    data.eval_results = [*kept, *(result for one in found for result in _results(one))]
    base = str(found[0].shared["base"])
    if data.get("base_model") is None and _dataset_of(base) is not None:
        data.base_model = base
    card.text = _with_section(card.text, "\n".join(_section(found)), path)
    return str(card.content)


def _results(one: Measured) -> list[Any]:
    """The metrics of one text, for the model-index."""
    from huggingface_hub import EvalResult

    results = []
    for name, title in METRICS.items():
        se = one.row.get(f"{name}_se")
        details = {"base_model": str(one.shared["base"]), "tokens": int(one.shared["text_tokens"])}
        results.append(
            EvalResult(
                task_type=TASK,
                dataset_type=_dataset_of(one.text) or "text",
                dataset_name=visible(one.text),
                metric_type=name,
                metric_value=_rounded(one.row[name]),
                metric_name=title,
                metric_args=details if se is None else details | {"standard_error": _rounded(se)},
            )
        )
    return results


def _entry(one: Measured, dataset: str, task: str) -> Any:
    """The forgetting on one text, for `.eval_results`."""
    from huggingface_hub import EvalResultEntry

    se = one.row.get("forgetting_se")
    error = "unknown" if se is None else f"{_rounded(se):g}"
    files = "; ".join(f"{name} SHA-256 {sha}" for name, sha in _hashes(one.row, "").items())
    notes = f"forgetting in nats/token against {one.shared['base']}, standard error {error}, less is better"
    value = _rounded(one.row["forgetting"])
    return EvalResultEntry(dataset, task, value, notes="; ".join(part for part in (notes, files) if part))


def _section(found: Sequence[Measured]) -> list[str]:
    """The lines of the section, without its markers."""
    base = code(str(found[0].shared["base"]))
    lines = ["## What it forgot", ""]
    lines += [f"Against {base}, token by token; standard errors are clustered by document.", ""]
    lines += ["| text | forgetting, nats/token | KL, nats/token | same top token | tokens | documents |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    for one in found:
        cells = [code(one.text), *(_with_error(one.row, name) for name in ("forgetting", "kl"))]
        cells += [f"{100 * one.row['agreement']:.1f} %"]
        cells += [f"{int(one.shared[name]):,}" for name in ("text_tokens", "text_documents")]
        lines.append(f"| {' | '.join(cells)} |")
    for one in found:
        lines += _steps(one)
    hashes = _hashes(found[0].row, "")
    if hashes:
        lines += ["", "Measured on:", "", *(f"- {code(name)}, SHA-256 {code(sha)}" for name, sha in hashes.items())]
    notices = [n for one in found for n in one.row.get("notices") or [] if isinstance(n, str)]
    return [*lines, *(["", *(f"- Notice: {escaped(n)}" for n in dict.fromkeys(notices))] if notices else [])]


def _steps(one: Measured) -> list[str]:
    """The steps of a chain as a table; the one in this folder is marked."""
    if not one.chain:
        return []
    lines = ["", "Step by step, each against the step before (p corrected for all steps, Holm):", ""]
    lines += ["| step | what | so far | of this step | p |", "|---|---|---:|---:|---:|"]
    for row in one.chain:
        part, se = row["step_forgetting"], row.get("step_forgetting_se")
        p = row.get("step_p_holm")
        name = f"**{code(row['name'])}**" if row is one.row else code(row["name"])
        added = f"{signed(part)} ± {'unknown' if se is None else fixed(se)}"
        cells = (
            name,
            escaped(row["kind"]),
            _with_error(row, "forgetting"),
            added,
            p_value(math.nan if p is None else p),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _with_section(text: str, section: str, path: Path) -> str:
    """A card's text with the section in place of the one between the markers, or at the end."""
    ours = f"{BEGIN}\n{section.replace('<!-- forgetting', '<!-- ')}\n{END}"
    marks = (text.count(BEGIN), text.count(END))
    if marks == (0, 0):
        return f"{text.rstrip()}\n\n{ours}\n"
    if marks != (1, 1) or text.index(END) < text.index(BEGIN):
        raise UsageError(
            f"{path}: the markers of this section, {BEGIN} and {END}, must occur exactly once each; remove them"
        )
    return text[: text.index(BEGIN)] + ours + text[text.index(END) + len(END) :]


def _with_error(row: Mapping[str, Any], name: str) -> str:
    se = row.get(f"{name}_se")
    return f"{fixed(row[name])} ± {'unknown' if se is None else fixed(se)}"


def _dataset_of(name: str) -> str | None:
    """The name if it can be a Hub id: it has the form of one and is not a local file."""
    return name if HUB_ID.fullmatch(name) and not FILE.search(name) and not Path(name).exists() else None


def _rounded(value: float) -> float:
    """A number rounded to six significant digits, for readers."""
    return float(f"{value:.6g}")
