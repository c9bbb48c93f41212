// LiteRT.js: TFLite files as they are. It can't resize inputs: more samples than the file is made for go through it in turn.
import { fixedShapes } from "./flatbuffer.js";
import { adapter } from "./machine.js";
import { joined, part } from "./tensors.js";
import { Told, rejected } from "./told.js";

const TITLE = "litert-web";
const KINDS = ["float32", "int32", "uint8"];

export async function open({ threads, backend, locate, version }) {
  if (threads > 1 && new URL(locate("")).origin !== location.origin)
    throw new Told("user", `LiteRT.js starts threads only from engine files that trimtab serves itself; threads=${threads} was asked for`,
      "trimtab devices setup browser, or --threads 1");
  const litert = await import(locate("@litertjs/core/dist/index.js"));
  const loaded = await litert.loadLiteRt(locate("@litertjs/core/wasm/"), { threads: threads > 1 });
  if (backend === "webgpu") {
    const { adapter: gpu } = await adapter();
    const limits = { maxBufferSize: gpu.limits.maxBufferSize, maxStorageBufferBindingSize: gpu.limits.maxStorageBufferBindingSize };
    const wanted = ["shader-f16", "subgroups"].filter((name) => gpu.features.has(name));
    litert.setWebGpuDevice(await gpu.requestDevice({ requiredFeatures: wanted, requiredLimits: limits }));
  }
  return new Engine(litert, loaded, { threads, backend, version });
}

class Engine {
  constructor(litert, loaded, settings) {
    Object.assign(this, { litert, loaded, ...settings });
  }

  async load({ bytes, file, inputs, outputs }) {
    let model;
    const made = fixedShapes(bytes);
    try {
      const options = { accelerator: this.backend, cpuOptions: { numThreads: this.threads } };
      model = await this.litert.loadAndCompile(made.bytes, this.backend === "webgpu" ? { ...options, gpuOptions: { precision: "fp32" } } : options);
    } catch (error) {
      throw rejected(TITLE, file, error);
    }
    if (this.backend === "webgpu" && !model.isFullyAccelerated) {
      model.delete();
      throw rejected(TITLE, file, "its operations don't all run on WebGPU, and LiteRT.js would run the whole of it in WebAssembly instead");
    }
    return new Session(this, model, { file, inputs, outputs, fixed: made.count });
  }

  async ops() {
    return { ops: [], runs: 0, note: "", reason: "LiteRT.js has no profiler" };
  }
}

// The detail of every port, by its name, or by its place where a file has just one of them.
function matched(details, ports, kind, file) {
  return ports.map((port) => {
    const found = details.find((detail) => detail.name === port.name) ?? (details.length === 1 && ports.length === 1 ? details[0] : null);
    if (!found) throw rejected(TITLE, file, `it has no ${kind} ${port.name}; it has ${details.map((detail) => detail.name).join(", ")}`);
    if (!KINDS.includes(found.dtype)) throw rejected(TITLE, file, `${kind} ${port.name} is ${port.dtype}; LiteRT.js takes ${KINDS.join(", ")}`);
    return found;
  });
}

class Session {
  constructor(engine, model, { file, inputs, outputs, fixed }) {
    Object.assign(this, { engine, model, file, inputs, outputs, fixed, pieces: 1 });
    this.ins = matched(model.getInputDetails(), inputs, "input", file);
    this.outs = matched(model.getOutputDetails(), outputs, "output", file);
  }

  // How many runs the samples of a feed take. Throws when the file can't take the feed at all.
  turns(feed) {
    const counts = this.inputs.map((port, k) => {
      const asked = feed[port.name].shape, made = [...this.ins[k].shape];
      const fits = asked.length === made.length && asked.slice(1).every((dim, at) => dim === made[at + 1]);
      const count = asked.length ? asked[0] / made[0] : 1;
      if (!fits || !Number.isInteger(count)) throw rejected(TITLE, this.file, `input ${port.name} is ${asked.join("×")}; the file is made for ${made.join("×")}, which LiteRT.js can't change`);
      return count;
    });
    return Math.max(1, ...counts);
  }

  tensors(feed) {
    return this.inputs.map((port, k) => {
      const { dtype, shape, data } = feed[port.name];
      if (dtype !== this.ins[k].dtype) throw rejected(TITLE, this.file, `input ${port.name} is ${this.ins[k].dtype} in the file and ${dtype} in its contract`);
      return new this.engine.litert.Tensor(data, shape);
    });
  }

  async run(feed) {
    const turns = this.turns(feed);
    this.pieces = turns;
    if (turns === 1) return this.once(feed);
    const rows = Object.fromEntries(this.inputs.map(({ name }, k) => [name, this.ins[k].shape[0]])), parts = [];
    for (let k = 0; k < turns; k++) parts.push(await this.once(part(feed, k, rows)));
    return Object.fromEntries(this.outputs.map(({ name }) => [name, joined(parts.map((found) => found[name]))]));
  }

  async once(feed) {
    const given = this.tensors(feed);
    try {
      const found = await this.model.run(given), outputs = {};
      for (const [k, port] of this.outputs.entries()) {
        const tensor = found[this.model.getOutputDetails().indexOf(this.outs[k])] ?? found[k];
        outputs[port.name] = { dtype: tensor.type.dtype, shape: [...tensor.type.layout.dimensions], data: (await tensor.data()).slice() };
      }
      found.forEach((tensor) => tensor.delete());
      return outputs;
    } catch (error) {
      throw error instanceof Told ? error : rejected(TITLE, this.file, error);
    } finally {
      given.forEach((tensor) => tensor.delete());
    }
  }

  // One call on inputs that were copied in now. On a GPU it ends when the outputs are here: a submission alone is no inference.
  bind(feed) {
    if (this.turns(feed) > 1) return () => { throw new Told("user", `${TITLE} can't time ${this.file.split("/").pop()} for this many samples at once: it is made for ${[...this.ins[0].shape].join("×")}, which LiteRT.js can't change`, "leave the dimensions out, or export it for this batch"); };
    const given = this.tensors(feed), { model } = this;
    this.bound = [...(this.bound ?? []), ...given];
    if (this.engine.backend === "wasm") return async () => { for (const tensor of await model.run(given)) tensor.delete(); };
    return async () => {
      for (const tensor of await model.run(given)) {
        await tensor.data();
        tensor.delete();
      }
    };
  }

  async describe() {
    const { backend, threads, version } = this.engine;
    const hints = { backend };
    if (backend === "webgpu") hints.gpu_precision = "fp32";
    if (this.fixed) hints.free_dimensions = "fixed at the sizes that the file tells: LiteRT.js can't change them";
    if (this.pieces > 1) hints.batch = `${this.pieces} runs in turn`;
    return {
      runtime: TITLE, version, threads, hints,
      provider: backend === "webgpu" ? `WebGPU on ${(await adapter()).text}` : "XNNPACK in WebAssembly",
      timed_region: backend === "webgpu" ? "CompiledModel.run: inputs copied to the GPU, outputs copied back to the page's memory" : "CompiledModel.run: inputs copied in once, outputs left in WebAssembly's memory",
      reduced_precision: false,
    };
  }

  close() {
    (this.bound ?? []).forEach((tensor) => tensor.delete());
    this.model.delete();
  }
}
