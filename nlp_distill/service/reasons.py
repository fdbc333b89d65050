"""Why an attempt ended: a code, and whether trying again may help.

`user`: the same attempt would end the same way. `infra`: the machine's doing; tried again. `policy`: a limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

Cause = Literal["user", "infra", "policy"]


class Reason(str, Enum):
    """A code that is stable and may be switched on."""

    INVALID_RECIPE = "invalid_recipe"
    DATASET_ERROR = "dataset_error"
    LABEL_MISMATCH = "label_mismatch"
    HUB_AUTH = "hub_auth"
    HUB_NOT_FOUND = "hub_not_found"
    HUB_UNAVAILABLE = "hub_unavailable"
    UNSAFE_MODEL = "unsafe_model"
    UNSAFE_DATA = "unsafe_data"
    MODEL_ERROR = "model_error"
    OOM_GPU = "oom_gpu"
    OOM_HOST = "oom_host"
    DISK_FULL = "disk_full"
    DISK_FAILED = "disk_failed"
    NAN_LOSS = "nan_loss"
    EXPORT_MISMATCH = "export_mismatch"
    RUN_DAMAGED = "run_damaged"
    RUN_FAILED = "run_failed"
    STALLED = "stalled"
    PROCESS_LOST = "process_lost"
    WORKER_LOST = "worker_lost"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    CANCELLED_BY_USER = "cancelled_by_user"
    INTERNAL = "internal"


CAUSES: dict[Reason, Cause] = {
    Reason.HUB_UNAVAILABLE: "infra",
    Reason.STALLED: "infra",
    Reason.PROCESS_LOST: "infra",
    Reason.WORKER_LOST: "infra",
    Reason.DISK_FAILED: "infra",
    Reason.DISK_FULL: "policy",
    Reason.TIMEOUT: "policy",
    Reason.DEADLINE: "policy",
    Reason.ATTEMPTS_EXHAUSTED: "policy",
}
"""All that are not named are the user's to mend."""

OF_ERRORS = {
    "LabelMismatch": Reason.LABEL_MISMATCH,
    "LabelNamesInvalid": Reason.LABEL_MISMATCH,
    "LabelsInvalid": Reason.LABEL_MISMATCH,
    "HubUnreachable": Reason.HUB_UNAVAILABLE,
    "ModelNotFound": Reason.HUB_NOT_FOUND,
    "DataNotFound": Reason.DATASET_ERROR,
    "ModelUnsafe": Reason.UNSAFE_MODEL,
    "PickleOnly": Reason.UNSAFE_MODEL,
    "WeightsChanged": Reason.UNSAFE_MODEL,
    "DataUnsafe": Reason.UNSAFE_DATA,
    "DiskFull": Reason.DISK_FULL,
    "DiskFailed": Reason.DISK_FAILED,
    "NotWritable": Reason.DISK_FAILED,
    "LossNotFinite": Reason.NAN_LOSS,
    "ProcessLost": Reason.PROCESS_LOST,
    "RunFolderBusy": Reason.PROCESS_LOST,
    "RunFolderDamaged": Reason.RUN_DAMAGED,
    "Stalled": Reason.STALLED,
    "ParityFailed": Reason.EXPORT_MISMATCH,
}
OF_FAMILIES = {
    "RecipeError": Reason.INVALID_RECIPE,
    "DataError": Reason.DATASET_ERROR,
    "ModelError": Reason.MODEL_ERROR,
    "UserError": Reason.INVALID_RECIPE,
    "RunFailed": Reason.RUN_FAILED,
}

FIXES = {
    Reason.OOM_HOST: "Lower micro_batch_tokens (the result stays the same) or max_length, then retry.",
    Reason.OOM_GPU: "Lower micro_batch_tokens (the result stays the same) or max_length, then retry.",
    Reason.DISK_FULL: "Free some space, then retry: the job goes on from its last checkpoint.",
    Reason.HUB_UNAVAILABLE: "Upload the data, use `package:NAME/path`, or start the service with --online.",
    Reason.NAN_LOSS: "Lower the learning rate or set precision: fp32, as a new job.",
    Reason.ATTEMPTS_EXHAUSTED: "Read the log of the last attempt; retry starts the count anew.",
    Reason.TIMEOUT: "Retry with a larger run_s: the job goes on from its last checkpoint.",
    Reason.INTERNAL: "Read the log, and report it.",
}


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: `ok`, `stopped` (resumable, on request) or `failed` with a reason and a sentence."""

    kind: Literal["ok", "stopped", "failed"]
    reason: Reason | None = None
    detail: str = ""

    @property
    def cause(self) -> Cause:
        """Whose doing it was."""
        return CAUSES.get(self.reason, "user") if self.reason else "user"


def of_error(families: list[str], message: str) -> Reason:
    """The code of an exception, from the names of its classes, nearest first."""
    if "OutOfMemory" in families:
        return Reason.OOM_GPU if "cuda" in message.lower() else Reason.OOM_HOST
    if "ModelNotFound" in families and "gated" in message:
        return Reason.HUB_AUTH
    if "DiskFailed" in families and "no space left" in message:
        return Reason.DISK_FULL
    for table in (OF_ERRORS, OF_FAMILIES):
        for name in families:
            if name in table:
                return table[name]
    return Reason.INTERNAL
