"""Keep a run's results beside the recipe that made them.

    python benchmarks/keep_result.py RUN RECIPE COMMIT [-o override …]

Writes RECIPE's `NAME.result.json`: `results.json` with the commit that the run started from and the command.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nlp_distill.recipe_file import shipped_recipes


def main(run: str, recipe: str, commit: str, *overrides: str) -> None:
    """Write the file."""
    results = json.loads((Path(run) / "results.json").read_text(encoding="utf-8"))
    target = shipped_recipes()[recipe].with_suffix(".result.json")
    command = " ".join(["nlp-distill run", recipe, *overrides])
    target.write_text(
        json.dumps({"commit": commit, "command": command, **results}, indent=2, ensure_ascii=False) + "\n"
    )
    print(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
