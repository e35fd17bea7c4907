"""Undocumented parts of lm-eval that we use, which an upgrade may break.

Its documentation covers `TaskManager`, `evaluate`, the model classes and the fields of a task's YAML. Item-by-item
evaluation needs more of a task and its requests. These names are listed here and checked before any model is asked.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..models.private_names import PrivateName, check

SEEN = "0.4.12 to 0.4.13"
TASK = "lm_eval.api.task:ConfigurableTask"
INSTANCE = "lm_eval.api.instance:Instance"
CONFIG = "lm_eval.config.task:TaskConfig"


def _name(path: str, purpose: str) -> PrivateName:
    return PrivateName("lm-eval", path, purpose, SEEN)


RENDER = "items cannot be rendered once for both models"
ANSWERS = "stored answers cannot be distinguished from missing ones"
SCORES = "an item has no score"
FILES = "tasks cannot be found by name or file"
AGGREGATION = _name("lm_eval.api.registry:get_aggregation", SCORES)
NAMES = (
    _name("lm_eval.tasks:TaskManager.load", FILES),  # {"tasks", "groups", "group_map"}, as evaluate takes it
    _name("lm_eval.tasks:TaskManager.task_index", FILES),  # name -> entry; entry.cfg is its YAML
    _name("lm_eval.tasks:TaskManager.all_tasks", FILES),
    _name(f"{TASK}.build_all_requests", RENDER),  # fills `instances`; evaluate calls it for each model
    _name(f"{TASK}.instances", RENDER),
    _name(f"{TASK}.doc_iterator", RENDER),
    _name(f"{TASK}.doc_to_text", RENDER),
    _name(f"{TASK}.doc_to_target", RENDER),
    _name(f"{TASK}.doc_to_choice", RENDER),
    _name(f"{TASK}.get_config", RENDER),
    _name(f"{TASK}.set_config", RENDER),
    _name(f"{TASK}.set_fewshot_seed", RENDER),  # as simple_evaluate does
    _name(f"{TASK}.OUTPUT_TYPE", RENDER),
    _name(f"{TASK}.apply_filters", SCORES),
    _name(f"{TASK}.process_results", SCORES),
    _name(f"{TASK}.aggregation", SCORES),
    _name(f"{TASK}.higher_is_better", SCORES),
    AGGREGATION,
)
INSTANCE_FIELDS = {
    name: _name(f"{INSTANCE}.{name}", purpose)
    for purpose, names in (
        (ANSWERS, ("resps", "filtered_resps", "repeats", "idx", "doc_id", "task_name")),
        (RENDER, ("request_type", "arguments", "doc")),
    )
    for name in names
}
"""Fields of a request; they are dataclass fields, which the class does not have as attributes."""
CONFIG_FIELDS = {
    name: _name(f"{CONFIG}.{name}", purpose)
    for name, purpose in (
        ("unsafe_code", "a task that runs code written by models cannot be recognised"),
        ("doc_to_image", "a task about pictures cannot be recognised"),
        ("doc_to_audio", "a task about sound cannot be recognised"),
        ("process_results", SCORES),
        ("num_fewshot", RENDER),
    )
}
"""Fields of a task's configuration, which are also the fields that a task file may have."""
ENTRY_CONFIG, ENTRY_FILE = _name("object:cfg", FILES), _name("object:yaml_path", FILES)
"""Attributes of an entry of `task_index`: its YAML as read, and its file."""


def check_all() -> None:
    """Check that all names exist, before any model is asked.

    Raises:
        ForgettingError: names the first that is missing.
    """
    check(NAMES)
    for path, known in ((INSTANCE, INSTANCE_FIELDS), (CONFIG, CONFIG_FIELDS)):
        there = _fields(path)
        for name, private in known.items():
            if name not in there:
                raise private.gone()


def entry_config(entry: Any) -> Any:
    """The YAML of a task or group in the index, as read; None for one defined in Python."""
    return ENTRY_CONFIG.of(entry)


def entry_file(entry: Any) -> Any:
    """The file of a task or group in the index; None for one defined in Python."""
    return ENTRY_FILE.of(entry)


def config_fields() -> list[str]:
    """The fields that a task file may have."""
    return _fields(CONFIG)


def _fields(path: str) -> list[str]:
    kind: Any = _name(path, RENDER).value()
    return [field.name for field in fields(kind)]


def asks_beyond_text(task: Any) -> bool:
    """Whether a task asks about pictures or sound; tasks in Python have an attribute for it."""
    fields_of = (task.get_config("doc_to_image"), task.get_config("doc_to_audio"))
    return any(value is not None for value in fields_of) or bool(getattr(task, "MULTIMODAL", False))


def runs_code(task: Any) -> bool:
    """Whether a task runs code written by models; tasks in Python have an attribute for it."""
    return bool(task.get_config("unsafe_code")) or bool(getattr(task, "UNSAFE_CODE", False))


def made_in_python(task: Any) -> bool:
    """Whether a task computes its metrics in Python, so that its file need not name them."""
    return callable(task.get_config("process_results")) or not hasattr(task, "features")


def gold_in_text(task: Any) -> bool:
    """Whether a task's options are contexts of one target, and its text is the index of the right one (Winogrande)."""
    return bool(getattr(task, "multiple_input", 0))


def aggregation(name: str) -> Any:
    """lm-eval's aggregation of this name, a function of all items; None if there is none."""
    return AGGREGATION.value()(name)
