// One bin at a time: its picture, the record, what the model sees, and the verdict.

const DIRECTIONS = { more: "more than recorded", fewer: "fewer than recorded", same: "as recorded" };
const WORDS = { right: "record is right", unusable: "can\u2019t be used", unsure: "unsure" };
const MARKS = { right: "✓", unusable: "✕", unsure: "?" };
const NEIGHBOURS = 20; // in the strip on either side; what does not fit is cut off
const state = { view: "review", bins: ids.map((_, bin) => bin), place: 0, page: 0, announced: "" };

const here = () => state.bins[state.place];
const verdictText = ({ verdict, count: name }) => (verdict === "count" ? `${data.areCounts ? "count " : ""}${name}` : WORDS[verdict]);
const markText = ({ verdict, count: name }) => (verdict === "count" ? name : MARKS[verdict]);

function pictureOf(bin, alt) {
  return make("img", { src: `data:image/${data.format};base64,${pictures[bin]}`, alt, draggable: false });
}

function showReview() {
  const bin = here();
  if (bin === undefined) return;
  kept.at = bin;
  const verdict = current.get(bin);
  if (verdict && data.hidden[bin] === "1" && !kept.revealed.has(bin)) {
    follow();
    kept.revealed.add(bin); // a later verdict on it is given with the prediction in sight
    keep();
  }
  byId("bin-id").textContent = ids[bin];
  byId("place").textContent = `${count(state.place + 1)} of ${count(state.bins.length)}`;
  byId("picture").replaceChildren(pictureOf(bin, `Picture of ${data.noun} ${ids[bin]}`));
  byId("recorded").textContent = classes[recorded[bin]];
  byId("items").textContent = items[bin] ?? "";
  byId("items").hidden = !items[bin];
  byId("before").textContent = data.before?.[bin] ? `before: ${data.before[bin]}` : "";
  byId("before").hidden = !data.before?.[bin];
  showPrediction(bin);
  byId("verdict").replaceChildren(
    ...(verdict
      ? ["Your verdict: ", make("b", {}, verdictText(verdict)), make("span", { className: "quiet" }, ` · ${verdict.reviewer}`)]
      : [data.areCounts ? "How many items are in it?" : "Which is it?"]),
  );
  byId("note").value = kept.notes.get(bin) ?? "";
  for (const button of document.querySelectorAll("[data-verdict]")) button.setAttribute("aria-pressed", verdict?.verdict === button.dataset.verdict);
  for (const button of byId("choices").children) button.setAttribute("aria-pressed", verdict?.verdict === "count" && verdict.count === button.dataset.choice);
  for (const button of document.querySelectorAll("#review [data-step]")) button.disabled = !(state.place + Number(button.dataset.step) in state.bins);
  setEntry("");
  showStrip();
}

function showPrediction(bin) {
  const hidden = isHidden(bin);
  byId("counted-label").textContent = data.mustLook[bin] === "1" && !hidden ? "Model is not sure" : "Model sees";
  byId("counted").textContent = hidden ? "hidden" : data.mustLook[bin] === "1" ? "look" : classes[counted[bin]];
  byId("counted").className = hidden ? "is-hidden" : "";
  const box = byId("prediction");
  if (hidden) {
    box.replaceChildren(make("p", { className: "quiet" }, "What the model sees is shown after your verdict, so that this one is yours alone."));
    return;
  }
  const rows = classes.map((name, label) => {
    const share = probability(bin, label);
    const line = make("div", { className: "bar" }, width(make("i", { className: "fill" }), share));
    const head = make("th", { scope: "row" }, name, label === recorded[bin] ? make("small", {}, " record") : "");
    return make("tr", { className: label === recorded[bin] ? "recorded" : "" }, head, make("td", { className: "wide" }, line), make("td", {}, percent(share)));
  });
  const direction = DIRECTIONS[directions[bin]];
  const about = [
    make("b", {}, percent(chance(bin))), " chance that the record is wrong",
    direction ? ` · ${direction}` : "",
    isFinite(expected[bin] ?? NaN) ? ` · ${expected[bin]} expected` : "",
  ];
  box.replaceChildren(
    make("p", { id: "chance" }, ...about),
    make("table", { className: "bars" }, make("caption", { className: "unseen" }, "Probability of each class"), make("tbody", {}, ...rows)),
  );
}

