"""How a command ended, for the program that started it: a file that `NLP_DISTILL_OUTCOME` names."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from nlp_distill.errors import NlpDistillError

OUTCOME_VARIABLE = "NLP_DISTILL_OUTCOME"


def leave_outcome(error: NlpDistillError) -> None:
    """Write the error's classes and message. Of several processes the first to fail says why."""
    path = os.environ.get(OUTCOME_VARIABLE)
    if path:
        families = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, NlpDistillError)]
        said = json.dumps({"families": families, "message": str(error), "exit_code": error.exit_code})
        # A full disk may be what ended the command; the exit code still says that it failed.
        with contextlib.suppress(OSError), open(path, "x", encoding="utf-8") as stream:
            stream.write(said)


def read_outcome(path: Path) -> dict[str, Any] | None:
    """What a command left; None where it left nothing, or was cut off."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
