// The page's life: joins the server, asks for the next request, answers, and shows what goes on.
import { Runner } from "./runner.js";
import { toldOf } from "./told.js";

const $ = (id) => document.getElementById(id);
const BEAT_MS = 3000, RETRIES = 8;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));

let runner = ""; // the id that the server gave this page
let leaving = false; // a reload that the server asked for is no closing

function show(text, kind = "") {
  $("state").textContent = text;
  $("state").className = kind;
}

function note(text) {
  $("note").textContent = text;
  $("note").hidden = !text;
}

async function post(path, body) {
  const got = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), cache: "no-store" });
  if (!got.ok) throw new Error(`${path}: status ${got.status}`);
  return got.json();
}

// A slip of the network is tried again; the server knows a repeated answer by its number.
async function patiently(work) {
  for (let turn = 0; ; turn++) {
    try {
      return await work();
    } catch (error) {
      if (turn >= RETRIES) throw error;
      note("the computer does not answer; trying again");
      await pause(Math.min(500 * 2 ** turn, 4000));
    }
  }
}

const sight = { hidden: 0, waiting: [] };

function tell(state) {
  if (runner) navigator.sendBeacon("state", new Blob([JSON.stringify({ runner, state })], { type: "application/json" }));
}

document.addEventListener("visibilitychange", () => {
  const hidden = document.visibilityState === "hidden";
  tell(hidden ? "hidden" : "visible");
  note(hidden ? "in the background: timing waits" : "");
  if (hidden) return void sight.hidden++;
  lockScreen();
  sight.waiting.splice(0).forEach((go) => go());
});
addEventListener("pagehide", () => leaving || tell("closing"));
addEventListener("pageshow", (event) => event.persisted && location.reload()); // out of the back-forward cache: a new start

// Resolves when the page is in front, with how often it was hidden so far.
async function seen() {
  await pause(0); // lets an event that is due come first
  while (document.visibilityState === "hidden") await new Promise((go) => sight.waiting.push(go));
  return sight.hidden;
}

let lock = null, lockWords = "may sleep: this browser has no wake lock";
async function lockScreen() {
  if (!navigator.wakeLock) return;
  try {
    lock = await navigator.wakeLock.request("screen");
    lockWords = "kept on";
  } catch (error) {
    lockWords = `may sleep: ${error.message}`;
  }
}

async function upload(place, bytes) {
  const url = "out/" + place.split("/").map(encodeURIComponent).join("/");
  await patiently(async () => {
    const got = await fetch(url, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body: bytes });
    if (!got.ok) throw new Error(`${place}: status ${got.status}`);
  });
}

const WORDS = {
  hello: "saying what this browser is", open: "starting the engine", load: "loading", check: "checking the outputs", time: "timing",
  each: "timing each input", ops: "looking into the operations", run: "running samples", snapshot: "", drop: "",
};
let calls = 0;

function before(request) {
  const words = WORDS[request.do];
  if (words) show(words, "busy");
  if (request.runtime) $("runtime").textContent = `${request.runtime}, ${request.options?.backend ?? "wasm"}, ${request.threads} thread${request.threads > 1 ? "s" : ""}`;
  if (request.title) $("artifact").textContent = request.title;
}

function after(request, answer) {
  if (request.do !== "time" || !answer.ns?.length) return;
  calls += request.blocks.reduce((sum, block) => sum + block, 0);
  $("calls").textContent = calls.toLocaleString();
  $("latency").textContent = `${(answer.ns[answer.ns.length - 1] / 1e6).toPrecision(3)} ms`;
}

async function answered(worker, request) {
  before(request);
  await pause(0); // lets the page draw
  try {
    const answer = await worker.answer(request);
    after(request, answer);
    return answer;
  } catch (error) {
    return { error: toldOf(error) };
  }
}

const pinned = JSON.parse(document.body.dataset.versions);

// Where an engine file lies: at the server's, or at the CDN in the pinned version.
function locate(file) {
  const name = Object.keys(pinned.packages).find((known) => file.startsWith(`${known}/`));
  return new URL(name ? `${name}@${pinned.packages[name]}${file.slice(name.length)}` : file, new URL(document.body.dataset.engines, location.href)).href;
}

async function join() {
  for (let turn = 0; ; turn++) {
    const told = await patiently(() => post("join", {}));
    if (told.runner) return told.runner;
    if (turn >= 3) return void show(told.reason, "bad");
    await pause(1000); // a page that was just closed or reloaded may still be leaving
  }
}

async function live() {
  runner = (await join()) ?? "";
  if (!runner) return;
  new Worker("beat.js").postMessage({ url: new URL("state", location.href).href, runner, everyMs: BEAT_MS });
  if (document.visibilityState === "hidden") tell("hidden");
  await lockScreen();
  const worker = new Runner({ locate, versions: pinned.runtimes, upload, seen, wake: () => lockWords });
  show("connected, waiting for work");
  for (let last = null; ; ) {
    const told = await patiently(() => post("next", { runner, last }));
    if (document.visibilityState === "visible") note("");
    if (told.request) {
      last = { id: told.id, answer: await answered(worker, told.request) };
      if (worker.told) $("machine").textContent = Object.entries(worker.told.hints).map(([key, value]) => `${key}: ${value}`).join("\n");
    } else if (told.reload) {
      leaving = true;
      return location.reload();
    } else if (told.end) {
      runner = "";
      await lock?.release().catch(() => {});
      return show(told.end, told.end.startsWith("done") ? "" : "bad");
    }
  }
}

live().catch((error) => {
  show("the connection to the computer is lost", "bad");
  note(`${error.message}. Is trimtab still running, and this device on the same network? Reload this page to try again.`);
});
