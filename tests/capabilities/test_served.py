"""Models behind a server give the same numbers as in memory; keys are never stored."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import forgetting
from forgetting.cli import app
from forgetting.errors import ForgettingError, UsageError

pytest.importorskip("tenacity")
pytestmark = pytest.mark.full
KEY = "sk-a-key-of-the-test-0123456789"


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server of models in this process: completions with echo and log-probabilities, and chats.

    Attributes:
        headers: of the last request.
        prompts: all that were sent.
        silent: give no log-probabilities, as a server that has none.
    """

    def __init__(self, models: dict[str, Any], tokenizer: Any) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models, self.tokenizer, self.silent = models, tokenizer, False
        self.headers: dict[str, str] = {}
        self.prompts: list[Any] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def scored(self, model: Any, ids: list[int]) -> dict[str, Any]:
        """Log-probabilities of a prompt and of one more token."""
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
        ids = [*ids, int(scores[-1].argmax())]
        own = [None, *(float(scores[i, token]) for i, token in enumerate(ids[1:]))]
        top = [None, *({"top": float(row.max())} for row in scores)]
        return {"token_logprobs": own, "top_logprobs": top}

    def continued(self, model: Any, ids: list[int], body: dict[str, Any]) -> str:
        """Greedy, until a stop."""
        made = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False,
            max_new_tokens=body["max_tokens"], pad_token_id=0,
        )  # fmt: skip
        text: str = self.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
        for stop in body.get("stop") or []:
            text = text.split(stop)[0] if stop else text
        return text


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.headers = dict(self.headers)
        if KEY not in self.headers.get("Authorization", ""):
            self.answer({"error": f"wrong key {self.headers.get('Authorization')}"}, 401)
            return
        model = server.models[body["model"]]
        if self.path.endswith("/chat/completions"):
            server.prompts.append(body["messages"])
            ids = server.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
            self.answer({"choices": [{"index": 0, "message": {"content": server.continued(model, ids, body)}}]})
            return
        given = body["prompt"]
        several = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
        server.prompts += several
        choices = []
        for i, prompt in enumerate(several):
            ids = server.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            text = "" if body.get("echo") else server.continued(model, ids, body)
            scores = server.scored(model, ids) if body.get("echo") and not server.silent else None
            choices.append({"index": i, "text": text, "logprobs": scores})
        self.answer({"choices": choices})

    def answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def running(tiny_model: Path, tuned: Path) -> Iterator[Server]:
    models = {"small": tiny_model, "small-tuned": tuned}
    loaded = {name: AutoModelForCausalLM.from_pretrained(folder).eval() for name, folder in models.items()}
    made = Server(loaded, AutoTokenizer.from_pretrained(tiny_model))
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("FORGETTING_SERVER_HEADERS", '{"X-Team": "four"}')
    running.prompts.clear()
    running.silent = False
    return running


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Items whose replies are generated, and a task with options that are scored."""
    folder = tmp_path_factory.mktemp("suites")
    words = ["river", "town", "guild", "baker", "smith", "boat"]
    free = [{"id": f"i{i}", "prompt": f"the old {word} went", "answer": word} for i, word in enumerate(words)]
    (folder / "free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in free))
    rows = [{"q": f"a new {word} saw the", "right": i % 3} for i, word in enumerate(words)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "options",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{right}}",
        "doc_to_choice": ["bread", "iron bridge", "north town"],
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
    }
    (folder / "options.yaml").write_text(yaml.safe_dump(config))
    return {"free": str(folder / "free.jsonl"), "options": str(folder / "options.yaml")}


def asked(server: Server, out: Path | None, suites: list[str], **how: Any) -> Any:
    names = {"base_model": "small", "tuned_model": "small-tuned"}
    own = ("backend", "tokenizer", "base_model", "tuned_model", "text_prompts")
    at = {"backend": "openai", **names, **{name: how.pop(name) for name in own if name in how}}
    return forgetting.evaluate(server.url, server.url, suites=suites, out=out, server=forgetting.Server(**at), **how)


@pytest.mark.parametrize("text_prompts", [False, True])
def test_numbers_are_those_of_models_in_memory(
    server: Server, tiny_model: Path, tuned: Path, suites: dict[str, str], tmp_path: Path, text_prompts: bool
) -> None:
    chosen = list(suites.values())
    how = {"max_new_tokens": 8, "chat": False}
    local = forgetting.evaluate(str(tiny_model), str(tuned), suites=chosen, **how)
    found = asked(server, tmp_path, chosen, tokenizer=tiny_model, text_prompts=text_prompts, **how)
    assert found.to_dict()["suites"] == local.to_dict()["suites"]
    for suite in local.rows:
        for served, in_memory in zip(found.rows[suite], local.rows[suite], strict=True):
            for one, other in zip(served, in_memory, strict=True):
                assert {k: one[k] for k in ("prompt_hash", "answer", "reply", "score")} == {
                    k: other[k] for k in ("prompt_hash", "answer", "reply", "score")
                }
                if suite == "options":
                    got, expected = (np.array(row["responses"], float) for row in (one, other))
                    np.testing.assert_allclose(got, expected, atol=1e-4)
    kinds = {type(prompt) for prompt in server.prompts}
    assert kinds == ({str, list} if text_prompts else {list})
    assert server.headers["X-Team"] == "four"
    stored = "".join(file.read_text() for file in tmp_path.rglob("*") if file.suffix in (".json", ".jsonl"))
    assert KEY not in stored
    assert "four" not in stored.replace("four_", "")
    count = len(server.prompts)
    again = asked(server, tmp_path, chosen, tokenizer=tiny_model, text_prompts=text_prompts, **how)
    assert len(server.prompts) == count
    assert again.rows == found.rows
    assert "no server was asked" in again.notices[-1]


def test_chats_are_rendered_by_the_server(
    server: Server, tiny_model: Path, tuned: Path, suites: dict[str, str], tmp_path: Path
) -> None:
    local = forgetting.evaluate(str(tiny_model), str(tuned), suites=suites["free"], max_new_tokens=8, chat=True)
    found = asked(server, tmp_path, [suites["free"]], backend="openai-chat", max_new_tokens=8)
    assert [[one["reply"] for one in pair] for pair in found.rows["free"]] == [
        [one["reply"] for one in pair] for pair in local.rows["free"]
    ]
    assert server.prompts[0][0]["role"] == "user"
    with pytest.raises(UsageError, match="suite options: options needs log-probabilities of given answers"):
        asked(server, None, [suites["options"]], backend="openai-chat")


def test_what_is_refused(
    server: Server, tiny_model: Path, suites: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, chat = [suites["options"]], forgetting.Server("openai-chat")
    for how, message in (
        ({}, r"needs tokenizer \(--tokenizer\)"),
        ({"tokenizer": tiny_model, "tuned_model": "small"}, "are the same model"),
        ({"tokenizer": tiny_model, "tuned_model": None}, "lists small, small-tuned; choose the models"),
        ({"tokenizer": tiny_model, "bits": 4}, "bits: not for served models"),
        ({"tokenizer": tiny_model, "relearn": True}, "not for served models"),
        ({"tokenizer": tiny_model, "backend": "vllm"}, "backend 'vllm'; allowed: openai, openai-chat"),
    ):
        with pytest.raises(UsageError, match=message):
            asked(server, None, options, **how)
    server.silent = True
    with pytest.raises(UsageError, match="do not contain log-probabilities of the prompt"):
        asked(server, None, options, tokenizer=tiny_model)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key-0123456789")
    monkeypatch.setattr("forgetting.capabilities.served.TRIES", 1)
    with pytest.raises(UsageError, match="access refused \\(401\\); set OPENAI_API_KEY") as error:
        asked(server, None, options, tokenizer=tiny_model)
    assert "another-key" not in str(error.value)
    monkeypatch.setenv("FORGETTING_SERVER_HEADERS", "X-Team: four")
    with pytest.raises(UsageError, match="not a JSON object of texts"):
        asked(server, None, options, tokenizer=tiny_model)
    monkeypatch.delenv("FORGETTING_SERVER_HEADERS")
    with pytest.raises(ForgettingError, match="cannot be reached"):
        forgetting.evaluate("http://127.0.0.1:9/v1", server.url, server=chat)
    with pytest.raises(UsageError, match="give the address without a user") as error:
        forgetting.evaluate("http://me:secret@localhost/v1", server.url, server=chat)
    assert "secret" not in str(error.value)


def test_the_command(
    server: Server, tiny_model: Path, suites: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["forgetting", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    names = (
        "--base-model",
        "small",
        "--tuned-model",
        "small-tuned",
        "--tokenizer",
        tiny_model,
        "--suite",
        suites["options"],
    )
    code, out, err = run(server.url, server.url, "--backend", "openai", *names, "--json")
    assert code == 0, err
    row = json.loads(out)
    assert (row["base"], row["tuned"]) == (f"small at {server.url}", f"small-tuned at {server.url}")
    assert row["suites"]["options"]["n"] == 6
    assert (tmp_path / row["folder"]).name == "small--small-tuned"
    code, _, err = run(server.url, server.url, *names)
    assert (code, err.splitlines()[-1]) == (2, "error: --base-model: only with --backend")


@pytest.mark.parametrize("prompt", ["What is 2 + 2?", "[1, 2, 3]", "[]", '[{"a": 1}]'])
def test_a_prompt_without_a_template_is_one_message_even_if_it_is_a_list_in_json(prompt: str) -> None:
    from forgetting.capabilities.served_lm import as_messages

    asked = json.loads(as_messages(SimpleNamespace(args=(prompt, {}))).arguments[0].prompt)
    assert asked == [{"role": "user", "content": prompt}]
