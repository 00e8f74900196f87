// All points, a hundred a page, sorted and filtered; what is selected elsewhere is what it shows.

const PAGE = 100;
const table = { order: [], count: null, clear: null, search: null, only: null, problem: null, live: null };

const wordColumns = data.words.filter(({ name, levels, codes }) => name !== "message" && name !== "unit"
  && (name === "engine" || (levels.length > 1 || codes.includes(-1))));
const numberColumns = data.numbers.filter((column) => column.metric || column.low < column.high);

function buildTable() {
  table.count = h("span", { class: "count" });
  table.clear = h("button", { type: "button", click: clearSelection }, "Clear selection");
  table.live = h("span", { class: "live", role: "status", id: "live" });
  const bar = h("div", { class: "bar-top" }, table.count, table.clear, h("span", { class: "grow" }), themeButton(), table.live);
  $("study").prepend(bar);
  table.search = h("input", {
    type: "search", id: "filter", placeholder: "hadamard accuracy>0.9 area_um2<2e4", "aria-describedby": "problem", autocomplete: "off", spellcheck: "false",
    input: () => { state.query = table.search.value; state.page = 0; changed(); },
  });
  table.only = h("input", { type: "checkbox", id: "only", change: () => { state.only = table.only.checked; state.page = 0; changed(); } });
  table.problem = h("p", { class: "problem", id: "problem", role: "status" });
  const searching = h("label", { class: "field wide" }, "filter: words, and conditions on columns", table.search);
  document.querySelector("#points .controls").append(searching, h("label", { class: "check" }, table.only, "only what is selected"), table.problem);
  document.querySelector("#points .noscript").remove();
}

/** Points in the order of the table. */
function ordered() {
  const rows = [];
  for (let i = 0; i < count; i++) if (visible[i] && (!selecting || !state.only || selected[i])) rows.push(i);
  if (!state.sort) return rows;
  const [name, sign] = state.sort.startsWith("-") ? [state.sort.slice(1), -1] : [state.sort, 1];
  const column = numbers.get(name);
  if (!column) return rows.sort((a, b) => sign * word(name, a).localeCompare(word(name, b), "en", { numeric: true }) || a - b);
  const missing = (i) => (column.values[i] == null ? 1 : 0);
  return rows.sort((a, b) => missing(a) - missing(b) || sign * (column.values[a] - column.values[b]) || a - b);
}

function drawTable() {
  table.order = ordered();
  const pages = Math.max(1, Math.ceil(table.order.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const rows = table.order.slice(state.page * PAGE, (state.page + 1) * PAGE);
  const box = document.querySelector("#points .scroll");
  const focused = document.activeElement?.dataset?.focus;
  box.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "live" }, "selected")), ...heads())), h("tbody", {}, ...rows.map(tableRow))));
  if (focused) [...box.querySelectorAll("[data-focus]")].find((element) => element.dataset.focus === focused)?.focus({ preventScroll: true });
  const go = (step) => () => { state.page += step; changed(); box.scrollTop = 0; };
  document.querySelector("#points .pager").replaceChildren(
    h("button", { type: "button", disabled: state.page === 0, click: go(-1) }, "Previous"),
    h("span", { id: "rows" }, `${table.order.length.toLocaleString("en-US")} points, page ${state.page + 1} of ${pages}`),
    h("button", { type: "button", disabled: state.page >= pages - 1, click: go(1) }, "Next"));
  drawStatus();
}

function heads() {
  return [...wordColumns, ...numberColumns].map((column) => {
    const sorted = state.sort === column.name ? "ascending" : state.sort === `-${column.name}` ? "descending" : "none";
    const button = h("button", { type: "button", "data-focus": `sort ${column.name}`, title: column.about ?? "", click: () => sortBy(column) }, column.title);
    return h("th", { scope: "col", "aria-sort": sorted, class: column.values ? "number" : "" }, button, column.unit ? h("span", {}, column.unit) : null);
  });
}

/** Best first, then the other way, then the study's own order. */
function sortBy(column) {
  const best = column.better === "max" ? `-${column.name}` : column.name;
  const worst = column.better === "max" ? column.name : `-${column.name}`;
  state.sort = state.sort === best ? worst : state.sort === worst ? "" : best;
  state.page = 0;
  changed();
}

function tableRow(i) {
  const classes = [onFront[i] ? "front" : "", selected[i] ? "chosen" : "", done(i) ? "" : "failed"].filter(Boolean).join(" ");
  const box = h("input", {
    type: "checkbox", "aria-label": `select ${word("engine", i)} ${named(i)}`, "data-focus": `pick ${i}`, change: () => togglePick(i),
  });
  box.checked = state.picks.has(i);
  const [first, ...rest] = wordColumns;
  return h("tr", { class: classes }, h("td", {}, box),
    h("td", { class: "word name" }, h("a", { href: address(data.keys[i]), "data-focus": `open ${i}` }, word(first.name, i) || "(no name)")),
    ...rest.map((column) => h("td", { class: column.name === "status" ? "word name" : "word" }, word(column.name, i), column.name === "status" && !done(i) ? `: ${word("message", i)}` : null)),
    ...numberColumns.map((column) => h("td", { class: "number" }, shown(column, column.values[i]))));
}

function drawStatus() {
  const seen = visible.reduce((sum, one) => sum + one, 0);
  const text = selecting ? `${chosen.toLocaleString("en-US")} of ${seen.toLocaleString("en-US")} selected` : `${seen.toLocaleString("en-US")} of ${count.toLocaleString("en-US")} points shown`;
  table.count.textContent = text;
  table.live.textContent = text;
  table.clear.disabled = !selecting;
  table.only.checked = state.only;
  if (table.search.value !== state.query) table.search.value = state.query;
  table.problem.textContent = problem;
  table.search.setAttribute("aria-invalid", String(problem !== ""));
}

function themeButton() {
  const names = ["auto", "light", "dark"];
  let now = 0;
  const button = h("button", { type: "button", id: "theme", click: () => {
    now = (now + 1) % names.length;
    if (now) document.documentElement.dataset.theme = names[now];
    else delete document.documentElement.dataset.theme;
    button.textContent = `◐ ${names[now]}`;
    button.setAttribute("aria-label", `theme: ${names[now]}`);
    changed();
  }, "aria-label": "theme: auto" }, "◐ auto");
  return button;
}
