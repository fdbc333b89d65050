"""The page of `nlp-distill serve` in a real browser: a text for every model, a question beside its context."""

import pytest
from playwright.sync_api import expect
from test_server import FP32, INT8, serving

expect.set_options(timeout=60_000)


@pytest.fixture
def page(browser):
    trouble = []
    page = browser.new_page()
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda said: trouble.append(said.text) if said.type == "error" else None)
    yield page
    page.close()
    assert not trouble


def test_a_text_gets_the_labels_of_every_variant(page, tmp_path, classifiers):
    with serving(tmp_path, "--variant", INT8, "--variant", FP32, classifiers["single"]) as server:
        page.goto(str(server.client.base_url))
        expect(page.locator("#text-label")).to_have_text("Text")
        expect(page.locator("#question-row")).to_be_hidden()
        page.fill("#text", "good film")
        with page.expect_request("**/compare") as asked:
            page.get_by_role("button", name="Ask").click()
        assert asked.value.post_data_json == {"inputs": "good film", "parameters": {"top_k": 6}}
        expect(page.locator("#answers article")).to_have_count(2)
        expect(page.locator("#answers article").first.locator(".score")).to_have_count(3)


def test_a_question_stands_beside_its_context(page, tmp_path, answerers):
    with serving(tmp_path, "--variant", FP32, answerers["v1"]) as server:
        page.goto(str(server.client.base_url))
        expect(page.locator("#text-label")).to_have_text("Context")
        expect(page.locator("#question")).to_have_value("Who wrote it?")
        page.fill("#question", "the plot")
        page.fill("#text", "a good film")
        with page.expect_request("**/compare") as asked:
            page.get_by_role("button", name="Ask").click()
        assert asked.value.post_data_json == {"inputs": {"question": "the plot", "context": "a good film"}}
        expect(page.locator("#answers article .answer")).to_have_count(1)
