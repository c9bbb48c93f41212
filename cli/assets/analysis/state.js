// The one state of the page: what is chosen. It stands in the address, so that a view can be passed on.
const KEYS = {model: "m", other: "o", board: "b", severity: "s", cls: "c", sample: "i", change: "d"};
const state = {};
const views = [];

// What the page opens with: the last model against the first, under the corruption that costs it the most.
function defaults() {
  const model = MODELS - 1, costs = data.corruptions.map((_, k) => accuracy(model, k + 1, 0));
  return {model, other: 0, board: 1 + costs.indexOf(Math.min(...costs)), severity: 0, cls: -1, sample: -1, change: 0};
}

function allowed(key, value) {
  if (!Number.isInteger(value)) return false;
  const below = {model: MODELS, other: MODELS, board: BOARDS.length, change: 2}[key];
  if (below) return value >= 0 && value < below;
  if (key === "severity") return value === 0 || data.severities.includes(value);
  return key === "cls" ? value >= -1 && value < CLASSES : value === -1 || samples.place.has(value);
}

function fromAddress() {
  const found = defaults(), asked = new URLSearchParams(location.hash.slice(1));
  for (const [key, letter] of Object.entries(KEYS)) {
    if (asked.has(letter) && allowed(key, Number(asked.get(letter)))) found[key] = Number(asked.get(letter));
  }
  return found;
}

function toAddress() {
  const hash = "#" + Object.entries(KEYS).map(([key, letter]) => `${letter}=${state[key]}`).join("&");
  if (location.hash !== hash) history.replaceState(null, "", hash);
}

// The one way to change what is chosen: every view that shows any of it is drawn again.
function choose(changes) {
  const changed = Object.keys(changes).filter(key => allowed(key, changes[key]) && changes[key] !== state[key]);
  for (const key of changed) state[key] = changes[key];
  if (!changed.length) return;
  toAddress();
  refresh(changed);
}

function refresh(changed) {
  for (const view of views) if (view.shows.some(key => changed.includes(key))) view.draw();
}

// The native controls. Each is an element that holds one part of the state as its value.
function fillControls() {
  const options = (id, texts) => byId(id).replaceChildren(...texts.map(([value, text]) => {
    const option = document.createElement("option");
    [option.value, option.textContent] = [value, text];
    return option;
  }));
  options("model", models.map((name, m) => [m, name]));
  options("other", models.map((name, m) => [m, name]));
  options("board", BOARDS.map((name, b) => [b, b ? name : "clean (no corruption)"]));
  const all = data.severities.length > 1 ? [[0, "mean of all"]] : [];
  options("severity", [...all, ...data.severities.map(s => [all.length ? s : 0, `${s}`])]);
  options("cls", [[-1, "all"], ...data.classes.map((name, c) => [c, name])]);
  options("sample", [[-1, "none"], ...data.pictures.map(({index}) => [index, sampleName(index)])]);
  for (const key of ["model", "other", "board", "severity", "cls", "sample"]) {
    byId(key).addEventListener("change", event => choose({[key]: Number(event.target.value)}));
  }
  byId("other").disabled = MODELS < 2;
  byId("reset").addEventListener("click", () => choose(defaults()));
  addEventListener("hashchange", () => choose(fromAddress()));
  views.push({shows: Object.keys(KEYS), draw: showControls});
}

const sampleName = index => `${index} (${data.classes[samples.targets[samples.place.get(index)]]})`;

function showControls() {
  const list = byId("sample"), extra = list.querySelector("[data-extra]");
  if (extra) extra.remove();
  if (![...list.options].some(option => Number(option.value) === state.sample)) {
    const option = new Option(sampleName(state.sample), state.sample);
    option.dataset.extra = "";
    list.add(option);
  }
  for (const key of ["model", "other", "board", "severity", "cls", "sample"]) byId(key).value = state[key];
  const parts = [models[state.model], BOARDS[state.board], state.board ? severityText(state.severity) : "",
    state.cls < 0 ? "all classes" : data.classes[state.cls], state.sample < 0 ? "" : `sample ${sampleName(state.sample)}`];
  byId("chosen").textContent = parts.filter(Boolean).join(" · ");
}
