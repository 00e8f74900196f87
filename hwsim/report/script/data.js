// What the page knows, and how it is written. Text from the study becomes text nodes only, never markup.

const data = JSON.parse(document.getElementById("datasets").textContent);
const count = data.keys.length;
const numbers = new Map(data.numbers.map((column) => [column.name, column]));
const words = new Map(data.words.map((column) => [column.name, column]));
const onFront = new Uint8Array(count);
for (const i of data.front) onFront[i] = 1;
const OTHERS = "(others)";
const SERIES = 2 * data.glyphs.length;

const $ = (id) => document.getElementById(id);

/** An element: attributes (functions become listeners), then children (text becomes text). */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

function word(name, i) {
  const column = words.get(name);
  const code = column ? column.codes[i] : -1;
  return code < 0 ? "" : column.levels[code];
}

function detail(name, i) {
  const { levels, codes } = data.details[name];
  return codes[i] < 0 ? null : levels[codes[i]];
}

const done = (i) => word("status", i) === "done";

const formats = new Map(data.numbers.map(({ name, digits, grouped }) => [name, new Intl.NumberFormat("en-US", {
  minimumFractionDigits: digits, maximumFractionDigits: digits, useGrouping: grouped, roundingMode: "halfEven",
})]));

function shown(column, value) {
  return value == null ? "" : formats.get(column.name).format(value);
}

function heading(column) {
  return column.unit ? `${column.title} [${column.unit}]` : column.title;
}

/** A tick's number: 20k, 1.5M, 0.95. */
function short(value) {
  for (const [limit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= limit) return `${Number((value / limit).toPrecision(4))}${letter}`;
  }
  return String(Number(value.toPrecision(4)));
}

/** Of a point: what its page and its tooltip are called. */
function named(i) {
  const how = ["format", "transform"].map((name) => word(name, i));
  const more = [["quantizer", "rtn"], ["activations", "asymmetric"]].map(([name, usual]) => {
    const value = word(name, i);
    return value === usual || value === "float" ? "" : value;
  });
  return [...how, ...more].filter(Boolean).join(" ");
}

/** A scale from 0 to 1 over [low, high], with its inverse and round ticks. */
function scale(low, high, log) {
  const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
  const span = b - a || 1;
  return {
    low, high, log,
    at: (value) => ((log ? Math.log(value) : value) - a) / span,
    value: (share) => (log ? Math.exp(a + share * span) : a + share * span),
    ticks: (most) => (log ? powers(low, high, most) : steps(low, high, most)),
  };
}

/** With room beside the lowest and the highest value. */
function roomy(low, high, log) {
  if (log) {
    const room = Math.max((high / low) ** 0.05, 1.05);
    return scale(low / room, high * room, true);
  }
  const room = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  return scale(low - room, high + room, false);
}

function steps(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * (1 - 1e-9));
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k++) ticks.push(k * step);
  return ticks;
}

function powers(low, high, most) {
  let found = [];
  for (const factors of [[1, 2, 5], [1, 3], [1]]) {
    found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) {
      found.push(...factors.map((f) => f * 10 ** e).filter((value) => low <= value && value <= high));
    }
    if (found.length <= most) return found;
  }
  const every = Math.ceil(found.length / most);
  return found.filter((_, i) => i % every === 0);
}

/** The glyph of a series as a small picture. */
function glyph(series) {
  const path = svg("path", { class: markClass(series), d: `M8 8${data.glyphs[series % data.glyphs.length]}` });
  return svg("svg", { class: "glyph", viewBox: "0 0 16 16", "aria-hidden": "true" }, path);
}

/** 1 for few points, smaller for many. */
const markSize = (points) => Math.min(Math.max((400 / Math.max(points, 1)) ** 0.25, 0.5), 1);

/** A path of relative lengths, made smaller or larger. */
const scaled = (path, factor) => path.replace(/-?[0-9.]+/g, (number) => ` ${Number((number * factor).toPrecision(4))}`);

function markClass(series) {
  return `mark s${series}${series >= data.glyphs.length ? " hollow" : ""}`;
}
