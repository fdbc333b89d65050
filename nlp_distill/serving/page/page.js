"use strict";

const byId = (id) => document.getElementById(id);
const [form, text, question, token, said, answers] = ["ask", "text", "question", "token", "said", "answers"].map(byId);
const MOST_LABELS = 6;
const TRIED = { classification: { top_k: MOST_LABELS } };
const TOKEN = "nlpd-token";
let models = [];

token.value = sessionStorage.getItem(TOKEN) || "";

function element(name, className, content) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (content !== undefined) made.textContent = content;
  return made;
}

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if (token.value) headers.authorization = `Bearer ${token.value}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const told = await answer.json();
  if (answer.status === 401) {
    byId("token-row").hidden = false;
    token.focus();
  } else if (token.value) {
    sessionStorage.setItem(TOKEN, token.value);
  }
  if (!answer.ok) throw new Error(told.detail);
  return told;
}

function isQuestion() {
  return models.length > 0 && models[0].example.question !== undefined;
}

function inputs() {
  return isQuestion() ? { question: question.value, context: text.value } : text.value;
}

function request() {
  return { inputs: inputs(), parameters: TRIED[models.length ? models[0].task : ""] };
}

async function load() {
  models = await call("/models");
  const example = models[0].example;
  byId("question-row").hidden = !isQuestion();
  question.required = isQuestion();
  byId("text-label").textContent = isQuestion() ? "Context" : "Text";
  if (!text.value) {
    text.value = isQuestion() ? example.context : example;
    question.value = isQuestion() ? example.question : "";
  }
  showCode();
}

function showCode() {
  const secret = token.value ? " \\\n  -H 'authorization: Bearer '\"$NLP_DISTILL_TOKEN\"" : "";
  const body = JSON.stringify({ inputs: inputs() }).replaceAll("'", "'\\''");
  byId("curl").textContent =
    `curl ${location.origin}/predict${secret} \\\n  -H 'content-type: application/json' \\\n  -d '${body}'`;
  const given = JSON.stringify(text.value);
  const calls = {
    classification: `text_classification(${given})`,
    question_answering: `question_answering(question=${JSON.stringify(question.value)}, context=${given})`,
    seq2seq: `text_generation(${given})`,
  };
  const asked = calls[models.length ? models[0].task : ""];
  byId("python").textContent = asked
    ? `from huggingface_hub import InferenceClient\n\nInferenceClient(model="${location.origin}").${asked}`
    : `import requests\n\nrequests.post("${location.origin}/predict", json={"inputs": ${given}}).json()`;
}

function scores(rows) {
  const shares = rows.every((row) => row.score >= 0 && row.score <= 1);
  return rows.slice(0, MOST_LABELS).map((row, place) => {
    const line = element("div", place ? "score" : "score first");
    line.append(element("span", "", row.label), element("span", "", row.score.toFixed(shares ? 3 : 2)));
    if (shares) {
      const bar = element("progress");
      bar.max = 1;
      bar.value = row.score;
      bar.setAttribute("aria-label", row.label);
      line.append(bar);
    }
    return line;
  });
}

function told(outputs) {
  const rows = [outputs].flat(2);
  if (rows.length && "label" in rows[0]) return scores(rows);
  const first = rows[0] || {};
  const words = first.answer ?? first.generated_text ?? first.sequence ?? JSON.stringify(rows);
  const shown = [element("p", words ? "answer" : "answer none", words || "No answer in the context.")];
  if (typeof first.score === "number") shown.push(element("p", "quiet", `score ${first.score.toFixed(3)}`));
  return shown;
}

function card(answer) {
  const made = element("article", "card");
  const top = element("div", "top");
  top.append(element("h2", "", answer.model), element("span", "time", `${answer.milliseconds.toFixed(1)} ms`));
  made.append(top, element("p", "quiet", `${answer.variant}, ${answer.runtime}`), ...told(answer.outputs));
  return made;
}

async function ask(event) {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  said.textContent = "";
  try {
    if (!models.length) await load();
    answers.replaceChildren(...(await call("/compare", request())).map(card));
  } catch (error) {
    said.textContent = error.message;
  } finally {
    button.disabled = false;
    showCode();
  }
}

form.addEventListener("submit", ask);
form.addEventListener("input", showCode);
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
load().catch((error) => { said.textContent = error.message; });
