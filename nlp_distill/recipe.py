"""What a recipe may say: pydantic models, each field with its unit and range.

Data, not a program. The short forms (`task`, `teacher`, a `distill` without `phases`) are lists of one; the
resolved recipe has the lists. Reading, overriding and reporting errors: `nlp_distill.recipe_file`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nlp_distill.settings import Number, NumberOrNone, Settings, Whole, WholeOrNone
from nlp_distill.terms import AnyTerm, AttentionTerm, HiddenTerm, LogitsTerm, StackName

Profile = Literal["fast", "small", "mobile", "exact", "dynamic"]
LayerPolicy = Literal["alternate", "first", "last", "first_last", "distilbert"]
LayerMap = LayerPolicy | list[Annotated[int, Field(ge=0)]]
LayerMaps = LayerMap | dict[StackName, LayerMap]
"""One policy for every stack, or one for each."""


class Data(Settings):
    """The rows to learn from and to be scored on."""

    dataset: str | None = Field(
        None,
        description="`glue/NAME` (GLUE's columns and metrics), the name of a dataset on the Hub, a local folder "
        "or file, or `sample:NAME` (a sample that ships).",
    )
    config: str | None = Field(None, description="Configuration of a Hub dataset.")
    revision: str | None = Field(None, description="Commit, tag or branch of a Hub dataset.")
    files: str | dict[Literal["train", "validation", "test"], str] | None = Field(
        None, description="A folder or a file for each split, read instead of the Hub's copy of `dataset`."
    )
    columns: dict[str, str | list[str]] = Field(
        {},
        description="Role → column; roles that are not given are guessed, and shown before training. Classification: "
        "`text`, `text_pair`, `label` (several 0/1 columns make a multi-label task); other tasks: docs/tasks.md.",
    )
    label_names: list[str] | None = Field(
        None, description="Names of the labels, in the order of their ids.", min_length=1
    )
    problem: Literal["auto", "single_label", "multi_label", "regression"] = Field(
        "auto", description="Kind of the labels; `auto` decides from the label column."
    )
    limit: WholeOrNone = Field(None, ge=1, description="Use at most this many training rows, chosen by hash.")
    selection: WholeOrNone = Field(
        None,
        ge=1,
        description="Training rows kept aside to choose the best epoch on; unset: the smaller of 5 % and 1,000.",
    )

    @field_validator("label_names")
    @classmethod
    def _different(cls, value: list[str] | None) -> list[str] | None:
        for name in value or ():
            if not name.strip() or (value or []).count(name) > 1:
                raise ValueError(f"the name {name!r} is {'given twice' if name.strip() else 'empty'}")
        return value

    @model_validator(mode="after")
    def _named(self) -> Data:
        if self.dataset is None and self.files is None:
            raise ValueError("give `dataset` (a name, folder or file) or `files`")
        return self


OPERATION = ("checkpoint_minutes", "stall_minutes")
"""Settings of a training that never change its result: a run goes on when they were changed."""


class Training(Settings):
    """How one stretch of training runs. One step is exactly `batch_size` examples."""

    epochs: Whole = Field(3, ge=1, le=10_000, description="Passes over the training rows.")
    learning_rate: Number = Field(1e-4, gt=0, le=1, description="Peak learning rate of AdamW.")
    batch_size: Whole = Field(32, ge=1, le=65_536, description="Examples in one optimizer step, over all processes.")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="Decay after the warm-up.")
    warmup: Number = Field(0.1, ge=0, lt=1, description="Share of all steps over which the learning rate rises.")
    weight_decay: Number = Field(0.01, ge=0, le=1, description="AdamW's decay of weight matrices.")
    max_grad_norm: NumberOrNone = Field(1.0, gt=0, description="Gradients are clipped to this norm; null: not clipped.")
    patience: WholeOrNone = Field(
        None, ge=1, description="Stop after this many epochs without a better selection score; null: never."
    )
    keep: Literal["best", "last"] = Field("best", description="Which epoch's weights to keep, by selection score.")
    micro_batch_tokens: WholeOrNone = Field(
        None,
        ge=1,
        description="Most tokens, padding counted, in one forward; lower it when memory is short. Unset: 4,096 on a "
        "CPU, on a GPU what half of its memory holds.",
    )
    lean: bool = Field(
        True,
        description="Run the last layer of a classifier for [CLS] alone where no term reads its other tokens: exact.",
    )
    checkpoint_minutes: Number = Field(
        5.0, ge=0, description="Minutes between checkpoints inside an epoch (0: each step)."
    )
    stall_minutes: float = Field(
        30.0, gt=0, description="The run ends, resumable, when no step was made for so many minutes."
    )


class Lora(Settings):
    """Low-rank adapters (Hu et al. 2021), merged into the weights before the teacher is used."""

    rank: Whole = Field(8, ge=1, le=1024, description="Rank of the update.")
    alpha: Number = Field(16, gt=0, description="Scale of the update; it is multiplied by alpha / rank.")
    dropout: Number = Field(0.0, ge=0, lt=1, description="Dropout on the adapters' input.")


class Finetune(Training):
    """Fine-tuning of a teacher that has no head for the task."""

    learning_rate: Number = Field(5e-5, gt=0, le=1, description="Peak learning rate of AdamW.")
    lora: Lora | None = Field(None, description="Train low-rank adapters instead of all weights.")


class NewModel(Settings):
    """A teacher of random weights, with a tokenizer learnt from the training rows; for seq2seq."""

    architecture: Literal["t5", "bart"] = Field("t5", description="Kind of the model.")
    layers: Whole = Field(4, ge=1, le=64, description="Layers of the encoder, and of the decoder.")
    hidden_size: Whole = Field(256, ge=8, le=4096, description="Width.")
    attention_heads: Whole = Field(4, ge=1, le=64, description="Heads; must divide the width.")
    vocabulary: Whole = Field(4000, ge=300, le=262_144, description="Most tokens that the tokenizer learns.")

    @model_validator(mode="after")
    def _heads_divide(self) -> NewModel:
        if self.hidden_size % self.attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of attention_heads {self.attention_heads}"
            )
        return self


class Teacher(Settings):
    """The model to imitate."""

    model: str | None = Field(
        None,
        description="Local folder, run folder, Hub id with optional @revision, or `package:NAME/path`. For seq2seq an "
        "encoder (BERT) becomes both encoder and decoder.",
    )
    new: NewModel | None = Field(None, description="Start from random weights instead, where no checkpoint fits.")
    finetune: Finetune | Literal["auto", "none"] | None = Field(
        None,
        description="Settings of the fine-tuning; `auto`: try a few and keep the best on the selection rows; "
        "`none`: use the teacher as it is; unset: `auto`, unless the teacher has a head for the task.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> Teacher:
        if (self.model is None) == (self.new is None):
            raise ValueError("give either `model` or `new`")
        if self.new is not None and self.finetune == "none":
            raise ValueError("a new teacher must be trained: give `finetune` its epochs, or leave it out")
        return self


class Shape(Settings):
    """A student of another shape than its teacher, trained from random weights through projected terms."""

    layers: Whole = Field(ge=1, description="Number of layers, in each stack.")
    hidden_size: WholeOrNone = Field(None, ge=1, description="Width; unset: the teacher's.")
    attention_heads: WholeOrNone = Field(None, ge=1, description="Heads; unset: the teacher's.")
    intermediate_size: WholeOrNone = Field(
        None, ge=1, description="Width of the feed-forward; unset: four times hidden_size, or the teacher's."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Shape:
        if self.hidden_size and self.attention_heads and self.hidden_size % self.attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of attention_heads {self.attention_heads}"
            )
        return self


class Student(Settings):
    """The small model: cut from the teacher, another checkpoint, or a new shape."""

    layers: WholeOrNone = Field(None, ge=1, description="Cut: keep this many of the teacher's layers, in each stack.")
    encoder_layers: WholeOrNone = Field(None, ge=1, description="Cut: keep this many of the encoder's layers.")
    decoder_layers: WholeOrNone = Field(
        None, ge=1, description="Cut: keep this many of the decoder's layers; a stack that is not named keeps all."
    )
    init: LayerMaps = Field(
        "alternate",
        description="Cut: which teacher layers initialise the student (the copy map); "
        "`{encoder: …, decoder: …}` for each stack.",
    )
    model: str | None = Field(None, description="Start from this checkpoint instead (an earlier run's `model/` too).")
    config: Shape | None = Field(None, description="Start from random weights in this shape instead.")
    vocabulary: Literal["keep", "trim"] = Field(
        "keep",
        description="`trim`: of the teacher's vocabulary only what the training rows use, and what spells the rest; "
        "for encoders. See docs/lean.md.",
    )

    @model_validator(mode="after")
    def _one_of(self) -> Student:
        given = [name for name in ("layers", "model", "config") if getattr(self, name) is not None]
        by_stack = self.encoder_layers is not None or self.decoder_layers is not None
        if len(given) + by_stack != 1:
            named = ", ".join([*given, *(["encoder_layers/decoder_layers"] if by_stack else [])])
            raise ValueError(
                "give exactly one of `layers`, `encoder_layers` and `decoder_layers`, `model`, `config` "
                f"(given: {named or 'none'})"
            )
        if self.model is not None and self.vocabulary == "trim":
            raise ValueError("`vocabulary: trim` needs the teacher's tokenizer: give `layers` or `config`, not `model`")
        return self

    @property
    def cut(self) -> bool:
        """Whether the student is cut from its teacher."""
        return self.model is None and self.config is None

    def layers_of(self, stack: str, depth: int) -> int:
        """How many of a stack's `depth` layers a cut keeps."""
        chosen = self.layers or (self.encoder_layers if stack == "encoder" else self.decoder_layers)
        return chosen or depth


