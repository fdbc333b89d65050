"""One exception tree; the first paragraph of a class's docstring is its message.

    NlpDistillError
    ├── UserError                    exit code 2: something the user can correct
    │   ├── RecipeError              RecipeInvalid, RecipeNotFound, NotYet
    │   ├── DataError                what is wrong with the data
    │   ├── ModelError               what is wrong with a model reference
    │   ├── RunFolderError           StageChanged, RunFolderNotFound, RunFolderForeign
    │   └── MissingExtra             an optional part is not installed
    ├── RunFailed                    exit code 3: the run started and cannot go on
    └── Interrupted                  exit code 75: stopped on request, resumable

Fields in braces are filled from keyword arguments: ``raise ColumnMissing(source=…, column=…, …)``.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, ClassVar

LONGEST = 400
"""Letters of a value that a message shows."""


def shown(value: object) -> str:
    """A value as a message shows it: one line, nothing that a terminal obeys, the middle of what is long left out."""
    text = " ".join(str(value).split("\n"))
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 4 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class NlpDistillError(Exception):
    """{message}"""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str | None = None, **fields: Any) -> None:
        if message is None:
            message = inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0].replace("\n", " ")
            safe = {name: shown(value) if isinstance(value, str | Path) else value for name, value in fields.items()}
            message = message.format(**safe)
        super().__init__(message)
        self.fields = fields


class UserError(NlpDistillError):
    """Something the user can correct."""

    exit_code = 2


# Recipes


class RecipeError(UserError):
    """Something in the recipe."""


class RecipeInvalid(RecipeError):
    """{source}: {count} to correct in the recipe.

    The problems follow, one a line, with line number, path and the nearest valid name.
    """

    MOST: ClassVar[int] = 8
    """Problems that are listed."""

    def __init__(self, source: str, problems: list[str]) -> None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__(source=source, count=count)
        self.problems = problems

    def __str__(self) -> str:
        listed = [f"  {shown(problem)}" for problem in self.problems[: self.MOST]]
        left = len(self.problems) - len(listed)
        return "\n".join([super().__str__(), *listed, *([f"  … and {left} more"] if left else [])])


class RecipeNotFound(RecipeError):
    """No recipe '{name}': it is neither a file here nor one of the shipped recipes ({shipped}).{hint}"""


class RecipeUnreadable(RecipeError):
    """{source}: not a readable YAML recipe ({reason}); see `nlp-distill recipes show quickstart` for one that is."""


class NotYet(RecipeError):
    """{what} is not supported yet; {instead}."""


class TaskUnknown(RecipeError):
    """No task '{name}' is installed; installed tasks: {installed}.{hint}"""


class OptionInvalid(RecipeError):
    """options of {task}: {reason}."""


# Data


class DataError(UserError):
    """Something in the data."""


class DataNotFound(DataError):
    """Data '{name}' was not found: {reason}. {fix}"""


class DataUnsafe(DataError):
    """Data '{name}' is not read: {reason}. {fix}"""


class DataUnreadable(DataError):
    """{source}: cannot be read as {format} ({reason}); save it as UTF-8 CSV, TSV, JSON lines or Parquet."""


class DataEmpty(DataError):
    """{source}: has no rows; give a file with at least one example per label."""


class TooFewRows(DataError):
    """{source}: {rows} rows (equal ones count as one) are too few to train and to keep some aside; give at least {minimum}."""


class ColumnMissing(DataError):
    """{source}: has no column '{column}' (columns: {columns}); set data.columns.{role} to one of them.{hint}"""


class SplitTwice(DataError):
    """{folder}: {files} are both rows of {split}; keep one, or name the files in data.files."""


class SelectionTooLarge(DataError):
    """data.selection is {selection}, which leaves nothing to learn from in the {rows} rows of {source}; choose fewer."""


class RoleInvalid(DataError):
    """data.columns.{role}: {reason}; give each role one column of its own."""


class ProblemInvalid(DataError):
    """data.problem is {problem}, but the column '{column}' of {source} holds {found}; {fix}."""


class LabelNamesInvalid(DataError):
    """data.label_names has {names} names, but {source} has {labels} labels; give one name for each."""


class RoleUnknown(DataError):
    """data.columns.{role}: {task} has no such column; it knows {known}.{hint}"""


class ColumnsUnclear(DataError):
    """{source}: cannot tell which column is the {role} (columns: {columns}); set data.columns.{role}."""


class LabelsHidden(DataError):
    """{source}: {count} of {rows} labels are -1, which marks hidden labels (GLUE's test splits); use a split with labels."""


class LabelsInvalid(DataError):
    """{source}: {reason} (first at row {row}); {fix}."""


class OneClassOnly(DataError):
    """{source}: every row has the label {label}; a classifier needs at least two."""


class QuestionTooLong(DataError):
    """The question "{start} …" has {tokens} tokens, and max_length {max_length} leaves no room for its context; raise max_length, or shorten the question."""


class WindowsTooShort(DataError):
    """No window of max_length {max_length} tokens holds the answer of any training row whole; raise max_length."""


class TextInvalid(DataError):
    """{source}: column '{column}' has {reason} at row {row}; every row needs text there."""


class AnswersInvalid(DataError):
    """{source}: column '{column}' at row {row} is not answers: give {{"text": […], "answer_start": […]}}, a text or a list of texts."""


class AnswersElsewhere(DataError):
    """{source}: none of the answers of its {rows} rows is in its context; check data.columns.context and .answers."""


# Models


class ModelError(UserError):
    """Something about a model."""


class ModelNotFound(ModelError):
    """Model '{reference}' was not found: {reason}. {fix}"""


class ConfigInvalid(ModelError):
    """Model '{reference}': nothing can be built from its config.json ({reason}); get the folder anew."""


class HubUnreachable(ModelError):
    """'{reference}' is not on this machine and the Hugging Face Hub cannot be reached ({reason}). To work offline give a local folder or `package:NAME/path`, or fill the cache once while online and set HF_HUB_OFFLINE=1."""


class ModelUnsafe(ModelError):
    """Model '{reference}' is not loaded: {reason}. {fix}"""


class PickleOnly(ModelError):
    """Model '{reference}' has only pickle weights ({files}), which can run code when loaded; choose a revision that has model.safetensors, or convert them once where you trust them: `{command}`."""


class WeightsChanged(ModelError):
    """Model '{reference}': {file} has sha256 {got}, expected {expected}; reinstall the package that carries it."""


class UnknownFamily(ModelError):
    """Model '{reference}' is of the type '{model_type}', whose layers we do not know; known types: {known}.{hint}"""


class ModelUnfit(ModelError):
    """Model '{reference}', a {model_type}, cannot be used for {task}: {reason}."""


class StudentTooDeep(ModelError):
    """student.layers is {layers}, but the teacher '{reference}' has only {teacher_layers}; choose 1 to {teacher_layers}."""


class StudentShapeInvalid(ModelError):
    """student.config: a width of {width} cannot be shared by {heads} attention heads; set attention_heads to a divisor."""


class LayerMapInvalid(ModelError):
    """Layer map {policy!r}: {reason}; {fix}."""


class LabelMismatch(ModelError):
    """The teacher '{reference}' has the labels {teacher}, the data has {data}; put data.label_names in the teacher's order if they mean the same, or set teacher.finetune to give it a new head."""


class HeadMissing(ModelError):
    """The teacher '{reference}' has no {head} head and teacher.finetune is `none`; set teacher.finetune to train one."""


class LoraOnNew(ModelError):
    """teacher.finetune.lora trains adapters beside weights that have learned something, but '{reference}' has random ones that would stay so; remove lora."""


class SignalMissing(ModelError):
    """The term '{term}' cannot be computed: {reason}; {fix}."""


class CacheRefused(UserError):
    """The teacher's signals cannot be cached: {reason}; set distill.cache to `none` to run the teacher beside the student."""


class CacheTooLarge(UserError):
    """The teacher's signals need {size} in {precision}, but only {free} are free for {folder}; free some, set distill.cache to bf16, int8 or none, or NLP_DISTILL_CACHE to a folder on a larger disk."""


class AgeInvalid(UserError):
    """'{text}' is not an age; write a number of days, hours or minutes: 30d, 12h or 45m."""


class TokenizerMismatch(ModelError):
    """Teacher and student read a text as different tokens (vocabularies of {teacher} and {student}), so terms that compare tokens have no meaning ({terms}); keep only {allowed}, or choose a student that shares the teacher's tokenizer."""


class InputInvalid(UserError):
    """{what}: {reason}; {fix}."""


class PairNeeded(UserError):
    """The model needs {what}, too; give it with --text-pair."""


class PairUnused(UserError):
    """The model reads one text ({task}); leave --text-pair out."""


class TokenizerUnfit(ModelError):
    """The model's tokenizer does not fit the task: {reason}; choose another model."""


class VocabularyUntrimmable(ModelError):
    """student.vocabulary: trim: {reason}; set `vocabulary: keep`."""


class TrackerMissing(UserError):
    """trackers: '{name}' is not installed; run `pip install {name}`, or remove it from the recipe."""


class TokenizerSlow(ModelError):
    """Model '{reference}' has no fast tokenizer (tokenizer.json), which {need} needs; choose a model that has one."""


class NotExportable(ModelError):
    """'{model_type}' for {task} cannot be exported to {format} ({reason}); remove that entry from `export`."""


class ExportInvalid(RecipeError):
    """export: {reason}."""


class CompilerMissing(UserError):
    """compile: nothing can be compiled for a {device} here ({reason}); install a C++ compiler (on a GPU, Triton and a C compiler), or set `compile: false`."""


class MissingExtra(UserError):
    """{what} needs a part that is not installed; run `pip install 'nlp-distill[{extra}]'`."""


# Serving


class ListeningUnsafe(UserError):
    """{host} is reached from other machines, and no token is set; put one into {variable} or a --token-file, or listen on 127.0.0.1."""


class NotLight(UserError):
    """The variant '{variant}' of '{folder}' needs PyTorch and transformers, which are not installed; install nlp-distill with its dependencies, or serve an ONNX variant of a classifier or question answerer."""


class ModelNameInvalid(UserError):
    """The model cannot be served as '{name}': {reason}; give it another name with NAME=MODEL."""


class TokenUnfit(UserError):
    """The token in {source} cannot be used: {reason}; make one with `python -c "import secrets; print(secrets.token_urlsafe(32))"`."""


# The job service


class ServiceBusy(UserError):
    """Another server works in {folder}; stop it, or choose another --home."""


class ServiceUnreachable(UserError):
    """No service answers at {url} ({reason}); start one with `nlp-distill serve --jobs`, or give --url."""


class ServiceRefused(UserError):
    """{detail}"""


class RayUnfit(UserError):
    """The Ray cluster at {address} cannot be used: {reason}; {fix}."""


class JobFailed(NlpDistillError):
    """Job {job} ended as {status}: {detail}"""

    exit_code = 3


# The Hub


class PublishRefused(UserError):
    """Nothing was published to '{repository}': {reason}. {fix}"""


class PublishFailed(NlpDistillError):
    """Nothing was published to '{repository}' yet: {reason}. Files that have arrived are not sent again: run the same command later."""


class CollectionRefused(UserError):
    """'{repository}' is published, but is not in the collection '{collection}': {reason}. {fix}"""


class SecretFound(UserError):
    """{file} holds {what}, and nothing was published; remove it there, and take the token back if others saw it."""


class CardUntrue(UserError):
    """{file}: {reason}; correct it, or delete it and `nlp-distill report` writes it anew."""


# Run folders


class RunFolderError(UserError):
    """Something about the folder of a run."""


class StageChanged(RunFolderError):
    """{folder}: the stage '{stage}' was {made} with other settings ({changes}); use another --out, or --redo to make it and the stages after it anew (earlier stages are kept)."""


class RunFolderNotFound(RunFolderError):
    """'{folder}' is not the folder of a run (no recipe.yaml in it); give a recipe or the folder that `nlp-distill run` printed."""


class ResultsMissing(RunFolderError):
    """'{folder}' has no results yet; finish it with `nlp-distill run {folder}`."""


class RunFolderForeign(RunFolderError):
    """'{folder}' exists and is not the folder of a run; choose another --out."""


class RunFolderUnusable(RunFolderError):
    """'{folder}' cannot be made or entered ({reason}); choose another --out."""


class RunFolderDamaged(RunFolderError):
    """{file}: {reason}; restore it from a copy, or start anew with another --out."""


class RunFolderBusy(RunFolderError):
    """'{folder}' is in use by {owner}; wait for it, stop it, or choose another --out."""


class ModelFolderNotFound(RunFolderError):
    """'{folder}' holds no model to predict with; give a run folder that has been exported, or a model folder."""


class ModelHasNoTask(ModelError):
    """{folder}: its architecture ({architecture}) serves none of the installed tasks ({known})."""


class VariantUnknown(RunFolderError):
    """'{folder}' has no variant '{variant}'; it has {known}."""


class NotMeasurable(UserError):
    """'{reference}' cannot be measured: {reason}. {fix}"""


class FileExists(UserError):
    """{path}: exists already; choose another name or remove it."""


class NotWritable(UserError):
    """{path}: cannot be written ({reason}); choose another place."""


class DiskFull(UserError):
    """{path}: no space left on the device ({reason}); free some, or choose another --out."""


class BudgetMissed(NlpDistillError):
    """The budget was missed ({missed}) and --strict was given; results.json has every variant's figures."""

    exit_code = 3


class RunFailed(NlpDistillError):
    """{stage}: {reason}."""

    exit_code = 3


class NotCompiled(RunFailed):
    """compile: torch.compile cannot translate this '{model_type}' ({reason}); set `compile: false`, with --redo where a stage is done."""


class EngineUnfit(RunFailed):
    """serve: the engine of '{model}' did not start ({reason}); what it said is above."""


class LossNotFinite(RunFailed):
    """The loss became {value} at step {step} (term '{term}', examples {examples}); try a lower learning rate or precision: fp32. The last checkpoint is intact."""


class OutOfMemory(RunFailed):
    """{stage}: out of memory ({reason}); lower micro_batch_tokens (the step and its result stay the same) or max_length. The last checkpoint is intact."""


class DiskFailed(RunFailed):
    """{stage}: the disk failed ({reason}); what was complete before is intact, and the same command resumes."""


class ProcessLost(RunFailed):
    """{stage}: another process of this run has gone ({reason}); the last checkpoint is intact, and the same command resumes."""


class Stalled(RunFailed):
    """{stage}: no step for {minutes:g} minutes; the disk, the network or another process may hang. The last checkpoint is intact, and the same command resumes (longer waits: stall_minutes)."""


class ParityFailed(RunFailed):
    """The exported {name} disagrees with PyTorch: max |Δlogit| {difference:.2e} over {rows} rows, {flips} changed labels (allowed 1e-4 and 0)."""


class Interrupted(NlpDistillError):
    """Stopped at step {step} of '{stage}' with a checkpoint; the same command resumes."""

    exit_code = 75
