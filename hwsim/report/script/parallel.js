// A line a point through an axis a property; the better end of every metric is up.

const HEAD = 66;
const FOOT = 22;
const parallel = { holder: null, canvas: null, svg: null, names: null, width: 0, height: 0 };

function buildParallel() {
  const section = $("parallel");
  if (varied.length < 2) return;
  section.hidden = false;
  parallel.canvas = h("canvas", { "aria-hidden": "true" });
  parallel.svg = svg("svg", {});
  parallel.names = h("div", { class: "names" });
  parallel.holder = h("div", { class: "parallel" }, parallel.canvas, parallel.svg, parallel.names);
  const boxes = varied.map((name) => h("label", { class: "check" },
    h("input", { type: "checkbox", value: name, change: chooseAxes }), heading(numbers.get(name))));
  section.append(h("h2", {}, "Parallel coordinates"),
    h("p", { class: "soft" }, "A line is a design point; the better end of each metric is up, and the front is drawn heavier. Drag along an axis to select. With an axis focused: ",
      h("kbd", {}, "↑"), " ", h("kbd", {}, "↓"), " move its range, ", h("kbd", {}, "+"), " ", h("kbd", {}, "-"), " widen and narrow it, ", h("kbd", {}, "Esc"), " clears it."),
    h("details", {}, h("summary", {}, "Choose axes"), h("div", { class: "choices" }, ...boxes)),
    h("div", { class: "scroll plot", tabindex: 0, role: "region", "aria-label": "parallel coordinates" }, parallel.holder));
}

function chooseAxes() {
  const boxes = [...document.querySelectorAll("#parallel input")];
  state.axes = boxes.filter((box) => box.checked).map((box) => box.value);
  changed();
}

function drawParallel() {
  if (!parallel.holder) return;
  for (const box of document.querySelectorAll("#parallel input")) box.checked = state.axes.includes(box.value);
  const axes = state.axes.map((name) => ({ column: numbers.get(name), scale: axisScale(numbers.get(name)) }));
  parallel.holder.style.minWidth = `${axes.length * 84}px`;
  parallel.width = parallel.holder.clientWidth;
  parallel.height = parallel.holder.clientHeight;
  axes.forEach((axis, rank) => { axis.x = ((rank + 0.5) / axes.length) * parallel.width; });
  drawLines(axes);
  const focused = [...parallel.svg.querySelectorAll("g.axis")].indexOf(document.activeElement);
  parallel.svg.setAttribute("viewBox", `0 0 ${parallel.width} ${parallel.height}`);
  parallel.svg.replaceChildren(...axes.map(axisGroup));
  parallel.names.replaceChildren(...axes.map(({ column, x }) => {
    const label = h("span", {}, heading(column));
    label.style.left = `${x}px`;
    label.style.maxWidth = `${parallel.width / axes.length}px`;
    return label;
  }));
  if (focused >= 0) parallel.svg.querySelectorAll("g.axis")[focused]?.focus({ preventScroll: true });
}

/** 0 at the foot, 1 at the top. */
function axisScale(column) {
  const base = scale(column.low, column.high, column.log);
  if (column.better !== "min") return base;
  return { ...base, at: (value) => 1 - base.at(value), value: (share) => base.value(1 - share) };
}

const height = (share) => parallel.height - FOOT - share * (parallel.height - FOOT - HEAD);
const share = (y) => Math.min(Math.max((parallel.height - FOOT - y) / (parallel.height - FOOT - HEAD), 0), 1);

function drawLines(axes) {
  const { canvas } = parallel;
  const ratio = devicePixelRatio || 1;
  [canvas.width, canvas.height] = [parallel.width * ratio, parallel.height * ratio];
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const shownPoints = [];
  for (let i = 0; i < count; i++) if (visible[i] && done(i)) shownPoints.push(i);
  const bold = selecting ? Math.min(1, 0.25 + 60 / Math.max(chosen, 1)) : Math.min(0.9, 0.08 + 40 / Math.max(shownPoints.length, 1));
  const groups = new Map();
  for (const i of shownPoints) {
    const key = selecting && !selected[i] ? -1 : series.codes[i];
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(i);
  }
  for (const key of [...groups.keys()].sort((a, b) => a - b)) {
    pen.strokeStyle = key < 0 ? "#8888" : resolved(`--s${key % data.glyphs.length}`);
    pen.globalAlpha = key < 0 ? 0.12 : bold;
    pen.lineWidth = key < 0 ? 0.8 : 1.2;
    pen.setLineDash(key >= data.glyphs.length ? [5, 3] : []);
    pen.beginPath();
    for (const i of groups.get(key)) trace(pen, axes, i);
    pen.stroke();
  }
  if (!selecting) drawFrontLines(pen, axes);
}

