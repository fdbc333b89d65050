"""What goes over the wire. Times are seconds since 1970."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from nlp_distill.service.store.tokens import Scope
from nlp_distill.web.text import Text

Status = Literal["queued", "starting", "running", "pausing", "paused", "cancelling", "cancelled", "succeeded", "failed"]
Name = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Tag = Annotated[str, Field(min_length=1, max_length=60, pattern=r"^[^\x00-\x1f\x7f]*$")]
Item = TypeVar("Item")


class Given(BaseModel):
    """What a client sends: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


class Resources(Given):
    """What an attempt may use."""

    processes: int = Field(1, ge=1, le=64, description="Processes of the training; several share each step.")
    gpus: int = Field(0, ge=0, le=64, description="GPUs; 0 trains on the CPU.")
    threads: int | None = Field(None, ge=1, le=256, description="Threads of each process; unset: as many as cores.")
    run_s: int | None = Field(None, ge=1, le=31_536_000, description="Seconds that the job may run, attempts added up.")


RecipeGiven = Annotated[
    dict[str, Any] | Annotated[Text, Field(max_length=262_144)],
    Field(description="A recipe, as an object or as YAML (docs/recipes.md)."),
]


class RecipeRequest(Given):
    """A recipe to look at."""

    recipe: RecipeGiven


class JobRequest(Given):
    """A job to do."""

    recipe: RecipeGiven
    name: Name = Field("", description="A name for people.")
    tags: list[Tag] = Field([], max_length=20, description="Words to find it by.")
    priority: int = Field(0, ge=-100, le=100, description="Higher ones are claimed first.")
    deadline_s: int | None = Field(None, ge=1, le=31_536_000, description="Seconds from now until it must be done.")
    resources: Resources = Field(default_factory=Resources)


class JobChange(Given):
    """What may change while a job waits; name and tags always."""

    name: Name | None = None
    tags: list[Tag] | None = Field(None, max_length=20)
    priority: int | None = Field(None, ge=-100, le=100)


class JobError(BaseModel):
    """Why a job failed."""

    code: str = Field(description="A reason, for machines.")
    message: str = Field(description="One sentence.")
    fix: str = Field(description="What to do, where we know.")


class Progress(BaseModel):
    """Where a run is."""

    stage: str
    step: int | None = None
    steps: int | None = None


class Job(BaseModel):
    """A job as it stands."""

    object: Literal["job"] = "job"
    id: str
    name: str
    tags: list[str]
    status: Status
    priority: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    deadline_at: float | None
    run_s: float = Field(description="Seconds that it ran so far.")
    progress: Progress | None
    error: JobError | None
    attempt: int = Field(description="Attempts so far.")
    last_event: int = Field(description="Number of its last event.")
    resources: Resources
    recipe: dict[str, Any] = Field(description="The resolved recipe.")
    recipe_sha256: str
    parent_id: str | None = Field(description="The job that this one was cloned from.")
    duplicate_of: str | None = Field(None, description="On creation: a live job with the same recipe.")


