// Starts the page: the library and the arrays are inflated, then every view is drawn.
function runScript(text) {
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
}

function connect() {
  views.push(
    {shows: ["model", "board", "severity"], draw: drawAccuracy},
    {shows: ["model", "other", "board", "cls", "sample", "change"], draw: drawLocal},
    {shows: ["model", "board", "cls"], draw: drawSurvival},
    {shows: ["model", "board"], draw: drawRedundancy},
    {shows: ["model", "board", "cls"], draw: drawClasses},
    {shows: ["cls", "sample"], draw: drawPictures},
    {shows: ["model", "board", "sample"], draw: drawSample},
  );
  byId("change").disabled = MODELS < 2;
  byId("change").addEventListener("click", () => choose({change: 1 - state.change}));
  views.push({shows: ["change", "other"], draw: () => {
    byId("change").setAttribute("aria-pressed", String(state.change === 1));
    say("change", MODELS < 2 ? "One model: nothing to compare" : `Show changes from ${shortened(models[state.other], 24)}`);
  }});
  byId("samples-list").addEventListener("keydown", moveAmongPictures);
  byId("samples-more").addEventListener("click", () => { more += 1; drawPictures(); });
}

async function start() {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is too old for the page: it can't inflate data (DecompressionStream)");
  if (innerWidth < 700) byId("controls").open = false;
  const [library, arrays] = await Promise.all([inflate("plotly"), inflate("arrays")]);
  runScript(new TextDecoder().decode(library));
  unpack(arrays);
  fillControls();
  connect();
  Object.assign(state, fromAddress());
  refresh(Object.keys(KEYS));
  const again = () => refresh(Object.keys(KEYS));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  let waiting = 0, width = innerWidth;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    if (innerWidth !== width) waiting = setTimeout(() => { width = innerWidth; again(); }, 200);
  });
  byId("waiting").remove();
  document.documentElement.dataset.ready = "yes";
}

start().catch(error => say("waiting", `The page can't be shown: ${error.message}`));
