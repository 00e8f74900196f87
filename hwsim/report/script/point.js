// The page of one point: what it is, all its metrics, where area and energy go, and what its array does when.

function open(i) {
  location.hash = address(data.keys[i]);
}

function drawPoint() {
  const i = find(state.point);
  stopPlaying();
  if (i < 0) {
    $("point").replaceChildren(route(-1), h("section", {}, h("h2", {}, "No such point"),
      h("p", {}, "This page does not list it; points.csv may.")));
    return;
  }
  const parts = [configuration(i), metrics(i), failure(i), area(i), cycles(i), energy(i), publishedRatios(i)];
  $("point").replaceChildren(route(i), pointHead(i), h("div", { class: "two" }, ...parts.filter(Boolean)), schedule(i) ?? "");
}

function route(i) {
  const rank = table.order.indexOf(i);
  const link = (other, text) => (other === undefined ? null : h("a", { href: address(data.keys[other]) }, text));
  return h("nav", { class: "route", "aria-label": "points" }, h("a", { href: address(""), id: "back" }, "← All points"),
    rank >= 0 ? link(table.order[rank - 1], "‹ previous") : null, rank >= 0 ? link(table.order[rank + 1], "next ›") : null);
}

function pointHead(i) {
  const badges = ["format", "transform", "quantizer", "activations", "network"].map((name) => h("li", {}, word(name, i)));
  if (onFront[i]) badges.push(h("li", { class: "good" }, "on the front"));
  if (!done(i)) badges.push(h("li", { class: "bad" }, word("status", i)));
  const waves = detail("waves", i);
  const link = waves ? h("p", {}, h("a", { href: waves.split("/").map(encodeURIComponent).join("/") }, "Waveforms of its verification")) : null;
  return h("section", {}, h("p", { class: "over" }, "design point"), h("h1", { id: "point-name" }, word("engine", i)),
    h("ul", { class: "badges" }, ...badges), link, h("p", { class: "soft" }, "key ", h("code", {}, data.keys[i]), " (its beginning)"));
}

function section(title, ...children) {
  return h("section", {}, h("h2", {}, title), ...children);
}

function pairs(lines) {
  const rows = lines.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)));
  return h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, ...rows)));
}

function configuration(i) {
  const engine = (detail("hardware", i) ?? []).find(([role]) => role === "engine");
  const lines = [...words.values()].filter(({ name }) => name !== "message" && !name.startsWith("set_")).map(({ name, title }) => [title, word(name, i)]);
  const settings = data.numbers.filter(({ metric, values }) => !metric && values[i] != null).map((column) => [column.title, shown(column, column.values[i])]);
  const chosenWords = data.words.filter(({ name }) => name.startsWith("set_") && word(name, i)).map(({ name, title }) => [title, word(name, i)]);
  const known = new Set([...settings, ...chosenWords].map(([title]) => title));
  const others = engine ? Object.entries(engine[2]).filter(([name]) => !known.has(name)).map(([name, value]) => [name, value]) : [];
  return section("Configuration", pairs([...lines, ...settings, ...chosenWords]),
    others.length ? h("details", {}, h("summary", {}, "Parameters left at their defaults, or given by the format"), pairs(others)) : null);
}

function metrics(i) {
  const rows = data.numbers.filter(({ metric, values }) => metric && values[i] != null).map((column) => h("tr", {},
    h("th", { scope: "row", title: column.about }, column.title, h("span", {}, column.unit)),
    h("td", { class: "number" }, shown(column, column.values[i])), h("td", {}, spot(column, column.values[i]))));
  if (!rows.length) return null;
  return section("Metrics", h("div", { class: "scroll" }, h("table", {}, h("tbody", {}, ...rows))),
    h("p", { class: "soft" }, "The dot stands between the lowest and the highest value of the study, better to the right."));
}

function spot(column, value) {
  if (column.low >= column.high) return "";
  const dot = h("i", {});
  const at = axisScale(column).at(value);
  dot.style.left = `${(100 * Math.min(Math.max(at, 0), 1)).toFixed(1)}%`;
  return h("span", { class: "spot", "aria-hidden": "true" }, dot);
}

function failure(i) {
  if (done(i)) return null;
  const text = detail("traceback", i);
  return section("Why it failed", h("p", {}, `${word("status", i)}: ${word("message", i) || "no message"}`), text ? h("pre", {}, text) : null);
}

