// Views 2 and 3: samples by angle and norm, and survival by tenths of the clean margin and of the confidence.
const DRAWN = 3000;
const COLOURED = 10;
const PALETTE = ["#3b7dd8", "#e07b1a", "#2a9d62", "#d1495b", "#8a63d2", "#a0703c", "#d95fa8", "#7d8a1e", "#18a2b8", "#c9a013"];
let shuffled = null;

// Classes with a colour of their own: all of ten, else those that lost the most.
function classColours() {
  const worst = data.worst_classes.map(fall => fall.index);
  const order = CLASSES <= COLOURED ? data.classes.map((_, c) => c) : [...new Set([...worst, ...data.classes.map((_, c) => c)])];
  return new Map(order.slice(0, COLOURED).map((c, i) => [c, PALETTE[i]]));
}

// Places of the samples drawn: a fixed random choice, and all of the chosen class.
function places() {
  if (!shuffled) {
    shuffled = Uint32Array.from({length: samples.count}, (_, i) => i);
    for (let i = samples.count - 1, seed = 1; i > 0; i--) {
      seed = (seed * 1103515245 + 12345) % 2147483648;
      const j = seed % (i + 1);
      [shuffled[i], shuffled[j]] = [shuffled[j], shuffled[i]];
    }
  }
  const chosen = new Set(shuffled.subarray(0, DRAWN));
  if (state.cls >= 0) samples.targets.forEach((c, place) => { if (c === state.cls) chosen.add(place); });
  if (state.sample >= 0) chosen.add(samples.place.get(state.sample));
  return [...chosen];
}

// x, y and a mark (0: right, 1: wrong; of changes 0: as before, 1: became wrong, 2: became right) of every sample, by place.
function geometry() {
  const {model, other, board} = state, mine = predicted(model, board), angle = values("angle", model, board), norm = values("norm", model, board);
  const wrong = Uint8Array.from(mine, (c, i) => c === samples.targets[i] ? 0 : 1);
  if (!comparing()) return {x: angle, y: norm, mark: wrong};
  const theirs = predicted(other, board), before = values("angle", other, board), size = values("norm", other, board);
  const [own, its] = [median(values("norm", model, 0)), median(values("norm", other, 0))];
  return {
    x: angle.map((value, i) => value - before[i]), y: norm.map((value, i) => 100 * (value / own - size[i] / its)),
    mark: wrong.map((w, i) => w === (theirs[i] === samples.targets[i] ? 0 : 1) ? 0 : w ? 1 : 2),
  };
}

const comparing = () => state.change === 1 && MODELS > 1 && state.model !== state.other;

function drawLocal() {
  const {x, y, mark} = geometry(), colours = classColours(), groups = new Map(), answers = predicted(state.model, state.board);
  const margins = values("margin", state.model, state.board), muted = colour("series-0"), shown = places();
  for (const place of shown) {
    const c = samples.targets[place], key = state.cls >= 0 ? (c === state.cls ? c : -1) : colours.has(c) ? c : -1;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(place);
  }
  const traces = [...groups.keys()].sort((a, b) => a - b).map(key => {
    const list = groups.get(key);
    return {
      type: "scatter", mode: "markers", x: list.map(i => x[i]), y: list.map(i => y[i]), customdata: list.map(i => samples.index[i]),
      text: list.map(i => literal(`sample ${samples.index[i]}: ${data.classes[samples.targets[i]]}`) + "<br>"
        + literal(`answer ${data.classes[answers[i]]}, margin ${fixed(margins[i], 2)}`)), hoverinfo: "text",
      marker: {
        color: key < 0 ? muted : colours.get(key) || colour("ink"), opacity: key < 0 && state.cls >= 0 ? 0.25 : 0.75, size: list.map(i => mark[i] ? 7 : 5),
        symbol: list.map(i => ["circle", "x-thin", "triangle-up"][mark[i]]),
        line: {width: list.map(i => mark[i] === 1 ? 1.6 : 0), color: key < 0 ? muted : colours.get(key) || colour("ink")},
      },
    };
  });
  const place = samples.place.get(state.sample);
  if (place !== undefined) traces.push({
    type: "scatter", mode: "markers", x: [x[place]], y: [y[place]], hoverinfo: "skip",
    marker: {symbol: "circle-open", size: 18, color: colour("ink"), line: {width: 3, color: colour("ink")}},
  });
  plotLocal(traces);
  say("local-reading", localReading(x, y, mark));
  say("local-note", localNote(shown.length));
  showLegend(colours);
}

function plotLocal(traces) {
  const plot = byId("local-plot"), narrow = plot.clientWidth < 500, delta = comparing();
  const title = (text, standoff) => ({text, font: {size: 12}, standoff});
  Plotly.react(plot, traces, layout({
    height: narrow ? 320 : 400, margin: {l: 52, r: 8, t: 8, b: 44}, hovermode: "closest", dragmode: narrow ? false : "zoom",
    xaxis: {title: title(delta ? "change of the angle to the true class, degrees" : "angle to the true class, degrees", 6), zeroline: delta},
    yaxis: {title: title(delta ? "change of the norm, % of a usual clean one" : "norm of the features", 4), zeroline: delta},
  }), CONFIG);
  if (plot.dataset.bound) return;
  plot.dataset.bound = "yes";
  plot.setAttribute("aria-label", "Samples by angle and norm; arrow keys choose the next or previous sample of view 6");
  plot.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    stepSample(by);
  });
  plot.on("plotly_click", event => { const index = event.points[0].customdata; if (index !== undefined) choose({sample: index}); });
}

const boardText = () => state.board ? `${BOARDS[state.board]}, severity ${data.severity_kept}` : "clean data";

