// The test images of the page: filters, order, pages, and one image enlarged. All text is set as text, never as HTML.

const PER_PAGE = 60;
const data = JSON.parse(document.getElementById("data").textContent);
const { classes, values, ids, recorded, predicted, confidence, probabilities, slices, pictures, champion } = data;
const numImages = ids.length;
const numPictures = Object.keys(pictures).length;
const form = byId("filters");
const gallery = byId("gallery");
const viewer = byId("viewer");

const probability = (image, label) => probabilities[image * classes.length + label] / 1000;
const isRight = (image) => recorded[image] === predicted[image];
const errorOf = (image) => (values ? values[predicted[image]] - values[recorded[image]] : 0);

function changeOf(image) {
  const before = champion ? champion.predicted[image] : -1;
  if (before < 0) return "";
  const wasRight = before === recorded[image];
  if (isRight(image)) return wasRight ? "both-right" : "fixed";
  return wasRight ? "broken" : "both-wrong";
}

// Order

const byWorst = (a, b) =>
  isRight(a) - isRight(b) || probability(a, recorded[a]) - probability(b, recorded[b]) || a - b;
const ORDERS = {
  worst: { name: "mistakes first", compare: byWorst, falls: true },
  confidence: { name: "confidence", compare: (a, b) => confidence[b] - confidence[a] || a - b, falls: true },
  ...(values && {
    error: {
      name: `error, ${data.unit}`,
      compare: (a, b) => Math.abs(errorOf(b)) - Math.abs(errorOf(a)) || byWorst(a, b),
      falls: true,
    },
  }),
  record: { name: "probability of the record", compare: (a, b) => probability(a, recorded[a]) - probability(b, recorded[b]) || a - b },
  id: { name: "id", compare: (a, b) => collator.compare(ids[a], ids[b]) },
};
const state = { order: "worst", reversed: false, page: 0, view: "pictures", shown: [] };

function filtered() {
  const chosen = Object.fromEntries(new FormData(form));
  const label = (name) => (chosen[name] === "" ? null : Number(chosen[name]));
  const [wantedRecorded, wantedPredicted] = [label("recorded"), label("predicted")];
  const [kind, code] = chosen.slice ? chosen.slice.split(":").map(Number) : [];
  const low = 1000 * (chosen.low === "" ? 0 : Number(chosen.low));
  const high = 1000 * (chosen.high === "" ? 100 : Number(chosen.high));
  const text = chosen.id.trim().toLowerCase();
  const change = chosen.change;
  const found = [];
  for (let image = 0; image < numImages; image++) {
    if (wantedRecorded !== null && recorded[image] !== wantedRecorded) continue;
    if (wantedPredicted !== null && predicted[image] !== wantedPredicted) continue;
    if (chosen.result && isRight(image) !== (chosen.result === "right")) continue;
    if (kind !== undefined && slices[kind].codes[image] !== code) continue;
    // as in the table of confidence: an image at an edge belongs to the range below
    if ((low > 0 && confidence[image] <= low) || confidence[image] > high) continue;
    if (change === "differs" && [-1, predicted[image]].includes(champion.predicted[image])) continue;
    if (change && change !== "differs" && changeOf(image) !== change) continue;
    if (text && !ids[image].toLowerCase().includes(text)) continue;
    if (chosen.picture && !(image in pictures)) continue;
    found.push(image);
  }
  return found;
}

// Elements

function pictureOf(image, alt) {
  if (!(image in pictures)) return make("span", { className: "missing" }, "no picture on this page");
  return make("img", { src: `data:image/${data.format};base64,${pictures[image]}`, alt });
}

const CHANGES = { fixed: "fixed", broken: "broken", "both-wrong": "", "both-right": "" };

function championText(image) {
  const label = champion ? champion.predicted[image] : -1;
  if (!champion) return "";
  return label < 0 ? `${champion.name}: not compared` : `${champion.name}: ${classes[label]}`;
}

function describe(image) {
  const verdict = isRight(image) ? "right" : "wrong";
  const before = championText(image);
  return (
    `${ids[image]}: recorded ${classes[recorded[image]]}, predicted ${classes[predicted[image]]}, ${verdict}, ` +
    `confidence ${percent(confidence[image] / 1e5)}${before && `, ${before}`}`
  );
}

