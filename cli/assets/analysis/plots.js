// What all plots share: colours of the style sheet, and heat maps whose cells are chosen by click or by arrow keys.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const CONFIG = {displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false};
const labelLength = width => width < 500 ? 12 : 18;

function layout(more) {
  const axis = {gridcolor: colour("grid"), zerolinecolor: colour("rule"), linecolor: colour("rule"), tickfont: {size: 11}};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, showlegend: false, dragmode: false,
    font: {family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink")},
    hoverlabel: {bgcolor: colour("surface"), bordercolor: colour("rule"), font: {color: colour("ink"), size: 12}, align: "left"},
    ...more,
    xaxis: {...axis, ...more.xaxis}, yaxis: {...axis, ...more.yaxis},
  };
}

const sequential = () => [[0, colour("heat-low")], [1, colour("heat-high")]];
const diverging = () => [[0, colour("fall")], [0.5, colour("surface")], [1, colour("rise")]];

// Draws a heat map. `rows` and `columns` are names, `cells[r][c]` {z, text, title}, `chosen` [r, c] (-1: a whole row or column, null:
// nothing), `pick(r, c)` is called for a click or an arrow key, `range` [least, largest] of the colours.
function heatMap(id, {rows, columns, cells, chosen, from = chosen, pick, range, scale, title}) {
  const plot = byId(id), most = labelLength(plot.clientWidth), step = Math.max(18, Math.min(28, 460 / rows.length));
  const ticks = names => ({tickmode: "array", tickvals: names.map((_, i) => i), ticktext: names.map(name => literal(shortened(name, most)))});
  const wordy = columns.length > 3 || columns.some(name => name.length > 10);
  const longest = names => Math.min(most, Math.max(...names.map(name => name.length)));
  const across = (plot.clientWidth - 6.2 * longest(rows) - 40) / columns.length; // a cell's width, about
  const legible = across > 6.5 * Math.max(...cells.flat().map(cell => cell.text.length));
  const trace = {
    type: "heatmap", z: cells.map(row => row.map(cell => cell.z)), text: cells.map(row => row.map(cell => legible ? cell.text : "")),
    hovertext: cells.map(row => row.map(cell => literal(cell.title))), texttemplate: "%{text}", textfont: {size: 11}, hoverinfo: "text",
    colorscale: scale, zmin: range[0], zmax: range[1], showscale: false, xgap: 1, ygap: 1, hoverongaps: false,
  };
  const frame = {color: colour("ink"), width: 2};
  const [r, c] = chosen || [];
  const box = (x0, x1, y0, y1) => ({type: "rect", x0, x1, y0, y1, line: frame});
  const shapes = chosen ? [box(c < 0 ? -0.5 : c - 0.5, c < 0 ? columns.length - 0.5 : c + 0.5, r < 0 ? -0.5 : r - 0.5, r < 0 ? rows.length - 0.5 : r + 0.5)] : [];
  const slant = 6.8 * longest(columns) * 0.75, top = wordy ? 16 + slant : 28;
  const height = top + 8 + step * rows.length;
  plot.style.height = `${height}px`;
  const bounds = {fixedrange: true, showgrid: false, zeroline: false, ticks: ""};
  Plotly.react(plot, [trace], layout({
    height, margin: {l: 10, r: wordy ? Math.max(10, slant - across / 2 + 8) : 6, t: top, b: 6}, shapes,
    xaxis: {...bounds, ...ticks(columns), side: "top", ticklabeloverflow: "allow", tickangle: wordy ? -45 : 0, range: [-0.5, columns.length - 0.5]},
    yaxis: {...bounds, ...ticks(rows), automargin: true, range: [rows.length - 0.5, -0.5]},
  }), CONFIG);
  plot.setAttribute("aria-label", title);
  plot.picking = {rows: rows.length, columns: columns.length, at: from, pick};
  if (plot.dataset.bound) return;
  plot.dataset.bound = "yes";
  plot.on("plotly_click", event => plot.picking.pick(event.points[0].y, event.points[0].x));
  plot.addEventListener("keydown", event => move(plot, event));
}

// An arrow key in a heat map: the neighbouring cell is chosen; Home and End go to the row's ends.
function move(plot, event) {
  const steps = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -Infinity], End: [0, Infinity]}[event.key];
  if (!steps || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const {rows, columns, at, pick} = plot.picking, [r, c] = at || [-1, -1];
  const next = (value, by, size) => by ? Math.max(0, Math.min(size - 1, value + by)) : value;
  pick(next(r, steps[0], rows), next(c, steps[1], columns), true);
}

const say = (id, text) => { byId(id).textContent = text; };
