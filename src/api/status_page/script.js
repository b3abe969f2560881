"use strict";
// The server draws the report; this fetches it again, puts it in place of the old one, and plots the
// numbers that the cards carry as data.
const EVERY = 2000, KEPT = 150;
const byId = (id) => document.getElementById(id);
const samples = {};
let key = "", reached = Date.now();

async function refresh() {
  try {
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch("/", { headers, cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    reached = Date.now();
    byId("lost").hidden = true;
  } catch (error) {
    const reason = error.name === "TimeoutError" ? "no answer within 5 seconds" : error.message;
    const since = Math.round((Date.now() - reached) / 1000);
    byId("lost").textContent = `Lost contact ${since} seconds ago (${reason}). What is below is old.`;
    byId("lost").hidden = false;
    document.title = "lost contact · agentarea-api";
  }
  setTimeout(refresh, EVERY);
}

function show(fresh) {
  document.title = fresh.title;
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const here = byId(part.id);
    // Only what changed, so that a screen reader is not told the same again.
    if (here.innerHTML !== part.innerHTML) here.innerHTML = part.innerHTML;
  }
  sample();
}

function sample() {
  for (const { dataset } of document.querySelectorAll("article[data-connection]")) {
    const name = dataset.connection;
    const uses = Number(dataset.uses), waited = Number(dataset.acquireMean) * uses;
    const all = (samples[name] ??= []), last = all.at(-1);
    const calls = last ? uses - last.uses : 0;
    const acquire = calls > 0 ? Math.max(0, (waited - last.waited) / calls) : 0;
    all.push({ uses, waited, acquire, latency: Number(dataset.latency), ok: dataset.ok === "true" });
    if (all.length > KEPT) all.shift();
    if (all.length > 1) {
      draw(name, "probe latency", all, (s) => s.latency, (s) => !s.ok);
      draw(name, "acquisition", all, (s) => s.acquire, () => false);
    }
  }
}

function draw(connection, what, all, value, failed) {
  const id = `${connection}-${what.replace(" ", "-")}`;
  const figure = byId(id) ?? frame(id, connection, what);
  const top = Math.max(...all.map(value), 0.001);
  // The latest is always at the right edge.
  const x = (index) => (1 - (all.length - 1 - index) / (KEPT - 1)) * 300, y = (sample) => 58 - (value(sample) / top) * 54;
  const now = value(all.at(-1)).toFixed(2), most = top.toFixed(2);
  figure.querySelector("output").textContent = `${now} ms, most ${most} ms`;
  const svg = figure.querySelector("svg");
  svg.setAttribute("aria-label", `${what} of ${connection}: now ${now} ms, most ${most} ms`);
  svg.querySelector("polyline").setAttribute("points", all.map((s, i) => `${x(i)},${y(s)}`).join(" "));
  const marks = all.map((s, i) => (failed(s) ? `M${x(i)} 0V60` : "")).join("");
  svg.querySelector("path").setAttribute("d", marks);
}

function frame(id, connection, what) {
  byId("plots").hidden = false;
  const figure = document.createElement("figure");
  figure.id = id;
  figure.innerHTML = `<figcaption><span>${connection}, ${what}</span><output></output></figcaption>` +
    '<svg viewBox="0 0 300 60" preserveAspectRatio="none" role="img"><polyline/><path class="bad"/></svg>';
  // What changes every two seconds is not to be read out.
  figure.querySelector("output").setAttribute("aria-live", "off");
  byId("plots").querySelector(".cards").append(figure);
  return figure;
}

byId("key-form")?.addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
});
sample();
setTimeout(refresh, EVERY);
