"""The tables. Times are milliseconds since 1970; a job's `epoch` is the fencing number of its attempts."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()


def _job_key() -> Column[str]:
    return Column("job_id", String(48), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True)


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("created_at", Integer, nullable=False),
    Column("name", String(200), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", String(32)),
    Column("detail", Text, nullable=False, server_default=""),
    Column("recipe", JSON, nullable=False),
    Column("recipe_sha256", String(64), nullable=False, index=True),
    Column("resources", JSON, nullable=False),
    Column("deadline_at", Integer),
    Column("parent_id", String(48)),
    Column("token_id", String(48)),
    Column("version", Integer, nullable=False, server_default="1"),
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("beat", Integer, nullable=False, server_default="0"),
    Column("worker_id", String(48)),
    Column("attempt_id", String(48)),
    Column("not_before", Integer, nullable=False, server_default="0"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("furthest", String(64), nullable=False, server_default=""),
    Column("run_ms", Integer, nullable=False, server_default="0"),
    Column("seq", Integer, nullable=False, server_default="0"),
    Column("consumed", Integer, nullable=False, server_default="0"),
    Column("progress", JSON),
    Column("started_at", Integer),
    Column("finished_at", Integer),
    Index("jobs_by_time", "created_at", "id"),
    Index("jobs_to_claim", "status", "priority", "created_at"),
)
attempts = Table(
    "attempts",
    metadata,
    Column("id", String(48), primary_key=True),
    _job_key(),
    Column("number", Integer, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("worker_id", String(48), nullable=False),
    Column("handle", Text),
    Column("started_at", Integer, nullable=False),
    Column("finished_at", Integer),
    Column("ending", String(16)),
    Column("reason", String(32)),
    Column("detail", Text, nullable=False, server_default=""),
)
events = Table(
    "events",
    metadata,
    Column("job_id", String(48), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("created_at", Integer, nullable=False),
    Column("type", String(16), nullable=False),
    Column("level", String(8), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
)
metrics = Table(
    "metrics",
    metadata,
    Column("job_id", String(48), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(120), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("value", Float, nullable=False),
    Column("created_at", Integer, nullable=False),
)
files = Table(
    "files",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("created_at", Integer, nullable=False),
    Column("name", String(200), nullable=False),
    Column("ending", String(8), nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
)
artifacts = Table(
    "artifacts",
    metadata,
    Column("id", String(48), primary_key=True),
    _job_key(),
    Column("path", Text, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("media_type", String(80), nullable=False),
)
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("created_at", Integer, nullable=False),
    Column("name", String(200), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("expires_at", Integer),
    Column("revoked", Boolean, nullable=False, server_default="0"),
)
idempotency = Table(
    "idempotency",
    metadata,
    Column("token_id", String(48), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("body_sha256", String(64), nullable=False),
    Column("job_id", String(48), nullable=False),
    Column("created_at", Integer, nullable=False),
)
workers = Table(
    "workers",
    metadata,
    Column("id", String(48), primary_key=True),
    Column("host", String(200), nullable=False),
    Column("process", String(120), nullable=False),
    Column("started_at", Integer, nullable=False),
    Column("seen_at", Integer, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("accepts", Boolean, nullable=False, server_default="1"),
)
