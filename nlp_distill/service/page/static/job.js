"use strict";
// A job as it happens: events, curves, log.

const job = document.getElementById("job");
const id = job.dataset.job;
const MOST_POINTS = 1200;
const LOG_MS = 1500;
const STATE_MS = 400;
const AGAIN_MS = 5000;
const LONGEST_LOG = 200000;

// Where the line is broken there is no answer; whatever asks, asks again.
const ask = (path, options) => fetch(path, options).catch(() => ({ ok: false, status: 0 }));

// Curves: a canvas for each, in the place of the picture that the server drew

const curves = new Map();
const styles = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// As `titled` in job.py says it; what has no title is not drawn.
function titled(name) {
  const [, kind, ...rest] = name.split(".");
  if (kind === "loss") return `loss of ${rest.join(".")}`;
  return { selection_score: "score", examples_per_s: "examples a second" }[rest.join(".") || kind] || "";
}

const place = (title) => ["score", "loss", "examples"].indexOf(title.split(" ")[0]);

function figureOf(name) {
  const known = document.querySelector(`figure[data-curve="${CSS.escape(name)}"]`);
  if (known) return known;
  const [stage] = name.split(".");
  let block = document.querySelector(`.stage[data-stage="${CSS.escape(stage)}"]`);
  if (!block) {
    block = document.createElement("div");
    block.className = "stage";
    block.dataset.stage = stage;
    const heading = document.createElement("h3");
    heading.textContent = stage;
    const grid = document.createElement("div");
    grid.className = "grid";
    block.append(heading, grid);
    document.getElementById("stages").prepend(block);
  }
  const figure = document.createElement("figure");
  figure.dataset.curve = name;
  const caption = document.createElement("figcaption");
  caption.textContent = titled(name);
  const plot = document.createElement("div");
  plot.className = "plot";
  figure.append(caption, plot);
  const figures = [...block.querySelectorAll("figure")];
  const next = figures.find((one) => place(one.querySelector("figcaption").textContent) > place(caption.textContent));
  block.querySelector(".grid").insertBefore(figure, next || null);
  document.getElementById("curves").hidden = false;
  return figure;
}

