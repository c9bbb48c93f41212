// The runner: executes artifacts and answers the requests of docs/device-protocol.md. It decides nothing.
import * as litert from "./engine_litert.js";
import { adapter, machine, snapshot } from "./machine.js";
import * as ort from "./engine_ort.js";
import { bytesOf, feedOf, joined, part, partCount, raw, real, tensorOf } from "./tensors.js";
import { Told } from "./told.js";

const ENGINES = { "onnxruntime-web": ort, "litert-web": litert };
const BACKENDS = ["wasm", "webgpu"];

export class Runner {
  // locate(file): the address of an engine file; versions: runtime → its pinned version; upload(place, bytes); seen: resolves when the page is
  // in front, and tells how often it was hidden; wake: words on the screen lock
  constructor({ locate, versions, upload, seen, wake }) {
    Object.assign(this, { locate, versions, upload, seen, wake, slots: new Map(), told: null });
  }

  answer(request) {
    const verb = VERBS[request.do];
    if (!verb) throw new Told("user", `this page does not know ${JSON.stringify(request.do)}`, "reload it");
    return verb.call(this, request);
  }

  async hello({ backend = "wasm" }) {
    this.told = await machine(backend);
    return {
      protocol: 1,
      runner: `browser page (${this.told.machine.os})`,
      machine: this.told.machine,
      snapshot: snapshot(),
      usable_cores: this.told.cores,
      usable_cpus: null,
      clock_step_ns: this.told.step * 1e6,
      runtimes: Object.fromEntries(Object.keys(ENGINES).map((name) => [name, { missing: [], version: this.versions[name] }])),
    };
  }

  async open({ runtime, threads, options, affinity }) {
    await this.drop();
    if (!ENGINES[runtime]) throw new Told("user", `this page has no runtime ${runtime}`, "one of " + Object.keys(ENGINES).join(", "));
    if (affinity) throw new Told("user", `CPUs ${affinity.join(", ")} were asked for; a page can't choose its CPUs`, "leave the affinity out");
    const backend = options?.backend ?? "wasm";
    if (!BACKENDS.includes(backend)) throw new Told("user", `${runtime}: option backend cannot be ${backend}`, "one of " + BACKENDS.join(", "));
    await this.checkThreads(threads, backend);
    this.told ??= await machine(backend);
    try {
      this.engine = await ENGINES[runtime].open({ threads, backend, locate: this.locate, version: this.versions[runtime] });
    } catch (error) {
      if (error instanceof Told) throw error;
      throw new Told("user", `${runtime} did not start in this browser: ${error?.message ?? error}`, "is the browser up to date? engine files that can't be fetched: trimtab devices setup browser");
    }
    return { version: this.engine.version, affinity: null };
  }

  async checkThreads(threads, backend) {
    const cores = navigator.hardwareConcurrency || 1;
    if (!(threads >= 1 && threads <= cores))
      throw new Told("user", `threads=${threads} is outside 1…${cores}, the cores that this browser tells of`, "more threads than cores wait for each other and the figures mean nothing");
    if (threads > 1 && !globalThis.crossOriginIsolated)
      throw new Told("user", `threads=${threads} needs an isolated page, and browsers isolate only pages from https:// or from this machine itself`,
        "--threads 1, or --lan --https, or an Android phone over USB (adb)");
    if (backend !== "webgpu") return;
    if (threads > 1) throw new Told("user", `threads=${threads} with backend webgpu: the GPU does the work`, "--threads 1");
    const gpu = await adapter();
    if (!gpu.adapter) throw new Told("user", `backend webgpu: ${gpu.reason}`, "backend=wasm, or --lan --https, or an Android phone over USB (adb)");
  }

  async load({ slot, file, inputs, outputs, feeds: told, gaps }) {
    if (!this.engine) throw new Told("user", "nothing is open", "open a runtime first");
    await this.empty(slot);
    const bytes = await bytesOf(file);
    const feeds = [];
    for (const feed of told) feeds.push(await feedOf(inputs, feed));
    const held = (gaps ?? []).map((count) => new ArrayBuffer(count));
    const start = performance.now();
    const session = await this.engine.load({ bytes: bytes.slice(), file, inputs, outputs });
    const loaded = performance.now();
    await session.run(feeds[0]);
    const first = performance.now();
    const calls = feeds.map((feed) => session.bind(feed));
    this.slots.set(slot, { session, inputs, feeds, calls, held });
    const facts = await session.describe();
    const from = new URL(this.locate(""));
    const engines = from.origin === location.origin ? "served by trimtab" : from.host;
    return {
      load_ns: Math.max(0, loaded - start) * 1e6,
      first_ns: Math.max(0, first - loaded) * 1e6,
      peak_bytes: { value: null, unit: "bytes", reason: "a page is not told how much memory it takes" },
      facts: { ...facts, hints: { ...facts.hints, ...this.told.hints, engine_files: engines, screen: this.wake() } },
    };
  }

