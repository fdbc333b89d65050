"""A look at an upload, as JSON: columns, a few rows, which column seems to be what. Parsed here, not in the server."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from nlp_distill.errors import DataError, NlpDistillError

ROWS, LONGEST, MOST_LABELS = 5, 300, 1000


def look(path: Path) -> dict[str, Any]:
    """Raises `DataError` for what cannot be read."""
    from nlp_distill.data import read_table
    from nlp_distill.recipe import Data
    from nlp_distill.task import load_task, task_names

    table = read_table(path)
    guessed: dict[str, dict[str, Any]] = {}
    roles, labels, trouble = {}, {}, {}
    for name in task_names():
        task = load_task(name)
        roles[name] = list(task.roles)
        try:
            guessed[name] = dict(task.columns(table, {}))
        except DataError:
            continue
        if "label" in task.roles:
            try:
                task.load_data(Data(dataset=str(path)))
                labels[name] = task.label_names[:MOST_LABELS]
            except DataError as error:
                trouble[name] = str(error).replace(str(path), "the file")
    first = table.select(range(min(ROWS, len(table))))
    rows = [{column: _short(value) for column, value in row.items()} for row in first]
    seen = {"columns": list(table.column_names), "rows": rows, "count": len(table), "guessed": guessed}
    return {**seen, "roles": roles, "labels": labels, "trouble": trouble}


def _short(value: Any) -> Any:
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def main() -> None:
    """`python -m nlp_distill.service.look FILE`."""
    try:
        sys.stdout.write(json.dumps(look(Path(sys.argv[1]))) + "\n")
    except NlpDistillError as error:
        sys.stderr.write(f"Error: {error}\n".replace("\n", " ") + "\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