function showStrip() {
  const bins = state.bins.slice(Math.max(0, state.place - NEIGHBOURS), state.place + NEIGHBOURS + 1);
  const first = Math.max(0, state.place - NEIGHBOURS);
  const thumbs = bins.map((bin, offset) => {
    const verdict = current.get(bin);
    const isHere = first + offset === state.place;
    return make(
      "button",
      {
        type: "button", className: `thumb ${verdict ? "judged" : ""}`, tabIndex: -1, dataset: { place: first + offset },
        title: `${ids[bin]}${verdict ? `: ${verdictText(verdict)}` : ""}`,
        attributes: { "aria-label": `${data.noun[0].toUpperCase()}${data.noun.slice(1)} ${ids[bin]}, ${verdict ? verdictText(verdict) : "to do"}`, ...(isHere && { "aria-current": "true" }) },
      },
      pictureOf(bin, ""),
      verdict ? make("span", { className: "mark" }, markText(verdict)) : null,
    );
  });
  const strip = byId("strip");
  strip.replaceChildren(...thumbs);
  const middle = thumbs[state.place - first];
  if (middle) strip.scrollLeft = middle.offsetLeft - (strip.clientWidth - middle.clientWidth) / 2;
}

// Verdicts

function judge(verdict, name = "") {
  const bin = here();
  if (bin === undefined) return;
  if (!reviewerName()) {
    askName(() => judge(verdict, name));
    return;
  }
  noteTyped();
  give(bin, verdict, name);
  const text = `${ids[bin]}: ${verdictText(current.get(bin))}`;
  const next = nextToDo();
  if (next !== null) state.place = next;
  say(next === null ? `${text}. All ${data.nouns} of this list are done: save your verdicts.` : `${text}. Undo: U`);
  refresh();
}

function nextToDo() {
  const { bins, place } = state;
  for (let step = 1; step < bins.length; step++) {
    const candidate = (place + step) % bins.length;
    if (!current.has(bins[candidate])) return candidate;
  }
  return null;
}

function takeBack() {
  const entry = undo();
  if (!entry) {
    say("There is nothing to undo.");
    return;
  }
  goTo(entry.bin);
  const saved = entry.saved ? " It was in a file that you saved: if that was imported, take it back with `bincount review undo`." : "";
  say(`Undone: ${ids[entry.bin]}, ${verdictText(entry)}.${saved}`);
}

function goTo(bin) {
  let place = state.bins.indexOf(bin);
  if (place < 0) {
    byId("filters").reset(); // it is not among the bins that are shown
    applyFilters();
    place = state.bins.indexOf(bin);
  }
  state.place = place;
  show("review");
}

function step(by) {
  if (!(state.place + by in state.bins)) return;
  noteTyped();
  state.place += by;
  showReview();
}

function noteTyped() {
  if (here() !== undefined && state.view === "review") setNote(here(), byId("note").value.trim());
}

// A number that is being typed: no verdict before it is confirmed

function setEntry(text) {
  byId("entry").value = text;
  const name = entryName(text);
  byId("confirm").disabled = name === null;
  byId("typed").classList.toggle("typing", text !== "");
  const range = data.areCounts ? "a number" : `1 to ${classes.length}`;
  byId("entry-hint").textContent = !text ? "" : name === null ? range : data.areCounts ? "Esc clears" : name;
}

function entryName(text) {
  if (!/^\d{1,3}$/.test(text)) return null;
  if (data.areCounts) return String(Number(text));
  return classes[Number(text) - 1] ?? null;
}

function confirmEntry() {
  const name = entryName(byId("entry").value.trim());
  if (name === null) return;
  judge("count", name);
}
