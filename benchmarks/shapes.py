"""Large shapes with random weights: student built, one step with every term, exported; seconds and memory.

    python benchmarks/shapes.py            # prints a table, writes shapes.result.json beside this file

Each shape runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from harness import keep, machine
from transformers import CONFIG_MAPPING

from nlp_distill.exports.onnx_files import export_fp32
from nlp_distill.loading import new_model
from nlp_distill.loop import Step, adamw
from nlp_distill.objective import Objective
from nlp_distill.preflight import supervise_map
from nlp_distill.recipe import Phase, Student
from nlp_distill.signals import LiveTeacher
from nlp_distill.student import cut_student
from nlp_distill.task import load_task
from nlp_distill.terms import AnyTerm, AttentionTerm, HiddenTerm, LabelsTerm, LogitsTerm, RelationTerm

BATCH, TOKENS = 8, 64
SHAPES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "BERT-base 12 → 6": ("classification", "bert", {}, {"layers": 6}),
    "RoBERTa-base 12 → 6": ("classification", "roberta", {"vocab_size": 50265, "type_vocab_size": 1}, {"layers": 6}),
    "T5-small 6+6 → 6+3": ("seq2seq", "t5", {"decoder_start_token_id": 0}, {"decoder_layers": 3}),
    "BART-base 6+6 → 6+3": (
        "seq2seq",
        "bart",
        {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
        {"decoder_layers": 3},
    ),
}


def one(name: str) -> dict[str, Any]:
    """Measure a shape in this process."""
    task_name, kind, settings, cut = SHAPES[name]
    torch.set_num_threads(1)
    task, seconds = load_task(task_name), {}
    if task_name == "classification":
        from nlp_distill_tasks.classification.labels import Labels

        task.labels, task.label_names = Labels("single_label", ["a", "b"]), ["a", "b"]  # type: ignore[attr-defined]
    teacher = new_model(CONFIG_MAPPING[kind](**settings), task.auto_class, seed=0)
    start = time.perf_counter()
    student = cut_student(teacher, Student(**cut), task.auto_class).model
    seconds["build"] = time.perf_counter() - start
    terms: list[AnyTerm] = [LogitsTerm(), LabelsTerm(), HiddenTerm(), HiddenTerm(distance="gram"), AttentionTerm()]
    heads = 12 if teacher.config.hidden_size % 12 == 0 else 8
    terms += [RelationTerm(heads=heads), *([AttentionTerm(of="cross")] if task_name == "seq2seq" else [])]
    supervise = supervise_map(Phase(losses=terms), teacher.config, student.config)
    objective = Objective(terms, task, student.config, teacher.config, supervise)
    source = LiveTeacher(teacher, task, objective.teacher_request, None)
    ids = torch.randint(10, 20000, (BATCH, TOKENS))
    batch: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch |= {"labels": ids, "decoder_input_ids": ids} if task_name == "seq2seq" else {"labels": ids[:, 0] % 2}
    step = Step(student, objective, None).train()
    optimizer = adamw(step, Phase())
    start = time.perf_counter()
    counts = {term: float(count) for term, count in objective.counts(batch).items()}
    loss, _ = step(batch, source.signal(batch), counts)
    loss.backward()
    optimizer.step()
    seconds["step"] = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    with tempfile.TemporaryDirectory() as folder:
        student.save_pretrained(folder)
        (Path(folder) / "onnx").mkdir()
        start = time.perf_counter()
        export_fp32(Path(folder), task.pipeline_task, Path(folder) / "onnx")
        seconds["export"] = time.perf_counter() - start
        size = sum(file.stat().st_size for file in (Path(folder) / "onnx").iterdir()) / 1e6
    return {
        "shape": name,
        "teacher_params_m": round(teacher.num_parameters() / 1e6, 1),
        "student_params_m": round(student.num_parameters() / 1e6, 1),
        "terms": list(objective.terms),
        "loss": round(float(loss), 3),
        "seconds": {stage: round(value, 2) for stage, value in seconds.items()},
        "training_peak_mb": round(peak),
        "onnx_fp32_mb": round(size, 1),
    }


def main() -> None:
    """All shapes, each in its process."""
    about, rows = machine(), []
    about["versions"] |= {"optimum-onnx": version("optimum-onnx")}
    for name in SHAPES:
        done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        sys.stdout.write(f"{name}: {row['seconds']}, {row['training_peak_mb']} MB, {row['onnx_fp32_mb']} MB ONNX\n")
    keep(__file__, {"batch": [BATCH, TOKENS], "rows": rows}, about)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(one(sys.argv[1])) + "\n")
    else:
        main()
