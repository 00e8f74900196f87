// Everything is drawn from `state`, at most once a frame.

let waiting = false;
let scrolled = 0;
let drawn = "";

function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
    history.replaceState(null, "", address(state.point));
  });
}

function draw() {
  $("point").hidden = !state.point;
  $("study").hidden = Boolean(state.point);
  document.querySelector("header.top").classList.toggle("small", Boolean(state.point));
  groupSeries();
  derive();
  const view = state.point ? drawn : signature();
  if (view !== drawn) {
    drawScatter();
    drawParallel();
  }
  drawn = view;
  drawTable();
  if (state.point) drawPoint();
}

/** All that the two plots depend on. */
function signature() {
  const { x, y, by, near, ranges, picks, hidden, query, axes } = state;
  const place = [innerWidth, matchMedia("(prefers-color-scheme: dark)").matches, document.documentElement.dataset.theme];
  return JSON.stringify([x, y, by, near, [...ranges], [...picks], [...hidden], query, axes, place]);
}

function navigate() {
  const before = state.point;
  if (!before && !$("study").hidden) scrolled = scrollY;
  readAddress();
  draw();
  if (state.point && state.point !== before) {
    scrollTo(0, 0);
    $("point").focus({ preventScroll: true });
  } else if (before && !state.point) {
    stopPlaying();
    scrollTo({ top: scrolled, behavior: "instant" });
  }
}

/** A front's table links to its points as well. */
function linkFront() {
  const rows = document.querySelectorAll("#front tbody tr");
  data.frontRows.forEach((key, rank) => {
    const cell = rows[rank]?.cells[0];
    if (cell) cell.replaceChildren(h("a", { href: `#point=${key}` }, cell.textContent));
  });
}

buildTable();
buildScatter();
buildParallel();
linkFront();
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("points").focus();
});
addEventListener("hashchange", navigate);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) changed();
  width = innerWidth;
});
navigate();
