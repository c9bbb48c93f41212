// Tensors as the server keeps them: raw little-endian values, in C order.
import { Told } from "./told.js";

const TYPES = {
  float64: Float64Array, float32: Float32Array, float16: Uint16Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};

const kept = new Map(); // path → bytes, so that loading anew between sittings does not wait for the network
const KEPT_BYTES = 256 * 2 ** 20;
let keptBytes = 0;

export const size = (shape) => shape.reduce((product, dim) => product * dim, 1);

export async function bytesOf(path, { keep = true } = {}) {
  if (kept.has(path)) return kept.get(path);
  const url = path.split("/").map(encodeURIComponent).join("/");
  const got = await fetch(url, { cache: "no-store" });
  if (!got.ok) throw new Told("internal", `${path} can't be fetched: status ${got.status}`);
  const bytes = new Uint8Array(await got.arrayBuffer());
  if (keep && keptBytes + bytes.byteLength <= KEPT_BYTES) {
    kept.set(path, bytes);
    keptBytes += bytes.byteLength;
  }
  return bytes;
}

export function typed(dtype, bytes, what) {
  const Kind = TYPES[dtype];
  if (!Kind) throw new Told("user", `${what} is ${dtype}, which a page has no array for`, "one of " + Object.keys(TYPES).join(", "));
  return new Kind(bytes.slice().buffer); // a copy: aligned, and nobody else's
}

// One input or output: {dtype, shape, data}.
export async function tensorOf(told, dtype, name, options) {
  const data = typed(dtype, await bytesOf(told.file, options), name);
  if (data.length !== size(told.shape)) throw new Told("internal", `${told.file} holds ${data.length} values, not ${told.shape.join("×")}`);
  return { dtype, shape: told.shape, data };
}

export async function feedOf(ports, feed, options) {
  const found = {};
  for (const port of ports) found[port.name] = await tensorOf(feed[port.name], port.dtype, port.name, options);
  return found;
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

// The numbers that entries stand for, in double precision: scale · (q − zero point), or as they are.
export function real({ dtype, data }, scale, zeroPoint) {
  const bits = dtype === "float16" && data instanceof Uint16Array;
  const found = new Float64Array(data.length);
  for (let k = 0; k < data.length; k++) {
    const value = bits ? half(data[k]) : Number(data[k]);
    found[k] = scale == null ? value : (value - (zeroPoint ?? 0)) * scale;
  }
  return found;
}

// How many parts inputs make that have several times as many rows as `rows` has for them (input name → rows), and the k-th part:
// inputs with just as many rows are in every part as they are.
export function partCount(inputs, rows) {
  return Math.max(1, ...Object.entries(inputs).map(([name, { shape }]) => (shape.length && rows[name] ? shape[0] / rows[name] : 1)));
}

export function part(inputs, k, rows) {
  const found = {};
  for (const [name, tensor] of Object.entries(inputs)) {
    const count = rows[name], [all, ...rest] = tensor.shape, each = size(rest);
    found[name] = !count || all === count ? tensor
      : { ...tensor, shape: [count, ...rest], data: tensor.data.slice(k * count * each, (k + 1) * count * each) };
  }
  return found;
}

// Tensors of the same kind joined along the first axis.
export function joined(tensors) {
  const data = new tensors[0].data.constructor(tensors.reduce((sum, tensor) => sum + tensor.data.length, 0));
  let at = 0;
  for (const tensor of tensors) {
    data.set(tensor.data, at);
    at += tensor.data.length;
  }
  const rows = tensors.reduce((sum, tensor) => sum + tensor.shape[0], 0);
  return { dtype: tensors[0].dtype, shape: [rows, ...tensors[0].shape.slice(1)], data };
}

export const raw = ({ data }) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