class Phase(Training):
    """A stretch of distillation with its own terms."""

    epochs: Whole = Field(4, ge=1, le=10_000, description="Passes over the training rows.")
    losses: list[AnyTerm] = Field(
        [LogitsTerm(), HiddenTerm(), AttentionTerm()], description="The weighted terms.", min_length=1
    )
    targets: Literal["data", "teacher"] = Field(
        "data",
        description="What the labels are: the data's, or what the teacher generates (sequence-level distillation, Kim "
        "& Rush 2016); for seq2seq.",
    )
    freeze: list[Literal["embeddings", "encoder"]] = Field(
        [], description="Parts that stay as they were copied; `encoder`: of a seq2seq model."
    )
    supervise: LayerMaps = Field(
        "alternate",
        description="Which teacher layer each student layer imitates (the supervise map); "
        "`{encoder: …, decoder: …}` for each stack.",
    )
    cache: Literal["auto", "none", "fp32", "bf16", "int8"] = Field(
        "auto",
        description="Run the teacher once over the rows and keep what the terms read on disk, in this precision "
        "(logits of a row always in fp32); `none`: it runs beside the student; `auto`: fp32, or else bf16, where "
        "nothing is cut, an epoch is saved, and the disk has room; at most 2 GB. See docs/cache.md.",
    )


