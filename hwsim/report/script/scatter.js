// Two metrics against each other: marks, the front, a brush, and a cursor that the keyboard moves.

const plot = { svg: null, tip: null, box: null, x: null, y: null, points: [], cursor: -1, anchor: -1, pinned: false, drawing: false };

function buildScatter() {
  const figure = document.querySelector("#tradeoff figure");
  if (!figure || !data.axes.length) return;
  figure.querySelector(".plot").classList.add("live-plot");
  plot.tip = h("div", { class: "tip", hidden: true, role: "status", tabindex: -1 });
  figure.append(plot.tip);
  const fields = [
    field("vertical", metricSelect("y")), field("horizontal", metricSelect("x")), field("colour and shape", bySelect()),
    h("button", { type: "button", id: "range", click: () => { state.near = !state.near; changed(); } }),
  ];
  document.querySelector("#tradeoff .controls").append(...fields);
  figure.querySelector("figcaption").replaceChildren(
    "Each mark is a design point; the line joins those that no other listed point beats in both metrics. Drag to ",
    "select. With the plot focused: ", h("kbd", {}, "←"), " ", h("kbd", {}, "→"), " move from point to point, ",
    h("kbd", {}, "Shift"), " with them selects what lies between, ", h("kbd", {}, "Space"), " selects one, ",
    h("kbd", {}, "Enter"), " opens it, ", h("kbd", {}, "Esc"), " clears.");
}

function field(title, control) {
  return h("label", { class: "field" }, title, control);
}

function metricSelect(axis) {
  const select = h("select", { id: `select-${axis}`, change: () => { state[axis] = select.value; changed(); } });
  for (const column of numbers.values()) {
    if (column.metric || column.low < column.high) select.append(h("option", { value: column.name }, heading(column)));
  }
  return select;
}

function bySelect() {
  const select = h("select", { id: "select-by", change: () => { state.by = select.value; state.hidden.clear(); changed(); } });
  for (const { name, title, levels } of words.values()) {
    if (name !== "message" && (levels.length > 1 || name === "engine")) select.append(h("option", { value: name }, title));
  }
  return select;
}

/** Finished points with both metrics. */
function drawable() {
  const [xs, ys] = [numbers.get(state.x).values, numbers.get(state.y).values];
  const found = [];
  for (let i = 0; i < count; i++) if (visible[i] && xs[i] != null && ys[i] != null) found.push(i);
  return found;
}

/** Indices of the points that no other beats in both metrics, from the lowest x up; empty without a direction. */
function frontOf(points) {
  const [x, y] = [numbers.get(state.x), numbers.get(state.y)];
  if (x === y || x.better === "none" || y.better === "none") return [];
  const cost = (column, i) => (column.better === "min" ? column.values[i] : -column.values[i]);
  const order = [...points].sort((a, b) => cost(x, a) - cost(x, b) || cost(y, a) - cost(y, b));
  let least = Infinity;
  const best = order.filter((i) => (cost(y, i) < least ? ((least = cost(y, i)), true) : false));
  return best.sort((a, b) => x.values[a] - x.values[b] || y.values[a] - y.values[b]);
}

/** Around the front where far points would crush it into a corner, else around all. */
function fitted(column, best) {
  let { low, high } = column;
  const values = best.map((i) => column.values[i]);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const spread = most - least;
  const crushed = best.length > 1 && spread > 0 && spread < data.near * (high - low);
  if (crushed && state.near) {
    const [below, above] = column.better === "min" ? [0.3, 2] : [2, 0.3];
    [low, high] = [Math.max(low, least - below * spread), Math.min(high, most + above * spread)];
  }
  return { crushed, scale: roomy(low, high, low > 0 && high > data.crowded * low) };
}

function drawScatter() {
  const holder = document.querySelector("#tradeoff .plot");
  if (!plot.tip) return;
  for (const axis of ["x", "y", "by"]) $(`select-${axis}`).value = state[axis];
  const points = drawable();
  const best = frontOf(points);
  const [x, y] = [numbers.get(state.x), numbers.get(state.y)];
  const [fx, fy] = [fitted(x, best), fitted(y, best)];
  [plot.x, plot.y] = [fx.scale, fy.scale];
  $("range").hidden = !(fx.crushed || fy.crushed);
  $("range").textContent = state.near ? "Show the whole range" : "Show what is near the front";
  const width = Math.max(holder.clientWidth, 280);
  const height = Math.round(Math.max(300, Math.min(0.5 * width, 0.62 * innerHeight)));
  plot.box = { left: 62, right: width - 14, top: 12, bottom: height - 46, width, height };
  const inside = points.filter((i) => holds(plot.x, x.values[i]) && holds(plot.y, y.values[i]));
  const focused = plot.svg && document.activeElement === plot.svg;
  plot.svg = svg("svg", {
    class: "chart", viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "application",
    "aria-label": `${y.title} against ${x.title}, ${inside.length} points; arrow keys move between them`,
    keydown: plotKey, blur: (event) => { if (!plot.drawing && !plot.tip.contains(event.relatedTarget)) hideTip(true); },
  }, ...gridLines(plot.box, plot.x, plot.y, heading(x), heading(y)), densityCells(), frontLine(best), ...marks(inside, best),
  ...labels(best), brushBox(), svg("circle", { class: "ring", r: 8, hidden: true }), surface());
  plot.points = inside;
  plot.drawing = true;
  holder.replaceChildren(plot.svg);
  if (focused) plot.svg.focus({ preventScroll: true });
  plot.drawing = false;
  if (plot.cursor >= 0) showCursor();
  drawLegend();
}

