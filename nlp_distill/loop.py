"""The training loop: teacher fine-tuning, control and every phase of a distillation run through it.

One optimizer step is exactly `batch_size` examples, cut first over ranks, then into micro-batches. Order comes
from (seed, epoch), noise from (seed, step, micro-step, rank); the learning rate is a function of the step.
Nothing else is random and nothing depends on when we evaluate or stop, so a resumed run repeats the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nlp_distill.allocator import keep_freed_memory
from nlp_distill.attention import attention_by_heads
from nlp_distill.batches import Indices, derived_seed, epoch_steps, micro_batches, rank_share, steps_per_epoch
from nlp_distill.checkpoint import Checkpoint, CheckpointFolder, optimizer_tensors, restore_optimizer
from nlp_distill.embedding import embeddings_in_place
from nlp_distill.errors import Interrupted, LossNotFinite, RunFailed
from nlp_distill.families import encoder_of
from nlp_distill.first_token import first_token_only
from nlp_distill.graphs import Forward, compiled
from nlp_distill.noise import fast_dropout
from nlp_distill.objective import Objective
from nlp_distill.recipe import Training
from nlp_distill.rows import Rows, ahead, padded_in_eights, processor_idles, to_device, token_budget
from nlp_distill.scores import model_pipeline, predict
from nlp_distill.signals import Signal, TeacherSource, capture, first_suffices, model_inputs
from nlp_distill.task import Batch, Task
from nlp_distill.trouble import watched

Notify = Callable[..., None]
"""`notify(kind, **fields)`: progress, metric and warning events."""

PROGRESS_SECONDS = 1.0
EVALUATION_TOKENS = 8192
SELECTION_BATCH = 32


@dataclass
class Setting:
    """Where a training happens; the same for all trainings of a run."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    accelerator: Accelerator
    seed: int
    autocast: torch.dtype | None = None
    compile: bool = False
    notify: Notify = lambda kind, **fields: None
    stop: Callable[[], bool] = lambda: False


