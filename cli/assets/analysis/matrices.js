// Views 1, 4 and 5: accuracy by model and corruption, likeness of corruptions, classes by model.
const WORST = 5;

function drawAccuracy() {
  const cells = BOARDS.map((name, b) => models.map((model, m) => {
    const value = accuracy(m, b, state.severity);
    return {z: value, text: fixed(value, MODELS > 5 ? 0 : 1), title: `${model}, ${name}: ${percent(value)}`};
  }));
  const all = cells.flat().map(cell => cell.z);
  heatMap("accuracy-plot", {
    rows: BOARDS, columns: models, cells, chosen: [state.board, state.model], pick: (r, c) => choose({board: r, model: c}),
    range: [Math.min(...all), Math.max(...all)], scale: sequential(),
    title: "Accuracy by corruption and model; arrow keys move the chosen cell",
  });
  say("accuracy-reading", accuracyReading());
  const value = accuracy(state.model, state.board, state.severity), apart = value - accuracy(0, state.board, state.severity);
  const against = state.model ? `, ${points(apart)} against ${models[0]}` : "";
  const where = state.board ? `under ${BOARDS[state.board]} (${severityText(state.severity)})` : "on clean data";
  say("accuracy-cell", `Chosen: ${models[state.model]} ${where}: ${percent(value)}${against}.`);
}

function accuracyReading() {
  const falls = [];
  for (let m = MODELS > 1 ? 1 : 0; m < MODELS; m++) {
    for (let b = 1; b < BOARDS.length; b++) {
      const before = MODELS > 1 ? accuracy(0, b, state.severity) : accuracy(0, 0, 0);
      falls.push({m, b, fall: before - accuracy(m, b, state.severity)});
    }
  }
  const worst = falls.reduce((a, b) => b.fall > a.fall ? b : a), how = severityText(state.severity);
  const against = MODELS > 1 ? models[0] : "clean data", fell = worst.fall > 0.05;
  const cost = `${BOARDS[worst.b]} costs ${models[worst.m]} the most: ${points(-worst.fall)} against ${against} (${how}).`;
  if (MODELS === 1) return `There is one model, so nothing to compare it with; ${fell ? cost : `no corruption costs it accuracy (${how}).`}`;
  return fell ? cost : `Under every corruption no model is worse than ${against} (${how}).`;
}

function drawRedundancy() {
  const names = data.corruptions.map(row => row.name), table = data.redundancy.by_model[state.model];
  const cells = table.map((row, i) => row.map((r, j) => ({
    z: r, text: r === null ? NONE : fixed(r, KINDS > 10 ? 1 : 2), title: `${names[i]}, ${names[j]}: ${r === null ? "not defined" : `r = ${fixed(r, 2)}`}`,
  })));
  heatMap("redundancy-plot", {
    rows: names, columns: names, cells, chosen: state.board ? [state.board - 1, -1] : null, from: state.board ? [state.board - 1, state.board - 1] : null,
    pick: pickPair,
    range: [-1, 1], scale: diverging(), title: "Likeness of corruptions; arrow keys move the chosen corruption",
  });
  say("redundancy-reading", redundancyReading(names, table));
}

// A click chooses the row's corruption, or in the chosen row the column's; so does an arrow key, which starts from the diagonal.
const pickPair = (r, c) => choose({board: (r + 1 !== state.board ? r : c) + 1});

function redundancyReading(names, table) {
  if (KINDS < 2) return "There is one corruption, so nothing to compare it with.";
  const own = state.board - 1, pairs = [];
  for (let i = 0; i < KINDS; i++) for (let j = 0; j < i; j++) if (table[i][j] !== null) pairs.push({i, j, r: table[i][j]});
  if (!pairs.length) return `No correlation is defined for ${models[state.model]}: its margins shift alike in all samples.`;
  const highest = list => list.reduce((a, b) => b.r > a.r ? b : a), {i, j, r} = highest(pairs);
  const about = `In ${models[state.model]}, ${names[j]} and ${names[i]} move the samples' margins most alike (r = ${fixed(r, 2)})`;
  const mine = pairs.filter(pair => pair.i === own || pair.j === own);
  if (own < 0 || !mine.length || own === i || own === j) return `${about}.`;
  const near = highest(mine);
  return `${about}; nearest to ${names[own]} is ${names[near.i === own ? near.j : near.i]} (${fixed(near.r, 2)}).`;
}

// The change of a class's accuracy against the first model, null where the class has no samples.
function classChange(model, board, cls) {
  const [before, after] = [classAccuracy(0, board, cls), classAccuracy(model, board, cls)];
  return before === null ? null : after - before;
}