const holds = ({ low, high }, value) => low <= value && value <= high;
const px = (value) => plot.box.left + plot.x.at(value) * (plot.box.right - plot.box.left);
const py = (value) => plot.box.bottom - plot.y.at(value) * (plot.box.bottom - plot.box.top);
const place = (i) => [px(numbers.get(state.x).values[i]), py(numbers.get(state.y).values[i])];

function gridLines(box, x, y, xHeading, yHeading) {
  const parts = [];
  const [across, up] = [box.right - box.left, box.bottom - box.top];
  for (const value of x.ticks(Math.max(3, Math.floor(across / 75)))) {
    const at = box.left + x.at(value) * across;
    parts.push(svg("path", { class: "grid", d: `M${at} ${box.top}V${box.bottom}` }));
    parts.push(svg("text", { x: at, y: box.bottom + 16, "text-anchor": "middle" }, short(value)));
  }
  for (const value of y.ticks(7)) {
    const at = box.bottom - y.at(value) * up;
    parts.push(svg("path", { class: "grid", d: `M${box.left} ${at}H${box.right}` }));
    parts.push(svg("text", { x: box.left - 8, y: at + 4, "text-anchor": "end" }, short(value)));
  }
  const turned = `translate(14 ${(box.top + box.bottom) / 2}) rotate(-90)`;
  const middle = (box.left + box.right) / 2;
  parts.push(svg("text", { class: "heading", x: middle, y: box.bottom + 38, "text-anchor": "middle" }, xHeading));
  parts.push(svg("text", { class: "heading", transform: turned, "text-anchor": "middle" }, yHeading));
  return parts;
}

/** How many of all the study's points lie where, behind the listed ones. */
function densityCells() {
  const group = svg("g", { class: "density" });
  if (!data.density) return group;
  const straight = data.density.pairs[`${state.x} ${state.y}`];
  const pairs = straight ?? data.density.pairs[`${state.y} ${state.x}`];
  if (!pairs) return group;
  const [first, second] = straight ? [state.x, state.y] : [state.y, state.x];
  const [a, b] = [first, second].map((name) => scale(numbers.get(name).low, numbers.get(name).high, numbers.get(name).log));
  const most = Math.max(...pairs.filter((_, at) => at % 2));
  let cell = 0;
  for (let at = 0; at < pairs.length; at += 2) {
    cell += pairs[at];
    const [column, line] = [Math.floor(cell / data.density.rows), cell % data.density.rows];
    const [p, q] = [edges(a, column, data.density.columns), edges(b, line, data.density.rows)];
    const [xs, ys] = straight ? [p, q] : [q, p];
    group.append(densityCell(xs, ys, pairs[at + 1], most));
  }
  return group;
}

const edges = (axis, index, cells) => [axis.value(index / cells), axis.value((index + 1) / cells)];

function densityCell([x0, x1], [y0, y1], points, most) {
  const { left, right, top, bottom } = plot.box;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const [a, b] = [clamp(px(Math.max(x0, plot.x.low)), left, right), clamp(px(Math.min(x1, plot.x.high)), left, right)];
  const [c, d] = [clamp(py(Math.min(y1, plot.y.high)), top, bottom), clamp(py(Math.max(y0, plot.y.low)), top, bottom)];
  const opacity = 0.06 + 0.34 * (Math.log1p(points) / Math.log1p(most));
  return svg("rect", { class: "cell", x: a, y: c, width: Math.max(b - a, 0), height: Math.max(d - c, 0), "fill-opacity": opacity.toFixed(3) });
}

/** One path for the selected and one for the other points of each series; on top of them the front, in full size. */
function marks(points, best) {
  const rest = new Set(points);
  for (const i of best) rest.delete(i);
  return [...seriesPaths([...rest], markSize(points.length)), ...seriesPaths(best.filter((i) => points.includes(i)), 1.15)];
}

