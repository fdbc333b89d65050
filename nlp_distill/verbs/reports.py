"""`nlp-distill report`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from nlp_distill.verbs.common import JsonOption, say


def report(
    run: Annotated[str, typer.Argument(help="The folder of a finished run.")],
    as_json: JsonOption = False,
) -> None:
    """Write report.html and report.md of a finished run anew; nothing is trained or measured."""
    from nlp_distill.reports.pages import report as write

    made = write(run)
    if as_json:
        sys.stdout.write(json.dumps({"files": [str(file) for file in made]}) + "\n")
    for file in [] if as_json else made:
        say(str(file))
