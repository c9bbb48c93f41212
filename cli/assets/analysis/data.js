// The record's figures and samples, as the page holds them: `data` (JSON) and `samples` (arrays, inflated when the page starts).
const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const MODELS = data.models.length, KINDS = data.corruptions.length, CLASSES = data.classes.length;
const BOARDS = ["clean", ...data.corruptions.map(row => row.name)];
const models = data.models.map(row => row.name);
const samples = {};
const NONE = "–";

// The bytes of an element's text, which is base 64 of deflated bytes.
async function inflate(id) {
  const element = byId(id), letters = atob(element.textContent.trim());
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < packed.length; i++) packed[i] = letters.charCodeAt(i);
  element.remove();
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Fills `samples` from the bytes: every array's planes, lowest byte first, put together.
function unpack(bytes) {
  for (const [name, at] of Object.entries(data.arrays)) {
    const array = new ({1: Uint8Array, 2: Uint16Array, 4: Uint32Array}[at.bytes])(at.count);
    for (let plane = 0; plane < at.bytes; plane++) {
      const from = at.offset + plane * at.count, factor = 2 ** (8 * plane);
      for (let i = 0; i < at.count; i++) array[i] += bytes[from + i] * factor;
    }
    samples[name] = array;
  }
  samples.count = samples.index.length;
  samples.place = new Map(Array.from(samples.index, (index, place) => [index, place]));
}

// One model's values on a benchmark (0 is clean), by place: numbers, NaN for what is not finite.
function values(name, model, board) {
  const {low, high, levels} = data.arrays[name], from = (model * BOARDS.length + board) * samples.count;
  return Float64Array.from(samples[name].subarray(from, from + samples.count),
    step => step > levels ? NaN : low + step * (high - low) / levels);
}

function predicted(model, board) {
  const from = (model * BOARDS.length + board) * samples.count;
  return samples.predicted.subarray(from, from + samples.count);
}

// Survival in percent by tenths of a clean score (0: margin, 1: confidence), of one class (-1: all) under one corruption (-1: all).
function survivalByTenths(model, score, kind, cls) {
  const tenths = data.arrays.tries.shape[2], rates = [];
  for (let t = 0; t < tenths; t++) {
    let tries = 0, survived = 0;
    for (let c = cls < 0 ? 0 : cls; c < (cls < 0 ? CLASSES : cls + 1); c++) {
      tries += samples.tries[((model * 2 + score) * tenths + t) * CLASSES + c] * (kind < 0 ? KINDS : 1);
      for (let k = kind < 0 ? 0 : kind; k < (kind < 0 ? KINDS : kind + 1); k++)
        survived += samples.survived[(((model * 2 + score) * KINDS + k) * tenths + t) * CLASSES + c];
    }
    rates.push({tries, rate: tries ? 100 * survived / tries : null});
  }
  return rates;
}

const mean = list => list.reduce((sum, value) => sum + value, 0) / list.length;
function median(list) {
  const sorted = Float64Array.from(list).filter(value => !isNaN(value)).sort(), half = sorted.length >> 1;
  return !sorted.length ? NaN : sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// Accuracy in percent of a model on a benchmark, at a severity (0: the mean of all).
function accuracy(model, board, severity) {
  if (board === 0) return 100 * data.clean[model];
  const row = data.accuracy[model][board - 1];
  return 100 * (severity ? row[data.severities.indexOf(severity)] : mean(row));
}

// Accuracy in percent of a class, null where no sample has it. Under corruptions it is a mean over severities.
function classAccuracy(model, board, cls) {
  const share = board === 0 ? data.classClean[model][cls] : data.classCorrupted[model][board - 1][cls];
  return share === null ? null : 100 * share;
}

const fixed = (value, places = 1) => value === null || isNaN(value) ? NONE
  : (Math.abs(value) < 0.5 * 10 ** -places ? 0 : value).toFixed(places).replace("-", "−");
const signed = (value, places = 1) => (value > 0 && /[1-9]/.test(fixed(value, places)) ? "+" : "") + fixed(value, places);
const percent = value => `${fixed(value)} %`;
const points = value => `${signed(value)} points`;
const whole = value => value.toLocaleString("en-GB");
const counted = (count, one) => `${whole(count)} ${one}${count === 1 ? "" : "s"}`;
const shortened = (text, most) => text.length <= most ? text : `${text.slice(0, Math.ceil(most / 2) - 1)}…${text.slice(text.length - Math.floor(most / 2))}`;
// Plotly reads a few tags and entities in its texts; a name is never meant to hold any.
const literal = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const severityText = severity => severity ? `severity ${severity}`
  : data.severities.length > 1 ? `mean of severities ${data.severities.join(", ")}` : `severity ${data.severities[0]}`;