function tag(image) {
  const change = CHANGES[changeOf(image)];
  return change ? make("span", { className: `tag ${change}` }, change) : null;
}

function tile(image, position) {
  const verdict = isRight(image) ? "right" : "wrong";
  const line = make(
    "span",
    { className: "labels" },
    make("span", { className: "mark" }, isRight(image) ? "✓" : "✗"),
    make("span", { className: "name" }, "predicted ", make("b", {}, classes[predicted[image]])),
    make("span", { className: "confidence" }, percent(confidence[image] / 1e5)),
  );
  return make(
    "button",
    {
      type: "button",
      className: `tile ${verdict}`,
      tabIndex: position === 0 ? 0 : -1,
      title: ids[image],
      dataset: { position },
      attributes: { "aria-label": describe(image) },
    },
    make("span", { className: "frame" }, pictureOf(image, ""), tag(image)),
    line,
    make("span", { className: "name" }, "recorded ", make("b", {}, classes[recorded[image]])),
    champion ? make("span", { className: "before" }, championText(image)) : null,
    make("span", { className: "id" }, ids[image]),
  );
}

function row(image, position) {
  const cells = [
    make("span", { className: "thumb" }, image in pictures ? pictureOf(image, "") : ""),
    make("button", { type: "button", className: "link", dataset: { position }, attributes: { "aria-label": describe(image) } }, ids[image]),
    classes[recorded[image]],
    make("span", { className: isRight(image) ? "right" : "wrong" }, `${isRight(image) ? "✓" : "✗"} ${classes[predicted[image]]}`),
    percent(confidence[image] / 1e5),
    percent(probability(image, recorded[image])),
  ];
  if (values) cells.push(signed(errorOf(image)));
  if (champion) cells.push(make("span", {}, champion.predicted[image] < 0 ? "" : classes[champion.predicted[image]], " ", tag(image) ?? ""));
  return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
}

function table(images) {
  const heads = [["", ""], ["id", "id"], ["", "recorded"], ["", "predicted"], ["confidence", "confidence"], ["record", "probability of the record"]];
  if (values) heads.push(["error", `error, ${data.unit}`]);
  if (champion) heads.push(["", champion.name]);
  const cells = heads.map(([order, text]) => {
    if (!order) return make("th", { scope: "col" }, text);
    const isChosen = state.order === order;
    const falls = Boolean(ORDERS[order].falls) !== state.reversed;
    const sign = isChosen ? (falls ? " ↓" : " ↑") : "";
    const head = make("th", { scope: "col" }, make("button", { type: "button", className: "link", dataset: { order } }, text + sign));
    if (isChosen) head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    return head;
  });
  const body = make("tbody", {}, ...images.map((image, position) => row(image, position)));
  return make("div", { className: "scroll" }, make("table", { className: "rows" }, make("thead", {}, make("tr", {}, ...cells)), body));
}

// What is shown

function update({ keepPage = false } = {}) {
  const found = filtered().sort(ORDERS[state.order].compare);
  state.shown = state.reversed ? found.reverse() : found;
  if (!keepPage) state.page = 0;
  showPage();
  markPressed();
}

function showPage() {
  const { shown, page } = state;
  const images = shown.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const last = Math.max(0, Math.ceil(shown.length / PER_PAGE) - 1);
  const wrong = shown.reduce((sum, image) => sum + !isRight(image), 0);
  byId("count").textContent =
    shown.length === numImages ? `All ${count(numImages)} images` : `${count(shown.length)} of ${count(numImages)} images`;
  byId("count").textContent += shown.length ? `, ${count(wrong)} predicted wrong` : "";
  if (!images.length) gallery.replaceChildren(make("p", { className: "empty" }, "No image is like this. Clear a filter to see more."));
  else if (state.view === "table") gallery.replaceChildren(table(images));
  else gallery.replaceChildren(make("div", { className: "tiles" }, ...images.map(tile)));
  byId("pager").hidden = last === 0;
  byId("place").textContent = `Page ${count(page + 1)} of ${count(last + 1)}`;
  byId("pager").querySelector("[data-step='-1']").disabled = page === 0;
  byId("pager").querySelector("[data-step='1']").disabled = page === last;
  const falls = Boolean(ORDERS[state.order].falls) !== state.reversed;
  byId("sort").value = state.order;
  byId("direction").textContent = falls ? "↓" : "↑";
  byId("direction").setAttribute("aria-label", `order: ${falls ? "descending" : "ascending"}; turn round`);
}

