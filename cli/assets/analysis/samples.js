// View 6: the worst-hit samples as pictures, and what every model says of the chosen one.
const PICTURES_SHOWN = 24;
let more = 0;

// Pictures in the order shown: the worst-hit first, then the others; of the chosen class alone, where one is chosen.
function pictured() {
  const fall = new Map(data.worst.map(row => [row.index, row]));
  return data.pictures.map(({index, src}) => ({index, src, cls: samples.targets[samples.place.get(index)], fall: fall.get(index)}))
    .filter(entry => state.cls < 0 || entry.cls === state.cls);
}

function drawPictures() {
  const list = pictured(), box = byId("samples-list"), held = document.activeElement?.dataset?.index;
  const count = PICTURES_SHOWN * (1 + more), focusable = list.slice(0, count).some(entry => entry.index === state.sample) ? state.sample : list[0]?.index;
  box.replaceChildren(...list.slice(0, count).map(entry => {
    const button = document.createElement("button"), image = document.createElement("img"), text = document.createElement("span");
    Object.assign(image, {src: entry.src, alt: ""});
    text.textContent = shortened(data.classes[entry.cls], 12);
    button.append(image, text);
    Object.assign(button, {type: "button", tabIndex: entry.index === focusable ? 0 : -1});
    button.dataset.index = entry.index;
    const fell = entry.fall ? `margin fell by ${fixed(entry.fall.fall, 2)}` : "one of the others, at random";
    button.title = `sample ${entry.index}: ${data.classes[entry.cls]}, ${fell}`;
    button.setAttribute("aria-label", button.title);
    button.setAttribute("aria-pressed", String(entry.index === state.sample));
    button.addEventListener("click", () => choose({sample: entry.index === state.sample ? -1 : entry.index}));
    return button;
  }));
  if (held !== undefined) box.querySelector(`[data-index="${held}"]`)?.focus({preventScroll: true});
  byId("samples-more").hidden = list.length <= count;
  say("samples-reading", picturesReading(list, Math.min(count, list.length)));
}

// The next (1) or previous (-1) picture's sample is chosen; the first where none was.
function stepSample(by) {
  const list = pictured(), at = list.findIndex(entry => entry.index === state.sample);
  const next = list[at < 0 ? 0 : Math.max(0, Math.min(list.length - 1, at + by))];
  if (next) choose({sample: next.index});
}

function picturesReading(list, count) {
  const worst = list.find(entry => entry.fall), of = state.cls < 0 ? "" : ` of ${data.classes[state.cls]}`;
  if (!list.length) return `No picture${of} is kept.`;
  const shown = `${counted(count, "picture")}${of} of ${whole(list.length)}`;
  if (!worst) return `None of the worst-hit samples is${of || " kept"}; ${shown}, drawn at random.`;
  const from = worst.fall.against === "clean" ? "from clean data" : `from ${worst.fall.against} to the others`;
  return `Hit hardest is sample ${worst.index} (${data.classes[worst.cls]}): its margin falls by ${fixed(worst.fall.fall, 2)} ${from}, a mean over corruptions; ${shown}.`;
}

// Arrow keys move between the pictures, Enter chooses: one stop of the Tab key for all of them.
function moveAmongPictures(event) {
  const buttons = [...byId("samples-list").children], at = buttons.indexOf(document.activeElement);
  const across = buttons.filter(button => button.offsetTop === buttons[0].offsetTop).length;
  const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -at, End: buttons.length - 1 - at}[event.key];
  if (at < 0 || step === undefined) return;
  event.preventDefault();
  const next = buttons[at + step];
  if (!next) return;
  buttons[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function drawSample() {
  const box = byId("sample-detail"), place = samples.place.get(state.sample);
  byId("sample-none").hidden = place !== undefined;
  box.hidden = place === undefined;
  if (place === undefined) return;
  const target = samples.targets[place], picture = data.pictures.find(entry => entry.index === state.sample), image = byId("sample-image");
  image.hidden = !picture;
  if (picture) Object.assign(image, {src: picture.src, alt: `Sample ${state.sample}`});
  say("sample-name", `Sample ${state.sample}: ${data.classes[target]}${picture ? "" : " (no picture kept)"}`);
  const boards = state.board ? [0, state.board] : [0];
  const cell = (text, kind, wrong) => {
    const element = document.createElement(kind);
    element.textContent = text;
    if (wrong !== undefined) element.className = wrong ? "wrong" : "num";
    return element;
  };
  const row = (...cells) => { const line = document.createElement("tr"); line.append(...cells); return line; };
  const heads = boards.flatMap(b => [b ? `under ${BOARDS[b]}` : "clean", "margin"]);
  byId("sample-head").replaceChildren(row(cell("model", "th"), ...heads.map(text => cell(text, "th"))));
  byId("sample-rows").replaceChildren(...models.map((name, m) => row(cell(name, "th"), ...boards.flatMap(b => {
    const answer = predicted(m, b)[place], wrong = answer !== target;
    return [cell(`${wrong ? "✗" : "✓"} ${data.classes[answer]}`, "td", wrong), cell(fixed(values("margin", m, b)[place], 2), "td", false)];
  }))));
  say("sample-note", state.board ? `${BOARDS[state.board]} at severity ${data.severity_kept}. Margins are in each network's own units.` : "Margins are in each network's own units.");
}
