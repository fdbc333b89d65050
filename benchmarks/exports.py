"""Latency, size and proof of every form that a run of a classifier delivered, against its teacher in PyTorch and
`optimum-cli`'s int8.

    python benchmarks/exports.py RUN [--rounds N] [--threads N] [--lengths real 32 128]

The variants are those that the run's results.json says passed; batch 1. `optimum-cli` exports and quantises the run's
own student with its defaults. `real`: lengths of the SST-2 sample. Beside the times: bytes of all files needed to run
and of the graph alone, what a form loses against fp32 on the reported rows, and how far logits move with batch mates.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from goals import export_table, lines
from harness import CLOCKS, ROOT, Arm, clock_of, keep, machine, measured, speed_ratio, speeds
from prepared import held_out, texts

from nlp_distill.exports.formats import form_of
from nlp_distill.loading import load_config, load_tokenizer
from nlp_distill.measuring import files_to_run
from nlp_distill.prediction import load_pipeline
from nlp_distill.task import load_task

REAL_ROWS, CALLS = 40, 20
MATES_ROWS, MATES_BATCH = 64, 8
TARGETS = {"x86_64": "--avx512_vnni", "aarch64": "--arm64", "arm64": "--arm64"}


def optimum_int8(model: Path, pipeline_task: str, folder: Path) -> Path:
    """What `optimum-cli` makes of a model folder."""
    cli = [str(Path(sys.executable).with_name("optimum-cli"))]
    export = ["export", "onnx", "-m", str(model), "--task", pipeline_task, str(folder / "onnx")]
    target = TARGETS[os.uname().machine]
    quantize = ["onnxruntime", "quantize", "--onnx_model", str(folder / "onnx"), target, "-o", str(folder / "int8")]
    for command in (export, quantize):
        subprocess.run([*cli, *command], check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return folder / "int8"


def arms(run: Path, names: list[str], auto_class: str, int8: Path, lengths: list[int]) -> list[Arm]:
    """All variants that passed, the teacher's again as control, and Optimum's."""
    here = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tasks")])}

    def arm(name: str, kind: str, folder: Path) -> Arm:
        vocabulary = load_config(folder).vocab_size
        told = {"name": name, "kind": kind, "folder": str(folder), "auto_class": auto_class, "lengths": lengths}
        return Arm(name, "variant.py", {**told, "vocabulary": vocabulary}, environment=here)

    folders = {"teacher": run / "teacher", "control": run / "control"}
    chosen = [arm(name, "variant", folders.get(name, run / "model")) for name in names]
    again = Arm("teacher again", "variant.py", chosen[names.index("teacher")].settings, environment=here)
    return [*chosen, again, arm("optimum-cli int8", "optimum", int8)]


def sizes(run: Path, names: list[str], int8: Path) -> dict[str, int]:
    """Bytes of all files needed to run."""
    shared = [file for file in files_to_run(run / "model", None) if file.suffix != ".safetensors"]
    theirs = [*int8.glob("*.onnx"), *shared]
    found = {name: files_to_run(run / ("teacher" if name == "teacher" else "model"), name) for name in names}
    return {
        name: sum(file.stat().st_size for file in files)
        for name, files in {**found, "optimum-cli int8": theirs}.items()
    }


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", nargs="+", default=["real", "32", "128"])
    asked = parser.parse_args()
    results = json.loads((asked.run / "results.json").read_text(encoding="utf-8"))
    variants = [v for v in results["variants"] if v["status"] in ("passed", "repaired") and v["name"] != "control"]
    names = [variant["name"] for variant in variants]
    task, about, found = load_task(results["task"]), machine(), {}
    tokenizer = load_tokenizer(asked.run / "teacher", 128)
    real = [len(ids) for ids in tokenizer([row["text"] for row in texts(REAL_ROWS)])["input_ids"]]
    with tempfile.TemporaryDirectory() as temporary:
        int8 = optimum_int8(asked.run / "model", task.pipeline_task, Path(temporary))
        for length in asked.lengths:
            lengths = real if length == "real" else [int(length)] * CALLS
            print(f"length {length}", flush=True)
            chosen = arms(asked.run, names, task.auto_class, int8, lengths)
            blocks = measured(chosen, asked.rounds, asked.threads, lambda line: print(line, flush=True))
            controls = {clock: speed_ratio(blocks, "teacher", "teacher again", clock) for clock in CLOCKS}
            found[length] = {"clock": clock_of(controls), "control": controls, **against(blocks, names)}
        size = sizes(asked.run, names, int8)
    for length in asked.lengths:
        show(length, found[length], size)
    result = {"threads": asked.threads, "rounds": asked.rounds, "lengths": found, "bytes": size}
    result |= {"file_mb": files(asked.run, variants), "lost": lost(variants), "moved": moved(asked.run, names)}
    result["goals"] = export_table(result)
    print(*lines(result["goals"]), sep="\n")
    keep(__file__, result, about)


def files(run: Path, variants: list[dict[str, Any]]) -> dict[str, float]:
    """MB of each export's own file."""
    made = {variant["name"]: run / variant["path"] for variant in variants if form_of(variant["name"])}
    return {name: round(file.stat().st_size / 1e6, 2) for name, file in made.items()}


def lost(variants: list[dict[str, Any]]) -> dict[str, float]:
    """Points of the main metric that each export loses against the fp32 student, on the reported rows."""
    scores = {variant["name"]: next(iter(variant["score"].values())) for variant in variants}
    return {name: round(scores["student"] - score, 2) for name, score in scores.items() if form_of(name)}


def moved(run: Path, names: list[str]) -> dict[str, float]:
    """The most that a logit moves between a row alone and the same row in a batch, of the forms that promise not to."""
    rows, found = [row["text"] for row in held_out()[:MATES_ROWS]], {}
    for name in names:
        form = form_of(name)
        if form is None or form.exact or form.batch == 1:
            continue
        pipe = load_pipeline(run, name)
        asked = {"top_k": None, "function_to_apply": "none"}
        alone, together = (
            [sorted((it["label"], it["score"]) for it in answer) for answer in pipe(rows, batch_size=size, **asked)]
            for size in (1, MATES_BATCH)
        )
        pairs = zip(alone, together, strict=True)
        found[name] = float(max(abs(a[1] - b[1]) for one, other in pairs for a, b in zip(one, other, strict=True)))
    return found


def against(blocks: Any, names: list[str]) -> dict[str, Any]:
    """How many times as fast as the teacher, and as Optimum's int8, each variant is; milliseconds."""
    ours = [name for name in names if name != "teacher"]
    ratios = {
        base: {name: {clock: speed_ratio(blocks, name, base, clock) for clock in CLOCKS} for name in ours}
        for base in ("teacher", "optimum-cli int8")
    }
    ms = {name: round(1e3 / speeds(values)["examples_per_s_wall"], 3) for name, values in blocks.items()}
    return {"ms_wall": ms, "faster_than": ratios}


def show(length: str, found: dict[str, Any], size: dict[str, int]) -> None:
    """A table for people."""
    clock = found["clock"]
    print(f"\nlength {length}, " + (f"by {clock} time" if clock else "void: A/A beyond ±3 % by both clocks"))
    for name, bases in ((name, found["faster_than"]) for name in found["faster_than"]["teacher"]):
        cells = [f"{bases[base][name][clock or 'cpu']['value']:6.2f}× {base}" for base in bases]
        print(f"  {name:28}{size[name] / 1e6:7.1f} MB {'  '.join(cells)}")


if __name__ == "__main__":
    main()