function seriesPaths(points, size) {
  const glyphs = data.glyphs.map((path) => scaled(path, size));
  const paths = new Map();
  for (const i of points) {
    const key = 2 * series.codes[i] + (selecting && !selected[i] ? 0 : 1);
    const [left, top] = place(i);
    if (!paths.has(key)) paths.set(key, []);
    paths.get(key).push(`M${left.toFixed(1)} ${top.toFixed(1)}${glyphs[series.codes[i] % glyphs.length]}`);
  }
  const order = [...paths.keys()].sort((a, b) => (a % 2) - (b % 2) || b - a);
  return order.map((key) => svg("path", { class: markClass(key >> 1) + (key % 2 ? "" : " faded"), d: paths.get(key).join("") }));
}

function frontLine(best) {
  const inside = best.filter((i) => holds(plot.x, numbers.get(state.x).values[i]) && holds(plot.y, numbers.get(state.y).values[i]));
  if (!inside.length) return null;
  const [[x, y], ...rest] = inside.map(place);
  // between two points of the front nothing better is known than the worse value of each
  const flat = numbers.get(state.x).better === "min";
  const path = rest.map(([a, b]) => (flat ? `H${a.toFixed(1)}V${b.toFixed(1)}` : `V${b.toFixed(1)}H${a.toFixed(1)}`));
  return svg("path", { class: "front-line", d: `M${x.toFixed(1)} ${y.toFixed(1)}${path.join("")}` });
}

function labels(best) {
  const taken = [];
  const shownLabels = [];
  const name = words.get("format").levels.length > 1 ? "format" : "engine";
  for (const i of best) {
    const [x, y] = place(i);
    const text = word(name, i).slice(0, 24);
    const width = 6.6 * text.length;
    const left = x + 8 + width > plot.box.right ? x - 8 - width : x + 8;
    const clear = taken.every(([a, b, w]) => Math.abs(y - b) > 12 || left + width < a || a + w < left);
    if (!clear || y < plot.box.top + 12 || y > plot.box.bottom || x < plot.box.left || x > plot.box.right) continue;
    taken.push([left, y, width]);
    shownLabels.push(svg("text", { class: "label", x: left, y: y - 8 }, text));
  }
  return shownLabels;
}

// ---- brush and pointer

function brushBox() {
  const [xr, yr] = [state.ranges.get(state.x), state.ranges.get(state.y)];
  if (!xr && !yr) return null;
  const { left, right, top, bottom } = plot.box;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const side = (at, low, high, range, axis) => (range ? range.map((v) => clamp(at(axis.log ? Math.max(v, axis.low) : v), low, high)) : [low, high]);
  const [a, b] = side(px, left, right, xr, plot.x);
  const [d, c] = yr ? side(py, top, bottom, yr, plot.y) : [bottom, top];
  return svg("rect", { class: "brush", x: a, y: c, width: b - a, height: d - c });
}

let drag = null;

function surface() {
  const { left, right, top, bottom } = plot.box;
  return svg("rect", {
    class: "surface", x: left, y: top, width: right - left, height: bottom - top,
    pointerdown: (event) => { if (event.button === 0) drag = { from: at(event), moved: false }; },
    pointermove: hover,
    pointerleave: () => { if (!drag) hideTip(false); },
  });
}

/** Where the pointer is, in the units of the plot. */
function at(event) {
  const frame = plot.svg.getBoundingClientRect();
  return [(event.clientX - frame.left) * (plot.box.width / frame.width), (event.clientY - frame.top) * (plot.box.height / frame.height)];
}

addEventListener("pointermove", (event) => {
  if (!drag) return;
  const to = at(event);
  drag.moved ||= Math.hypot(to[0] - drag.from[0], to[1] - drag.from[1]) > 5;
  if (drag.moved) brush(drag.from, to);
});
addEventListener("pointerup", (event) => {
  if (!drag) return;
  const { moved } = drag;
  drag = null;
  if (!moved) click(at(event));
});
addEventListener("pointercancel", () => { drag = null; });

function brush([x0, y0], [x1, y1]) {
  const { left, right, top, bottom } = plot.box;
  const share = (v, low, high) => Math.min(Math.max((v - low) / (high - low), 0), 1);
  setRange(state.x, [x0, x1].map((v) => plot.x.value(share(v, left, right))));
  setRange(state.y, [y0, y1].map((v) => plot.y.value(1 - share(v, top, bottom))));
  hideTip(true);
  changed();
}

function nearest([x, y], reach) {
  let [found, least] = [-1, reach * reach];
  for (const i of plot.points) {
    const [a, b] = place(i);
    const distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) [found, least] = [i, distance];
  }
  return found;
}

function hover(event) {
  if (drag || plot.pinned || event.pointerType === "touch") return;
  plot.cursor = nearest(at(event), 16);
  if (plot.cursor < 0) hideTip(false);
  else showCursor();
}

