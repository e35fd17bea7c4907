"""Limits on what someone else's model or adapter configuration may request: no second model, no endless work.

A configuration says how many layers to build, which modules to match with which pattern, which other model to load.
Requests that no real file makes are refused before a library acts on them.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import files
from ..errors import ForgettingError, UsageError
from . import transformers_internals

MAX_CONFIG = 2**26
"""Maximum bytes of a config.json or adapter_config.json."""
MAX_PARTS = 4096
"""Maximum layers, blocks or experts of a model; Python builds each of them."""
MAX_BUILT = 200_000
"""Maximum layers times experts."""
MAX_RANK = 2**16
MAX_NUMBER = 2**28
"""Maximum of any other whole number in an adapter's configuration that is not a seed."""
MAX_ITERATIONS = 1000
MAX_VALUES = 200_000
MAX_REPLICATED = 4096
"""Maximum layers of a model whose layers an adapter repeats."""
MAX_PATTERN = 20_000
"""Maximum characters of a pattern."""
PATTERN_SECONDS = 5
SLACK = 2**26
"""Numbers that a model may have in addition to those in its files: tables of positions, masks."""
KERNELS = "kernels-community/"
"""Owner of the Hub kernels that a config.json may name; any other kernel is a stranger's code."""

_PARTS = re.compile(r"(^|_)(layers?|blocks?|experts|depth|stages)$")
_SIZES = (
    *("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("n_embd", "n_head", "d_model"),
)
"""Fields of a config.json that are never 0 in a model."""
_RANKS = re.compile(r"^(r|.*_r|rank|.*_rank|rank_.*|num_virtual_tokens|.*num_layers|.*attention_heads|.*_hidden_size)$")
_SEEDS = re.compile(r"seed|prng|key")
_OTHERS = ("shadow_model", "prompt_tuning_init_state_dict_path")
"""Fields of PEFT's configurations that name another model or weight file to load."""
_NONE = {"shadow_model": "mirror"}
"""Values of such a field that name none."""
_PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern", "modules_to_save")
_PATTERNS_BY_KEY = re.compile(r"_pattern$|^target_svd_config$")
_LITERAL = re.compile(r"[\w.-]*")
_FORMS = ("{}", r"(.*\.)?({})$", r"(^|.*\.){}($|\..*)", r"(?:^|.*?\.){}\.(?P<idx>\d+)\.", r".*\.{}$")
"""How PEFT turns a pattern into a regular expression."""
_MATCHING = """
import json, re, sys
given = json.load(sys.stdin)
for number, pattern in enumerate(given["patterns"]):
    print(number, flush=True)
    for form in given["forms"]:
        try:
            compiled = re.compile(form.replace("{}", pattern))
        except re.error:
            continue
        for name in given["names"]:
            compiled.fullmatch(name), compiled.match(name), compiled.search(name)
"""


def check_model(file: Path, name: str, *, code: bool) -> None:
    """Refuse a config.json that requests more layers or experts than any model has, or code from the Hub.

    Args:
        file: config.json.
        name: the model, for messages.
        code: whether code that comes with the model may run.

    Raises:
        UsageError: such a request, or not JSON; names the field.
    """
    content = read_config(file)
    numbers = list(_numbers(content))
    parts = [(path, key, value) for path, key, value in numbers if _PARTS.search(key)]
    for path, _, value in parts:
        if value > MAX_PARTS:
            raise UsageError(f"{name}: config.json: {path}: got {_short(value)}; at most {MAX_PARTS:,}")
    _check_plain(content, name)
    experts = max((value for _, key, value in parts if key.endswith("experts")), default=1)
    layers = max((value for _, key, value in parts if not key.endswith("experts")), default=1)
    if layers * experts > MAX_BUILT:
        raise UsageError(
            f"{name}: config.json: {layers:,} layers of {experts:,} experts; at most {MAX_BUILT:,} experts in all"
        )
    for field in ("attn_implementation", "_attn_implementation"):
        for found in _texts(content.get(field)):
            if "/" in found and not found.startswith(KERNELS) and not code:
                raise UsageError(
                    f"{name}: config.json: {field}: names a kernel on the Hub, {found!r:.80}; it is code, which does "
                    "not run unless you allow it with trust_remote_code (--trust-remote-code)"
                )


def _check_plain(content: Mapping[str, Any], name: str) -> None:
    """Refuse sizes of zero and unknown dtypes; a library would only fail later, with an unrelated error."""
    import torch

    texts = content.get("text_config")
    for prefix, fields in (("", content), ("text_config.", texts if isinstance(texts, Mapping) else {})):
        for field in _SIZES:
            value = fields.get(field)
            if isinstance(value, int | float) and value < 1:
                raise UsageError(f"{name}: config.json: {prefix}{field}: got {value:.20g}; must be at least 1")
        for field in ("dtype", "torch_dtype"):
            value = fields.get(field)
            if isinstance(value, str) and value != "auto":
                if isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype):
                    continue
                given = f"{prefix}{field}: got {value!r:.60}"
                raise UsageError(f"{name}: config.json: {given}; give a dtype such as float32 or bfloat16")


def check_size(config: Any, held: int, name: str) -> None:
    """Refuse a model that is far larger than its files: a library would first fill the rest with random numbers.

    The model is built without memory for its weights. If it cannot be built, loading it reports why.

    Args:
        config: the configuration as transformers read it.
        held: bytes of weights in its files.
        name: the model, for messages.

    Raises:
        UsageError: names both sizes.
    """
    import torch

    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = transformers_internals.loader_of(plain).from_config(plain, trust_remote_code=False)
        asked = sum(one.numel() for one in (*model.parameters(), *model.buffers()))
    except Exception:  # libraries raise anything, and raise it again when the model is loaded
        return
    if asked > 8 * held + SLACK:
        raise UsageError(
            f"{name}: its config.json asks for {asked:,} numbers, but its files contain {held:,} bytes of weights"
        )


