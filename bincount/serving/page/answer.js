"use strict";
// How an answer, a problem and the model are shown. All text is set as text.

const SCORES = {
  accuracy: "Accuracy",
  within_one: "At most one item off",
  rmse: "RMSE, items",
  mae: "Mean error, items",
  "macro/f1": "Macro F1",
};
const SHARES = ["accuracy", "within_one"];

const isUnsure = ({ abstains }) => abstains; // the answer is "look" then, and so may a class be named
const number = (value) => (Math.abs(value) < 10 ? value.toFixed(2) : value.toFixed(1));

const article = (noun) => (/^[aeiou]/i.test(noun) ? "an" : "a");

function unitOf(answer, model) {
  if (!model.counts) return "";
  return Number(answer.count) === 1 ? "item" : "items";
}

/** Say an answer in one sentence, for those who hear the page. */
function sentence(answer, model) {
  const what = `${answer.count} ${unitOf(answer, model)}`.trim();
  return isUnsure(answer)
    ? `Not sure. Most likely ${what}, ${percent(answer.confidence)}. A person should look.`
    : `${what}, ${percent(answer.confidence)} sure.`;
}

function showModel(model) {
  byId("name").textContent = model.name;
  document.title = `${model.name}: show it a picture`;
  const names = model.classes.length > 6 ? `${model.classes.length} classes` : model.classes.join(", ");
  const predicts = model.counts ? `counts ${model.classes[0]} to ${model.classes.at(-1)} items` : names;
  const about = [`version ${model.version}`, model.alias, predicts];
  byId("about").replaceChildren(...about.filter(Boolean).map((text) => make("span", { textContent: text })));
  const link = byId("mlflow");
  link.hidden = !/^https?:\/\//.test(model.page);
  if (!link.hidden) link.href = model.page;
  const { noun } = model.problem;
  byId("invitation").textContent = noun === "picture" ? "Drop a picture here" : `Drop a picture of ${article(noun)} ${noun} here`;
  byId("moves").textContent = `Animated: its first picture is ${model.counts ? "counted" : "looked at"}.`;
  byId("dropping-text").textContent = model.counts ? "Drop to count" : "Drop to predict";
  byId("of-its-test").textContent = `On its own test, of ${model.problem.nouns} that it was not trained on; with 95\u00a0% intervals.`;
  const known = Object.keys(SCORES).filter((name) => model.scores[name]);
  byId("quality").hidden = known.length === 0;
  byId("scores").replaceChildren(...known.map((name) => scoreCard(name, model.scores[name], model.problem.unit)));
  byId("recorded-place").replaceChildren(recordField(model));
  byId("kept-where").textContent = model.captures ? "This service keeps pictures with their answers." : "They stay in this page until it is closed.";
}

function scoreCard(name, { value, low, high }, unit) {
  const written = SHARES.includes(name) ? percent : number;
  return make(
    "div",
    { className: "card" },
    make("h3", { textContent: SCORES[name].replace("items", unit).replace("one item", unit === "items" ? "one item" : "one class") }),
    make("p", { className: "value", textContent: written(value) }),
    make("p", { className: "interval", textContent: `${written(low)} to ${written(high)}` }),
  );
}

function recordField(model) {
  if (model.counts) {
    return make("input", { id: "recorded", inputMode: "numeric", maxLength: 6, size: 6, autocomplete: "off" });
  }
  const field = make("select", { id: "recorded" });
  option(field, "", "");
  for (const name of model.classes) option(field, name, name);
  return field;
}

function showAnswer(answer, model) {
  const unsure = isUnsure(answer);
  byId("answered").classList.toggle("unsure", unsure);
  byId("count").textContent = unsure ? "Not sure" : `${answer.count}`;
  byId("count").classList.toggle("name", unsure || !model.counts);
  byId("unit").textContent = unsure ? "" : unitOf(answer, model);
  const likeliest = `${answer.count} ${unitOf(answer, model)}`.trim();
  const mean = model.counts && answer.expected_count !== null && answer.expected_count !== undefined ? `; mean ${number(answer.expected_count)}` : "";
  byId("sure").textContent = unsure
    ? `A person should look. Most likely ${likeliest}, ${percent(answer.confidence)}, and an answer needs ${percent(model.min_confidence)}.`
    : `${percent(answer.confidence)} sure${mean}${model.rule ? `; ${model.rule}` : ""}`;
  byId("answer-id").textContent = `Answer ${answer.id} by version ${answer.version}`;
  showBars(answer, model);
  showJudgement(answer.record, model);
}

function showBars(answer, model) {
  const recorded = answer.record?.recorded;
  // In the order of counts and grades, and where there is no order the likeliest first
  const shares = Object.entries(answer.probabilities).sort(([a], [b]) => model.classes.indexOf(a) - model.classes.indexOf(b));
  if (!model.ordered) shares.sort(([, a], [, b]) => b - a);
  const rows = shares.map(([name, share]) =>
    make(
      "tr",
      { className: [name === `${answer.count}` && "likeliest", name === recorded && "recorded"].filter(Boolean).join(" ") },
      make("th", { scope: "row", textContent: name }, name === recorded ? make("small", { textContent: "record" }) : null),
      make("td", { className: "wide" }, make("span", { className: "bar", ariaHidden: "true" }, width(make("span", { className: "fill" }), share))),
      make("td", { textContent: percent(share) }),
    ),
  );
  const caption = make("caption", { textContent: model.counts ? "Probability of each count" : `Probability of each ${model.problem.answer}` });
  byId("probabilities").replaceChildren(make("table", { className: model.counts ? "bars counts" : "bars names" }, caption, make("tbody", {}, ...rows)));
}

function showJudgement(record, model) {
  const place = byId("judgement");
  place.className = "";
  place.textContent = "";
  if (!record) return;
  place.className = record.look ? "look" : "fine";
  if (record.look && record.p_wrong < 0.5) {
    place.textContent = "The model is not sure what it sees, so it cannot confirm the record.";
    return;
  }
  const verdict = record.look ? "A person should look." : "The record can stand.";
  place.append(make("b", { textContent: verdict }), ` The record is wrong with a probability of ${percent(record.p_wrong)}.`);
}

function showProblem(problem) {
  byId("failed-title").textContent = problem.title;
  byId("failed-text").textContent = problem.text;
  byId("failed-detail").textContent = problem.detail && `The service says: ${problem.detail}`;
  byId("retry").hidden = !problem.again;
  waitToRetry(problem);
}

let countdown = 0;

/** Keep the button of a problem from being used before the service has room again, and say how long that is. */
function waitToRetry(problem) {
  clearTimeout(countdown);
  problem.ready ??= Date.now() + 1000 * problem.after;
  const seconds = Math.ceil((problem.ready - Date.now()) / 1000);
  const button = byId("retry");
  button.disabled = seconds > 0;
  button.textContent = seconds > 0 ? `Try again in ${seconds} s` : "Try again";
  if (seconds > 0) countdown = setTimeout(waitToRetry, 250, problem);
}