function click(where) {
  const i = nearest(where, 18);
  if (i < 0) {
    const brushed = state.ranges.has(state.x) || state.ranges.has(state.y);
    setRange(state.x, null);
    setRange(state.y, null);
    hideTip(true);
    if (brushed) changed();
    return;
  }
  plot.cursor = i;
  plot.pinned = true;
  showCursor();
}

function hideTip(force) {
  if (plot.pinned && !force) return;
  plot.pinned = false;
  if (force) plot.cursor = -1;
  plot.tip.hidden = true;
  plot.svg.querySelector(".ring").setAttribute("hidden", "");
}

function showCursor() {
  const i = plot.cursor;
  if (!plot.points.includes(i)) return hideTip(true);
  const [x, y] = place(i);
  const ring = plot.svg.querySelector(".ring");
  ring.removeAttribute("hidden");
  ring.setAttribute("cx", x);
  ring.setAttribute("cy", y);
  plot.tip.replaceChildren(...tipContent(i));
  plot.tip.classList.toggle("pinned", plot.pinned);
  plot.tip.hidden = false;
  const frame = plot.svg.getBoundingClientRect();
  const zoom = frame.width / plot.box.width;
  const room = plot.svg.parentElement.clientWidth - plot.tip.offsetWidth;
  plot.tip.style.left = `${Math.max(0, Math.min(x * zoom + 14, room))}px`;
  plot.tip.style.top = `${Math.max(0, y * zoom + (y > plot.box.height / 2 ? -14 - plot.tip.offsetHeight : 14))}px`;
}

function tipContent(i) {
  const shownNames = [...new Set([state.y, state.x, ...data.axes, "cycles", "area_um2", "energy_pj"])].filter((name) => numbers.has(name));
  const lines = shownNames.map((name) => {
    const column = numbers.get(name);
    const unit = ["fraction", "1", column.title].includes(column.unit) ? "" : ` ${column.unit}`;
    return h("div", {}, `${column.title} `, h("strong", {}, shown(column, column.values[i])), unit);
  });
  const actions = h("div", { class: "actions" },
    h("button", { type: "button", click: () => open(i) }, "Open"),
    h("button", { type: "button", click: () => togglePick(i) }, state.picks.has(i) ? "Unselect" : "Select"));
  const head = h("b", {}, glyph(series.codes[i]), ` ${word("engine", i)}`);
  return [head, h("div", { class: "soft" }, named(i)), ...lines, plot.pinned ? actions : null].filter(Boolean);
}

// ---- keyboard

function plotKey(event) {
  const along = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const upwards = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (along || upwards) moveCursor(along ? state.x : state.y, along ?? upwards, event.shiftKey);
  else if (event.key === "Enter" && plot.cursor >= 0) open(plot.cursor);
  else if (event.key === " " && plot.cursor >= 0) togglePick(plot.cursor);
  else if (event.key === "Escape") clearSelection();
  else return;
  event.preventDefault();
}

function moveCursor(name, step, extending) {
  const values = numbers.get(name).values;
  const other = numbers.get(name === state.x ? state.y : state.x).values;
  const order = [...plot.points].sort((a, b) => values[a] - values[b] || other[a] - other[b] || a - b);
  const here = order.indexOf(plot.cursor);
  const next = here < 0 ? (step > 0 ? 0 : order.length - 1) : Math.min(Math.max(here + step, 0), order.length - 1);
  if (!order.length) return;
  const before = plot.cursor;
  plot.cursor = order[next];
  plot.pinned = false;
  if (extending && before >= 0) extend(before);
  else plot.anchor = -1;
  showCursor();
}

/** The brush from where Shift went down to the cursor. */
function extend(before) {
  if (plot.anchor < 0) plot.anchor = before;
  for (const name of [state.x, state.y]) {
    const { values } = numbers.get(name);
    setRange(name, [values[plot.anchor], values[plot.cursor]]);
  }
  changed();
}

// ---- legend

function drawLegend() {
  const items = series.levels.map((level, rank) => h("li", {}, h("button", {
    type: "button", "aria-pressed": String(!state.hidden.has(level)),
    title: "show or hide; double click: this one alone",
    click: () => { if (!state.hidden.delete(level)) state.hidden.add(level); state.page = 0; changed(); },
    dblclick: () => { state.hidden = new Set(series.levels.filter((other) => other !== level)); changed(); },
  }, glyph(rank), ` ${level || "(none)"} `, h("span", { class: "soft" }, series.sizes[rank].toLocaleString("en-US")))));
  const all = state.hidden.size ? [h("li", {}, h("button", { type: "button", click: () => { state.hidden.clear(); changed(); } }, "Show all"))] : [];
  const legend = document.querySelector("#tradeoff .legend");
  const focused = [...legend.querySelectorAll("button")].indexOf(document.activeElement);
  legend.replaceChildren(...items, ...all);
  if (focused >= 0) legend.querySelectorAll("button")[focused]?.focus();
}