function settings(width, name) {
  const axis = { stroke: styles("--soft"), grid: { stroke: styles("--rule"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  const ink = name.startsWith("distill") ? styles("--student") : styles("--teacher");
  return {
    width, height: 170, legend: { show: false }, cursor: { y: false, points: { size: 6 } },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 26, space: 60 }, { ...axis, size: 52, space: 30 }],
    series: [{}, { stroke: ink, width: 1.8, points: { show: (plot) => plot.data[0].length < 12, size: 6, fill: ink } }],
  };
}

function draw(name) {
  const curve = curves.get(name);
  if (curve.steps.length < (name.includes(".epoch.") ? 1 : 2)) return;
  const data = [curve.steps, curve.values];
  if (curve.plot) { curve.plot.setData(data); return; }
  const box = figureOf(name).querySelector(".plot");
  const width = box.clientWidth || 280;
  box.replaceChildren();
  box.setAttribute("role", "img");
  curve.plot = new uPlot(settings(width, name), data, box);
  new ResizeObserver(() => { if (box.clientWidth) curve.plot.setSize({ width: box.clientWidth, height: 170 }); }).observe(box);
}

function describe(name) {
  const { steps, values } = curves.get(name);
  const box = figureOf(name).querySelector(".plot");
  box.setAttribute("aria-label", `${titled(name)}: from ${values[0].toPrecision(4)} to ${values.at(-1).toPrecision(4)} at ${steps.at(-1)}`);
}

function add(name, step, value) {
  if (typeof value !== "number" || !Number.isInteger(step) || !titled(name)) return null;
  if (!curves.has(name)) curves.set(name, { steps: [], values: [] });
  const { steps, values } = curves.get(name);
  // A run that goes on from a checkpoint says some steps again.
  let place = steps.length;
  while (place > 0 && steps[place - 1] >= step) place -= 1;
  const again = steps[place] === step ? 1 : 0;
  steps.splice(place, again, step);
  values.splice(place, again, value);
  if (steps.length > MOST_POINTS) {
    const even = (_, n) => n % 2 === 0 || n === steps.length - 1;
    const [fewer, less] = [steps.filter(even), values.filter(even)];
    steps.splice(0, Infinity, ...fewer);
    values.splice(0, Infinity, ...less);
  }
  return name;
}

const changed = new Set();
function redraw() {
  for (const name of changed) { draw(name); if (curves.get(name).plot) describe(name); }
  changed.clear();
}

function plotEvent(kind, data) {
  const stage = data.stage;
  const put = (name, step, value) => { const made = add(name, step, value); if (made) changed.add(made); };
  if (kind === "progress") {
    for (const [name, value] of Object.entries(data.losses || {})) put(`${stage}.loss.${name}`, data.step, value);
    put(`${stage}.examples_per_s`, data.step, data.examples_per_s);
  } else {
    for (const [name, value] of Object.entries(data)) {
      if (!["stage", "epoch", "epochs"].includes(name)) put(`${stage}.epoch.${name}`, data.epoch, value);
    }
  }
  if (changed.size) requestAnimationFrame(redraw);
}

async function begin() {
  const answer = await ask(`/v1/jobs/${id}/metrics?max_points=500`);
  if (!answer.ok) return;
  for (const curve of (await answer.json()).data) {
    if (!titled(curve.name)) continue;
    curves.set(curve.name, { steps: curve.steps, values: curve.values });
    changed.add(curve.name);
  }
  redraw();
}

// What happens: the stream goes on after the last event that was seen, whatever breaks

let seen = Number(job.dataset.seq);
let stream = null;
let asked = 0;

function refresh() {
  clearTimeout(asked);
  asked = setTimeout(() => document.getElementById("state").dispatchEvent(new Event("news")), STATE_MS);
}

function take(event) {
  if (!event.data) {
    // The line broke: the browser asks again by itself, unless it was refused.
    if (stream?.readyState === EventSource.CLOSED) { hush(); setTimeout(listen, AGAIN_MS); }
    return;
  }
  const said = JSON.parse(event.data);
  seen = said.seq;
  if (said.type === "progress" || said.type === "metric") plotEvent(said.type, said.data);
  if (said.type === "progress") showProgress(said.data);
  else refresh();
}

function showProgress({ stage, step, steps }) {
  const bar = document.querySelector("#far progress");
  if (!bar || !document.querySelector("#far .far").textContent.startsWith(stage)) { refresh(); return; }
  bar.max = steps;
  bar.value = step;
  document.querySelector("#far .quiet").textContent = `${step.toLocaleString("en")} of ${steps.toLocaleString("en")}`;
}

function listen() {
  if (stream || document.hidden || job.dataset.over === "true") return;
  // The browser itself asks again with Last-Event-ID when the line breaks.
  stream = new EventSource(`/v1/jobs/${id}/events?after=${seen}`);
  for (const kind of ["status", "stage", "progress", "metric", "log", "artifact", "warning", "error"]) {
    stream.addEventListener(kind, take);
  }
  stream.addEventListener("end", () => { job.dataset.over = "true"; hush(); refresh(); followLog(); });
}

function hush() {
  stream?.close();
  stream = null;
}

// A page that nobody looks at holds no line: browsers have only a few for each site.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) { hush(); return; }
  refresh();
  listen();
});
window.addEventListener("pagehide", hush);

// The log

const log = document.getElementById("log");

async function followLog() {
  const from = Number(log.dataset.end);
  const attempt = log.dataset.attempt ? `?attempt=${log.dataset.attempt}` : "";
  // From the last byte that is known, so that there is always something to give.
  const answer = await ask(`/v1/jobs/${id}/logs${attempt}`, { headers: from ? { range: `bytes=${from - 1}-` } : {} });
  if (answer.status !== (from ? 206 : 200)) return;
  const bytes = new Uint8Array(await answer.arrayBuffer()).subarray(from ? 1 : 0);
  if (!bytes.byteLength || Number(log.dataset.end) !== from) return;
  if (!from) log.textContent = "";
  log.append(new TextDecoder().decode(bytes));
  if (log.textContent.length > LONGEST_LOG) log.textContent = log.textContent.slice(-LONGEST_LOG / 2);
  log.dataset.end = String(from + bytes.byteLength);
  if (document.getElementById("follow").checked) log.scrollTop = log.scrollHeight;
}

async function newAttempt() {
  const answer = await ask(`/v1/jobs/${id}/attempts`);
  if (!answer.ok) return;
  const last = (await answer.json()).data.at(-1);
  if (last && last.id !== log.dataset.attempt) {
    log.dataset.attempt = last.id;
    log.dataset.end = "0";
  }
}

document.getElementById("state").addEventListener("htmx:afterSwap", newAttempt);
setInterval(() => { if (!document.hidden && job.dataset.over !== "true") followLog(); }, LOG_MS);
log.scrollTop = log.scrollHeight;
begin().then(listen);
