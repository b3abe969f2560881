// The status page in a real Chromium: healthy, an outage, recovery, lost contact, with a key, without
// JavaScript, on a phone, in the dark. `node status_page.mjs PROGRAM [PICTURES]`.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import AxeBuilder from "@axe-core/playwright";
import { chromium } from "playwright-core";

const [program, pictures] = process.argv.slice(2);
const DEADLINE = 30_000;
const folder = mkdtempSync(join(tmpdir(), "status-page-"));
const children = new Set();

const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

function start(command, args, variables = {}) {
  const child = spawn(command, args, { cwd: folder, env: { ...process.env, ...variables }, stdio: "ignore" });
  child.on("error", (error) => fail(`${command} cannot be started: ${error.message}`));
  children.add(child);
  return child;
}

const ended = (child) => new Promise((resolve) => child.once("exit", resolve));

function fail(message) {
  console.error(message);
  process.exitCode = 1;
  for (const child of children) child.kill("SIGKILL");
}

async function eventually(what, attempt) {
  for (const begin = Date.now(); ; await new Promise((resolve) => setTimeout(resolve, 50))) {
    const found = await attempt().catch(() => false);
    if (found) return found;
    assert(Date.now() - begin < DEADLINE, `not within ${DEADLINE} ms: ${what}`);
  }
}

const redisPort = await freePort();
const redis = () => start("redis-server", ["--port", `${redisPort}`, "--bind", "127.0.0.1", "--save", "", "--dir", folder]);
const port = await freePort();
const base = `http://127.0.0.1:${port}`;
const service = (variables = {}) =>
  start(program, ["serve"], {
    AGENTAREA_SERVER__PORT: `${port}`,
    AGENTAREA_EVENT_BROKER__PROBE__INTERVAL: "300ms",
    AGENTAREA_EVENT_BROKER__PROBE__TIMEOUT: "300ms",
    REDIS_URL: `redis://127.0.0.1:${redisPort}`,
    AGENTAREA_SERVER__DRAIN_DELAY: "0s",
    ...variables,
  });

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"],
});

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, ...options });
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(error.message));
  page.on("console", (message) => {
    // The browser itself also reports an unreachable service.
    const expected = /net::ERR_|Failed to load resource/.test(message.text());
    if (message.type() === "error" && !expected) page.problems.push(message.text());
  });
  page.weight = 0;
  page.on("response", async (answer) => {
    if (page.weight === 0) page.weight = (await answer.body().catch(() => "")).length;
  });
  await page.goto(base);
  return page;
}

const picture = (page, name) => pictures && page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
const says = (page, selector, text) =>
  page.locator(selector).filter({ hasText: text }).first().waitFor({ timeout: DEADLINE });

async function accessible(page, what) {
  const { violations } = await new AxeBuilder({ page }).analyze();
  const found = violations.map((v) => `${v.id}: ${v.nodes.map((node) => node.html).join(" ")}`);
  assert.deepEqual(found, [], what);
}

async function healthyOutageRecoveryLostContact() {
  let broker = redis();
  let program = service();
  await eventually("the service answers", async () => (await fetch(`${base}/readyz`)).ok);
  const page = await open();
  await says(page, "#summary", "healthy");
  await page.locator("#plots figure").nth(5).waitFor({ timeout: DEADLINE });
  assert(page.weight > 1000 && page.weight < 100_000, `the page weighs ${page.weight} bytes`);
  // Before axe and screenshots, which inject styles that the page's policy refuses.
  assert.deepEqual(page.problems, [], "no error in the console");
  await accessible(page, "healthy");
  await picture(page, "status-healthy");

  broker.kill("SIGKILL");
  await says(page, "#summary", "degraded");
  await says(page, "article[data-connection=event_broker]", "unavailable");
  await says(page, "#report tbody", "unavailable");
  await accessible(page, "outage");
  await picture(page, "status-outage");

  broker = redis();
  await says(page, "#summary", "healthy");
  await says(page, "article[data-connection=event_broker]", "recovered 1");

  program.kill("SIGTERM");
  await ended(program);
  await says(page, "#lost", "Lost contact");
  assert.match(await page.title(), /^lost contact/, "the tab does not go on saying what was");
  await accessible(page, "lost contact");
  await picture(page, "status-lost-contact");
  program = service();
  await page.locator("#lost").waitFor({ state: "hidden", timeout: DEADLINE });

  const phone = await open({ viewport: { width: 360, height: 740 }, colorScheme: "dark" });
  await phone.locator("#plots figure").first().waitFor({ timeout: DEADLINE });
  const wide = await phone.evaluate(() => document.documentElement.scrollWidth);
  assert(wide <= 360, `it is ${wide} wide`);
  await accessible(phone, "phone, dark");
  await picture(phone, "status-phone-dark");
  await phone.keyboard.press("Tab");
  assert.equal(await phone.evaluate(() => document.activeElement.tagName), "A", "links by keyboard");

  const plain = await open({ javaScriptEnabled: false });
  await says(plain, "#summary", "healthy");
  await says(plain, "article", "circuit breaker");
  program.kill("SIGTERM");
  await ended(program);
  broker.kill("SIGKILL");
}

async function detailsForAKey() {
  const key = "aak_test";
  const sum = Buffer.from(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key))).toString("hex");
  const program = service({
    REDIS_URL: undefined,
    AGENTAREA_AUTH__MODE: "api_key",
    AGENTAREA_AUTH__KEYS: `[{ name = "t", sha256 = "${sum}", scopes = ["read"] }]`,
    AGENTAREA_HEALTH__DETAILS: "when_authorized",
  });
  await eventually("the service answers", async () => (await fetch(`${base}/readyz`)).ok);
  const page = await open();
  await says(page, "article", "event_broker");
  assert.equal(await page.locator("dl").count(), 0, "no details without a key");
  await accessible(page, "without a key");
  await page.getByLabel("API key").fill(key);
  await page.getByRole("button").click();
  await says(page, "article", "circuit breaker");
  await picture(page, "status-with-key");
  program.kill("SIGTERM");
  await ended(program);
}

try {
  await healthyOutageRecoveryLostContact();
  await detailsForAKey();
  console.log("the status page: all good");
} catch (error) {
  fail(error.stack);
} finally {
  await browser.close();
  for (const child of children) child.kill("SIGKILL");
  rmSync(folder, { recursive: true, force: true });
}