@dataclass
class Trained:
    """What a training did. `history`: one entry an epoch."""

    best_epoch: int = 0
    best_score: float | None = None
    steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Step(nn.Module):
    """Student and projections as one module, so that data-parallel wrappers see every gradient."""

    def __init__(self, student: PreTrainedModel, objective: Objective, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.student, self.objective, self.autocast = student, objective, autocast
        self.speak: Forward = self._speak

    def train(self, mode: bool = True) -> Step:
        """A frozen encoder stays in evaluation mode: without dropout it says what it said when it was trained."""
        super().train(mode)
        encoder = encoder_of(self.student) if self.student.config.is_encoder_decoder else None
        if encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
        return self

    def forward(self, batch: Batch, teacher: Signal, counts: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """The micro-batch's part of the step's loss, and the sum of each term."""
        device = batch["input_ids"].device.type
        given = {} if teacher.encoded is None else {"encoder_outputs": (teacher.encoded.float(),)}
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            outputs, signal = self.speak({**model_inputs(batch), **given})
        sums = self.objective.sums(outputs, signal, teacher, batch)
        return self.objective.total(sums, counts), {name: value.detach() for name, value in sums.items()}

    def _speak(self, inputs: dict[str, Any]) -> tuple[Any, Signal]:
        with capture(self.student, self.objective.student_request) as signal:
            outputs = self.student(**inputs)
        return outputs, signal


def learning_rate(settings: Training, step: int, total: int) -> float:
    """Learning rate of optimizer step `step` (from 0) of `total`: linear warm-up, then the schedule."""
    warmup = int(settings.warmup * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    share = (step - warmup) / max(1, total - warmup)
    factor = {"linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share)), "constant": 1.0}
    return settings.learning_rate * factor[settings.schedule]


def adamw(module: nn.Module, settings: Training) -> torch.optim.AdamW:
    """Fused AdamW; biases and norms are not decayed."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in module.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=settings.learning_rate, fused=True)


def train(
    model: PreTrainedModel,
    objective: Objective,
    teacher: TeacherSource | None,
    rows: Rows,
    selection: Rows | None,
    settings: Training,
    setting: Setting,
    checkpoints: CheckpointFolder,
    stage: str,
) -> Trained:
    """Train `model` in place; it ends with the weights of the best epoch (`keep: best`) or the last.

    The best epoch is chosen by the task's primary metric on `selection`, ties by the loss on its labels.
    Resumes from the newest checkpoint of the same key. Raises `Interrupted` after a checkpoint when
    `setting.stop()` turns true, `LossNotFinite` when the loss does.
    """
    keep_freed_memory()
    accelerator, task, notify = setting.accelerator, setting.task, setting.notify
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    if min(settings.batch_size, len(rows.lengths)) < world:
        raise RunFailed(stage=stage, reason=f"{world} processes cannot share steps of {settings.batch_size} examples")
    tokenizer = padded_in_eights(setting.tokenizer) if device.type == "cuda" else setting.tokenizer
    collate = task.collate(tokenizer, model.config)
    step_module = Step(model, objective, setting.autocast).to(device)
    wrapped = accelerator.prepare_model(step_module)
    optimizer = adamw(step_module, settings)
    budget = token_budget(settings.micro_batch_tokens, model.config, device)
    per_epoch = steps_per_epoch(len(rows.lengths), settings.batch_size)
    total = per_epoch * settings.epochs
    state, best = _resume(checkpoints, step_module, optimizer, stage, notify)
    done, done_steps = Trained(**state["trained"]), state["step"]
    best_rank = (state["best_rank"][0], state["best_rank"][1])
    # Each rank goes on with its own sums of a started epoch: added up in another order, they would round otherwise.
    epoch_sums: dict[str, float] = state["epoch_sums"][rank] if state["epoch_sums"] else {}

    def checkpoint() -> None:
        sums = gather_object([epoch_sums])
        if accelerator.is_main_process:
            state = {"step": done_steps, "trained": vars(done), "best_rank": best_rank, "epoch_sums": sums}
            tensors = optimizer_tensors(step_module, optimizer)
            checkpoints.save(Checkpoint(state, dict(step_module.state_dict()), tensors, best))
        accelerator.wait_for_everyone()

    early = teacher if teacher and teacher.stored and processor_idles(device) else None

    def micro_batches_of(numbered: tuple[int, Indices]) -> list[tuple[Batch, Signal | None]]:
        number, step = numbered
        chance, mine = derived_seed(setting.seed, "examples", number), rank_share(step, rank, world)
        made = rows.micro_batches(mine, budget, chance, collate, device, setting.autocast)
        return [(batch, early.signal(batch) if early else None) for batch in made]

    finished = done_steps >= total or _out_of_patience(done, settings)
    last_saved = last_shown = time.monotonic()
    stop, examples = False, 0
    lean = settings.lean and first_suffices(task, model.config, objective.student_request, setting.tokenizer)
    with _quickly(step_module, lean, setting), watched(stage, settings.stall_minutes, notify) as beat:
        while not finished:
            epoch = done_steps // per_epoch
            steps = epoch_steps(rows.lengths, settings.batch_size, setting.seed, epoch)
            begun = epoch * per_epoch
            left = list(enumerate(steps, begun))[done_steps - begun :]
            for within, micro in enumerate(ahead(micro_batches_of, left, processor_idles(device)), done_steps - begun):
                # One optimizer step: counts first, so that every micro-batch is normalised over the whole step.
                due = time.monotonic() - last_saved >= settings.checkpoint_minutes * 60
                counts, stop, due = _agree(objective, [batch for batch, _ in micro], setting, due)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(settings, done_steps, total)
                step_module.train()
                step_sums = _accumulate(wrapped, teacher, micro, counts, done_steps, setting)
                norm = nn.utils.clip_grad_norm_(step_module.parameters(), settings.max_grad_norm or math.inf)
                if not torch.isfinite(norm):
                    _refuse_not_finite(step_sums, norm, done_steps, steps[within], stage)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                beat()
                done_steps += 1
                examples += len(steps[within])
                for name, value in step_sums.items():
                    epoch_sums[name] = epoch_sums.get(name, 0.0) + float(value) / max(counts[name], 1.0)
                now = time.monotonic()
                if now - last_shown >= PROGRESS_SECONDS or done_steps == total:
                    rate, examples = examples / (now - last_shown), 0
                    losses = {name: value * world / (within + 1) for name, value in epoch_sums.items()}
                    notify("progress", stage=stage, step=done_steps, steps=total, examples_per_s=rate, losses=losses)
                    last_shown = now
                if within + 1 < per_epoch and (stop or due):
                    checkpoint()
                    last_saved = time.monotonic()
                    if stop:
                        raise Interrupted(step=done_steps, stage=stage)

            # The end of an epoch: choose by the selection rows, never by the reported ones.
            entry = _over_ranks({name: value / per_epoch for name, value in epoch_sums.items()}, accelerator)
            epoch_sums = {}
            if selection is not None:
                # All go by the first one's, so that all stop at once: devices may differ in the last bit.
                scored = [*selection_score(step_module.student, selection, setting, beat)]
                score, loss_value = broadcast_object_list(scored)
                entry |= {"selection_score": score, "selection_loss": loss_value}
                if (score, -loss_value) > best_rank:
                    best_rank, done.best_epoch, done.best_score = (score, -loss_value), epoch + 1, score
                    if settings.keep == "best":
                        best = {name: t.detach().clone() for name, t in step_module.state_dict().items()}
            done.history.append(entry)
            done.steps = done_steps
            notify("metric", stage=stage, epoch=epoch + 1, epochs=settings.epochs, **entry)
            accelerator.log({f"{stage}/{name}": value for name, value in entry.items()}, step=done_steps)
            finished = done_steps >= total or _out_of_patience(done, settings)
            if (stop or due) and not finished:
                checkpoint()
                last_saved = time.monotonic()
            if stop and not finished:
                raise Interrupted(step=done_steps, stage=stage)

    if best:
        step_module.load_state_dict(best)
    accelerator.free_memory()
    model.eval()
    return done


def _resume(
    checkpoints: CheckpointFolder, module: nn.Module, optimizer: torch.optim.Optimizer, stage: str, notify: Notify
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """State and best weights of the newest checkpoint, weights and moments put back; those of a start without one."""
    resumed = checkpoints.load()
    for name in checkpoints.moved_aside:
        notify("warning", stage=stage, message=f"damaged checkpoint moved aside: {name}")
    if resumed is None:
        return {"step": 0, "trained": vars(Trained()), "best_rank": (-1e30, -1e30), "epoch_sums": []}, {}
    module.load_state_dict(resumed.weights)
    restore_optimizer(module, optimizer, resumed.optimizer)
    notify("resumed", stage=stage, step=resumed.state["step"])
    return resumed.state, resumed.best


def _accumulate(
    wrapped: nn.Module,
    teacher: TeacherSource | None,
    micro: list[tuple[Batch, Signal | None]],
    counts: dict[str, float],
    step: int,
    setting: Setting,
) -> dict[str, Tensor]:
    """Gradients of one optimizer step from this rank's micro-batches; the sum of each term.

    A signal that was not read before its step is asked of the teacher now, so that one at a time is held.
    """
    accelerator = setting.accelerator
    sums: dict[str, Tensor] = {}
    for number, (batch, signal) in enumerate(micro):
        if signal is None:
            signal = teacher.signal(batch) if teacher else Signal()
        torch.manual_seed(derived_seed(setting.seed, "noise", step, number, accelerator.process_index))
        last = number == len(micro) - 1
        with nullcontext() if last else accelerator.no_sync(wrapped):
            loss, parts = wrapped(batch, signal, counts)
            # Data-parallel gradients are averaged over ranks; ours are parts of one sum.
            accelerator.backward(loss * accelerator.num_processes)
        sums = {name: sums.get(name, 0) + value for name, value in parts.items()}
    return sums


def selection_score(
    model: PreTrainedModel, rows: Rows, setting: Setting, beat: Callable[[], None] = lambda: None
) -> tuple[float, float]:
    """The primary metric (points), as a user's pipeline gets it, and the mean loss on the selection rows.

    Changes nothing of the model; `beat` is called as it goes on.
    """
    task, was_training = setting.task, model.training
    model.eval()
    with torch.no_grad():
        raw = predict(
            model_pipeline(task, model, setting.tokenizer), task, rows.raw, SELECTION_BATCH, lambda *_: beat()
        )
    loss = mean_loss(model, rows, setting)
    model.train(was_training)
    return task.score(raw, rows.raw)[task.primary_metric], loss


def mean_loss(model: PreTrainedModel, rows: Rows, setting: Setting) -> float:
    """Mean loss on the labels, in the arithmetic of the training; the model must be in evaluation mode."""
    task, device = setting.task, model.device
    collate = task.collate(setting.tokenizer, model.config)
    loss, count = 0.0, 0.0
    with torch.no_grad(), torch.autocast(device.type, setting.autocast, enabled=setting.autocast is not None):
        for cut in micro_batches(np.arange(len(rows.lengths)), rows.lengths, EVALUATION_TOKENS):
            batch = to_device(collate(rows.take(cut, derived_seed(setting.seed, "selection"))), device)
            loss += float(task.label_loss(model(**model_inputs(batch)), batch))
            count += float(task.term_mask(batch, "labels", "decoder").sum())
    return loss / max(count, 1.0)


def _agree(
    objective: Objective, micro: list[Batch], setting: Setting, due: bool
) -> tuple[dict[str, float], bool, bool]:
    """Over all ranks: the step's counts, whether anyone was asked to stop, whether a checkpoint is due."""
    names = list(objective.terms)
    sums = torch.stack([torch.stack([objective.counts(batch)[name] for name in names]) for batch in micro]).sum(0)
    vector = torch.cat([sums, sums.new_tensor([setting.stop(), due])])
    if setting.accelerator.num_processes > 1:
        vector = setting.accelerator.reduce(vector, reduction="sum")
    values = vector.tolist()
    return dict(zip(names, values[:-2], strict=True)), values[-2] > 0, values[-1] > 0


def _over_ranks(values: dict[str, float], accelerator: Accelerator) -> dict[str, float]:
    """Each rank's part of a mean, summed."""
    if accelerator.num_processes == 1:
        return values
    ours = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    summed = accelerator.reduce(ours, reduction="sum")
    return dict(zip(values, summed.tolist(), strict=True))


@contextmanager
def _quickly(step: Step, lean: bool, setting: Setting) -> Iterator[None]:
    """Noise from a generator of the training's own, and what makes a step short; `lean`: the last layer for [CLS]."""
    shortened = first_token_only(step.student) if lean else nullcontext()
    lookups = embeddings_in_place() if setting.accelerator.num_processes == 1 else nullcontext()
    with torch.random.fork_rng(), shortened:
        if setting.compile:
            # The compiler makes its own of what is made quick below.
            setting.notify("note", message="compiling the model's graphs: its first steps take a minute or two")
            with compiled(step.student, step.objective.student_request) as step.speak:
                yield
        else:
            with fast_dropout(), attention_by_heads(), lookups:
                yield


def _out_of_patience(done: Trained, settings: Training) -> bool:
    waited = len(done.history) - done.best_epoch
    return settings.patience is not None and done.best_epoch > 0 and waited >= settings.patience


def _refuse_not_finite(sums: dict[str, Tensor], norm: Tensor, step: int, examples: Indices, stage: str) -> None:
    bad = [name for name, value in sums.items() if not torch.isfinite(value)]
    shown = ", ".join(str(i) for i in examples[:8].tolist())
    raise LossNotFinite(value=float(norm), step=step, term=bad[0] if bad else "gradient", examples=shown, stage=stage)
