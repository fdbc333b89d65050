"""The pages in a real browser: a stranger's way from a file to a student, by mouse, by keyboard, without a script."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import httpx
import pytest
import uvicorn
from conftest import RECIPE, free_ports, until
from playwright.sync_api import expect
from test_api import finished
from test_page import EVIL, REPORT, RESULTS, running

from nlp_distill.service.api.app import service_app
from nlp_distill.service.home import Home
from nlp_distill.service.reasons import Ending, Reason
from nlp_distill.service.store.journal import Event
from nlp_distill.service.store.queue import Claim, Queue
from nlp_distill.service.store.tables import jobs as table
from nlp_distill.testing import save_tiny, tiny_rows

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
MOST_CLICKS = 5
PATIENCE_MS = 600_000
expect.set_options(timeout=60_000)
CANARY = "document.title='owned'"
HOSTILE = f'<script>{CANARY}</script><img src=http://evil.example/x onerror="{CANARY}"><b>{EVIL}'


class Visitor:
    """A person's browser: its page, and everything that should not have happened."""

    def __init__(self, browser, url, **settings):
        self.url, self.trouble, self.clicks = url, [], 0
        self.context = browser.new_context(viewport=WIDE, **settings)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", self._asked)
        self.page.on("console", lambda said: self._said(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("dialog", lambda dialog: self.trouble.append(dialog.message))

    def _asked(self, sent):
        if not sent.url.startswith((self.url, "data:")):
            self.trouble.append(f"asked {sent.url}")

    def _said(self, text):
        # That the server is away, or that a form is not right yet, is no fault of the page.
        away = ("ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_EMPTY", "htmx:afterRequest", "htmx:sendError")
        if not any(word in text for word in (*away, "status of 422")):
            self.trouble.append(text)

    def go(self, place):
        self.page.goto(f"{self.url}{place}")

    def click(self, what, name):
        self.clicks += 1
        self.page.get_by_role(what, name=name, exact=True).click()

    def sign_in(self, token):
        self.go("/login")
        self.page.get_by_label("Token").fill(token)
        self.page.get_by_label("Token").press("Enter")
        self.page.wait_for_url(f"{self.url}/")


@pytest.fixture
def visit(browser):
    visitors = []

    def begin(url, **settings):
        visitors.append(Visitor(browser, url, **settings))
        return visitors[-1]

    yield begin
    for visitor in visitors:
        visitor.context.close()


# Pages of a service that has no worker: jobs are as a test made them


class Site:
    """A server in a thread of the test's."""

    def __init__(self, folder):
        self.home = Home(folder / "home").make()
        self.app = service_app(self.home)
        self.port = free_ports()[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        until(lambda: self.server.started)
        self.token = self.home.admin_token()

    def end(self):
        self.app.state.service.feed.close()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"))
    yield made
    made.end()


@pytest.fixture(scope="module")
def there(site):
    """Jobs of several kinds, all of their words hostile."""

    class Api(httpx.Client):
        app = site.app

    api = Api(base_url=site.url, headers={"Authorization": f"Bearer {site.token}"})

    def submit(name, **recipe):
        answer = api.post("/v1/jobs", json={"recipe": {**RECIPE, **recipe}, "name": name, "tags": [HOSTILE[:60]]})
        return answer.json()["id"]

    jobs = {}
    for number, name in enumerate(("one", "two")):
        jobs[name] = submit(f"{name} {HOSTILE}", seed=number)
        results = {**RESULTS, "metric": HOSTILE}
        results["variants"] = [{**v, "score": {HOSTILE: v["score"]["accuracy"]}} for v in results["variants"]]
        finished(site.home, api, jobs[name], files={"report.html": REPORT, "results.json": json.dumps(results)})
    jobs["failed"] = submit(f"failed {HOSTILE}", seed=3)
    queue, claim = running(api, jobs["failed"])
    queue.finish(claim, Ending("failed", Reason.RUN_FAILED, HOSTILE))
    jobs["running"] = submit(f"running {HOSTILE}", seed=4)
    _, claim = running(api, jobs["running"])
    log = site.home.log(jobs["running"], claim.attempt_id)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(f"first {HOSTILE}\n")
    rows = "".join(f'"text {n} {HOSTILE.replace(chr(34), "")}",{"<b>good" if n % 3 else "bad"}\n' for n in range(60))
    jobs["file"] = api.post("/v1/files?name=a.csv", content=f"text,<i>label\n{rows}".encode()).json()["id"]
    assert api.get(f"/new?file={jobs['file']}", timeout=120).status_code == 200
    # From now on looks at data end at once: each would load PyTorch.
    site.app.state.service.limits = replace(site.app.state.service.limits, side_process_s=0.01)
    yield jobs
    api.close()


def places(jobs):
    made = [f"/jobs/{jobs[name]}" for name in ("one", "failed", "running")]
    made += [f"/jobs/{jobs['one']}/{part}" for part in ("report", "try")]
    made += ["/", "/new", "/new?template=quickstart", f"/new?file={jobs['file']}", "/system", "/compare"]
    return [*made, f"/compare?job={jobs['one']}&job={jobs['two']}"]


def test_pages_fit_load_nothing_and_run_nothing_of_what_they_show(site, there, visit):
    for size, scheme in ((WIDE, "light"), (NARROW, "dark")):
        visitor = visit(site.url, color_scheme=scheme)
        visitor.page.set_viewport_size(size)
        visitor.sign_in(site.token)
        for place in places(there):
            visitor.go(place)
            visitor.page.wait_for_load_state("load")
            for fold in visitor.page.locator("main details").all():
                fold.evaluate("fold => { fold.open = true }")
            wide = visitor.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= size["width"], (place, wide)
            assert visitor.page.title() != "owned" and visitor.page.locator("main img, main b").count() == 0, place
        # The report's script is kept from running, which the browser says.
        assert [said for said in visitor.trouble if "sandboxed" not in said] == [], scheme


def test_the_report_is_seen_and_does_nothing(site, there, visit):
    visitor = visit(site.url)
    visitor.sign_in(site.token)
    visitor.go(f"/jobs/{there['one']}/report")
    inside = visitor.page.frame_locator("iframe")
    expect(inside.get_by_text("All good.")).to_be_visible()
    colour = inside.locator("p").evaluate("p => getComputedStyle(p).color")
    assert colour == "rgb(255, 0, 0)", "its own style holds"
    assert visitor.page.evaluate("window.owned === undefined")
    # The browser says that it kept the report's script from running, and nothing else.
    assert all("sandboxed" in said for said in visitor.trouble) and len(visitor.trouble) == 1


def test_a_running_job_is_seen_as_it_runs(site, there, visit):
    job = there["running"]
    visitor = visit(site.url)
    visitor.sign_in(site.token)
    visitor.go(f"/jobs/{job}")
    page = visitor.page
    expect(page.locator(".uplot")).to_have_count(2)
    before = page.locator("figure[data-curve='distill.loss.hidden'] .plot").get_attribute("aria-label")
    queue = Queue(site.app.state.service.database)
    with queue.database.reading() as connection:
        row = connection.execute(table.select().where(table.c.id == job)).one()
    claim = Claim(job, row.epoch, row.attempt_id, 1, {}, {})
    data = {"stage": "distill", "step": 7, "steps": 9, "losses": {"hidden": 0.125, "logits": 2.0}}
    queue.take_in(claim, [Event("progress", "distill 7/9", data)], [], 1, {"stage": "distill", "step": 7, "steps": 9})
    with site.home.log(job, row.attempt_id).open("a") as log:
        log.write(f"second {HOSTILE}\n")
    plot = page.locator("figure[data-curve='distill.loss.hidden'] .plot")
    expect(plot).to_have_attribute("aria-label", "loss of hidden: from 1.000 to 0.1250 at 7")
    assert before == "loss of hidden: from 1.000 to 0.3333 at 3"
    expect(page.locator("#far")).to_contain_text("7 of 9")
    expect(page.locator("#log")).to_contain_text("second <script>")
    visitor.click("button", "Cancel")
    expect(page.locator("h1")).to_contain_text("cancelling")
    queue.finish(claim, Ending("stopped"))
    expect(page.locator("h1")).to_contain_text("cancelled")
    expect(page.get_by_role("button", name="Retry")).to_be_visible()
    assert visitor.trouble == [] and page.title() != "owned"


def test_a_typo_is_shown_at_its_field_while_it_is_typed(site, there, visit):
    visitor = visit(site.url)
    visitor.sign_in(site.token)
    visitor.go("/new?template=quickstart")
    epochs = visitor.page.get_by_label("Epochs", exact=True).first
    epochs.press_sequentially("1o")
    expect(visitor.page.locator("#f-distill-phases-0-epochs-error")).to_contain_text("integer")
    expect(epochs).to_have_attribute("aria-invalid", "true")
    assert epochs.input_value() == "1o" and epochs.evaluate("input => input === document.activeElement")
    epochs.fill("10")
    expect(visitor.page.locator("#f-distill-phases-0-epochs-error")).to_be_empty()
    visitor.page.get_by_text("Show as YAML").click()
    expect(visitor.page.locator("#code-yaml")).to_contain_text("epochs: 10")
    visitor.page.locator("summary", has_text=re.compile("^student")).click()
    visitor.page.locator("#f-student-model").fill("a/b")
    expect(visitor.page.locator("#g-student-error")).to_contain_text("exactly one of")
    assert visitor.trouble == []


def test_an_answer_to_what_stood_before_does_not_silence_what_is_typed(site, there, visit):
    """The first check is answered late, between a letter and the question that it will cause."""
    visitor = visit(site.url)
    visitor.sign_in(site.token)
    held = []
    visitor.page.route("**/new/check", lambda route: held.append(route), times=1)
    visitor.go("/new?template=quickstart")
    until(lambda: held or visitor.page.wait_for_timeout(50))
    answer = held[0].fetch()
    typed = """name => {
      const input = document.getElementById(name);
      input.value = "1o";
      input.dispatchEvent(new Event("input", { bubbles: true }));
    }"""
    visitor.page.evaluate(typed, "f-distill-phases-0-epochs")
    held[0].fulfill(response=answer)
    expect(visitor.page.locator("#f-distill-phases-0-epochs-error")).to_contain_text("integer")


def test_what_is_typed_while_other_fields_are_fetched_stays(site, there, visit):
    visitor = visit(site.url)
    visitor.sign_in(site.token)
    visitor.go("/new?template=quickstart")
    page, held = visitor.page, []
    page.route("**/new", lambda route: held.append(route), times=1)
    kind = page.locator("[name='distill.phases.0.losses.0.kind']")
    kind.evaluate("one => { for (let at = one; at; at = at.parentElement) if (at.matches('details')) at.open = true; }")
    kind.select_option("relation")
    until(lambda: held or page.wait_for_timeout(50))
    page.locator("[name='job.name']").fill("typed meanwhile")
    held[0].continue_()
    expect(page.locator("[name='distill.phases.0.losses.0.heads']")).to_have_count(1)
    assert page.locator("[name='job.name']").input_value() == "typed meanwhile"
    assert kind.input_value() == "relation"
    assert page.evaluate("document.activeElement.name") == "job.name"


def test_what_was_unticked_stays_so_when_the_list_changes(site, there, visit):
    visitor = visit(site.url)
    visitor.sign_in(site.token)
    page = visitor.page
    boxes = page.locator("tbody input")
    first, name = boxes.first, boxes.first.get_attribute("id")
    first.check()
    for _ in range(2):
        with page.expect_response("**/?status=*"):
            page.evaluate("document.body.dispatchEvent(new Event('tick'))")
    first.uncheck()
    rows = page.locator("tbody tr").count()
    httpx.post(
        f"{site.url}/v1/jobs",
        headers={"Authorization": f"Bearer {site.token}"},
        json={"recipe": RECIPE, "name": "later"},
    ).raise_for_status()
    expect(page.locator("tbody tr")).to_have_count(rows + 1)
    assert not page.locator(f"[id='{name}']").is_checked()


def test_everything_is_read_and_asked_without_a_script(site, there, visit):
    visitor = visit(site.url, java_script_enabled=False)
    page = visitor.page
    visitor.sign_in(site.token)
    expect(page.locator("tbody tr")).not_to_have_count(0)
    page.get_by_label("Status").select_option("succeeded")
    visitor.click("button", "Filter")
    expect(page.locator("tbody tr")).to_have_count(2)
    for box in page.locator("tbody input").all():
        box.check()
    visitor.click("button", "Compare those ticked")
    expect(page.locator("main svg")).to_have_count(2)
    visitor.go(f"/jobs/{there['failed']}")
    expect(page.get_by_role("alert")).to_contain_text("run failed")
    expect(page.locator("#curves svg")).to_have_count(2)
    visitor.go(f"/jobs/{there['running']}")
    expect(page.locator("#log")).to_contain_text("first <script>")
    visitor.go("/new?template=quickstart")
    page.locator("#f-student-layers").fill("none")
    visitor.click("button", "Submit")
    expect(page.locator("#f-student-layers-error")).to_contain_text("integer")
    page.locator("#f-student-layers").fill("2")
    visitor.click("button", "Submit")
    expect(page.locator("h1")).to_contain_text("quickstart queued")
    visitor.click("button", "Cancel")
    expect(page.locator("h1")).to_contain_text("cancelled")
    assert visitor.trouble == []


FOCUSED = """() => { const one = document.activeElement; const style = getComputedStyle(one);
  return { name: (one.getAttribute("aria-label") || one.textContent || one.name || "").trim().slice(0, 40),
    tag: one.tagName,
    seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 }; }"""


def tab_to(page, name, most=60):
    """Press Tab until something has the focus; wherever it goes, it can be seen."""
    for _ in range(most):
        page.keyboard.press("Tab")
        here = page.evaluate(FOCUSED)
        assert here["seen"] or here["tag"] == "BODY", here
        if here["name"] == name:
            return
    raise AssertionError(f"{name} was not reached")


def test_by_keyboard_alone(site, there, visit):
    visitor = visit(site.url)
    page = visitor.page
    visitor.go("/login")
    assert page.evaluate("document.activeElement.id") == "token"
    page.keyboard.type(site.token)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.url}/")
    tab_to(page, "To the content", 1)
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    tab_to(page, "New job", 3)
    page.keyboard.press("Enter")
    page.wait_for_url("**/new")
    tab_to(page, "quickstartSST-2 sentiment, 6 to 3 layers")
    page.keyboard.press("Enter")
    page.wait_for_url("**/new?template=quickstart")
    tab_to(page, "Submit")
    page.keyboard.press("Enter")
    page.wait_for_url("**/jobs/job_*")
    expect(page.locator("h1")).to_contain_text("quickstart queued")
    tab_to(page, "Cancel")
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text("cancelled")
    tab_to(page, "Remove")
    page.keyboard.press("Enter")
    tab_to(page, "Remove it", 1)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{site.url}/")
    assert visitor.trouble == []


# A whole service


class Service:
    """`nlp-distill serve --jobs` with a port of its own; it may be killed and started again."""

    def __init__(self, folder):
        self.folder, self.home, self.port = folder, Home(folder / "home"), free_ports()[0]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "NLP_DISTILL_SERVICE": str(self.home.path)}
        self.environment["PYTHONPATH"] = f"{folder}:{os.environ.get('PYTHONPATH', '')}"
        self.start()

    def start(self):
        line = [sys.executable, "-m", "nlp_distill.cli", "serve", "--jobs", "--port", str(self.port)]
        self.process = subprocess.Popen(
            line, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        said = [self.process.stdout.readline() for _ in range(3)]
        self.link = re.search(r"Page: +(\S+)", said[2]).group(1)
        until(self._listens)

    def _listens(self):
        with socket.socket() as asked:
            return asked.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        """Server and worker, at once; what they ran dies with them."""
        worker = int((self.home.path / ".worker").read_text().split(":")[0])
        for pid in (self.process.pid, worker):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def end(self):
        self.process.terminate()
        self.process.wait(300)
        self.process.stdout.close()


@pytest.fixture
def service(tmp_path):
    save_tiny(tmp_path / "tiny_teacher" / "model", auto_class="AutoModel", hidden_dropout_prob=0.1)
    (tmp_path / "tiny_teacher" / "__init__.py").touch()
    lines = [f"{row['text']},{row['label']}\n" for row in tiny_rows(200)]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(lines))
    made = Service(tmp_path)
    yield made
    made.end()


@pytest.mark.slow
def test_from_ones_own_rows_to_a_student_through_a_restart(service, visit):
    visitor = visit(service.url)
    page = visitor.page
    page.goto(service.link)
    page.wait_for_url(f"{service.url}/")
    assert service.link.partition("#")[2] not in page.url
    visitor.click("link", "New job")
    page.get_by_label("File").set_input_files(service.folder / "rows.csv")
    visitor.click("button", "Upload")
    page.wait_for_url("**/new?file=*")
    # On a busy machine it says that it has not looked at the rows; a person would ask again.
    until(page.locator("#rows").is_visible, 600, act=page.reload)
    expect(page.locator(".labels bdi")).to_have_count(2)
    page.get_by_label("Teacher").fill("package:tiny_teacher/model")
    page.locator("#f-student-layers").fill("2")
    page.get_by_label("Epochs", exact=True).first.fill("8")
    for name in ("teacher", "finetune", "distill", "export"):
        page.locator("summary", has_text=re.compile(rf"^\s*{name}\b")).first.click()
    page.locator("[name='teachers.0.finetune']").select_option("")
    page.locator("[name='teachers.0.finetune.epochs']").fill("1")
    page.locator("[name='distill.phases.0.batch_size']").fill("8")
    page.locator("[name='distill.phases.0.checkpoint_minutes']").fill("0")
    page.locator("[name='export.0.format']").select_option("")
    expect(page.locator("[name='export.0.profile']")).to_have_count(0)
    visitor.click("button", "Submit")
    page.wait_for_url("**/jobs/job_*")
    job = page.url.rpartition("/")[2]
    page.locator("figure[data-curve='distill.loss.hidden'] .uplot").wait_for(timeout=PATIENCE_MS)
    until(lambda: any("distill" in str(path) for path in service.home.run(job).rglob("checkpoints/**/step-*")), 600)
    service.kill()
    time.sleep(1.0)
    service.start()
    expect(page.locator("h1")).to_contain_text("succeeded", timeout=PATIENCE_MS)
    expect(page.locator(".rail .done")).to_have_count(9)
    expect(page.locator("#log")).to_contain_text("Recommended", timeout=PATIENCE_MS)
    shown = page.request.get(f"{service.url}/v1/jobs/{job}").json()
    assert shown["status"] == "succeeded" and shown["attempt"] == 2
    visitor.click("link", "Open the report")
    expect(page.frame_locator("iframe").get_by_text("Every variant")).to_be_visible()
    with page.expect_download() as coming:
        page.get_by_role("link", name=re.compile("^Download")).click()
    assert "Every variant" in coming.value.path().read_text()
    page.go_back()
    with page.expect_download() as coming:
        page.get_by_role("link", name=re.compile("^Download all")).click()
    assert coming.value.path().read_bytes().startswith(b"PK")
    page.locator("#state").get_by_role("link", name="Try it").click()
    page.get_by_label("Text", exact=True).fill("good fine great")
    visitor.click("button", "Ask")
    expect(page.locator("#answers .card")).to_have_count(2, timeout=PATIENCE_MS)
    expect(page.locator("#answers .card").last).to_contain_text("ms")
    assert visitor.trouble == []


@pytest.mark.slow
def test_the_quickstart_in_five_clicks(service, visit):
    """From the link to a finished job and its report, with fewer rows than the whole; no YAML."""
    visitor = visit(service.url)
    page = visitor.page
    page.goto(service.link)
    visitor.click("link", "Start with the quickstart")
    visitor.clicks += 1
    page.locator("summary", has_text=re.compile(r"^\s*data\b")).click()
    visitor.clicks += 1
    page.locator("[name='data.limit']").click()
    page.keyboard.type("400")
    visitor.click("button", "Submit")
    page.wait_for_url("**/jobs/job_*")
    expect(page.locator("h1")).to_contain_text("succeeded", timeout=30 * 60_000)
    visitor.click("link", "Open the report")
    expect(page.frame_locator("iframe").get_by_text("Recommended: student")).to_be_visible()
    assert visitor.clicks <= MOST_CLICKS and visitor.trouble == []
