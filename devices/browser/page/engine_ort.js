// onnxruntime-web: one engine a page, since its threads are fixed when it starts.
import { adapter } from "./machine.js";
import { Told, rejected } from "./told.js";

const TITLE = "onnxruntime-web";
const BUNDLES = { wasm: "ort.wasm.bundle.min.mjs", webgpu: "ort.webgpu.bundle.min.mjs" };
// A graph of one Identity: loading it starts the engine, so that no artifact's load time contains that.
const IDENTITY = "CAkSADo3ChAKAXgSAXkiCElkZW50aXR5EgFnWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQEQ==";

// The engine prints its profile to the console that it finds when it starts: from the first import on, a listener sits there.
let listener = null;
for (const level of ["log", "info", "debug", "warn"]) {
  const usual = console[level].bind(console);
  console[level] = (...words) => (listener ? listener.push(...words.join(" ").split("\n")) : usual(...words));
}

async function heard(work) {
  listener = [];
  const lines = listener;
  try {
    await work();
    await new Promise((done) => setTimeout(done)); // threads' lines arrive with the next turn
  } finally {
    listener = null;
  }
  return lines;
}

export async function open({ threads, backend, locate }) {
  const ort = await import(locate(`onnxruntime-web/dist/${BUNDLES[backend]}`));
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = locate("onnxruntime-web/dist/");
  ort.env.logLevel = "error";
  if (backend === "webgpu") ort.env.webgpu.powerPreference = "high-performance";
  const engine = new Engine(ort, threads, backend);
  await (await engine.create(Uint8Array.from(atob(IDENTITY), (letter) => letter.charCodeAt(0)))).release();
  if (ort.env.wasm.numThreads !== threads)
    throw new Told("user", `${TITLE} would use ${ort.env.wasm.numThreads} threads instead of ${threads}`, "ask for --threads 1");
  return engine;
}

class Engine {
  constructor(ort, threads, backend) {
    Object.assign(this, { ort, threads, backend, version: ort.env.versions?.web ?? ort.env.versions?.common ?? "unknown" });
  }

  create(bytes, more = {}) {
    return this.ort.InferenceSession.create(bytes, {
      executionProviders: [this.backend], graphOptimizationLevel: "all", executionMode: "sequential", logSeverityLevel: 3, ...more,
    });
  }

  async load({ bytes, file, inputs, outputs }) {
    let session;
    try {
      session = await this.create(bytes);
    } catch (error) {
      throw rejected(TITLE, file, error);
    }
    for (const [kind, ports, names] of [["input", inputs, session.inputNames], ["output", outputs, session.outputNames]]) {
      const gone = ports.map((port) => port.name).filter((name) => !names.includes(name));
      if (gone.length) throw rejected(TITLE, file, `it has no ${kind} ${gone.join(", ")}; it has ${names.join(", ")}`);
    }
    return new Session(this, session, file, outputs);
  }

  // Operations in running order with ns per inference, from a session of its own.
  async ops({ bytes, feed, runs, stepMs }) {
    if (this.backend !== "wasm")
      return { ops: [], runs: 0, note: "", reason: "onnxruntime-web's profile tells how long the page waited for the GPU to take work, not how long it worked" };
    const lines = await heard(async () => {
      const session = await this.create(bytes, { enableProfiling: true });
      const call = new Session(this, session, "", []).bind(feed);
      for (let k = 0; k < runs + WARM; k++) await call();
      session.endProfiling();
      await session.release();
    });
    return profileOf(lines, runs, stepMs);
  }
}

const WARM = 2;
const FINE_MS = 0.02; // on a coarser clock most times are 0 and only their mean, outliers too, means anything
const mean = (times) => times.reduce((sum, us) => sum + us, 0) / times.length;

// Without the tenth at either end: one stall of some ms would be a short operation's whole mean.
function trimmed(times) {
  const sorted = [...times].sort((a, b) => a - b), cut = Math.floor(sorted.length / 10);
  return sorted.slice(cut, sorted.length - cut);
}

const PROFILE_NOTE = "from the engine's own profile, in whole microseconds; the engine keeps a limited number of events";

export function profileOf(lines, runs, stepMs) {
  const nodes = new Map(), order = [];
  for (const line of lines) {
    const text = line.slice(line.indexOf("{")).trim().replace(/,$/, "").replace(/\]$/, "");
    if (!text.includes('"Node"')) continue;
    let event;
    try { event = JSON.parse(text); } catch { continue; }
    if (event.cat !== "Node" || !event.name.endsWith("_kernel_time")) continue;
    const key = event.name.slice(0, -"_kernel_time".length);
    if (!nodes.has(key)) {
      nodes.set(key, { kind: event.args?.op_name ?? "?", where: event.args?.provider ?? "CPUExecutionProvider", times: [] });
      order.push(key);
    }
    nodes.get(key).times.push(Number(event.dur));
  }
  if (!order.length) return { ops: [], runs: 0, note: "", reason: "onnxruntime-web printed no profile" };
  const counted = Math.min(runs, ...order.map((key) => Math.max(1, nodes.get(key).times.length - WARM)));
  const ops = order.map((key) => {
    const { kind, where, times } = nodes.get(key);
    const late = times.length > WARM ? times.slice(WARM) : times;
    return { name: key, kind, where, ns: mean(stepMs <= FINE_MS ? trimmed(late) : late) * 1e3 };
  });
  return { ops, runs: counted, note: PROFILE_NOTE, reason: "" };
}

class Session {
  constructor(engine, session, file, outputs) {
    Object.assign(this, { engine, session, file, names: outputs.map((port) => port.name) });
  }

  tensors(feed) {
    const found = {};
    for (const [name, { dtype, data, shape }] of Object.entries(feed)) {
      try {
        found[name] = new this.engine.ort.Tensor(dtype, data, shape);
      } catch (error) {
        throw rejected(TITLE, this.file, `input ${name} is ${dtype}: ${error.message}`);
      }
    }
    return found;
  }

  async run(feed) {
    try {
      const found = await this.session.run(this.tensors(feed), this.names);
      return Object.fromEntries(this.names.map((name) => [name, { dtype: found[name].type, shape: [...found[name].dims], data: found[name].data }]));
    } catch (error) {
      throw error instanceof Told ? error : rejected(TITLE, this.file, error);
    }
  }

  bind(feed) {
    const { session } = this, feeds = this.tensors(feed);
    return () => session.run(feeds);
  }

  async describe() {
    const { backend, threads, version } = this.engine, gpu = backend === "webgpu" ? (await adapter()).text : "";
    return {
      runtime: TITLE, version, threads,
      provider: backend === "webgpu" ? `WebGPU on ${gpu}; what it can't run there, in WebAssembly` : "WebAssembly",
      hints: { backend, graph_optimizations: "all", execution: "sequential" },
      timed_region: "session.run: inputs copied from the page's memory, outputs copied back to it",
      reduced_precision: false,
    };
  }

  close() {
    return this.session.release();
  }
}