function localReading(x, y, mark) {
  const mine = [...samples.targets.keys()].filter(i => state.cls < 0 || samples.targets[i] === state.cls);
  if (!mine.length) return `No sample of ${data.classes[state.cls]} is there.`;
  const of = state.cls < 0 ? "the" : `${data.classes[state.cls]}'s`, count = value => mine.filter(i => mark[i] === value).length;
  const at = list => median(mine.map(i => list[i])), name = models[state.model], where = boardText();
  if (comparing()) return `From ${models[state.other]} to ${name} on ${where}, ${of} angles change by ${signed(at(x))}° in the median and `
    + `${counted(count(1), "sample")} became wrong, ${whole(count(2))} right.`;
  const alone = state.change && MODELS < 2 ? "There is one model, so nothing to compare it with; " : state.change ? "Choose another model to compare with; " : "";
  return `${alone}${alone ? "on" : "On"} ${where}, ${of} samples of ${name} lie at ${fixed(at(x))}° from their class and at norm ${fixed(at(y), 2)} in the median; `
    + `${percent(100 * count(1) / mine.length)} are wrong.`;
}

function localNote(count) {
  const kept = samples.count < data.samples ? ` The page holds ${whole(samples.count)} of the ${whole(data.samples)} samples, drawn at random beside the worst-hit.` : "";
  const few = count < samples.count ? `${whole(count)} of ${whole(samples.count)} samples are drawn; choosing a class draws all of its samples. The sentence counts all.` : "";
  const marks = comparing() ? "× became wrong, △ became right, ● as before. " : "● right, × wrong. ";
  return marks + few + kept;
}

// Class names with their colours, as buttons that choose the class.
function showLegend(colours) {
  const focused = document.activeElement?.dataset?.cls;
  const entries = [...colours.keys()];
  if (state.cls >= 0 && !colours.has(state.cls)) entries.push(state.cls);
  byId("local-key").replaceChildren(...entries.map(c => {
    const button = document.createElement("button"), dot = document.createElement("i");
    dot.style.background = colours.get(c) || "var(--ink)";
    button.append(dot, shortened(data.classes[c], 24));
    Object.assign(button, {type: "button", title: data.classes[c]});
    button.dataset.cls = c;
    button.setAttribute("aria-pressed", String(state.cls === c));
    button.addEventListener("click", () => choose({cls: state.cls === c ? -1 : c}));
    return button;
  }));
  if (CLASSES > COLOURED) byId("local-key").append(`and ${counted(CLASSES - colours.size, "class").replace("classs", "classes")} in grey`);
  if (focused !== undefined) byId("local-key").querySelector(`[data-cls="${focused}"]`)?.focus({preventScroll: true});
}

const survivalRow = () => data.survival[state.model * (KINDS + 1) + (state.board ? state.board - 1 : KINDS)];

function drawSurvival() {
  const plot = byId("survival-plot"), kind = state.board - 1, narrow = plot.clientWidth < 500;
  const traces = ["margin", "confidence"].map((name, score) => {
    const rates = survivalByTenths(state.model, score, kind, state.cls);
    return {
      type: "scatter", mode: "lines+markers", name: `by clean ${name}`, x: rates.map((_, t) => t + 1), y: rates.map(part => part.rate),
      text: rates.map((part, t) => `tenth ${t + 1} by ${name}: ${percent(part.rate)} of ${whole(part.tries)}`), hoverinfo: "text",
      line: {color: colour(score ? "series-2" : "series-1"), width: 2.5, dash: score ? "dash" : "solid"}, marker: {size: 7, symbol: score ? "square" : "circle"},
    };
  });
  Plotly.react(plot, traces, layout({
    height: narrow ? 260 : 300, margin: {l: 48, r: 8, t: 30, b: 44}, showlegend: true, legend: {orientation: "h", x: 0, y: 1.14, font: {size: 12}},
    xaxis: {title: {text: "tenth of the samples, least first", font: {size: 12}, standoff: 6}, dtick: 1, range: [0.6, 10.4], fixedrange: true},
    yaxis: {title: {text: "stay right, %", font: {size: 12}, standoff: 4}, rangemode: "tozero", fixedrange: true},
  }), CONFIG);
  plot.setAttribute("aria-label", "Share of samples that stay right, by tenths of their clean margin and of their clean confidence");
  const row = survivalRow();
  say("survival-reading", survivalReading(row));
  const interval = row.low === null ? NONE : `${signed(row.low, 3)} … ${signed(row.high, 3)}`;
  const cells = {"auc-margin": fixed(row.auc_margin, 3), "auc-confidence": fixed(row.auc_confidence, 3), "auc-norm": fixed(row.auc_norm, 3),
    "auc-angle": fixed(row.auc_angle, 3), "auc-difference": row.difference === null ? NONE : signed(row.difference, 3), "auc-interval": interval};
  for (const [id, text] of Object.entries(cells)) say(id, text);
  say("survival-note", state.cls < 0 ? "" : `The curves are of ${data.classes[state.cls]} alone; the areas are of all classes.`);
}

function survivalReading(row) {
  const name = models[state.model], where = state.board ? BOARDS[state.board] : "all corruptions together";
  const stayed = `${whole(row.survived)} of ${whole(row.n)} corrupted versions stay right`;
  if (row.auc_margin === null) return `Under ${where}, ${name}: ${row.reason} (${stayed}).`;
  const figures = `AUC ${fixed(row.auc_margin, 3)} against ${fixed(row.auc_confidence, 3)}`;
  const verdict = row.low === null ? "how it compares with confidence is not known" : row.low > 0 ? "better than confidence does" : row.high < 0
    ? "worse than confidence does" : "no better or worse than confidence, as far as can be told";
  return `In ${name} under ${where}, the clean margin foretells who stays right ${verdict}: ${figures} (${stayed}).`;
}
