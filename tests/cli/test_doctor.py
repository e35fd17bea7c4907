"""`forgetting doctor`: checks are tried, broken ones are named with advice, and no token is shown."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest

from forgetting.cli import environment, main
from forgetting.cli.environment import Check, doctor


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["forgetting", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    output = capsys.readouterr()
    return int(stopped.value.code or 0), output.out + output.err


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_sound_machine_has_nothing_broken_and_is_left_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    code, output = run(monkeypatch, capsys, tmp_path, "--json")
    assert code == 0
    report = json.loads(output)
    assert report["ok"] is True
    found = {check["name"]: check for check in report["checks"]}
    assert found["torch"]["found"] == torch.__version__
    assert f"pandas {metadata.version('pandas')}" in found["packages"]["found"]
    assert found["disk locks"]["state"] == found["disk rename"]["state"] == "works"
    assert all(check["advice"] or check["state"] == "works" for check in report["checks"])
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_reported_as_set_or_not_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_PlantedSecret")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://user:PlantedSecret@127.0.0.1:1")
    for arguments in ((tmp_path,), (tmp_path, "--json")):
        code, output = run(monkeypatch, capsys, *arguments)
        assert code == 0
        assert "PlantedSecret" not in output
        assert "http://127.0.0.1:1 cannot be reached" in output
    checks = doctor(tmp_path)
    assert named(checks, "token HF_TOKEN").found == "set"
    assert named(checks, "token WANDB_API_KEY").state == "note"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert named(doctor(tmp_path), "token HF_TOKEN").found == "not set"
    (tmp_path / "token").write_text("hf_PlantedSecret")
    assert named(doctor(tmp_path), "token HF_TOKEN").found == "set"


def test_the_hub_is_reached_without_sending_it_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            messages.append(str(self.headers))
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_PlantedSecret")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert named(doctor(tmp_path), "hub").state == "works"
    server.shutdown()
    assert messages
    assert "PlantedSecret" not in "".join(messages)


def test_a_folder_where_locks_do_nothing_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("filelock.lock_descriptor", lambda *_, **__: True)
    code, output = run(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert "BROKEN disk locks" in output
    assert output.rstrip().endswith("broken: disk locks")


def test_a_folder_that_cannot_be_written_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment.tempfile, "TemporaryDirectory", refuse)
    found = named(doctor(tmp_path), "disk")
    assert found.state == "broken"
    assert "Permission denied" in found.found
    assert "a writable folder" in found.advice
    file = tmp_path / "file"
    file.touch()
    assert named(doctor(file), "disk").state == "broken"
    monkeypatch.undo()
    assert named(doctor(tmp_path / "not" / "yet"), "disk rename").state == "works"
    assert not (tmp_path / "not").exists()


def test_little_disk_space_and_a_slow_disk_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, int(1e9)))
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(environment.SLOW_FSYNC))
    checks = doctor(tmp_path)
    assert named(checks, "disk space").state == named(checks, "disk fsync").state == "note"
    assert "1.0 GB free" in named(checks, "disk space").found


def test_a_package_that_is_missing_or_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=99", "surely-not-there>=1", "nor-this>=2; extra == 'gpu'", "pandas>=1; extra == 'table'"]
    monkeypatch.setattr(metadata, "requires", lambda _: lines)
    monkeypatch.setattr(
        metadata, "metadata", lambda _: type("M", (), {"get_all": lambda *_: ["gpu", "table"]})(), raising=True
    )
    checks = doctor(tmp_path)
    assert named(checks, "packages").state == "broken"
    assert "surely-not-there is not installed" in named(checks, "packages").found
    assert f"numpy {metadata.version('numpy')} is not >=99" in named(checks, "packages").found
    assert named(checks, "extra [gpu]").advice == "if you need it: pip install 'forgetting[gpu]'"
    assert named(checks, "extra [table]").state == "works"


def test_a_torch_that_cannot_be_imported_is_broken_and_the_rest_is_still_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    checks = doctor(tmp_path)
    assert named(checks, "torch").state == "broken"
    assert named(checks, "disk locks").state == "works"


def test_ray_is_looked_for_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [check for check in doctor(tmp_path) if check.name == "ray"]
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(environment, "RAY_TIMEOUT", 5.0)
    found = named(doctor(tmp_path, ray_address="127.0.0.1:1"), "ray")
    assert found.state == "broken"
    assert found.advice


def test_a_cluster_of_one_node_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess([], 0, "1 {'CPU': 2.0}\n", "")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda _: True)
    assert [check.found for check in environment._ray("auto")] == ["auto: 1 node, {'CPU': 2.0}"]