class Distill(Settings):
    """The phases of the distillation, in order."""

    recipe: Literal["distilbert", "pkd", "tinybert", "minilm", "distilbart", "seqkd"] | None = Field(
        None,
        description="Phases as a paper has them (docs/papers.md); settings given beside it replace those of each.",
    )
    phases: list[Phase] = Field([Phase()], min_length=1, description="The phases; the short form is one.")


class Export(Settings):
    """A form of the student to deliver."""

    format: Literal["onnx", "openvino", "ort", "executorch"] = Field(
        "onnx", description="File format; `ort` (ONNX Runtime Mobile) and `executorch` are for phones."
    )
    profile: Profile = Field(
        "fast",
        description="`fast`: lowest latency; `small`: fewest bytes; `mobile`: plain operators for phones; "
        "`exact`: fp32; `dynamic`: int8 whose answers depend on what else is in the batch. See docs/exports.md.",
    )
    target: Literal["auto", "avx512_vnni", "avx2", "arm64"] = Field(
        "auto", description="Instruction set that int8 is made for; `auto`: this machine's."
    )
    score_drop: Number = Field(
        0.5,
        ge=0,
        le=100,
        description="Points that int8 may lose against fp32 on the selection rows before it is refused.",
    )


class Budget(Settings):
    """Limits that the recommended variant, the smallest that meets them all, must keep."""

    latency_ms: NumberOrNone = Field(None, gt=0, description="Milliseconds: median latency, batch 1.")
    size_mb: NumberOrNone = Field(None, gt=0, description="Megabytes (10⁶ bytes): all files needed to run.")
    memory_mb: NumberOrNone = Field(None, gt=0, description="Megabytes: peak memory of the process.")
    score_drop: NumberOrNone = Field(None, ge=0, le=100, description="Points lost against the teacher.")
    threads: Whole = Field(1, ge=1, description="Threads that latency is measured with.")
    sequence: WholeOrNone = Field(None, ge=1, description="Tokens; unset: the 90th percentile of the data's lengths.")