// Classes in the order shown: few as they are, many by their largest fall.
function classOrder() {
  const order = data.classes.map((_, c) => c);
  if (CLASSES <= 12) return order;
  const depth = c => Math.min(...models.map((_, m) => (MODELS > 1 ? classChange(m, state.board, c) : classAccuracy(m, state.board, c)) ?? Infinity));
  const depths = order.map(depth);
  return order.sort((a, b) => depths[a] - depths[b] || a - b);
}

function drawClasses() {
  const order = classOrder(), on = state.board ? BOARDS[state.board] : "clean data";
  const cells = order.map(c => models.map((name, m) => {
    const value = classAccuracy(m, state.board, c), change = classChange(m, state.board, c);
    if (value === null) return {z: null, text: NONE, title: `${data.classes[c]}: no samples`};
    const plain = m === 0;
    const title = `${data.classes[c]}, ${name}: ${percent(value)}${plain ? "" : `, ${points(change)} against ${models[0]}`}`;
    return {z: MODELS > 1 ? change : value, text: plain ? fixed(value, MODELS > 5 ? 0 : 1) : signed(change, MODELS > 5 ? 0 : 1), title};
  }));
  const all = cells.flat().map(cell => cell.z).filter(z => z !== null), size = Math.max(5, ...all.map(Math.abs));
  heatMap("classes-plot", {
    rows: order.map(c => data.classes[c]), columns: models, cells, chosen: [state.cls < 0 ? -1 : order.indexOf(state.cls), state.model],
    pick: (r, c) => choose({cls: order[r], model: c}), range: MODELS > 1 ? [-size, size] : [Math.min(...all), Math.max(...all)],
    scale: MODELS > 1 ? diverging() : sequential(), title: "Classes by model; arrow keys move the chosen cell",
  });
  if (state.cls >= 0) showRow(byId("classes-plot"), order.indexOf(state.cls), order.length);
  say("classes-reading", classesReading(order, on));
  showWorst();
  say("classes-note", MODELS > 1
    ? `The first column is ${models[0]}'s accuracy in percent, the others are changes from it in points, on ${on}${state.board ? ", mean of severities" : ""}.`
    : `Accuracy in percent on ${on}${state.board ? ", mean of severities" : ""}.`);
}

// The classes that fell most on any data, each once with its largest fall: buttons that choose where that was.
function showWorst() {
  const first = data.worst_classes.filter((fall, i, all) => all.findIndex(other => other.index === fall.index) === i).slice(0, WORST);
  say("classes-worst-head", first.length ? `Worst hit on any data, against ${first[0].against}:` : "No class lost accuracy on any data.");
  const focused = [...byId("classes-worst").querySelectorAll("button")].indexOf(document.activeElement);
  byId("classes-worst").replaceChildren(...first.map(fall => {
    const item = document.createElement("li"), button = document.createElement("button");
    const place = {cls: fall.index, model: models.indexOf(fall.model), board: BOARDS.indexOf(fall.benchmark)};
    button.type = "button";
    button.textContent = `${fall.name}: ${points(-100 * fall.fall)} (${fall.model}, ${fall.benchmark})`;
    button.setAttribute("aria-pressed", String(Object.keys(place).every(key => state[key] === place[key])));
    button.addEventListener("click", () => choose(place));
    item.append(button);
    return item;
  }));
  if (focused >= 0) byId("classes-worst").querySelectorAll("button")[focused].focus({preventScroll: true});
}

// Many classes stand in a box that scrolls: the chosen row is brought into it.
function showRow(plot, row, rows) {
  const box = plot.parentElement, at = plot.clientHeight * (row + 0.5) / rows;
  if (at < box.scrollTop + 60 || at > box.scrollTop + box.clientHeight - 30) box.scrollTop = at - box.clientHeight / 2;
}

function classesReading(order, on) {
  const found = [];
  for (const c of order) models.forEach((_, m) => {
    const value = MODELS > 1 ? classChange(m, state.board, c) : classAccuracy(m, state.board, c);
    if (value !== null && (m || MODELS === 1)) found.push({c, m, value});
  });
  if (!found.length) return "No class has samples.";
  const {c, m, value} = found.reduce((a, b) => b.value < a.value ? b : a);
  if (MODELS === 1) return `There is one model, so nothing to compare it with; its weakest class on ${on} is ${data.classes[c]} (${percent(value)}).`;
  if (value > -0.05) return `No class is worse than in ${models[0]} on ${on}.`;
  return `${data.classes[c]} loses the most on ${on}: ${points(value)} in ${models[m]} against ${models[0]}.`;
}
