// What the reviewer does: keys, buttons, the name, saving and leaving.

const KEYS = [
  [data.areCounts ? "0 \u2026 9" : `1 \u2026 ${Math.min(9, classes.length)}`, data.areCounts ? "type a count, also of several digits" : "choose a class by its place"],
  ["Enter", "confirm what you typed"], ["Escape", "clear it"],
  ["R", "the record is right"], ["X", "the picture can\u2019t be used"], ["S", "unsure"],
  ["U", "undo the last verdict"], ["← →, K J", `previous, next ${data.noun}`], ["T", `next ${data.noun} without a verdict`],
  ["N", "write a note; Escape or Enter leaves it"], ["G", "grid or review"], ["?", "this help"],
];
const COMMANDS = {
  r: () => judge("right"), x: () => judge("unusable"), s: () => judge("unsure"), u: takeBack,
  ArrowLeft: () => step(-1), ArrowRight: () => step(1), k: () => step(-1), j: () => step(1),
  t: () => { const next = nextToDo(); if (next !== null) step(next - state.place); },
  n: () => byId("note").focus(), Escape: () => setEntry(""), Backspace: () => setEntry(byId("entry").value.slice(0, -1)),
};

function refresh() {
  if (state.view === "grid") showGrid();
  else showReview();
  showProgress();
}

function show(view) {
  if (view === "grid" && state.view === "review") {
    noteTyped();
    applyFilters(); // the verdicts given meanwhile count
    state.page = Math.floor(state.place / PER_PAGE);
  }
  state.view = state.bins.length ? view : "grid"; // where nothing is shown, a filter is to be cleared
  view = state.view;
  byId("review").hidden = view !== "review";
  byId("grid").hidden = view !== "grid";
  for (const button of document.querySelectorAll("[data-view]")) button.setAttribute("aria-pressed", button.dataset.view === view);
  refresh();
}

function showProgress() {
  const unsaved = numUnsaved();
  byId("done").textContent = `${count(current.size)} of ${count(numBins)} done`;
  byId("progress").value = current.size;
  byId("save").textContent = unsaved ? `Save (${count(unsaved)} new)` : "Save";
  byId("reviewer").textContent = reviewerName() || "Your name";
  byId("undo").disabled = kept.log.length === 0;
    byId("trouble").textContent = [trouble, isFramed ? FRAMED : ""].filter(Boolean).join(" ");
  byId("trouble").hidden = !byId("trouble").textContent;
}

const FRAMED = "This page is shown inside another one, which may block saving: download it and open the file itself.";
let fading = 0;

function say(text) {
  clearTimeout(fading);
  byId("toast").textContent = text;
  fading = setTimeout(() => { byId("toast").textContent = ""; }, 8000);
}

// The head is read once; who checks bins has them in full view.
function bringToView() {
  if (byId("work").getBoundingClientRect().top > 1) byId("work").scrollIntoView();
}

// The name

let afterName = null;

function askName(then = null) {
  afterName = then;
  byId("who-name").value = reviewerName();
  byId("who").showModal();
}

// no form: where the page is shown in a frame, as MLflow does, a form may not be sent
function takeName() {
  const name = byId("who-name").value.trim();
  if (!name) return;
  setReviewer(name);
  byId("who-name").blur(); // else it would have the next key, until the dialog has gone from the screen
  byId("who").close();
  showProgress();
  const then = afterName;
  afterName = null;
  then?.();
}

byId("who-done").addEventListener("click", takeName);
byId("who-name").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  event.stopPropagation(); // else it would confirm a number too
  takeName();
});
byId("who").addEventListener("cancel", () => { afterName = null; });

// Keys

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const { target, key } = event;
  if (target.id === "note") {
    if (key === "Escape" || (key === "Enter" && !event.shiftKey)) target.blur();
    else return;
    event.preventDefault();
    return;
  }
  const isEntry = target.id === "entry";
  if (!isEntry && target.matches("input, select, textarea")) return;
  const name = key.length === 1 ? key.toLowerCase() : key;
  if (name === "?") byId("help").showModal();
  else if (name === "g") show(state.view === "grid" ? "review" : "grid");
  else if (state.view === "grid") return;
  else if (/^\d$/.test(name)) {
    if (isEntry) return;
    setEntry((byId("entry").value + name).slice(0, 3));
  } else if (name === "Enter") {
    if (!byId("entry").value) return; // the button that has the focus is meant
    confirmEntry();
  } else if (name in COMMANDS && !(isEntry && /^(Backspace|Arrow)/.test(name))) COMMANDS[name]();
  else return;
  bringToView();
  event.preventDefault();
}

// The beginning

function prepare() {
  for (const name of ["recorded", "counted"]) classes.forEach((text, label) => option(byId("filters").elements[name], label, text));
  const choices = classes.map((name, label) => {
    const hint = data.areCounts ? name : `${label + 1}: ${name}`;
    return make("button", { type: "button", dataset: { choice: name }, attributes: { "aria-label": hint } }, name, data.areCounts ? null : make("kbd", {}, label + 1));
  });
  byId("choices").className = data.areCounts ? "counts" : "names";
  byId("choices").replaceChildren(...choices);
  byId("entry-label").textContent = data.areCounts ? "Another count" : "Number of the class";
  document.querySelector(".with-direction").hidden = !data.ordered && !data.hidden.includes("1");
  for (const [keys, text] of KEYS) byId("keys").append(make("dt", {}, make("kbd", {}, keys)), make("dd", {}, text));
  byId("queue").hidden = false;
}

load();
prepare();
applyFilters();
state.place = Math.max(0, state.bins.indexOf(kept.at));
if (current.has(here())) state.place = nextToDo() ?? state.place; // to go on where the last verdict was given
show("review");
if (current.size) bringToView();

document.addEventListener("keydown", onKey);
byId("work").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  bringToView();
  const { view, verdict, choice, step: by, place, page } = button.dataset;
  if (view) show(view);
  else if (verdict) judge(verdict);
  else if (choice !== undefined) judge("count", choice);
  else if (by) step(Number(by));
  else if (place) {
    if (state.view === "review") noteTyped();
    state.place = Number(place);
    show("review");
  } else if (page) {
    state.page += Number(page);
    showGrid();
    byId("work").scrollIntoView();
  }
});
byId("undo").addEventListener("click", takeBack);
byId("reviewer").addEventListener("click", () => askName());
byId("help-open").addEventListener("click", () => byId("help").showModal());
for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
byId("save").addEventListener("click", () => {
  noteTyped();
  save();
  say(`${count(current.size)} verdicts saved as verdicts.csv. Next: bincount review import verdicts.csv, with the audit's --source and --workspace`);
  showProgress();
});
byId("confirm").addEventListener("click", confirmEntry);
byId("entry").addEventListener("input", (event) => setEntry(event.target.value.replace(/\D/g, "").slice(0, 3)));
byId("note").addEventListener("change", () => {
  noteTyped();
  showProgress();
});
byId("filters").addEventListener("input", () => {
  applyFilters();
  showGrid();
});
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(() => {
  applyFilters(); // the fields are cleared after the event
  refresh();
}));
byId("gallery").addEventListener("keydown", (event) => moveFocus(event, [...byId("gallery").querySelectorAll(".tile")]));
addEventListener("storage", (event) => {
  if (event.key !== STORE) return; // the same page in another window
  follow();
  refresh();
});
addEventListener("beforeunload", (event) => {
  noteTyped();
  keepPlace();
  if (numUnsaved()) event.preventDefault();
});
addEventListener("beforeprint", fillWalk);
addEventListener("afterprint", () => byId("walk").replaceChildren());
