"""Keep the results of a recipe's runs beside it.

    python benchmarks/keep_result.py RECIPE COMMIT RUN [RUN …] [-o override …]

Writes RECIPE's `NAME.result.json`: `results.json` of the first run, with the commit that the runs were made on, the
command, and of every run (one a seed) the scores and the gain over its control.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nlp_distill.recipe_file import shipped_recipes


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """Seed, primary score of each variant that is delivered, and what distillation was worth."""
    passed = [variant for variant in results["variants"] if variant["status"] in ("passed", "repaired")]
    student = next(variant for variant in passed if variant["name"] == "student")
    gain = {name: student[name] for name in ("gain_over_control", "gain_over_control_ci95") if name in student}
    return {
        "seed": results["seed"],
        "scores": {variant["name"]: variant["score"][results["metric"]] for variant in passed},
        **gain,
    }


def elsewhere(value: Any) -> Any:
    """Plain data in which a folder of this machine is only its name."""
    if isinstance(value, dict):
        return {key: elsewhere(child) for key, child in value.items()}
    if isinstance(value, list):
        return [elsewhere(child) for child in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main(recipe: str, commit: str, *rest: str) -> None:
    """Write the file."""
    cut = rest.index("-o") if "-o" in rest else len(rest)
    runs = [json.loads((Path(run) / "results.json").read_text(encoding="utf-8")) for run in rest[:cut]]
    seeds = [summary(run) for run in runs]
    kept = {
        "commit": commit,
        "command": " ".join(["nlp-distill run", recipe, *rest[cut:]]),
        "seeds": seeds,
        **elsewhere(runs[0]),
    }
    target = shipped_recipes()[recipe].with_suffix(".result.json")
    target.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    gains = [seed["gain_over_control"] for seed in seeds if "gain_over_control" in seed]
    print(target.name, *(f"{gain:+.2f}" for gain in gains))


if __name__ == "__main__":
    main(*sys.argv[1:])
