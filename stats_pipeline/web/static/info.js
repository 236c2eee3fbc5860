// The admin's page, live: the button follows its job, the table follows the event stream, Retry answers with a toast.
// What a row looks like is the server's affair (templates/jobs.html): a change fetches the rows again.

import { Stream } from "./stream.js";

const FALLBACK_MS = 30_000; // refresh while jobs are active, should the stream be silent
const DONE_MS = 6_000; // how long the button shows how its job ended
const TOAST_MS = 6_000;
const ANSWER_MS = 3_000; // until a worker that says nothing is replaced
const LABELS = {
  ready: "Enqueue Stats Job",
  queued: "Job Queued...",
  processing: "Processing...",
  completed: "Completed",
  failed: "Failed",
};

const byId = (id) => document.getElementById(id);
const jobs = byId("jobs");
const form = byId("enqueue");
const button = byId("press");

let followed = form?.dataset.job || null; // the job the button shows
const opened = new Set(rows(jobs).filter((row) => toggleOf(row).ariaExpanded === "true").map((row) => row.dataset.job));

function rows(root) {
  return [...root.querySelectorAll("tr[data-job]")];
}

function toggleOf(row) {
  return row.querySelector(".toggle");
}

// The table

let running = null;
let isStale = false;

function refresh() {
  if (running) {
    isStale = true;
    return running;
  }
  running = load().finally(() => {
    running = null;
    if (isStale) {
      isStale = false;
      refresh();
    }
  });
  return running;
}

async function load() {
  byId("loading").hidden = false;
  jobs.ariaBusy = "true";
  try {
    const response = await fetch("/admin/info/jobs", { headers: { Accept: "application/json" } });
    if (response.status === 401) return location.assign("/login");
    if (!response.ok) throw new Error(await problemOf(response));
    show(await response.text());
    byId("problem").hidden = true;
    await followJob();
  } catch (error) {
    byId("reason").textContent = `Error loading jobs: ${error.message}`;
    byId("problem").hidden = false;
  } finally {
    byId("loading").hidden = true;
    jobs.ariaBusy = "false";
  }
}

async function problemOf(response) {
  const body = await response.json().catch(() => ({}));
  return body.error ?? `the server answered ${response.status}`;
}

function show(html) {
  const before = new Map(rows(jobs).map((row) => [row.dataset.job, row.dataset.status]));
  const focused = jobs.contains(document.activeElement) ? document.activeElement.id : null;
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  localise(fresh.content);
  jobs.replaceChildren(fresh.content);
  for (const row of rows(jobs)) expand(row, opened.has(row.dataset.job));
  if (focused) byId(focused)?.focus();
  const news = rows(jobs).filter((row) => before.get(row.dataset.job) !== row.dataset.status);
  if (news.length) byId("announce").textContent = news.map(({ dataset }) => `${dataset.trigger}: ${dataset.status}`).join(", ");
}

function localise(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime);
    const clock = moment.toLocaleTimeString("en-GB");
    const isToday = moment.toDateString() === new Date().toDateString();
    const day = moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
    time.textContent = isToday ? clock : `${day}, ${clock}`;
    time.title = moment.toLocaleString();
  }
}

function expand(row, isOpen) {
  toggleOf(row).ariaExpanded = String(isOpen);
  byId(`details-${row.dataset.job}`).hidden = !isOpen;
}

jobs.addEventListener("submit", (event) => {
  event.preventDefault();
  const row = event.target.closest("tr");
  if (event.target.matches(".retry")) return retry(row.dataset.job, event.submitter);
  const isOpen = !opened.delete(row.dataset.job);
  if (isOpen) opened.add(row.dataset.job);
  expand(row, isOpen);
});

byId("again").addEventListener("click", refresh);

// The button

function showState(state) {
  button.dataset.state = state;
  button.textContent = LABELS[state];
  button.ariaDisabled = String(state === "queued" || state === "processing");
}

async function followJob() {
  if (!followed || !button) return;
  const row = rows(jobs).find((candidate) => candidate.dataset.job === followed);
  const status = row ? row.dataset.status : await statusOf(followed);
  showState(status);
  if (status === "queued" || status === "processing") return;
  followed = null;
  setTimeout(() => followed || showState("ready"), DONE_MS);
}

