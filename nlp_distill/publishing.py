"""The last stage of the road: what a run found goes to the Hub, where its recipe says so."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nlp_distill.hub import check_access, check_names, push
from nlp_distill.road import Road


def check_publish(road: Road, standing: Collection[str]) -> None:
    """Refuse before training what could not be published after. Raises `PublishRefused`, `PublishFailed`.

    `standing`: stages that will not be made again.
    """
    chosen = road.recipe.publish
    if chosen is None or not road.main or "publish" in standing:
        return
    check_names(chosen.repository, chosen.revision, chosen.create_pr)
    check_access(chosen.repository, chosen.create_pr)


def publish_stage(road: Road) -> tuple[list[str], dict[str, Any]]:
    """One commit with all of the run's deliverables; none where the Hub has them already."""
    chosen = road.recipe.publish
    if chosen is None or not road.main:
        return [], {"published": None}

    def say(line: str) -> None:
        road.notify("note", message=line)

    done = push(road.rundir.path, say=say, **chosen.model_dump())
    say(f"published: {done.url}" if done.changed else f"{done.repository} has all of it already")
    return [], {"published": {"repository": done.repository, "commit": done.commit, "url": done.url}}
