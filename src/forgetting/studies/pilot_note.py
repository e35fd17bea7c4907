"""What a pilot notes in its study folder, in pilot.json: its time, why each run was chosen, and why it ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import files
from ..errors import UsageError

NOTE = "pilot.json"


def read(out: Path) -> dict[str, Any]:
    """The seconds used and the runs chosen so far; without a file, 0 seconds and no run.

    Raises:
        UsageError: the file is damaged.
    """
    found = _stored(out)
    return {"seconds": found["seconds"], "chosen": found["chosen"]}


def ended(out: Path) -> tuple[int, str]:
    """How many runs a pilot in this folder has chosen, and why it ended; 0 if there is none, "" if it has not ended."""
    try:
        found = _stored(out)
    except UsageError:  # a report needs no note
        return 0, ""
    return len(found["chosen"]), found["ended"]


def _stored(out: Path) -> dict[str, Any]:
    file = files.refuse_link(out / NOTE, out) if out.exists() else out / NOTE
    if not file.exists():
        return {"seconds": 0.0, "chosen": [], "ended": ""}
    try:
        note = json.loads(files.read_text(files.check_plain(file), limit=files.MAX_CONFIG))
        chosen = [{"rank": int(c["rank"]), "seed": int(c["seed"]), "why": str(c["why"])} for c in note["chosen"]]
        return {"seconds": max(0.0, float(note["seconds"])), "chosen": chosen, "ended": str(note.get("ended", ""))}
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{file}: damaged; delete it to continue; the time then starts again") from None