async function statusOf(job) {
  const response = await fetch(`/api/admin/background-jobs/${job}`);
  return response.ok ? (await response.json()).status : "ready";
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (button.ariaDisabled === "true") return;
  showState("queued");
  try {
    const { jobId } = await post("/api/admin/enqueue-stats-job", {
      triggeredBy: "admin",
      requestId: randomId(),
      userId: "admin",
      tenantId: form.elements.tenantId?.value,
    });
    followed = jobId;
    await refresh();
  } catch (error) {
    showState("failed");
    setTimeout(() => followed || showState("ready"), DONE_MS);
    toast(`Failed to enqueue job: ${error.message}`, "error");
  }
});

async function retry(job, pressed) {
  pressed.disabled = true;
  try {
    await post(`/api/admin/background-jobs/${job}/retry`);
    toast("Job retry queued successfully", "success");
    await refresh();
  } catch (error) {
    toast(`Failed to retry job: ${error.message}`, "error");
  } finally {
    pressed.disabled = false;
  }
}

async function post(url, body) {
  const response = await fetch(url, {
    method: "POST",
    headers: { Accept: "application/json", "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!response.ok) throw new Error(await problemOf(response));
  return response.json();
}

// Not randomUUID(), which a page on plain http does not have.
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16).padStart(8, "0")).join("-");
}

function toast(text, kind) {
  const line = document.createElement("p");
  line.className = `toast ${kind}`;
  line.textContent = text;
  byId("toasts").append(line);
  setTimeout(() => line.remove(), TOAST_MS);
}

// The stream, watched while this tab is visible: through the browser's one stream, or its own where there is no SharedWorker

const own = new Stream(hear);
let shared = null; // the port of the worker
let unanswered = null;
connect();

function connect() {
  try {
    const worker = new SharedWorker("/static/shared.js", { type: "module" });
    worker.addEventListener("error", () => {
      shared = null;
      watch();
    });
    shared = worker.port;
    shared.onmessage = ({ data }) => hear(data);
  } catch {
    shared = null;
  }
}

function watch(isVisible = !document.hidden) {
  clearTimeout(unanswered);
  if (shared) {
    shared.postMessage(isVisible);
    if (isVisible) unanswered = setTimeout(reconnect, ANSWER_MS);
  } else if (isVisible) own.open();
  else own.close();
}

function reconnect() {
  shared.postMessage(false); // should it only be slow
  connect();
  watch();
}

function hear(news) {
  clearTimeout(unanswered);
  if (news === "here") return;
  const isLive = news === "open" || news === "job";
  showLive(isLive ? "Live" : "Reconnecting...", isLive ? "on" : "off");
  // After "open": what happened since the page was made or was last visible. After "refused": why, perhaps a logout.
  if (news !== "lost") refresh();
}

document.addEventListener("visibilitychange", () => watch());
addEventListener("pageshow", () => watch());
addEventListener("pagehide", () => watch(false));

function showLive(text, kind) {
  byId("live").hidden = false;
  byId("live").textContent = text;
  byId("live").dataset.kind = kind;
}

function hasActiveJobs() {
  return rows(jobs).some(({ dataset }) => dataset.status === "queued" || dataset.status === "processing");
}

setInterval(() => {
  if (document.hidden) return;
  watch();
  if (hasActiveJobs() || !byId("problem").hidden) refresh();
}, FALLBACK_MS);

setInterval(() => {
  for (const left of jobs.querySelectorAll("[data-left]")) {
    left.dataset.left = Math.max(0, left.dataset.left - 1);
    left.textContent = left.dataset.left === "0" ? "longer than usual" : `about ${left.dataset.left} s left`;
  }
}, 1_000);

if (!followed) {
  const active = rows(jobs).find(
    ({ dataset }) => dataset.trigger === "admin" && (dataset.status === "queued" || dataset.status === "processing"),
  );
  followed = active?.dataset.job ?? null;
}
localise(document);
followJob();
