// All bins as pictures: filters, order, and pages of as many as a screen holds.

const PER_PAGE = 60;
const ORDERS = {
  queue: (a, b) => a - b,
  // a hidden chance stands last, so that its place says nothing
  wrong: (a, b) => isHidden(a) - isHidden(b) || (isHidden(a) ? a - b : wrong[b] - wrong[a] || a - b),
  recorded: (a, b) => recorded[a] - recorded[b] || a - b,
  id: (a, b) => collator.compare(ids[a], ids[b]) || a - b,
  latest: (a, b) => (current.get(b)?.time ?? "").localeCompare(current.get(a)?.time ?? "") || a - b,
};

function applyFilters() {
  const chosen = Object.fromEntries(new FormData(byId("filters")));
  const text = chosen.id.trim().toLowerCase();
  const isChosen = (bin) => {
    const verdict = current.get(bin)?.verdict ?? "todo";
    if (chosen.verdict === "done" ? verdict === "todo" : chosen.verdict && verdict !== chosen.verdict) return false;
    if (chosen.recorded !== "" && recorded[bin] !== Number(chosen.recorded)) return false;
    if (chosen.counted !== "" && (isHidden(bin) || counted[bin] !== Number(chosen.counted))) return false;
    if (chosen.direction === "hidden" && !isHidden(bin)) return false;
    if (chosen.direction in DIRECTIONS && (isHidden(bin) || directions[bin] !== chosen.direction)) return false;
    return !text || ids[bin].toLowerCase().includes(text);
  };
  const at = here();
  state.bins = ids.map((_, bin) => bin).filter(isChosen).sort(ORDERS[chosen.order]);
  state.place = Math.max(0, state.bins.indexOf(at));
  state.page = 0;
}

function showGrid() {
  const last = Math.max(0, Math.ceil(state.bins.length / PER_PAGE) - 1);
  state.page = Math.min(state.page, last);
  const first = state.page * PER_PAGE;
  const bins = state.bins.slice(first, first + PER_PAGE);
  byId("count").textContent =
    state.bins.length === numBins ? `All ${count(numBins)} ${data.nouns}` : `${count(state.bins.length)} of ${count(numBins)} ${data.nouns}; Review goes through these`;
  byId("gallery").replaceChildren(
    ...(bins.length ? bins.map((bin, offset) => tile(bin, first + offset, offset)) : [make("p", { className: "empty" }, numBins ? `No ${data.noun} is like this. Clear a filter to see more.` : `There is no ${data.noun} to check.`)]),
  );
  byId("pager").hidden = last === 0;
  byId("page-place").textContent = `Page ${count(state.page + 1)} of ${count(last + 1)}`;
  for (const button of byId("pager").querySelectorAll("button")) {
    const page = state.page + Number(button.dataset.page);
    button.disabled = page < 0 || page > last;
  }
}

function tile(bin, place, offset) {
  const verdict = current.get(bin);
  const seen = isHidden(bin) ? "hidden" : data.mustLook[bin] === "1" ? "look" : classes[counted[bin]];
  const done = verdict ? verdictText(verdict) : "to do";
  const rows = [["recorded", classes[recorded[bin]]], ["model sees", seen]];
  return make(
    "button",
    {
      type: "button", className: `tile ${verdict ? "judged" : ""}`, tabIndex: offset === 0 ? 0 : -1, title: ids[bin],
      dataset: { place },
      attributes: { "aria-label": `${ids[bin]}: recorded ${classes[recorded[bin]]}, model sees ${seen}, ${done}` },
    },
    make("span", { className: "frame" }, pictureOf(bin, ""), verdict ? make("span", { className: "tag" }, done) : null),
    ...rows.map(([name, value]) => make("span", { className: "name" }, `${name} `, make("b", {}, value))),
    make("span", { className: "id" }, ids[bin]),
  );
}

// A list to walk with, on paper

const MOST_PRINTED = 500;

function fillWalk() {
  const bins = state.bins.filter((bin) => !current.has(bin)).slice(0, MOST_PRINTED);
  const heads = ["", data.noun, "recorded", "model sees", "found", "note"];
  const rows = bins.map((bin) => {
    const seen = isHidden(bin) ? "" : data.mustLook[bin] === "1" ? "look" : classes[counted[bin]];
    const cells = [pictureOf(bin, ""), ids[bin], classes[recorded[bin]], seen, "", ""];
    return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
  });
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text))));
  byId("walk").replaceChildren(
    make("h2", {}, `${count(bins.length)} ${data.nouns} to check`),
    make("table", {}, head, make("tbody", {}, ...rows)),
  );
}