/** Lines of name, share of the longest, and text; `inner` ones belong to the line above. */
function bars(lines) {
  const most = Math.max(...lines.map(({ value }) => value), 1e-12);
  return h("div", { class: "bars" }, ...lines.flatMap(({ name, value, text, inner, hue }) => {
    const full = h("div", { class: "fill" });
    full.style.width = `${(100 * value / most).toFixed(2)}%`;
    if (hue !== undefined) full.style.setProperty("--c", `var(--s${hue % data.glyphs.length})`);
    if (inner) full.style.opacity = ".45";
    return [h("div", { class: inner ? "name inner" : "name" }, name), h("div", { class: "track" }, full), h("div", { class: "value" }, text)];
  }));
}

function area(i) {
  const units = (detail("hardware", i) ?? []).filter(([, , , total]) => total != null);
  if (!units.length) return null;
  const total = units.reduce((sum, unit) => sum + unit[3], 0);
  const lines = units.flatMap(([role, unit, , own, delay, modules], rank) => [
    { name: role === unit ? role : `${role}: ${unit}`, value: own, hue: rank, text: `${amount(own)} µm² · ${percent(own / total)}${delay == null ? "" : ` · ${delay} ns`}` },
    ...modules.map(([name, instances, size]) => ({ name: instances > 1 ? `${name} × ${instances.toLocaleString("en-US")}` : name, value: size, hue: rank, inner: true, text: `${amount(size)} µm²` })),
  ]);
  return section("Area by module", bars(lines), h("p", { class: "soft" }, "Modules: own cells of all instances. Before layout, no wires."));
}

const amount = (value) => value.toLocaleString("en-US", { maximumFractionDigits: value < 100 ? 1 : 0 });
const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

function cycles(i) {
  const value = (name) => numbers.get(name)?.values[i];
  const total = value("cycles");
  if (total == null) return null;
  const [transform, quantizer] = [value("transform_cycles") ?? 0, value("quantizer_cycles") ?? 0];
  const lines = [["engine", total - transform - quantizer], ["transform", transform], ["quantizer", quantizer]].filter(([, part]) => part > 0);
  return section("Cycles of one batch", bars(lines.map(([name, part], rank) => ({ name, value: part, hue: rank, text: `${amount(part)} · ${percent(part / total)}` }))),
    h("p", { class: "soft" }, "The units take turns; compute only, no memory."));
}

function energy(i) {
  const kinds = Object.entries(data.energy).map(([kind, shares]) => [kind, shares[i]]).filter(([, part]) => part != null).sort((a, b) => b[1] - a[1]);
  if (!kinds.length) return null;
  const total = numbers.get("energy_pj")?.values[i];
  const text = (part) => (total == null ? percent(part) : `${amount(part * total)} pJ · ${percent(part)}`);
  return section("Energy by kind of operation", bars(kinds.map(([name, part]) => ({ name, value: part, text: text(part) }))));
}

function publishedRatios(i) {
  const anchors = detail("published", i);
  if (!anchors) return null;
  const ratio = (value) => (value == null ? "not given" : `${value} ×`);
  return section("What papers report", ...anchors.map(([architecture, style, baseline, source, areaRatio, energyRatio, differs]) => h("div", {},
    h("h3", {}, `${architecture}, ${style}`),
    h("p", {}, `Area efficiency ${ratio(areaRatio)}, energy efficiency ${ratio(energyRatio)}, over ${baseline}. Source: ${source}.`),
    differs ? h("p", { class: "soft" }, differs) : null)),
  h("p", { class: "soft" }, "Ratios of the papers' own designs over their own baselines, whatever this point's size; not a result of this study."));
}

// ---- the schedule

let playing = 0;

function stopPlaying() {
  clearInterval(playing);
  playing = 0;
}

