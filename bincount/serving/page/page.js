"use strict";
// The pictures of this session, one of which is shown: each waits, has an answer, or a problem. Files stay in the page.

const AT_ONCE = 3; // requests on their way; the service predicts those of many pages together
const MOST_KEPT = 200;

let model = null;
let shown = null;
const items = []; // {file, url, state: waiting | answered | failed, answer, problem, abort, recorded, settled, heat, heatProblem}
const queue = [];
let onTheirWay = 0;

// Pictures come in

function add(files) {
  const given = [...files];
  if (given.length === 0) return;
  say(given.length > MOST_KEPT ? `At most ${MOST_KEPT} pictures at a time; the first ${MOST_KEPT} of ${given.length} were taken.` : "");
  const added = given.slice(0, MOST_KEPT).map((file) => ({ file, url: URL.createObjectURL(file), state: "waiting", recorded: "", settled: "" }));
  items.push(...added);
  for (const item of added) hold(item);
  for (const old of items.splice(0, Math.max(0, items.length - MOST_KEPT))) forget(old);
  queue.push(...added);
  show(added[0]);
  work();
}

/** Show the first picture of an animated file, which is the one that is counted, in place of all. */
async function hold(item) {
  const first = await firstPicture(item.file).catch(() => null); // unreadable: its refusal is shown
  if (!first || item.forgotten) return;
  URL.revokeObjectURL(item.url);
  Object.assign(item, { url: URL.createObjectURL(first), isAnimated: true });
  if (item === shown) render();
  else renderStrip();
}

function forget(item) {
  item.forgotten = true;
  item.abort?.abort();
  URL.revokeObjectURL(item.url);
  if (item.heat) URL.revokeObjectURL(item.heat);
  if (item.question?.before) URL.revokeObjectURL(item.question.before.url);
}

function work() {
  while (onTheirWay < AT_ONCE && queue.length > 0) {
    onTheirWay += 1;
    countIn(queue.shift()).finally(() => {
      onTheirWay -= 1;
      work();
    });
  }
}

async function countIn(item) {
  item.abort = new AbortController();
  try {
    if (item.stopped) throw new Problem("Stopped", "Nothing was counted.");
    if (!model) await learnModel();
    await check(item.file, model.max_bytes);
    item.answer = await predict(item.file, item.abort.signal, item.recorded);
    item.state = "answered";
    item.settled = item.recorded;
    if (item.answer.version !== model.version) await learnModel().catch(() => {}); // another one answers since
  } catch (error) {
    item.state = "failed";
    item.problem = asProblem(error);
  }
  if (item === shown) {
    render();
    announce(item);
  } else {
    renderStrip();
  }
}

function asProblem(error) {
  if (error instanceof Problem) return error;
  console.warn(error);
  return new Problem("The page did not understand the answer", "Reload the page, and try again.", { detail: `${error.message}` });
}

function announce({ state, answer, problem, file }) {
  byId("status").textContent = state === "answered" ? `${file.name}: ${sentence(answer, model)}` : `${file.name}: ${problem.title}. ${problem.text}`;
}

function again(item) {
  Object.assign(item, { state: "waiting", problem: null, stopped: false });
  queue.push(item);
  render();
  work();
}

// What is shown

function show(item) {
  if (shown !== item) recordSettled();
  shown = item;
  const field = byId("recorded");
  if (field) field.value = item.recorded;
  render();
}

function render() {
  const item = shown;
  document.body.classList.add("has-pictures");
  byId("invitation").hidden = true;
  byId("current").hidden = false;
  byId("file").textContent = item.file.name || "pasted picture";
  byId("moves").hidden = !item.isAnimated;
  const picture = byId("picture");
  if (picture.getAttribute("src") !== item.url) {
    byId("unseen").hidden = true;
    byId("layers").hidden = false;
    picture.src = item.url;
    picture.alt = `The picture ${item.file.name}`;
  }
  byId("waiting").hidden = item.state !== "waiting";
  byId("failed").hidden = item.state !== "failed";
  byId("answered").hidden = item.state !== "answered";
  if (item.state === "answered") showAnswer(item.answer, model);
  if (item.state === "failed") showProblem(item.problem);
  byId("unseen").textContent = unseenTexts[item.state];
  renderOverlay();
  renderQuestions();
  renderStrip();
}