  async check({ slot, expect }) {
    const { session, feeds } = this.slot(slot);
    const outputs = await session.run(feeds[0]), found = [];
    for (const told of expect) {
      const got = outputs[told.name], row = { name: told.name, shape: got.shape };
      found.push(row);
      if (String(got.shape) !== String(told.shape)) continue;
      const want = await tensorOf(told, told.dtype, told.name);
      const a = real(got, told.scale, told.zero_point), b = real(want, told.scale, told.zero_point);
      let worst = 0, noise = 0, signal = 0;
      for (let k = 0; k < a.length; k++) {
        const error = a[k] - b[k];
        worst = Math.max(worst, Math.abs(error)); // NaN stays NaN
        noise += error * error;
        signal += b[k] * b[k];
      }
      row.finite = Number.isFinite(worst);
      if (row.finite) Object.assign(row, { max_abs_error: worst, noise, signal });
    }
    return { outputs: found };
  }

  // Times are taken only while the page is in front: browsers slow hidden pages down. What was hidden meanwhile is done again.
  async inFront(work) {
    for (;;) {
      const before = await this.seen();
      const found = await work();
      if ((await this.seen()) === before) return found;
    }
  }

  time({ order, blocks, warm }) {
    return this.inFront(async () => {
      const ns = [];
      for (const [k, slot] of order.entries()) {
        const { calls } = this.slot(slot), block = blocks[k];
        for (let n = 0; n < warm[k]; n++) for (const call of calls) await call();
        const start = performance.now();
        if (calls.length === 1) {
          const call = calls[0];
          for (let n = 0; n < block; n++) await call();
        } else {
          for (let n = 0; n < block; n++) for (const call of calls) await call();
        }
        ns.push(((performance.now() - start) * 1e6) / block);
      }
      return { ns };
    });
  }

  each({ slot, repeats }) {
    return this.inFront(async () => {
      const { calls } = this.slot(slot), ns = [];
      for (const call of calls) {
        await call();
        let start = performance.now();
        await call();
        const once = Math.max(performance.now() - start, 1e-3);
        const block = Math.max(1, Math.min(1000, Math.ceil((COARSE * this.told.step) / once)));
        const times = [];
        for (let k = 0; k < repeats; k++) {
          start = performance.now();
          for (let n = 0; n < block; n++) await call();
          times.push(((performance.now() - start) * 1e6) / block);
        }
        times.sort((a, b) => a - b);
        ns.push((times[(repeats - 1) >> 1] + times[repeats >> 1]) / 2);
      }
      return { ns };
    });
  }

  ops({ slot, file, runs }) {
    return this.inFront(async () => this.engine.ops({ bytes: (await bytesOf(file)).slice(), feed: this.slot(slot).feeds[0], runs, stepMs: this.told.step }));
  }

  async run({ slot, feed, out }) {
    const { session, inputs, feeds } = this.slot(slot);
    const given = await feedOf(inputs, feed, { keep: false }), parts = [];
    const rows = Object.fromEntries(Object.entries(feeds[0]).map(([name, { shape }]) => [name, shape[0]]));
    const count = partCount(given, rows);
    for (let k = 0; k < count; k++) {
      parts.push(await session.run(part(given, k, rows)));
      await new Promise((done) => setTimeout(done)); // lets the page draw
    }
    const outputs = {};
    for (const [name, place] of Object.entries(out)) {
      const whole = joined(parts.map((found) => found[name]));
      await this.upload(place, raw(whole));
      outputs[name] = { shape: whole.shape, dtype: whole.dtype };
    }
    return { outputs };
  }

  snapshot() {
    return { snapshot: snapshot() };
  }

  async drop() {
    for (const slot of [...this.slots.keys()]) await this.empty(slot);
    return {};
  }

  async empty(slot) {
    const held = this.slots.get(slot);
    this.slots.delete(slot);
    await held?.session.close();
  }

  slot(number) {
    if (!this.slots.has(number)) throw new Told("user", `slot ${number} is empty`, "load an artifact into it first");
    return this.slots.get(number);
  }
}

const COARSE = 100; // a timed block lasts at least this many steps of the clock
const VERBS = Object.fromEntries(["hello", "open", "load", "check", "time", "each", "ops", "run", "snapshot", "drop"].map((name) => [name, Runner.prototype[name]]));