function markPressed() {
  const chosen = new FormData(form);
  for (const button of document.querySelectorAll(".confusion button")) {
    const wanted = JSON.parse(button.dataset.filter);
    const isChosen = chosen.get("recorded") === String(wanted.recorded) && chosen.get("predicted") === String(wanted.predicted);
    button.setAttribute("aria-pressed", isChosen);
  }
  for (const field of form.querySelectorAll("select, input")) field.classList.toggle("active", field.value !== initial[field.name]);
}

function choose(wanted, button) {
  const again = button.getAttribute("aria-pressed") === "true";
  if (!button.closest(".confusion")) form.reset();
  else form.elements.result.value = "";
  for (const [name, value] of Object.entries(wanted)) form.elements[name].value = again ? initial[name] : value;
  update();
  if (!button.closest(".confusion")) byId("results").focus(); // the images are far above
  else if (byId("results").getBoundingClientRect().top > innerHeight) byId("results").scrollIntoView();
}

function sortBy(order) {
  state.reversed = order === state.order ? !state.reversed : false;
  state.order = order;
  update();
}

// One image enlarged

function open(position) {
  state.open = state.page * PER_PAGE + position;
  showOpen();
  viewer.showModal();
}

function step(by) {
  const next = state.open + by;
  if (next < 0 || next >= state.shown.length) return;
  state.open = next;
  const page = Math.floor(next / PER_PAGE);
  if (page !== state.page) {
    state.page = page;
    showPage();
  }
  showOpen();
}

function bars(image) {
  const rows = classes.map((name, label) => {
    const [now, before] = [probability(image, label), championProbability(image, label)];
    const line = make("div", { className: "bar" }, width(make("i", { className: "fill" }), now));
    if (before !== null) line.append(width(make("i", { className: "fill before" }), before));
    const marks = [label === recorded[image] && "recorded", label === predicted[image] && "predicted"].filter(Boolean);
    const head = make("th", { scope: "row" }, name, marks.length ? make("small", {}, ` ${marks.join(", ")}`) : "");
    const cells = [make("td", { className: "wide" }, line), make("td", {}, percent(now))];
    if (before !== null) cells.push(make("td", { className: "before" }, percent(before)));
    return make("tr", { className: marks.join(" ") }, head, ...cells);
  });
  const heads = ["class", "", "this version", ...(championProbability(image, 0) === null ? [] : [champion.name])];
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text))));
  return make("table", { className: "bars" }, make("caption", {}, "Probability of each class"), head, make("tbody", {}, ...rows));
}

function championProbability(image, label) {
  if (!champion || champion.predicted[image] < 0) return null;
  return champion.probabilities[image * classes.length + label] / 1000;
}

function showOpen() {
  const image = state.shown[state.open];
  const facts = [
    ["Recorded", classes[recorded[image]]],
    ["Predicted", `${classes[predicted[image]]}, ${isRight(image) ? "right" : "wrong"}`],
    ["Confidence", percent(confidence[image] / 1e5)],
    ...(values && !isRight(image) ? [["Error", `${signed(errorOf(image))} ${data.unit}`]] : []),
    ...(champion ? [[champion.name, championFact(image)]] : []),
    ...slices.filter(({ codes }) => codes[image] >= 0).map(({ kind, values: names, codes }) => [kind, names[codes[image]]]),
  ];
  byId("viewer-title").textContent = ids[image];
  byId("viewer-place").textContent = `${count(state.open + 1)} of ${count(state.shown.length)}`;
  byId("viewer-picture").replaceChildren(pictureOf(image, describe(image)));
  const list = make("dl", { className: isRight(image) ? "right" : "wrong" });
  for (const [name, value] of facts) list.append(make("dt", {}, name), make("dd", {}, value));
  byId("viewer-facts").replaceChildren(list, bars(image));
  for (const button of viewer.querySelectorAll("[data-step]")) {
    const next = state.open + Number(button.dataset.step);
    button.disabled = next < 0 || next >= state.shown.length;
  }
}