def check_adapter(given: Mapping[str, Any], where: str, base: Collection[str] = ()) -> None:
    """Refuse a PEFT configuration that loads another model, names code, or requests endless work.

    Args:
        given: the fields as in the file.
        where: the adapter or the study's field, for messages.
        base: the name of the base model; an adapter may name it.

    Raises:
        UsageError: names the field.
    """
    for field in _OTHERS:
        other = given.get(field)
        if other and other != _NONE.get(field) and other not in base:
            raise UsageError(
                f"{where}: {field}: names another model to load, {other!r:.80}; only the base model is allowed"
            )
    if given.get("adapters"):
        raise UsageError(f"{where}: adapters: names other adapters to load, which is not allowed")
    if given.get("megatron_config"):
        # PEFT would import the module named in `megatron_core`
        raise UsageError(f"{where}: megatron_config names code to import, which is not allowed")
    if "trust_remote_code" in (given.get("tokenizer_kwargs") or ()):
        raise UsageError(
            f"{where}: tokenizer_kwargs: trust_remote_code runs code that comes with a tokenizer; not allowed"
        )
    _check_counts(given, where)
    iterations = re.search(r"niter_(\d+)$", str(given.get("init_lora_weights")))
    if iterations and int(iterations[1][:9]) > MAX_ITERATIONS:
        raise UsageError(f"{where}: init_lora_weights: got {iterations[0][:40]}; at most {MAX_ITERATIONS:,} iterations")
    for field, pattern in patterns(given):
        if len(pattern) > MAX_PATTERN:
            raise UsageError(f"{where}: {field}: a pattern of {len(pattern):,} characters; at most {MAX_PATTERN:,}")


def _check_counts(given: Mapping[str, Any], where: str) -> None:
    """Refuse whole numbers larger than any real configuration has."""
    for count, (path, key, value) in enumerate(_numbers(given)):
        if count > MAX_VALUES:
            raise UsageError(f"{where}: more than {MAX_VALUES:,} numbers")
        limit = MAX_RANK if _RANKS.match(key) or path.startswith("rank_pattern") else MAX_NUMBER
        limit = MAX_ITERATIONS if "niter" in key else limit
        if value > limit and not _SEEDS.search(key):
            raise UsageError(f"{where}: {path}: got {_short(value)}; at most {limit:,}")
    ranges = given.get("layer_replication") or []
    pairs = [one for one in ranges if isinstance(one, list) and len(one) == 2 and all(type(n) is int for n in one)]
    if sum(max(end - start, 0) for start, end in pairs) > MAX_REPLICATED:
        raise UsageError(f"{where}: layer_replication: requests more than {MAX_REPLICATED:,} layers")


def _short(value: int) -> str:
    return f"{value:,}" if value < 10**15 else "a number of more than 15 digits"


def patterns(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The regular expressions in a PEFT configuration, with their fields."""
    for field, value in given.items():
        if field in _PATTERNS:
            found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            yield from ((field, one) for one in found if isinstance(one, str) and not _LITERAL.fullmatch(one))
        elif _PATTERNS_BY_KEY.search(field) and isinstance(value, Mapping):
            yield from ((field, key) for key in value if not _LITERAL.fullmatch(key))


def check_patterns(given: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Refuse a pattern that takes forever on the names of a model's modules.

    Python cannot interrupt a match, so a separate process first tries each pattern in all the ways that PEFT uses it.

    Args:
        given: the fields of a PEFT configuration.
        names: names of the model's modules.
        where: the adapter or the study's field, for messages.

    Raises:
        UsageError: names the field.
    """
    found = list(patterns(given))
    if not found:
        return
    asked = {"patterns": [pattern for _, pattern in found], "forms": _FORMS, "names": list(names)}
    command = [sys.executable, "-I", "-S", "-c", _MATCHING]
    try:
        done = subprocess.run(  # noqa: S603 - our own program; the patterns are its input
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=PATTERN_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        begun = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        field, pattern = found[max(len(begun.split()) - 1, 0)]
        raise UsageError(
            f"{where}: {field}: the pattern {pattern!r:.80} takes more than {PATTERN_SECONDS} s on the names of the "
            "model's modules"
        ) from None
    except OSError as error:
        raise ForgettingError(f"{where}: cannot test its patterns: {error.strerror}") from None
    if done.returncode:
        field, pattern = found[max(len(done.stdout.split()) - 1, 0)]
        raise UsageError(f"{where}: {field}: the pattern {pattern!r:.80} cannot be used")


def read_config(file: Path) -> dict[str, Any]:
    """A JSON object of settings that comes with a model.

    Raises:
        UsageError: not JSON, nested too deeply, too long, or not an object.
    """
    where = f"{file} cannot be read"
    content = files.parse_json(files.read_text(file, limit=MAX_CONFIG), where)
    if not isinstance(content, dict):
        raise UsageError(f"{where}: needs a JSON object, got {type(content).__name__}")
    return content


def _numbers(value: Any) -> Iterator[tuple[str, str, int]]:
    """The whole numbers in a configuration: path, last name in the path, number."""
    waiting = [("", "", value)]
    while waiting:
        path, key, one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += [(f"{path}.{name}".lstrip(".")[:200], str(name), item) for name, item in one.items()]
        elif isinstance(one, list):
            waiting += [(path, key, item) for item in one]
        elif type(one) is int:
            yield path, key, one


def _texts(value: Any) -> list[str]:
    return [one for one in (value.values() if isinstance(value, dict) else [value]) if isinstance(one, str)]
