"""report.html of a whole run in a real browser: alone, in order, the same numbers, at any width, in the dark."""

import json

import pytest

import nlp_distill
from nlp_distill.reports.table import at_real
from nlp_distill.testing import GOOD, tiny_rows

pytestmark = pytest.mark.slow

EVIL = "<script>document.title='owned'</script><img src=http://evil.example/x onerror=\"document.title='owned'\">"
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d");
  const channels = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const words = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!words || !element.checkVisibility()) continue;
    let under = element, back = [0, 0, 0, 0];
    while (under && back[3] < 255) { back = channels(getComputedStyle(under).backgroundColor);
      if (back[3] < 255) under = under.parentElement; }
    const style = getComputedStyle(element);
    const ink = channels(element.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(element.textContent.trim().slice(0, 40));
  }
  return poor;
}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory, write_recipe):
    """A whole tiny run, its texts and one of its labels hostile."""
    folder = tmp_path_factory.mktemp("reported")
    for name, count in (("train", 160), ("validation", 60)):
        rows = [
            {"text": f"{row['text']} {EVIL}", "label": "good" if any(w in GOOD for w in row["text"].split()) else EVIL}
            for row in tiny_rows(count, seed=count)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = write_recipe(
        folder,
        data={"dataset": str(folder)},
        control=True,
        budget={"latency_ms": 1e-3, "size_mb": 100},
        export=[{"format": "onnx", "profile": "fast", "score_drop": 100}],
    )
    return nlp_distill.run(recipe, out=folder / "run")


@pytest.fixture
def opened(finished, browser, request):
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, asked, trouble = context.new_page(), [], []
    page.on("request", lambda sent: asked.append(sent.url))
    page.on("console", lambda said: trouble.append(said.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.goto((finished.path / "report.html").as_uri())
    page.wait_for_load_state("networkidle")
    yield page, asked, trouble
    context.close()


EVERY = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]


@pytest.mark.parametrize("opened", EVERY, indirect=True, ids=str)
def test_it_stands_alone_and_fits(opened, finished):
    page, asked, trouble = opened
    assert asked == [(finished.path / "report.html").as_uri()]
    assert trouble == []
    assert page.title() != "owned"
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    for details in page.locator("details").all():
        details.evaluate("element => { element.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate(CONTRAST) == []
    assert (finished.path / "report.html").stat().st_size < 2_000_000


@pytest.mark.parametrize("opened", [(1280, "light")], indirect=True, ids=str)
def test_its_numbers_are_those_of_the_results(opened, finished):
    page, _, _ = opened
    results = finished.results
    rows = page.locator("table.variants tbody tr").all()
    assert len(rows) == len(results["variants"])
    for row, variant in zip(rows, results["variants"], strict=True):
        assert variant["status"] in ("passed", "repaired")
        cells = [cell.inner_text().split("\n") for cell in row.locator("td").all()]
        low, high = variant["score_ci95"]
        latency = at_real(variant, results)
        assert row.locator("th").inner_text().split()[0] == variant["name"]
        assert cells[0] == [f"{variant['score'][results['metric']]:.2f}", f"{low:.2f} to {high:.2f}"]
        assert cells[1] == [f"{100 * variant['retained']:.1f} %"]
        assert cells[3] == [f"{100 * variant['agreement']:.1f} %"]
        assert cells[5] == [f"{variant['bytes'] / 1e6:.2f}"]
        assert cells[6] == [f"{latency['p50']:.2f}", f"p90 {latency['p90']:.2f}"]
    assert page.locator(".recommended th").inner_text().split()[0] == results["recommended"]
    assert page.locator("figure svg").count() >= 2 + 1 + 5, "two trade-offs, the selection scores, a plot a term"
    assert EVIL in page.locator("main").inner_text()
