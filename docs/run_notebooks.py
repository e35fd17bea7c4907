"""Runs the notebooks of docs/notebooks again, each in an empty folder, and stores their outputs: `make notebooks`."""

from __future__ import annotations

import datetime
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"
LARGEST = 300_000
"""bytes of a notebook with its outputs."""


def run(path: Path) -> None:
    """Run one notebook, note its run time in its first cell, and write it where it was."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        started, used = time.monotonic(), _processor_seconds()
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
        minutes, processor = (time.monotonic() - started) / 60, (_processor_seconds() - used) / 60
    took = f"Run time: {processor:.1f} processor minutes; {minutes:.1f} minutes on {os.cpu_count()} CPU cores"
    took += f" that other work shared ({datetime.date.today():%-d %B %Y})."
    first = notebook.cells[0]
    first.source = re.sub(r"^Run time: .*$", took, first.source, flags=re.MULTILINE)
    for cell in notebook.cells:
        _clean(cell)
    text = nbformat.writes(notebook) + "\n"
    if len(text) > LARGEST:
        raise SystemExit(f"{path.name}: {len(text)} bytes with its outputs, more than {LARGEST}")
    path.write_text(text, encoding="utf-8")
    print(f"{path.name}: {took} {len(text)} bytes")


def _clean(cell: nbformat.NotebookNode) -> None:
    """Leave out what is of this machine: times, notices, and the long text of a result that is shown as a table."""
    cell.metadata.pop("execution", None)
    if cell.cell_type == "code":
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if {"text/html", "image/png"} & set(output.get("data", {})):
                output.data.pop("text/plain", None)


def _processor_seconds() -> float:
    """What ended child processes, and theirs, have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for each in sys.argv[1:] or sorted(map(str, NOTEBOOKS.glob("*.ipynb"))):
        run(Path(each))
