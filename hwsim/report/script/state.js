// What is shown and what is selected. All of it stands in the address, so that a view can be sent to somebody.

const metricNames = data.numbers.filter((column) => column.metric).map((column) => column.name);
const varied = data.numbers.filter((column) => column.low < column.high).map((column) => column.name);

const state = {
  x: "", y: "", by: "", near: true, ranges: new Map(), picks: new Set(), hidden: new Set(), query: "", only: true,
  sort: "", page: 0, axes: [], point: "",
};

function defaults() {
  const [first, second] = [data.axes[0], data.axes[1] ?? data.axes[0]];
  const few = [...words.values()].filter(({ name, levels }) => !["status", "message"].includes(name) && levels.length > 1 && levels.length <= SERIES);
  const wanted = ["set_rows", "set_cols", "weight_bits", "act_bits", ...data.axes, "cycles", "energy_pj", "area_um2"];
  return {
    x: second ?? metricNames[0] ?? "", y: first ?? metricNames[0] ?? "",
    by: few[0]?.name ?? "engine",
    near: true, ranges: new Map(), picks: new Set(), hidden: new Set(), query: "", only: true, sort: "", page: 0,
    axes: [...new Set(wanted)].filter((name) => varied.includes(name)), point: "",
  };
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const base = defaults();
  for (const name of ["x", "y"]) if (numbers.has(given.get(name))) base[name] = given.get(name);
  if (words.has(given.get("by"))) base.by = given.get("by");
  base.near = given.get("all") !== "1";
  base.only = given.get("only") !== "0";
  base.query = given.get("q") ?? "";
  base.hidden = new Set(given.getAll("hide"));
  const sort = given.get("sort") ?? "";
  if (numbers.has(sort.replace(/^-/, "")) || words.has(sort.replace(/^-/, ""))) base.sort = sort;
  if (given.has("axes")) base.axes = given.get("axes").split(" ").filter((name) => numbers.has(name));
  for (const text of given.getAll("in")) {
    const [name, low, high] = text.split(" ");
    const range = [Number(low), Number(high)];
    if (numbers.has(name) && high !== undefined && range.every(Number.isFinite)) base.ranges.set(name, range);
  }
  for (const key of (given.get("pick") ?? "").split(" ")) {
    const i = find(key);
    if (i >= 0) base.picks.add(i);
  }
  base.point = given.get("point") ?? "";
  Object.assign(state, base);
}

/** The point whose key begins so, -1 where there is none. */
function find(prefix) {
  return prefix.length < 4 ? -1 : data.keys.findIndex((key) => key.startsWith(prefix) || prefix.startsWith(key));
}

function address(point) {
  const base = defaults();
  const query = new URLSearchParams();
  if (point) query.set("point", point);
  for (const name of ["x", "y", "by", "sort"]) if (state[name] !== base[name]) query.set(name, state[name]);
  if (!state.near) query.set("all", "1");
  if (!state.only) query.set("only", "0");
  if (state.query) query.set("q", state.query);
  for (const level of state.hidden) query.append("hide", level);
  if (state.axes.join(" ") !== base.axes.join(" ")) query.set("axes", state.axes.join(" "));
  for (const [name, range] of state.ranges) query.append("in", [name, ...range.map((v) => v.toPrecision(6))].join(" "));
  if (state.picks.size) query.set("pick", [...state.picks].map((i) => data.keys[i]).join(" "));
  return `#${query}`;
}

// ---- series: what colour and shape tell apart

let series = { levels: [], codes: new Uint8Array(count), sizes: [] };

