"""The array cache: atomic, verified, memory-mapped, computed by one of several processes, in constant memory."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file
from test_measure_kernels import make_model, make_windows

from forgetting.data import array_cache
from forgetting.measuring.base_targets import base_side

ARRAYS = {
    "rows": np.arange(12, dtype=np.float32).reshape(4, 3),
    "ids": np.array([3, 1, 2], np.int32),
    "lengths": np.array([2**40, 5], np.int64),
    "none": np.zeros((0, 3), np.float32),
}
SPEC = {name: (array.dtype, array.shape) for name, array in ARRAYS.items()}


def equal(found, expected=ARRAYS):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()


def test_what_is_written_comes_back_and_any_reader_of_the_format_reads_it(tmp_path):
    path = tmp_path / "a.safetensors"
    array_cache.write(path, ARRAYS, "f", seconds=1.5)
    stored = array_cache.read(path, "f", SPEC)
    equal(stored.arrays())
    assert isinstance(stored.array("rows"), np.memmap)
    assert stored.seconds == 1.5
    equal(load_file(path))
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]


def test_filled_in_place_is_the_same_file(tmp_path):
    array_cache.write(tmp_path / "a", ARRAYS, "f")
    with array_cache.filling(tmp_path / "b", SPEC, "f") as new:
        for i in range(4):
            new.array("rows", "r+")[[i]] = ARRAYS["rows"][[i]]
        for name in ("ids", "lengths"):
            new.array(name, "r+")[:] = ARRAYS[name]
    equal(load_file(tmp_path / "b"))
    heads = []
    for name in "ab":
        with safetensors.safe_open(tmp_path / name, "numpy") as file:
            heads.append(file.metadata())
    assert heads[0] == heads[1]


def test_a_failure_while_filling_leaves_nothing(tmp_path):
    def fail():
        with array_cache.filling(tmp_path / "a", SPEC, "f") as new:
            new.array("ids", "r+")[:] = 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_files_of_the_first_version_are_still_read(tmp_path):
    """Their header was written by our own code: metadata first, arrays in the order given."""
    data = {"argmax": np.array([7, 8], np.int32), "log_prob": np.array([-1.5, -2.5], np.float32)}
    body = b"".join(array.tobytes() for array in data.values())
    header = {
        "__metadata__": {"fingerprint": "f", "sha256": hashlib.sha256(body).hexdigest()},
        "argmax": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
        "log_prob": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + body)
    stored = array_cache.read(tmp_path / "a", "f", {name: (a.dtype, a.shape) for name, a in data.items()})
    equal(stored.arrays(), data)
    assert stored.seconds == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        lambda data: data + b"\0",
        lambda data: b"\xff" * 50,
        lambda data: b"",
        lambda data: data.replace(b'"fingerprint":"f"', b'"fingerprint":"g"'),
        lambda data: data.replace(b'"sha256"', b'"sha512"'),
    ],
    ids=["cut", "flipped", "longer", "garbage", "empty", "stale", "no checksum"],
)
def test_a_cached_file_of_something_else_is_recomputed_with_a_notice(tmp_path, caplog, damage):
    path = tmp_path / "a.safetensors"
    calls = []

    def compute():
        calls.append(1)
        return ARRAYS

    array_cache.kept(path, "f", compute)
    equal(array_cache.kept(path, "f", compute).arrays())
    assert len(calls) == 1
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        equal(array_cache.kept(path, "f", compute).arrays())
    assert len(calls) == 2
    assert "a.safetensors: " in caplog.text
    assert "recomputing it" in caplog.text


def test_arrays_of_another_kind_are_stale(tmp_path):
    array_cache.write(tmp_path / "a", {"x": np.zeros(3, np.float32)}, "f")
    for kind, shape in ((np.int32, (3,)), (np.float32, (4,)), (np.float32, (3, 1))):
        assert array_cache.read(tmp_path / "a", "f", {"x": (kind, shape)}) is None
    assert array_cache.read(tmp_path / "a", "f", {"y": (np.float32, (3,))}) is None
    assert array_cache.read(tmp_path / "a", "f") is not None
    assert array_cache.read(tmp_path / "b", "f") is None


def test_one_of_several_concurrent_processes_computes(tmp_path):
    calls, found = [], []
    start = threading.Barrier(4)

    def compute():
        calls.append(1)
        return ARRAYS

    def want():
        start.wait()
        found.append(array_cache.kept(tmp_path / "a.safetensors", "f", compute))

    threads = [threading.Thread(target=want) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(found) == 4
    for one in found:
        equal(one.arrays())


def test_without_locks_each_process_computes(tmp_path, monkeypatch):
    def refuse(*_args, **_options):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    equal(array_cache.kept(tmp_path / "a.safetensors", "f", lambda: ARRAYS).arrays())


def test_a_full_disk_only_prevents_caching_and_changes_no_number(tmp_path, monkeypatch, caplog):
    windows = make_windows([9, 17, 2, 30], documents=[0, 0, 1, 1])
    model = make_model("llama").eval()
    options = {"key": "k", "batch_tokens": 64, "rows": None, "with_rows": True}
    targets, rows = base_side(model, windows, cache_dir=None, **options)

    def full(*_args, **_options):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with caplog.at_level(logging.WARNING, logger="forgetting"):
        again, other = base_side(model, windows, cache_dir=tmp_path, **options)
    assert "the disk is full; measuring without a cache" in caplog.text
    assert list(tmp_path.glob("*.safetensors*")) == []
    for name in ("argmax", "log_prob", "entropy", "data_log_prob"):
        assert getattr(again, name).tobytes() == getattr(targets, name).tobytes()
    places = np.arange(windows.n_predicted)
    for one, two in zip(rows.at(places), other.at(places), strict=True):
        assert one.tobytes() == two.tobytes()


PEAK = """
import sys
from pathlib import Path
import numpy as np
from forgetting.data import array_cache

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024

def run(path, tokens):
    spec = {"mean_row": (np.float32, (tokens, 1024)), "mean_bias": (np.float32, (tokens,))}
    with array_cache.filling(path, spec, "f") as new:
        for start in range(0, tokens, 512):
            places = np.arange(start, min(start + 512, tokens))
            new.array("mean_row", "r+")[places] = places[:, None]
            new.array("mean_bias", "r+")[places] = places
    stored = array_cache.read(path, "f", spec)
    for start in range(0, tokens, 512):
        places = np.arange(start, min(start + 512, tokens))
        assert (stored.array("mean_row")[places] == places[:, None]).all()

folder = Path(sys.argv[1])
run(folder / "small", 512)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
run(folder / "large", 40_000)
print((folder / "large").stat().st_size / 2**20, status("VmHWM") - before)
"""


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel's account of memory")
@pytest.mark.skipif(not hasattr(safetensors, "TensorSpec"), reason="older safetensors copy what they write")
def test_memory_stays_flat(tmp_path):
    done = subprocess.run([sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    size, peak = map(float, done.stdout.split())
    assert size > 150
    assert peak < 40