const unseenTexts = {
  waiting: "This browser cannot show this kind of picture.",
  answered: "Read by the service; this browser cannot show it.",
  failed: "",
};

function renderOverlay() {
  const item = shown;
  const heat = byId("heat");
  const isWanted = item.state === "answered" && byId("show").checked;
  byId("looked").hidden = item.state !== "answered" || byId("layers").hidden; // nothing to lie over
  byId("strength").disabled = !isWanted;
  byId("looked-hint").textContent = isWanted ? item.heatProblem ?? "" : "";
  heat.hidden = !isWanted || !item.heat;
  if (item.heat) heat.src = item.heat;
  heat.alt = heat.hidden ? "" : `Where the model saw what speaks for ${item.answer.count}`;
  heat.style.opacity = byId("strength").value / 100;
  if (isWanted && !item.heat && !item.heatProblem && !item.heatAsked) fetchOverlay(item);
}

async function fetchOverlay(item) {
  item.heatAsked = true;
  try {
    item.heat = URL.createObjectURL(await overlay(item.file, `${item.answer.count}`));
  } catch (error) {
    const { title, after } = asProblem(error);
    item.heatProblem = `No overlay: ${title.toLowerCase()}.`;
    if (after) setTimeout(() => retryOverlay(item), 1000 * after);
  }
  item.heatAsked = false;
  if (item === shown) renderOverlay();
}

function retryOverlay(item) {
  item.heatProblem = undefined;
  if (item === shown) renderOverlay();
}

function renderStrip() {
  const strip = byId("strip");
  byId("session").hidden = items.length < 2;
  const before = strip.contains(document.activeElement) ? items.indexOf(document.activeElement.item) : -1;
  strip.replaceChildren(...items.map(tile));
  if (before >= 0) [...strip.children].find(({ item }) => item === items[before])?.focus();
  const current = strip.querySelector("[aria-current]"); // in view, without moving the page
  if (current) strip.scrollLeft = current.offsetLeft - strip.offsetLeft - (strip.clientWidth - current.offsetWidth) / 2;
}

function tile(item) {
  const texts = { waiting: "…", failed: "!", answered: item.answer && (isUnsure(item.answer) ? "?" : `${item.answer.count}`) };
  const spoken = { waiting: "waiting", failed: item.problem?.title, answered: item.answer && model && sentence(item.answer, model) };
  const image = make("img", { src: item.url, alt: "" });
  image.addEventListener("error", () => image.remove());
  const button = make(
    "button",
    { type: "button", className: `kept ${item.state}`, title: item.file.name, ariaLabel: `${item.file.name}: ${spoken[item.state]}`, tabIndex: item === shown ? 0 : -1 },
    image,
    make("span", { className: "badge", textContent: texts[item.state] }),
  );
  if (item === shown) button.setAttribute("aria-current", "true");
  button.item = item;
  button.addEventListener("click", () => {
    show(item);
    if (item.state !== "waiting") announce(item);
  });
  return button;
}

// What the record says

// Judged while it is typed, of the answer that is there; what is in the field when it is left is the picture's record

let typed = 0;

function recordTyped() {
  const item = shown;
  const recorded = byId("recorded").value.trim();
  clearTimeout(typed);
  if (item?.state !== "answered" || recorded === item.recorded) return;
  item.recorded = recorded;
  showJudgement(null, model);
  typed = setTimeout(judge, 350, item, recorded, false);
}

function recordSettled(item = shown) {
  if (item?.state !== "answered" || item.recorded === item.settled) return;
  clearTimeout(typed);
  judge(item, item.recorded, true);
}