function groupSeries() {
  const column = words.get(state.by);
  if (!column) return;
  const sizes = column.levels.map(() => 0);
  for (const code of column.codes) if (code >= 0) sizes[code]++;
  const ranked = sizes.map((_, level) => level).sort((a, b) => sizes[b] - sizes[a] || a - b);
  const crowded = ranked.length > SERIES;
  const place = column.levels.map(() => 0);
  ranked.forEach((level, rank) => { place[level] = crowded ? Math.min(rank, SERIES - 1) : rank; });
  const levels = ranked.slice(0, SERIES).map((level) => column.levels[level]);
  if (crowded) levels[SERIES - 1] = OTHERS;
  series = { levels, codes: Uint8Array.from(column.codes, (code) => place[Math.max(code, 0)]), sizes: levels.map(() => 0) };
  for (const code of series.codes) series.sizes[code]++;
}

// ---- the filter: words, and conditions on columns

const OPERATORS = {
  "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "!=": (a, b) => a !== b,
  "=": (a, b) => a === b, "<": (a, b) => a < b, ">": (a, b) => a > b,
};

function columnNamed(name) {
  const lower = name.toLowerCase();
  for (const columns of [numbers, words]) {
    for (const found of [lower, `set_${lower}`]) if (columns.has(found)) return columns.get(found);
  }
  return [...numbers.values(), ...words.values()].find((column) => column.title.toLowerCase() === lower);
}

/** A test of a point for each part of the text; `problem` says what was not understood. */
function parseFilter(text) {
  const tests = [];
  for (const [part] of text.matchAll(/"[^"]*"?|[^\s"]+(?:"[^"]*"?)?/g)) {
    const match = /^([A-Za-z_][A-Za-z0-9_]*)(<=|>=|!=|=|<|>)(.*)$/s.exec(part);
    if (!match) {
      tests.push(hasWord(part.replaceAll('"', "").toLowerCase()));
      continue;
    }
    const [, name, operator, value] = match;
    const column = columnNamed(name);
    if (!column) return { tests: [], problem: `no column ${name}; columns are: ${columnList()}` };
    const test = condition(column, operator, value.replaceAll('"', ""));
    if (!test) return { tests: [], problem: `${part}: ${column.title} is a number; write one behind ${operator}` };
    tests.push(test);
  }
  return { tests, problem: "" };
}

function columnList() {
  return [...numbers.keys(), ...words.keys()].join(", ");
}

function condition(column, operator, value) {
  if (column.values) {
    const limit = Number(value);
    if (value.trim() === "" || Number.isNaN(limit)) return null;
    return (i) => column.values[i] != null && OPERATORS[operator](column.values[i], limit);
  }
  const lower = value.toLowerCase();
  return (i) => OPERATORS[operator](word(column.name, i).toLowerCase(), lower);
}

const haystacks = [];

function hasWord(text) {
  return (i) => {
    haystacks[i] ??= [...words.keys()].map((name) => word(name, i)).concat(data.keys[i]).join(" ").toLowerCase();
    return haystacks[i].includes(text);
  };
}

// ---- which points

const visible = new Uint8Array(count);
const selected = new Uint8Array(count);
let problem = "";
let selecting = false;
let chosen = 0;

function derive() {
  const filter = parseFilter(state.query);
  problem = filter.problem;
  selecting = state.ranges.size > 0 || state.picks.size > 0;
  chosen = 0;
  const ranges = [...state.ranges].map(([name, [low, high]]) => [numbers.get(name).values, low, high]);
  const hidden = series.levels.map((level) => state.hidden.has(level));
  for (let i = 0; i < count; i++) {
    visible[i] = !hidden[series.codes[i]] && filter.tests.every((test) => test(i)) ? 1 : 0;
    const inside = ranges.length > 0
      && ranges.every(([values, low, high]) => values[i] != null && low <= values[i] && values[i] <= high);
    selected[i] = visible[i] && (inside || state.picks.has(i)) ? 1 : 0;
    chosen += selected[i];
  }
}

function clearSelection() {
  state.ranges.clear();
  state.picks.clear();
  state.page = 0;
  changed();
}

function togglePick(i) {
  if (!state.picks.delete(i)) state.picks.add(i);
  changed();
}

function setRange(name, range) {
  if (range) state.ranges.set(name, [Math.min(...range), Math.max(...range)]);
  else state.ranges.delete(name);
  state.page = 0;
}
