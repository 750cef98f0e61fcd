"use strict";
// Questions about the picture that is shown, with the photo before or photos of an item, as far as there are models.
// The item stays for the next picture; the photo before, the number and the answer are a picture's own.

const MOST_REFERENCES = 8;
const asks = { references: [] }; // files with their urls: {file, url}

/** Say a change in words; farther ones count as the largest that the model knows. */
function inItems(change, largest) {
  if (change === 0) return "No change";
  const number = Math.abs(change);
  return `${number === largest ? "At least " : ""}${number} ${number === 1 ? "item" : "items"} ${change > 0 ? "more" : "fewer"}`;
}

const own = (item) => (item.question ??= { number: "" }); // {before, number, verified, problem, asking}

/** Return what the form asks now: the fields to send, and in words the question, or what is missing for one. */
function questionOf({ before, number }) {
  const name = byId("item").value.trim();
  const has = { object: "object" in model.questions, quantity: "quantity" in model.questions, change: "change" in model.questions };
  const hasItem = asks.references.length > 0 || name !== "";
  const given = number.trim();
  const wanted = Number(given);
  if (given !== "" && !Number.isInteger(wanted)) return { missing: "Give a whole number of items." };
  const fields = asks.references.length > 0 ? asks.references.map(({ file }) => ["references", file]) : hasItem ? [["item", name]] : [];
  if (before) fields.push(["image_before", before.file]);
  if (given !== "" && (before || hasItem)) fields.push([before ? "change" : "quantity", given]);
  const asked = (words) => ({ fields, words });
  if (before && hasItem) {
    if (!has.quantity) return { missing: "For the change of one item this service has no model; remove the photo before, or the item." };
    return asked(given === "" ? "By how many of this item has the bin changed?" : `Has the bin changed by exactly ${signed(wanted)} of this item?`);
  }
  if (before) {
    if (!has.change) return { missing: "Add photos of an item: for changes of all items this service has no model." };
    return asked(given === "" ? "By how many items has the bin changed?" : `Has the bin changed by exactly ${signed(wanted)}?`);
  }
  if (hasItem && given === "") return has.object ? asked("Is this item in the bin?") : { missing: "Give how many of it there should be." };
  if (hasItem && wanted < 1) return { missing: "Give 1 or more, or nothing to ask whether it is there." };
  if (hasItem) return has.quantity ? asked(`Are exactly ${wanted} of this item in the bin?`) : { missing: "Leave the number out: this service has no model of quantities." };
  return { missing: waysToAsk(has) };
}

function waysToAsk({ object, quantity, change }) {
  const item = model.items ? "photos of an item or its identifier" : "photos of an item";
  if (!object && !quantity) return "Add the photo before to ask what has changed.";
  return change || quantity ? `Add ${item}, the photo before, or both.` : `Add ${item}, to ask whether it is there.`;
}

/** Say an answer in words: a headline, and a sentence. */
function inWords({ task, asked, answer, confidence, probabilities, p_asked: share, expected_change: mean }, isOfItem) {
  if (task === "object") return [verdict(answer, confidence), answer === "yes" ? "The item is in the bin." : "The item is not in the bin."];
  if (task === "quantity") return [verdict(answer, confidence), answer === "yes" ? `Exactly ${asked} of the item are in the bin.` : `There are not exactly ${asked} of the item in the bin: fewer or more.`];
  const of = isOfItem ? " of the item" : "";
  if (asked === null) {
    const largest = Math.max(...Object.keys(probabilities).map(Number));
    return [inItems(answer, largest), `${percent(confidence)} sure${of && ", of this item"}; mean ${signed(Number(mean.toFixed(2)))}`];
  }
  return [verdict(answer, confidence), `A change by ${signed(asked)}${of} has a probability of ${percent(share)}.`];
}

const verdict = (answer, confidence) => `${answer === "yes" ? "Yes" : "No"}, with ${percent(confidence)}`;

// What is shown

function renderQuestions() {
  const tasks = Object.keys(model?.questions ?? {});
  byId("questions").hidden = tasks.length === 0 || !shown;
  if (byId("questions").hidden) return;
  const state = own(shown);
  byId("with-before").hidden = !tasks.includes("change") && !tasks.includes("quantity");
  byId("with-item").hidden = !tasks.includes("object") && !tasks.includes("quantity");
  byId("by-name").hidden = !model.items;
  byId("number").value = state.number;
  byId("number-label").textContent = state.before ? "Changed by exactly (optional; \u22121: one was taken)" : "Exactly so many of it (optional)";
  byId("number-place").hidden = tasks.length === 1 && tasks[0] === "object";
  byId("before-shot").replaceChildren(...(state.before ? [shot(state.before, "the photo before", () => setBefore(null))] : []));
  byId("reference-shots").replaceChildren(...asks.references.map((reference, n) => shot(reference, `photo ${n + 1} of the item`, () => removeReference(reference))));
  renderAsked();
  renderVerified(state);
}

function renderAsked() {
  const { words, missing } = questionOf(own(shown));
  byId("asked").textContent = words ?? missing;
  byId("ask").disabled = !words;
}

