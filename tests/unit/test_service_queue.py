"""The whole life of jobs against a small model of it: one owner, legal transitions, gapless events, ends that stay."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from sqlalchemy import select

from nlp_distill.service.reasons import CAUSES, Ending, Reason
from nlp_distill.service.store import journal
from nlp_distill.service.store.database import Database
from nlp_distill.service.store.queue import OWNED, TERMINAL, Artifact, Claim, Fenced, Policy, Queue, WrongStatus
from nlp_distill.service.store.tables import artifacts, attempts, jobs, metadata

GIVEN = {"name": "", "tags": [], "recipe": {"a": 1}, "recipe_sha256": "0", "resources": {}}
LEGAL = {
    "queued": {"starting", "paused", "cancelled", "failed"},
    "starting": {"running", "pausing", "cancelling", "succeeded", "failed", "queued"},
    "running": {"pausing", "cancelling", "succeeded", "failed", "queued"},
    "pausing": {"paused", "cancelling", "succeeded", "failed"},
    "cancelling": {"cancelled"},
    "paused": {"queued", "cancelled", "failed"},
    "succeeded": set(),
    "failed": {"queued"},
    "cancelled": {"queued"},
}
USER, INFRA, POLICY_REASON = Reason.DATASET_ERROR, Reason.PROCESS_LOST, Reason.TIMEOUT
ENDINGS = [
    Ending("ok"),
    Ending("stopped"),
    Ending("failed", USER, "bad rows"),
    Ending("failed", INFRA, "killed"),
    Ending("failed", POLICY_REASON, "too long"),
]
MOST = 3


def open_queue(folder, clock=None, **policy):
    return Queue(Database(Path(folder) / "jobs.db").migrate(), Policy(**policy), *([clock] if clock else []))


def submit(queue, **given):
    with queue.database.writing() as connection:
        return queue.submit(connection, **{**GIVEN, "priority": 0, **given})


def seen(queue, job_id):
    with queue.database.reading() as connection:
        return connection.execute(select(jobs).where(jobs.c.id == job_id)).first()


def said(queue, job_id):
    with queue.database.reading() as connection:
        return journal.read(connection, job_id, 0, 100_000)


class JobLives(RuleBasedStateMachine):
    names = Bundle("names")
    owners = Bundle("owners")
    lost = Bundle("lost")

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1_000_000
        self.queue = open_queue(self.folder.name, lambda: self.now, most_failures=MOST, backoff_ms=1000)
        self.status, self.owner, self.failures, self.wait, self.priority = {}, {}, {}, {}, {}
        self.furthest, self.deadline, self.order, self.written = {}, {}, [], {}

    def teardown(self):
        self.queue.database.close()
        self.folder.cleanup()

    def becomes(self, job, status):
        assert status == self.status[job] or status in LEGAL[self.status[job]], (self.status[job], status)
        self.written[job] += status != self.status[job]
        self.status[job] = status

    @rule(target=names, priority=st.integers(-2, 2), deadline=st.none() | st.integers(1, 5000))
    def submits(self, priority, deadline):
        at = None if deadline is None else self.now + deadline
        job = submit(self.queue, priority=priority, deadline_at=at)
        self.status[job], self.failures[job], self.wait[job], self.priority[job] = "queued", 0, 0, priority
        self.furthest[job], self.deadline[job], self.written[job] = "", at, 1
        self.order.append(job)
        return job

    @rule(target=owners, worker=st.sampled_from(["w1", "w2", "w3"]))
    def claims(self, worker):
        ready = [j for j in self.order if self.status.get(j) == "queued" and self.wait[j] <= self.now]
        claim = self.queue.claim(worker)
        if not ready:
            assert claim is None
            return (None, None)
        best = max(self.priority[job] for job in ready)
        assert claim.job_id in ready and self.priority[claim.job_id] == best
        self.becomes(claim.job_id, "starting")
        self.owner[claim.job_id] = claim
        return (claim.job_id, claim)

    def owns(self, claim):
        return claim is not None and self.owner.get(claim.job_id) is claim

    def tries(self, claim, act):
        """An owner may; who was given up may not, and changes nothing."""
        if claim is None:
            return None
        if self.owns(claim):
            return act()
        with pytest.raises(Fenced):
            act()
        return None

    @rule(owner=owners)
    def starts(self, owner):
        job, claim = owner
        self.tries(claim, lambda: self.queue.started(claim, "handle"))
        if self.owns(claim) and self.status[job] == "starting":
            self.becomes(job, "running")

    @rule(owner=owners)
    def beats(self, owner):
        job, claim = owner
        status = self.tries(claim, lambda: self.queue.beat(claim, 5))
        assert status is None or status == self.status[job]

    @rule(owner=owners, count=st.integers(0, 4))
    def takes_in(self, owner, count):
        job, claim = owner
        happened = [journal.Event("log", "line")] * count
        self.tries(claim, lambda: self.queue.take_in(claim, happened, [], count, None))
        if self.owns(claim):
            self.written[job] += count

    @rule(owner=consumes(owners), ending=st.sampled_from(ENDINGS), step=st.integers(0, 3))
    def ends(self, owner, ending, step):
        job, claim = owner
        furthest = f"{step:04d}"
        made = [Artifact("a", 1, "0", "text/plain")]
        got = self.tries(claim, lambda: self.queue.finish(claim, ending, furthest, made))
        if got is None:
            return
        infra = ending.reason is INFRA
        self.failures[job] = (0 if furthest > self.furthest[job] else self.failures[job]) + infra
        self.furthest[job] = max(furthest, self.furthest[job])
        before = self.status[job]
        if before == "cancelling":
            want = "cancelled"
        elif ending.kind == "ok":
            want = "succeeded"
        elif before == "pausing" and (infra or ending.kind == "stopped"):
            want = "paused"
        elif ending.kind == "stopped" or (infra and self.failures[job] < MOST):
            want = "queued"
        else:
            want = "failed"
        assert got == want
        self.becomes(job, want)
        self.wait[job] = seen(self.queue, job).not_before
        assert (self.wait[job] > self.now) == (want == "queued" and infra)
        del self.owner[job]

    @rule(owner=owners, looked=st.booleans())
    def is_given_up(self, owner, looked):
        """By a watcher who saw the count stand still, or who looked at an older count."""
        job, claim = owner
        if not self.owns(claim):
            return
        row = seen(self.queue, job)
        given_up = self.queue.give_up(job, row.epoch, row.beat - (not looked), "its worker is gone")
        assert given_up == looked
        if not looked:
            return
        self.failures[job] += 1
        before, want = self.status[job], "queued" if self.failures[job] < MOST else "failed"
        want = {"cancelling": "cancelled", "pausing": "paused"}.get(before, want)
        self.becomes(job, want)
        self.wait[job] = 0
        del self.owner[job]

    def asks(self, act, job, idle, working, on_the_way, done):
        if job not in self.status:
            with pytest.raises(LookupError):
                act(job)
            return
        status = self.status[job]
        if status in (on_the_way, done):
            assert act(job) == status
        elif status in idle or status in working:
            want = done if status in idle else on_the_way
            assert act(job) == want
            self.becomes(job, want)
        else:
            with pytest.raises(WrongStatus):
                act(job)

    @rule(job=names)
    def cancels(self, job):
        self.asks(
            self.queue.cancel, job, ("queued", "paused"), ("starting", "running", "pausing"), "cancelling", "cancelled"
        )

    @rule(job=names)
    def pauses(self, job):
        self.asks(self.queue.pause, job, ("queued",), ("starting", "running"), "pausing", "paused")

    @rule(job=names)
    def resumes(self, job):
        self.asks(self.queue.resume, job, ("paused",), (), "queued", "queued")
        if self.status.get(job) == "queued":
            self.wait[job] = seen(self.queue, job).not_before

    @rule(job=names)
    def retries(self, job):
        before = self.status.get(job)
        self.asks(self.queue.retry, job, ("failed", "cancelled"), (), "queued", "queued")
        if before in ("failed", "cancelled"):
            self.failures[job], self.wait[job], self.deadline[job] = 0, 0, None

    @rule(job=names)
    def removes(self, job):
        if self.status.get(job) not in TERMINAL:
            with pytest.raises((WrongStatus, LookupError)):
                self.queue.remove(job)
            return
        self.queue.remove(job)
        del self.status[job]
        assert said(self.queue, job) == []

    @rule(by=st.integers(1, 4000))
    def time_passes(self, by):
        self.now += by

    @rule()
    def deadlines_are_kept(self):
        late = {
            job
            for job, status in self.status.items()
            if status in ("queued", "paused") and self.deadline[job] is not None and self.deadline[job] <= self.now
        }
        assert set(self.queue.expire()) == late
        for job in late:
            self.becomes(job, "failed")

    @invariant()
    def the_store_says_the_same(self):
        for job, status in self.status.items():
            row = seen(self.queue, job)
            assert row.status == status
            assert (row.status in OWNED) == (job in self.owner)
            assert row.seq == self.written[job]
            assert (row.finished_at is not None) == (status in TERMINAL)
            assert row.failures == self.failures[job]

    @invariant()
    def events_have_no_gap(self):
        for job in self.status:
            numbers = [event["seq"] for event in said(self.queue, job)]
            assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) == self.written[job]

    @invariant()
    def artifacts_belong_to_success(self):
        with self.queue.database.reading() as connection:
            owners = {row.job_id for row in connection.execute(select(artifacts))}
        assert owners == {job for job, status in self.status.items() if status == "succeeded"}


JobLives.TestCase.settings = settings(
    max_examples=12, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
TestJobLives = JobLives.TestCase


def test_the_migrated_tables_are_those_of_the_code(tmp_path):
    database = Database(tmp_path / "jobs.db").migrate()
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_every_commit_is_durable(tmp_path):
    database = Database(tmp_path / "jobs.db").migrate()
    with database.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_workers_at_once_claim_each_job_once(tmp_path):
    first = open_queue(tmp_path)
    names = {submit(first) for _ in range(60)}

    def work(worker):
        queue, mine = open_queue(tmp_path), []
        while (claim := queue.claim(worker)) is not None:
            mine.append(claim)
            queue.finish(claim, Ending("ok"))
        queue.database.close()
        return mine

    with ThreadPoolExecutor(4) as pool:
        claims = [claim for mine in pool.map(work, "abcd") for claim in mine]
    assert len(claims) == 60 and {claim.job_id for claim in claims} == names
    with first.database.reading() as connection:
        assert len(connection.execute(select(attempts)).all()) == 60


def test_priority_then_age(tmp_path):
    queue = open_queue(tmp_path)
    late, early = submit(queue), submit(queue, priority=5)
    assert [queue.claim("w").job_id, queue.claim("w").job_id] == [early, late]


def test_a_job_that_keeps_killing_its_attempts_ends_and_the_next_one_runs(tmp_path):
    queue = open_queue(tmp_path, backoff_ms=0)
    poison, next_one = submit(queue, priority=1), submit(queue)
    for _ in range(3):
        claim = queue.claim("w")
        assert claim.job_id == poison
        queue.finish(claim, Ending("failed", Reason.PROCESS_LOST, "killed by signal 9"), "00")
    row = seen(queue, poison)
    assert (row.status, row.reason) == ("failed", "attempts_exhausted") and "signal 9" in row.detail
    assert queue.claim("w").job_id == next_one


def test_attempts_that_get_further_are_not_counted(tmp_path):
    queue = open_queue(tmp_path, backoff_ms=0)
    job = submit(queue)
    for step in range(10):
        queue.finish(queue.claim("w"), Ending("failed", Reason.PROCESS_LOST, ""), f"{step + 1:04d}")
    assert seen(queue, job).status == "queued"


def test_nor_are_workers_lost_whose_attempts_got_further(tmp_path):
    queue = open_queue(tmp_path, backoff_ms=0)
    job = submit(queue)

    def lose(furthest):
        assert queue.claim("w") is not None
        row = seen(queue, job)
        assert queue.give_up(job, row.epoch, row.beat, "Its worker is gone.", furthest)

    for step in range(10):
        lose(f"{step + 1:04d}")
    assert seen(queue, job).status == "queued"
    for _ in range(2):
        lose("0010")
    assert (seen(queue, job).status, seen(queue, job).reason) == ("failed", "attempts_exhausted")


def test_what_a_run_said_is_kept_once_with_how_far_it_was_read(tmp_path):
    queue = open_queue(tmp_path)
    job = submit(queue)
    claim = queue.claim("w")
    queue.take_in(claim, [journal.Event("log", "a")], [journal.Point("loss", 1, 0.5, 0)], 17, {"step": 1})
    stale = Claim(**{**claim.__dict__, "epoch": claim.epoch + 1})
    with pytest.raises(Fenced):
        queue.take_in(stale, [journal.Event("log", "b")], [], 40, None)
    assert seen(queue, job).consumed == 17
    assert [event["message"] for event in said(queue, job)] == ["queued", "starting", "a"]
    queue.finish(claim, Ending("stopped"))
    assert queue.claim("w").consumed == 17


def test_a_curve_is_thinned_without_losing_its_peaks():
    points = [(step, 100.0 if step == 4321 else -50.0 if step == 77 else step % 7, 0) for step in range(10_000)]
    thin = journal.thinned(points, 1000)
    assert len(thin) <= 1000 and thin == sorted(thin)
    assert {(4321, 100.0, 0), (77, -50.0, 0), points[0], points[-1]} <= set(thin)
    assert journal.thinned(points[:5], 1000) == points[:5]


def test_every_reason_has_a_cause():
    assert {CAUSES.get(reason, "user") for reason in Reason} == {"user", "infra", "policy"}
