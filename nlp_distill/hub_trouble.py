"""What the Hub's refusals mean: the reason in a few words, and what to do about it. Loads no library until asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nlp_distill.errors import NlpDistillError, PublishFailed, PublishRefused

if TYPE_CHECKING:
    from requests import Response

LOG_IN = "Run `hf auth login`, or set HF_TOKEN to a token that may write."
REFUSALS = {
    400: ("it does not take what was sent", "Correct that, and push again."),
    401: ("it does not know the token", LOG_IN),
    403: ("the token may not write there", "Use a token with write access, or a name under an account of yours."),
    404: ("there is no such repository or revision, or the token may not see it", "Check the name and the token."),
    409: ("it was changed at the same time", "Look at what came in between, and run the same command again."),
    412: ("it was changed at the same time", "Look at what came in between, and run the same command again."),
    413: ("it takes nothing that large", "Push fewer exports."),
}
OFFLINE = "offline mode is on (HF_HUB_OFFLINE)"


def offline() -> bool:
    """Whether `huggingface_hub` was told to stay offline."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those behind it: libraries wrap what the Hub said."""
    while error is not None:
        yield error
        error = error.__cause__


def _answer(error: BaseException) -> Response | None:
    """What the Hub answered, if an answer is behind the error."""
    from requests import HTTPError

    return next(
        (one.response for one in _chain(error) if isinstance(one, HTTPError) and one.response is not None), None
    )


def status(error: BaseException) -> int | None:
    """The HTTP status that is behind an error, if there is one."""
    answer = _answer(error)
    return None if answer is None else answer.status_code


def _wait(error: BaseException) -> str:
    answer = _answer(error)
    seconds = None if answer is None else answer.headers.get("Retry-After")
    return f"; it asks to wait {seconds} s" if seconds else ""


def _said(error: BaseException) -> str:
    """What the Hub says itself, in brackets."""
    from huggingface_hub.errors import HfHubHTTPError

    for one in _chain(error):
        if isinstance(one, HfHubHTTPError) and one.server_message:
            return f" ({one.server_message.splitlines()[0].rstrip('.')})"
    return ""


def reason(error: BaseException) -> str:
    """Why the Hub did not give or take something, in a few words."""
    from requests import Timeout

    if offline():
        return OFFLINE
    code = status(error)
    if code == 429:
        return f"it has had too many requests (429){_wait(error)}"
    if code is not None:
        known = REFUSALS.get(code, ("it is in trouble", ""))[0]
        return f"{known} ({code}){_said(error)}"
    if any(isinstance(one, Timeout) for one in _chain(error)):
        return "it did not answer in time"
    return "the connection failed, or broke off"


@contextmanager
def publishing(repository: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into `PublishRefused` (to correct) or `PublishFailed` (try later)."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
    from requests import RequestException

    try:
        yield
    except (HfHubHTTPError, OfflineModeIsEnabled, RequestException, RuntimeError, ValueError) as error:
        raise explained(repository, error) from error


def explained(repository: str, error: Exception) -> NlpDistillError:
    """A failed push as an error of ours; what is none of the Hub's goes up as it is."""
    from huggingface_hub.errors import OfflineModeIsEnabled
    from requests import RequestException

    if offline() or any(isinstance(one, OfflineModeIsEnabled) for one in _chain(error)):
        return PublishRefused(repository=repository, reason=OFFLINE, fix="Unset HF_HUB_OFFLINE, or use --dry-run.")
    code = status(error)
    if code in REFUSALS:
        return PublishRefused(repository=repository, reason=reason(error), fix=REFUSALS[code][1])
    if any(isinstance(one, RequestException) for one in _chain(error)):
        return PublishFailed(repository=repository, reason=reason(error))
    if isinstance(error, ValueError) and "metadata" in str(error):
        told = str(error).splitlines()[-1].lstrip("- ")
        fix = "Correct the lines between --- in model/README.md."
        return PublishRefused(repository=repository, reason=f"its card is refused ({told})", fix=fix)
    raise error


def bars() -> bool:
    """Whether there is a terminal to draw progress on."""
    return sys.stderr.isatty()


def offline_mode() -> bool:
    """Whether the user asked to stay offline."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
