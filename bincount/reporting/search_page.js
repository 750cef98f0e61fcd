"use strict";
// The figures in the page's colours, and a table of trials that can be sorted. The tables are whole without.
const data = document.getElementById("data");
const figures = data ? JSON.parse(data.textContent).figures : [];
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
function between(share) {
  const [worst, best] = [parse(color("worst")), parse(color("best"))];
  return `rgb(${worst.map((from, at) => Math.round(from + share * (best[at] - from))).join(",")})`;
}

function themed(figure) {
  const { data: traces, layout } = structuredClone(figure);
  const [ink, soft, grid, rule] = ["ink", "soft", "grid", "rule"].map(color);
  const colorway = [0, 1, 2, 3, 4, 5, 6, 7].map((at) => color(`c${at}`));
  for (const axis of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    Object.assign(layout[axis], { gridcolor: grid, zerolinecolor: grid, linecolor: rule, automargin: true });
    layout[axis].title = { ...layout[axis].title, standoff: 8 };
  }
  for (const note of layout.annotations ?? []) {
    Object.assign(note, { font: { size: 11, color: ink }, bgcolor: color("page"), borderpad: 1, opacity: 0.85 });
  }
  for (const shape of layout.shapes ?? []) shape.line = { color: rule, width: 1 };
  for (const trace of traces) {
    if (trace.meta?.goodness !== undefined) {
      trace.line = { ...trace.line, color: between(trace.meta.goodness), width: 1 + 1.5 * trace.meta.goodness };
      trace.opacity = 0.9;
    }
    if (trace.line?.dash === "dot") trace.line = { ...trace.line, color: color("c1"), width: 1.3 };
    if (trace.type === "bar") {
      trace.marker = { color: color("c0") };
      trace.textfont = { color: ink };
    }
    if (trace.marker?.colorscale) {
      const scale = [[0, color("worst")], [1, color("best")]];
      trace.marker = { ...trace.marker, size: 8, colorscale: scale, showscale: false, line: { width: 1, color: color("page") } };
    } else if (trace.mode === "markers") {
      trace.marker = { size: 8, line: { width: 1, color: color("page") } };
    }
  }
  return {
    traces,
    layout: {
      ...layout,
      colorway,
      autosize: true,
      width: undefined,
      height: undefined,
      paper_bgcolor: "transparent",
      plot_bgcolor: "transparent",
      font: { family: "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif", size: 12, color: soft },
      margin: { l: 10, r: traces.some((trace) => trace.type === "bar") ? 40 : 16, t: 26, b: 10 },
      hoverlabel: { bgcolor: color("ink"), bordercolor: color("ink"), font: { color: color("page") } },
    },
  };
}

const settings = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
function draw() {
  for (const place of document.querySelectorAll(".drawing")) {
    const { traces, layout } = themed(figures.find((figure) => figure.title === place.dataset.figure));
    Plotly.react(place, traces, layout, settings);
  }
}
if (figures.length) {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => document.querySelectorAll(".drawing").forEach((place) => Plotly.Plots.resize(place)));
}

const table = document.querySelector(".trials"), body = table.tBodies[0];
const headings = [...table.tHead.rows[0].cells];
headings.forEach((heading, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = heading.textContent;
  heading.replaceChildren(button);
  button.addEventListener("click", () => {
    const isFalling = heading.getAttribute("aria-sort") === "ascending";
    headings.forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", isFalling ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.key;
    const compare = (a, b) => (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
    const rows = [...body.rows].sort((a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === ""); // without a value: last
      return (isFalling ? -1 : 1) * compare(key(a), key(b));
    });
    body.append(...rows);
  });
});

const filters = document.querySelector(".filters");
filters.hidden = false;
filters.addEventListener("click", (event) => {
  const chosen = event.target.closest("button");
  if (!chosen) return;
  for (const button of filters.children) button.setAttribute("aria-pressed", button === chosen);
  for (const row of body.rows) row.hidden = chosen.dataset.state !== "" && row.dataset.state !== chosen.dataset.state;
});

// What is wider than the screen scrolls sideways; it fades out at the side where there is more.
for (const box of document.querySelectorAll(".wide, .scroller")) {
  const mark = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  box.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(box);
}