function shot({ file, url }, what, remove) {
  const image = make("img", { src: url, alt: "" });
  image.addEventListener("error", () => image.remove());
  const button = make("button", { type: "button", ariaLabel: `Remove ${what}, ${file.name}`, textContent: "\u00d7" });
  button.addEventListener("click", remove);
  return make("li", { className: "shot", title: file.name }, image, make("span", { className: "badge", textContent: file.name }), button);
}

function renderVerified({ verified, problem, asking }) {
  const place = byId("verified");
  place.replaceChildren();
  if (asking) place.append(make("p", {}, make("span", { className: "spinner", ariaHidden: "true" }), " The model is looking \u2026"));
  if (problem) {
    const detail = problem.detail ? `The service says: ${problem.detail}` : "";
    place.append(make("h3", { className: "wrong", textContent: problem.title }), make("p", { textContent: problem.text }), make("p", { className: "hint", textContent: detail }));
  }
  if (!verified) return;
  const [headline, sentence] = inWords(verified, verified.isOfItem);
  place.append(make("h3", { className: "headline", textContent: headline }), make("p", { textContent: sentence }));
  if (verified.task === "change") place.append(changeBars(verified));
  const shownBy = verified.references.length > 0 ? ` Photos of the bins ${verified.references.join(", ")} showed it the item.` : "";
  place.append(make("p", { className: "hint", textContent: `${verified.words} Answered by ${verified.model} version ${verified.version}.${shownBy}` }));
}

function changeBars({ probabilities, answer, asked }) {
  const shares = Object.entries(probabilities).sort(([a], [b]) => Number(a) - Number(b));
  const marked = `${asked ?? answer}`;
  const rows = shares.map(([name, share]) =>
    make(
      "tr",
      { className: name === marked ? "likeliest" : "" },
      make("th", { scope: "row", textContent: signed(Number(name)) }),
      make("td", { className: "wide" }, make("span", { className: "bar", ariaHidden: "true" }, width(make("span", { className: "fill" }), share))),
      make("td", { textContent: percent(share) }),
    ),
  );
  return make("table", { className: "bars counts" }, make("caption", { textContent: "Probability of each change" }), make("tbody", {}, ...rows));
}

// What is given

const withUrl = (file) => ({ file, url: URL.createObjectURL(file) });

function setBefore(file) {
  const state = own(shown);
  if (state.before) URL.revokeObjectURL(state.before.url);
  state.before = file ? withUrl(file) : null;
  changed(file ? `The photo before is ${file.name}.` : "The photo before was removed.", "before");
}

function addReferences(files) {
  const added = [...files].slice(0, MOST_REFERENCES - asks.references.length).map(withUrl);
  asks.references.push(...added);
  const left = files.length - added.length;
  changed(left > 0 ? `A question has at most ${MOST_REFERENCES} photos of an item; ${left} were left out.` : `${asks.references.length} photos of the item.`, "references");
}

function removeReference(reference) {
  URL.revokeObjectURL(reference.url);
  asks.references = asks.references.filter((each) => each !== reference);
  changed(`${asks.references.length} photos of the item.`, "references");
}

/** Show what was given; the answer before was to another question. */
function changed(spoken, focused) {
  Object.assign(own(shown), { verified: null, problem: null });
  renderQuestions();
  byId("status").textContent = spoken;
  byId(focused).focus();
}

async function askAbout(item) {
  const state = own(item);
  const { fields, words } = questionOf(state);
  if (!words) return;
  Object.assign(state, { verified: null, problem: null, asking: true });
  renderQuestions();
  try {
    const files = [item.file, ...fields.map(([, value]) => value).filter((value) => value instanceof File)];
    await checkAll(files, model.max_bytes);
    const isOfItem = fields.some(([name]) => name === "references" || name === "item");
    state.verified = { ...(await verify(item.file, fields)), words, isOfItem };
  } catch (error) {
    state.problem = asProblem(error);
    if (state.problem.status === 409) await learnModel().catch(() => {}); // what there was is gone, or comes
  }
  state.asking = false;
  if (item !== shown) return;
  renderQuestions();
  const { verified, problem } = state;
  byId("status").textContent = verified ? inWords(verified, verified.isOfItem).join(". ") : `${problem.title}. ${problem.text}`;
}

for (const [id, zone, take] of [
  ["before", "with-before", ([file]) => setBefore(file)],
  ["references", "with-item", addReferences],
]) {
  byId(id).addEventListener("change", ({ target }) => {
    if (target.files.length > 0) take([...target.files]);
    target.value = "";
  });
  const place = byId(zone);
  place.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.stopPropagation(); // elsewhere a dropped picture is counted
    byId("dropping").hidden = true;
    place.classList.add("over");
  });
  place.addEventListener("dragleave", () => place.classList.remove("over"));
  place.addEventListener("drop", (event) => {
    place.classList.remove("over");
    if (!holdsFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    take([...event.dataTransfer.files]);
  });
}
for (const id of ["item", "number"]) {
  byId(id).addEventListener("input", () => {
    const state = own(shown);
    state.number = byId("number").value;
    Object.assign(state, { verified: null, problem: null });
    renderAsked();
    renderVerified(state);
  });
}
byId("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (shown && !own(shown).asking) askAbout(shown);
});
