"use strict";
// What every page does beyond plain HTML: times of the reader's own, lists that stay fresh, forms that answer early.

const QUIET_MS = 400;
const ESTIMATE_MS = 1200;
const TICK_MS = 3000;

function tellTimes(root) {
  const form = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
  for (const time of root.querySelectorAll("time[data-at]")) {
    const at = new Date(Number(time.dataset.at) * 1000);
    time.dateTime = at.toISOString();
    time.textContent = form.format(at);
  }
}

function signInWithLink() {
  // The code is behind the #, so it was sent nowhere, and is worth one sign-in.
  const form = document.getElementById("sign-in");
  if (!form || location.hash.length < 2) return;
  form.elements.token.value = location.hash.slice(1);
  history.replaceState(null, "", location.pathname + location.search);
  form.submit();
}

function sayBusy(form) {
  const said = form.querySelector(".busy");
  if (said) said.textContent = form.dataset.busy;
}

// Lists that refresh themselves

function keepFresh() {
  setInterval(() => { if (!document.hidden) document.body.dispatchEvent(new Event("tick")); }, TICK_MS);
  const kept = new Map();
  document.body.addEventListener("htmx:beforeSwap", (event) => {
    const { target, xhr } = event.detail;
    if (xhr.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    if (xhr.status >= 400 && xhr.getResponseHeader("content-type").startsWith("text/html")) return;
    if (target.dataset.same) {
      // What did not change stays as it is: selections, focus, a screen reader's place.
      if (kept.get(target.id) === xhr.responseText) { event.detail.shouldSwap = false; return; }
      kept.set(target.id, xhr.responseText);
    }
    const open = [...document.querySelectorAll("details[id][open]")].map((one) => one.id);
    const ticked = [...document.querySelectorAll("input[id]:checked")].map((one) => one.id);
    const from = document.querySelector(".events")?.scrollTop;
    target.addEventListener("htmx:afterSwap", () => {
      for (const name of open) document.getElementById(name)?.setAttribute("open", "");
      for (const name of ticked) { const one = document.getElementById(name); if (one) one.checked = true; }
      if (from) document.querySelector(".events").scrollTop = from;
      tellTimes(document);
    }, { once: true });
  });
}

// The form of a job

function answerEarly() {
  const form = document.getElementById("draft");
  if (!form) return;
  let checking = 0;
  // Two clocks: an answer to what stood before must not stop the question about what is being typed.
  let toCheck;
  let toEstimate;
  let estimating = false;
  let stale = true;

  const sent = () => new URLSearchParams(new FormData(form));
  // Where the line is broken there is no answer; the next letter asks again.
  const ask = (path) => fetch(path, { method: "POST", body: sent() }).catch(() => ({ ok: false }));

  function show(answer) {
    for (const place of form.querySelectorAll(".error[id]")) {
      if (place.id === "wrong") continue;
      const name = place.id.replace(/-error$/, "");
      const said = answer.errors[name] || "";
      if (place.textContent !== said) place.textContent = said;
      const input = document.getElementById(name);
      if (input && input.matches("input, select")) input.toggleAttribute("aria-invalid", false);
      if (said && input) {
        if (input.matches("input, select")) input.setAttribute("aria-invalid", "true");
        for (let fold = input.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
      }
    }
    const wrong = document.getElementById("wrong");
    wrong.replaceChildren(...answer.wrong.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
    for (const [name, text] of Object.entries(answer.code)) document.getElementById(`code-${name}`).textContent = text;
  }

  async function check() {
    const mine = ++checking;
    const answer = await ask("/new/check");
    if (mine !== checking || !answer.ok) return;
    const said = await answer.json();
    show(said);
    stale = true;
    clearTimeout(toEstimate);
    if (said.well) toEstimate = setTimeout(estimate, ESTIMATE_MS);
  }

  async function estimate() {
    if (estimating || document.hidden) { toEstimate = setTimeout(estimate, ESTIMATE_MS); return; }
    estimating = true;
    stale = false;
    const card = document.getElementById("estimate");
    card.setAttribute("aria-busy", "true");
    const empty = card.querySelector("[data-empty]");
    if (empty) empty.textContent = "Looking at the data …";
    try {
      const answer = await ask("/new/estimate");
      if (answer.ok && !stale) card.innerHTML = await answer.text();
    } finally {
      card.removeAttribute("aria-busy");
      estimating = false;
    }
  }

  form.addEventListener("input", () => {
    clearTimeout(toEstimate);
    clearTimeout(toCheck);
    toCheck = setTimeout(check, QUIET_MS);
  });
  form.addEventListener("change", (event) => { if (event.target.matches("[data-shapes]")) reshape(); });

  // Other choices have other fields: the server says which. What is typed while it says so makes its answer stale.
  let shaping = 0;
  async function reshape() {
    const mine = ++shaping;
    const asked = withWish("shape");
    const text = await fetch("/new", { method: "POST", body: asked }).then((answer) => answer.text(), () => "");
    if (mine !== shaping) return;
    if (text && `${asked}` !== `${withWish("shape")}`) { reshape(); return; }
    const made = new DOMParser().parseFromString(text, "text/html").getElementById("settings");
    if (!made) return;
    const focus = document.activeElement.id;
    const open = [...form.querySelectorAll("details[open]")].map((fold) => fold.querySelector("summary").textContent);
    document.getElementById("settings").replaceWith(document.adoptNode(made));
    for (const fold of made.querySelectorAll("details")) {
      if (open.includes(fold.querySelector("summary").textContent)) fold.open = true;
    }
    document.getElementById(focus)?.focus();
    check();
  }

  function withWish(wish) {
    const body = sent();
    body.set("do", wish);
    return body;
  }

  check();
}

document.addEventListener("submit", (event) => { if (event.target.dataset.busy) sayBusy(event.target); });
document.addEventListener("htmx:afterRequest", (event) => {
  const said = event.target.querySelector?.(".busy");
  if (said) said.textContent = "";
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form?.requestSubmit();
});
window.addEventListener("pageshow", () => { for (const said of document.querySelectorAll(".busy")) said.textContent = ""; });

tellTimes(document);
signInWithLink();
keepFresh();
answerEarly();