class Publish(Settings):
    """Where the results go on the Hugging Face Hub, once they are there. The token is never part of a recipe."""

    repository: str = Field(
        pattern=r"^\w[\w.-]{0,95}/\w[\w.-]{0,95}$", description="`org/name`; made if it is not there."
    )
    private: bool = Field(False, description="Make it private; one that is public already is refused.")
    revision: str | None = Field(None, description="A branch; made if it is not there. Unset: main.")
    create_pr: bool = Field(False, description="Open a pull request instead of committing.")
    collection: str | None = Field(None, description="Slug or title of a collection that it belongs in.")


class Recipe(Settings):
    """The whole road from data to a proven student."""

    version: Literal[1] = Field(1, description="Version of the recipe format.")
    tasks: list[str] = Field(description="Task adapters; the short form is `task: classification`.", min_length=1)
    options: dict[str, Any] = Field({}, description="The task's own settings; each task's are in docs/tasks.md.")
    data: Data = Field(description="The rows.")
    teachers: list[Teacher] = Field(
        [],
        description="Teachers; the short form is `teacher: {…}`. None: `student.model` is fine-tuned on labels alone.",
    )
    student: Student = Field(description="The student.")
    distill: Distill = Field(Distill(), description="The distillation.")
    control: bool = Field(False, description="Also train the same student on labels only, as a row of the table.")
    export: list[Export] = Field([Export()], description="Forms to deliver.")
    budget: Budget = Field(Budget(), description="Limits to meet.")
    publish: Publish | None = Field(None, description="Push the results to the Hub at the end.")
    seed: Whole = Field(0, ge=0, lt=2**31, description="Seed of everything random.")
    max_length: Whole = Field(128, ge=4, le=8192, description="Tokens kept of an input, special tokens counted.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the matrix products; `auto`: bf16 where a probe says that it is faster."
    )
    determinism: Literal["auto", "strict", "fast"] = Field(
        "auto",
        description="`strict`: the same bits each time; `fast`: not on a GPU. `auto`: strict on a CPU, "
        "unless compiled.",
    )
    compile: bool = Field(
        False,
        description="Train through compiled graphs (`torch.compile`): for a GPU and long trainings; not with "
        "`determinism: strict`.",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "swanlab", "trackio"]] = (
        Field([], description="Experiment trackers, through Accelerate.")
    )

    @field_validator("tasks", "teachers")
    @classmethod
    def _one(cls, value: list[Any]) -> list[Any]:
        if len(value) > 1:
            raise ValueError("more than one is not supported yet; give one")
        return value

    @property
    def task(self) -> str:
        """The one task."""
        return self.tasks[0]

    @model_validator(mode="after")
    def _repeats(self) -> Recipe:
        if self.compile and self.determinism == "strict":
            raise ValueError(
                "`compile` may round otherwise when a run goes on, which is not strict; set `determinism: fast`"
            )
        return self

    @model_validator(mode="after")
    def _taught(self) -> Recipe:
        if self.teachers:
            return self
        if self.student.model is None:
            raise ValueError("give a `teacher`, or `student.model` to fine-tune without one")
        kinds = {term.kind for phase in self.distill.phases for term in phase.losses}
        if kinds != {"labels"}:
            raise ValueError("without a `teacher` the only term is `distill: {losses: [{kind: labels}]}`")
        if self.budget.score_drop is not None:
            raise ValueError("`budget.score_drop` is against a `teacher`, and there is none")
        return self

    @property
    def teacher(self) -> Teacher | None:
        """The one teacher, if there is one."""
        return self.teachers[0] if self.teachers else None

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults included, as plain data; read again, it gives the same recipe."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """Identity of the resolved recipe, in hexadecimal."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