function schedule(i) {
  const plan = detail("schedule", i);
  if (!plan) return null;
  const busy = plan.array ? busyPes(plan) : null;
  const start = busy ? busy.indexOf(Math.max(...busy)) : 0;
  const lanes = h("div", {});
  const grid = plan.array ? h("canvas", { role: "img", width: plan.array.cols * 12, height: plan.array.rows * 12 }) : null;
  const text = h("p", { id: "cycle", "aria-live": "polite" });
  const slider = h("input", { type: "range", min: 0, max: plan.cycles - 1, value: start, "aria-label": "cycle", input: () => show(Number(slider.value)) });
  const play = h("button", { type: "button", click: () => (playing ? pause() : run()) }, "Play");
  const pause = () => { stopPlaying(); play.textContent = "Play"; };
  const run = () => {
    play.textContent = "Pause";
    playing = setInterval(() => { slider.value = (Number(slider.value) + 1) % plan.cycles; show(Number(slider.value)); }, 90);
  };
  const show = (cycle) => {
    lanes.replaceChildren(laneChart(plan, busy, cycle, lanes.clientWidth));
    if (grid) paintArray(grid, plan, cycle);
    const moving = plan.streams.filter(({ runs }) => inRuns(runs, cycle)).map(({ name }) => name);
    text.textContent = `Cycle ${cycle} of ${plan.cycles}: ${busy ? `${busy[cycle]} of ${plan.array.rows * plan.array.cols} PEs work; ` : ""}${moving.length ? `beats on ${moving.join(", ")}` : "no beat is transferred"}.`;
    if (grid) grid.setAttribute("aria-label", text.textContent);
  };
  requestAnimationFrame(() => show(start));
  return section("Schedule of the array",
    h("p", { class: "soft" }, `One product of the array's own size, M ${plan.M}, K ${plan.K}, N ${plan.N}, stall-free, random operands, from the unit's cycle-exact model: ${plan.cycles} cycles, of them ${plan.load} loading, ${plan.stream} streaming, ${plan.drain} filling and draining.`),
    h("div", { class: grid ? "schedule with-array" : "schedule" }, h("div", {}, lanes, h("div", { class: "move" }, play, slider), text),
      grid ? h("div", {}, grid, h("p", { class: "soft" }, key("--accent"), "works", key("--wash"), "has worked", key("--sunk"), "not yet")) : null));
}

function key(variable) {
  const square = h("span", { class: "key" });
  square.style.background = `var(${variable})`;
  return square;
}

const inRuns = (runs, cycle) => runs.some(([from, length]) => from <= cycle && cycle < from + length);

/** PEs at work in each cycle. */
function busyPes({ array, cycles: length }) {
  const busy = new Array(length).fill(0);
  array.first.forEach((first, pe) => {
    if (first < 0) return;
    for (const [from, run] of array.patterns[array.pattern[pe]]) for (let t = 0; t < run; t++) busy[first + from + t]++;
  });
  return busy;
}

function laneChart(plan, busy, cycle, room) {
  const width = Math.max(room, 240);
  const [left, lane, top] = [78, 22, 8];
  const tall = busy ? 84 : 0;
  const bottom = top + plan.streams.length * lane + tall;
  const x = scale(0, plan.cycles, false);
  const across = width - left - 10;
  const px = (t) => left + x.at(t) * across;
  const parts = x.ticks(Math.floor(across / 60)).flatMap((t) => [
    svg("path", { class: "grid", d: `M${px(t)} ${top}V${bottom}` }), svg("text", { x: px(t), y: bottom + 15, "text-anchor": "middle" }, String(t))]);
  plan.streams.forEach(({ name, runs }, rank) => {
    const y = top + rank * lane;
    parts.push(svg("text", { x: left - 8, y: y + 14, "text-anchor": "end" }, name));
    for (const [from, length] of runs) parts.push(svg("rect", { class: `lane s${rank}`, x: px(from), y: y + 4, width: Math.max(px(from + length) - px(from) - 0.4, 0.8), height: lane - 8 }));
  });
  if (busy) parts.push(...busyArea(plan, busy, px, bottom, tall, left));
  parts.push(svg("path", { class: "now", d: `M${px(cycle + 0.5)} ${top}V${bottom}` }), svg("text", { class: "heading", x: left + across / 2, y: bottom + 31, "text-anchor": "middle" }, "cycle"));
  return svg("svg", { class: "chart", viewBox: `0 0 ${width} ${bottom + 38}`, role: "img", "aria-label": "transfers on the streams and PEs at work, cycle by cycle" }, ...parts);
}

function busyArea(plan, busy, px, bottom, tall, left) {
  const all = plan.array.rows * plan.array.cols;
  const y = (value) => bottom - (value / all) * (tall - 14);
  const path = busy.map((value, t) => `L${px(t).toFixed(1)} ${y(value).toFixed(1)}H${px(t + 1).toFixed(1)}`).join("");
  return [svg("path", { class: "area", d: `M${px(0)} ${bottom}${path}L${px(plan.cycles)} ${bottom}Z` }),
    svg("text", { x: left - 8, y: y(all) + 4, "text-anchor": "end" }, `${all} PEs`), svg("text", { x: left - 8, y: bottom, "text-anchor": "end" }, "0")];
}

function paintArray(canvas, { array }, cycle) {
  const pen = canvas.getContext("2d");
  const [works, waits, idle] = ["--accent", "--wash", "--sunk"].map(resolved);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  array.first.forEach((first, pe) => {
    const own = first < 0 ? [] : array.patterns[array.pattern[pe]];
    pen.fillStyle = inRuns(own, cycle - first) ? works : first >= 0 && cycle >= first ? waits : idle;
    pen.fillRect((pe % array.cols) * 12, Math.floor(pe / array.cols) * 12, 11, 11);
  });
}