/** Say that no picture can have a record, and which there can be. */
function impossible(recorded, detail) {
  const numbers = model.counts ? model.records.map(Number).sort((a, b) => a - b) : [];
  const [least, most] = [numbers[0], numbers.at(-1)];
  const isRange = numbers.length > 0 && most - least + 1 === numbers.length;
  if (!isRange || !/^no picture can have/.test(detail)) return sentenceOf(detail);
  return `The model knows records from ${least} to ${most}, and so cannot judge ${recorded}.`;
}

const sentenceOf = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;

async function judge(item, recorded, isFinal) {
  item.judging?.abort();
  const judging = (item.judging = new AbortController());
  const isAsked = recorded !== "" || isFinal;
  if (isFinal) item.settled = null; // not known, until the service has answered
  try {
    const record = isAsked ? await judgeRecord(item.answer.id, recorded, isFinal, judging.signal) : null;
    item.answer = { ...item.answer, record };
    if (isFinal) item.settled = recorded;
  } catch (error) {
    if (judging.signal.aborted) return; // another one was typed
    if (error.status === 404) return judgeAnew(item, recorded, isFinal);
    sayOfJudgement(item, recorded, error);
    return;
  }
  showJudged(item, recorded);
}

/** Send the picture again where the service has forgotten its answer: once, for the record that is settled on. */
async function judgeAnew(item, recorded, isFinal) {
  if (recorded && !isFinal) {
    if (item === shown) byId("judgement").textContent = "Press Enter to have the record judged.";
    return;
  }
  try {
    item.answer = recorded ? await predict(item.file, item.judging.signal, recorded) : { ...item.answer, record: null };
    item.settled = recorded;
  } catch (error) {
    if (!item.judging.signal.aborted) sayOfJudgement(item, recorded, error);
    return;
  }
  showJudged(item, recorded);
}

function showJudged(item, recorded) {
  if (item === shown && item.recorded === recorded) showAnswer(item.answer, model);
}

function sayOfJudgement(item, recorded, error) {
  const { title, text, detail, status } = asProblem(error);
  if (item !== shown || item.recorded !== recorded) return;
  byId("judgement").textContent = status === 422 ? impossible(recorded, detail) : `${title}. ${text}`;
}

// The model

async function learnModel() {
  model = await (await ask("model")).json();
  showModel(model);
  if (shown) byId("recorded").value = shown.recorded;
  renderQuestions();
}

function say(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = text === "";
}

// Ways in which pictures come

for (const id of ["pick", "photograph"]) {
  byId(id).addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = ""; // so that the same file can be chosen again
  });
}

const holdsFiles = ({ dataTransfer }) => dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  event.dataTransfer.dropEffect = "copy";
  byId("dropping").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) byId("dropping").hidden = true;
});
document.addEventListener("drop", (event) => {
  byId("dropping").hidden = true;
  if (!holdsFiles(event)) return;
  event.preventDefault();
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length > 0) {
    event.preventDefault();
    add(files);
  } else if (!event.target.closest?.("input, textarea")) {
    say("The clipboard holds no picture. Copy one, and paste again.");
  }
});

byId("picture").addEventListener("load", ({ target }) => {
  byId("layers").style.setProperty("--aspect", target.naturalWidth / target.naturalHeight);
});
byId("picture").addEventListener("error", () => {
  byId("layers").hidden = true;
  byId("unseen").hidden = false;
  render();
});
byId("stop").addEventListener("click", () => {
  shown.stopped = true;
  shown.abort?.abort();
});
byId("retry").addEventListener("click", () => {
  again(shown);
  byId("stop").focus();
});
byId("show").addEventListener("change", renderOverlay);
byId("strength").addEventListener("input", renderOverlay);
byId("record").addEventListener("submit", (event) => {
  event.preventDefault();
  recordSettled();
});
byId("record").addEventListener("input", recordTyped);
byId("record").addEventListener("change", () => recordSettled());
byId("strip").addEventListener("keydown", (event) => moveFocus(event, [...byId("strip").children]));
addEventListener("online", () => say(""));
addEventListener("offline", () => say("You are offline. Pictures can be counted when the service can be reached again."));

learnModel().catch((error) => {
  const { title, text } = asProblem(error);
  say(`${title}. ${text}`);
});
