"""A run of ours up to the end of its distillation, stopped after some steps where asked; says losses and hash."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import nlp_distill
from nlp_distill.errors import Interrupted
from nlp_distill.recipe import Recipe


def main(settings: dict[str, Any]) -> None:
    """`recipe`, `out`; `stop_at`: the step after which it is asked to stop, 0 for never."""
    steps, history = 0, []

    def notify(kind: str, **fields: Any) -> None:
        nonlocal steps
        if fields.get("stage") == "distill":
            steps = fields["step"] if kind == "progress" else steps
            if kind == "metric":
                history.append({name: value for name, value in fields.items() if isinstance(value, float)})

    def stop() -> bool:
        return bool(settings["stop_at"]) and steps >= settings["stop_at"]

    from nlp_distill import loop

    loop.PROGRESS_SECONDS = 0.0
    said: dict[str, Any] = {"interrupted": False}
    out = Path(settings["out"])
    try:
        nlp_distill.run(Recipe.model_validate(settings["recipe"]), out=out, until="distill", notify=notify, stop=stop)
        weights = (out / "model" / "model.safetensors").read_bytes()
        said["sha256"] = hashlib.sha256(weights).hexdigest()
    except Interrupted:
        said["interrupted"] = True
    if int(os.environ.get("RANK", "0")) == 0:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        said |= {"history": history, "steps": steps, "precision": manifest["precision"], "machine": manifest["machine"]}
        Path(settings["answer"]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