class Page(BaseModel, Generic[Item]):
    """A part of a list, newest first. `next`: give it as `after`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    next: str | None


class Event(BaseModel):
    """One thing that happened."""

    object: Literal["event"] = "event"
    seq: int = Field(description="Counts from 1, without gaps.")
    created_at: float
    type: str
    level: Literal["info", "warning", "error"]
    message: str
    data: dict[str, Any]


class Events(BaseModel):
    """Events in order."""

    object: Literal["list"] = "list"
    data: list[Event]
    has_more: bool


class Curve(BaseModel):
    """A series."""

    name: str
    steps: list[int]
    values: list[float]
    times: list[float]


class Curves(BaseModel):
    """Series of a job, thinned on this side; peaks are kept."""

    object: Literal["metrics"] = "metrics"
    names: list[str] = Field(description="All that there are.")
    data: list[Curve]


class Attempt(BaseModel):
    """One execution of a job."""

    id: str
    number: int
    started_at: float
    finished_at: float | None
    ending: Literal["ok", "stopped", "failed"] | None
    reason: str | None
    detail: str


class Checkpoint(BaseModel):
    """A moment of a training that an attempt goes on from."""

    stage: str
    step: int
    created_at: float
    bytes: int
    state: Literal["complete", "damaged"] = Field(
        description="complete: the files of its manifest are there; a resume also checks their hashes."
    )
    sha256: dict[str, str] = Field(description="Of each file, as its manifest says.")


class Listed(BaseModel, Generic[Item]):
    """A whole list."""

    object: Literal["list"] = "list"
    data: list[Item]


class File(BaseModel):
    """Uploaded rows."""

    object: Literal["file"] = "file"
    id: str
    name: str
    format: str
    bytes: int
    sha256: str
    created_at: float


class Preview(BaseModel):
    """A look at an upload."""

    columns: list[str]
    rows: list[dict[str, Any]]
    count: int
    guessed: dict[str, dict[str, Any]] = Field(description="Task → role → column, where they are clear.")
    roles: dict[str, list[str]] = Field(description="Task → what its columns are for.")
    labels: dict[str, list[str]] = Field(description="Task → names of the labels, in the order of their ids.")
    trouble: dict[str, str] = Field(description="Task → why its rows cannot be used as they are.")


class Artifact(BaseModel):
    """A file that a job delivered."""

    object: Literal["artifact"] = "artifact"
    id: str
    path: str
    bytes: int
    sha256: str
    media_type: str


class Resolved(BaseModel):
    """A valid recipe with every default."""

    valid: Literal[True] = True
    recipe: dict[str, Any]
    recipe_sha256: str
    yaml: str


class Estimate(BaseModel):
    """What a run will take; within a factor of two."""

    teacher: dict[str, float] | None
    student: dict[str, float]
    steps: int
    tokens: float
    memory: float
    disk: float
    free: float
    seconds: float


class Template(BaseModel):
    """A recipe that ships."""

    name: str
    summary: str
    yaml: str


class CompareRequest(Given):
    """Jobs to compare."""

    jobs: list[Annotated[str, Field(pattern=r"^job_[0-9a-f]{32}$")]] = Field(min_length=1, max_length=20)


class Compared(BaseModel):
    """A variant of a job."""

    job_id: str
    job_name: str
    variant: str
    metric: str
    score: float | None
    retained: float | None
    bytes: int | None
    latency_ms: float | None
    recommended: bool
    pareto: bool = Field(description="No other is better in score, size and latency at once.")
    status: str


class Comparison(BaseModel):
    """Variants of several jobs, and the settings in which their recipes differ."""

    variants: list[Compared]
    sequence: int | None = Field(description="Tokens of the inputs whose latencies are compared; all jobs have them.")
    differences: dict[str, dict[str, Any]] = Field(description="Setting → job → value.")


class PredictionRequest(Given):
    """A question to a job's models."""

    inputs: Any = Field(description="What the task's pipeline takes: a text, a pair, a question and its context.")
    parameters: dict[str, Any] = Field({}, description="The pipeline's, `top_k` for example.")


class Prediction(BaseModel):
    """What one of a job's models answers."""

    model: Literal["teacher", "student"]
    variant: str
    runtime: str
    milliseconds: float = Field(description="Time inside the model's process.")
    outputs: Any = Field(description="What the pipeline returns.")


class TokenRequest(Given):
    """A token to make."""

    name: Name = ""
    scopes: list[Scope] = Field(min_length=1, max_length=4)
    expires_s: int | None = Field(None, ge=1, le=315_360_000)


class Token(BaseModel):
    """A token; the secret is in `token` once, when it is made."""

    object: Literal["token"] = "token"
    id: str
    name: str
    scopes: list[Scope]
    created_at: float
    expires_at: float | None
    token: str | None = None


class System(BaseModel):
    """The service and its machine."""

    version: str
    jobs: dict[str, int]
    workers: int
    cores: int
    devices: list[str]
    memory_bytes: int
    disk_free_bytes: int
    versions: dict[str, str]


class Health(BaseModel):
    """How it is."""

    status: Literal["ok"] = "ok"