/** Over the others, where nothing is selected. */
function drawFrontLines(pen, axes) {
  pen.globalAlpha = 0.95;
  pen.lineWidth = 2;
  for (const i of data.front) {
    if (!visible[i]) continue;
    const code = series.codes[i];
    pen.strokeStyle = resolved(`--s${code % data.glyphs.length}`);
    pen.setLineDash(code >= data.glyphs.length ? [5, 3] : []);
    pen.beginPath();
    trace(pen, axes, i);
    pen.stroke();
  }
}

const swatch = h("span", { hidden: true });

/** The colour of a variable as a canvas takes it: one value, of the theme that is shown. */
function resolved(name) {
  swatch.style.color = `var(${name})`;
  if (!swatch.isConnected) document.body.append(swatch);
  return getComputedStyle(swatch).color;
}

/** The line of a point; it breaks where a value is missing. */
function trace(pen, axes, i) {
  let begun = false;
  for (const { column, scale: axis, x } of axes) {
    const value = column.values[i];
    if (value == null) begun = false;
    else if (begun) pen.lineTo(x, height(axis.at(value)));
    else {
      pen.moveTo(x, height(axis.at(value)));
      begun = true;
    }
  }
}

function axisGroup({ column, scale: axis, x }) {
  const range = state.ranges.get(column.name);
  const [low, high] = range ?? [column.low, column.high];
  const ends = range ? range.map((v) => height(Math.min(Math.max(axis.at(v), 0), 1))).sort((a, b) => a - b) : null;
  const [top, foot] = [axis.value(1), axis.value(0)];
  return svg("g", {
    class: "axis", tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-label": `${column.title}: range that is selected`,
    "aria-valuemin": column.low, "aria-valuemax": column.high, "aria-valuenow": low,
    "aria-valuetext": range ? `${shown(column, low)} to ${shown(column, high)}` : "not restricted",
    keydown: (event) => axisKey(event, column, axis),
  },
  svg("path", { class: "stem", d: `M${x} ${HEAD}V${parallel.height - FOOT}` }),
  svg("text", { x, y: parallel.height - 6, "text-anchor": "middle" }, short(foot)),
  svg("text", { class: "label", x, y: HEAD - 5, "text-anchor": "middle" }, short(top)),
  ends ? svg("rect", { class: "brush", x: x - 9, y: ends[0], width: 18, height: Math.max(ends[1] - ends[0], 3) }) : null,
  svg("rect", {
    class: "handle", x: x - 18, y: HEAD, width: 36, height: parallel.height - FOOT - HEAD,
    pointerdown: (event) => axisDrag(event, column, axis),
  }));
}

function axisDrag(event, column, axis) {
  if (event.button !== 0) return;
  const frame = parallel.svg.getBoundingClientRect();
  const from = share(event.clientY - frame.top);
  let moved = false;
  const move = (next) => {
    const to = share(next.clientY - frame.top);
    moved ||= Math.abs(to - from) > 0.015;
    if (moved) setRange(column.name, [axis.value(from), axis.value(to)]);
    if (moved) changed();
  };
  const end = () => {
    removeEventListener("pointermove", move);
    removeEventListener("pointerup", end);
    removeEventListener("pointercancel", end);
    if (!moved && state.ranges.has(column.name)) {
      setRange(column.name, null);
      changed();
    }
  };
  addEventListener("pointermove", move);
  addEventListener("pointerup", end);
  addEventListener("pointercancel", end);
}

function axisKey(event, column, axis) {
  const range = state.ranges.get(column.name);
  const [a, b] = range ? range.map((v) => axis.at(v)).sort((p, q) => p - q) : [0.75, 1];
  const changes = { ArrowUp: [0.05, 0.05], ArrowDown: [-0.05, -0.05], "+": [-0.05, 0.05], "-": [0.05, -0.05] };
  if (event.key === "Escape") setRange(column.name, null);
  else if (changes[event.key]) {
    const [da, db] = range ? changes[event.key] : [0, 0];
    const [low, high] = [Math.max(a + da, 0), Math.min(b + db, 1)];
    if (low < high) setRange(column.name, [axis.value(low), axis.value(high)]);
  } else return;
  event.preventDefault();
  changed();
}