function championFact(image) {
  const label = champion.predicted[image];
  if (label < 0) return `not compared: it may have been trained on this ${data.noun}`;
  const words = { fixed: ", fixed by this version", broken: ", broken by this version" };
  return `${classes[label]}, ${label === recorded[image] ? "right" : "wrong"}${words[changeOf(image)] ?? ""}`;
}

// Events

function prepare() {
  for (const name of ["recorded", "predicted"]) classes.forEach((text, label) => option(form.elements[name], label, text));
  slices.forEach(({ kind, values: names, codes }, position) => {
    const used = new Set(codes);
    const group = make("optgroup", { label: kind });
    names.forEach((name, code) => used.has(code) && option(group, `${position}:${code}`, `${kind}: ${name}`));
    form.elements.slice.append(group);
  });
  for (const [order, { name }] of Object.entries(ORDERS)) option(byId("sort"), order, name);
  form.querySelector(".with-slices").hidden = slices.length === 0;
  form.querySelector(".with-missing").hidden = numPictures === numImages;
  form.querySelector(".with-champion").hidden = !champion;
  if (champion) showChanges();
  if (numPictures < numImages)
    byId("embedded").textContent =
      `${count(numPictures)} of ${count(numImages)} images have a picture on this page: ` +
      "the mistakes whose record has the lowest probability, and a sample of the others.";
  form.hidden = document.querySelector(".toolbar").hidden = false;
}

function showChanges() {
  form.querySelector(".champion-name").textContent = champion.name;
  const numbers = { fixed: 0, broken: 0, "both-wrong": 0, differs: 0 };
  for (let image = 0; image < numImages; image++) {
    const change = changeOf(image);
    if (change in numbers) numbers[change]++;
    if (change && champion.predicted[image] !== predicted[image]) numbers.differs++;
  }
  for (const { value, firstChild } of form.elements.change.options) {
    if (value) firstChild.data += ` (${count(numbers[value])})`;
  }
  const link = (change) =>
    make("button", { type: "button", className: "link", dataset: { filter: JSON.stringify({ change }) } }, `${change} ${count(numbers[change])}`);
  byId("changes").append(`Against ${champion.name} this version has `, link("fixed"), " and ", link("broken"), ".");
}

prepare();
const initial = Object.fromEntries([...form.querySelectorAll("select, input")].map(({ name, value }) => [name, value]));
form.addEventListener("input", () => update());
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(update)); // the fields are cleared after the event
byId("sort").addEventListener("change", (event) => {
  state.order = event.target.value;
  state.reversed = false;
  update();
});
byId("direction").addEventListener("click", () => sortBy(state.order));
document.querySelector("main").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { filter, view, position, order } = button.dataset;
  if (filter) choose(JSON.parse(filter), button);
  else if (position) open(Number(position));
  else if (order) {
    sortBy(order);
    gallery.querySelector(`[data-order="${order}"]`)?.focus();
  } else if (view) {
    state.view = view;
    for (const each of document.querySelectorAll("[data-view]")) each.setAttribute("aria-pressed", each === button);
    showPage();
  } else if (button.closest("#pager")) {
    state.page += Number(button.dataset.step);
    showPage();
    byId("results").scrollIntoView({ block: "start" });
  }
});
gallery.addEventListener("keydown", (event) => moveFocus(event, [...gallery.querySelectorAll(".tile")]));
viewer.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (event.target === viewer || button?.id === "viewer-close") viewer.close();
  else if (button) step(Number(button.dataset.step));
});
viewer.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  step(by);
});
viewer.addEventListener("close", () => {
  const position = state.open - state.page * PER_PAGE;
  const last = gallery.querySelector(`[data-position="${position}"]`);
  for (const each of gallery.querySelectorAll(".tile")) each.tabIndex = each === last ? 0 : -1;
  last?.focus();
});
update();
