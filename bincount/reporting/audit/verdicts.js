// The bins, the verdicts on them, where they are kept, and the file that they are saved as.

const data = JSON.parse(byId("data").textContent);
const { classes, ids, records, recorded, counted, probabilities, wrong, expected, items, directions } = data;
const numBins = ids.length;
const pictures = byId("pictures").textContent.trim().split("\n");
byId("pictures").remove(); // else all of them would be in memory twice
const STORE = `bincount.audit.${data.key}`;
const PLACE = `${STORE}.at`; // apart, so that a page that is only looked at writes nothing over the verdicts of another
const REVIEWER = "bincount.reviewer";
const COLUMNS = [
  "image_id", "record", "verdict", "count", "reviewer", "time", "source", "model", "shown", "random", "p_wrong", "note",
];

// log: verdicts in the order in which they were given, {bin, verdict, count, note, reviewer, time, shown, saved}; the
// last one of a bin holds. revealed: bins whose hidden prediction was looked at after a verdict.
const kept = { log: [], notes: new Map(), revealed: new Set(), withdrawn: 0, at: 0 };
const current = new Map(); // bin -> its verdict
const isFramed = window.top !== window;
let trouble = "";
let stored = null; // the text in the browser's storage that `kept` was read from or written to

const isHidden = (bin) => data.hidden[bin] === "1" && !(current.has(bin) && kept.revealed.has(bin));
const probability = (bin, label) => probabilities[bin * classes.length + label] / 1000;
const chance = (bin) => wrong[bin] / 1e6;
const isNumber = (value) => Number.isInteger(value) && value >= 0;
const isBin = (value) => isNumber(value) && value < numBins;

function load() {
  try {
    stored = localStorage.getItem(STORE);
    if (stored) restore(JSON.parse(stored));
    const at = Number(localStorage.getItem(PLACE));
    if (isBin(at)) kept.at = at;
  } catch (error) {
    trouble = troubleText(error);
  }
}

function restore({ log = [], notes = [], revealed = [], withdrawn = 0 }) {
  kept.log = log.filter(({ bin, verdict }) => isBin(bin) && typeof verdict === "string");
  kept.notes = new Map(notes.filter(([bin]) => isBin(bin)));
  kept.revealed = new Set(revealed);
  kept.withdrawn = isNumber(withdrawn) ? withdrawn : 0;
  current.clear();
  for (const entry of kept.log) current.set(entry.bin, entry);
}

// What another window has stored since, before something is added to it: else one would write over the other's verdicts.
function follow() {
  try {
    const text = localStorage.getItem(STORE);
    if (!text || text === stored) return;
    stored = text;
    restore(JSON.parse(text));
  } catch (error) {
    trouble = troubleText(error);
  }
}

function keep() {
  const { log, withdrawn } = kept;
  const text = JSON.stringify({ log, notes: [...kept.notes], revealed: [...kept.revealed], withdrawn });
  try {
    localStorage.setItem(STORE, text);
    stored = text;
    trouble = "";
  } catch (error) {
    trouble = troubleText(error);
  }
}

function keepPlace() {
  try {
    localStorage.setItem(PLACE, kept.at);
  } catch {
    // said already where it matters: when a verdict is not kept
  }
}

function troubleText(error) {
  const reason = error.name === "QuotaExceededError" ? "its storage is full" : "it allows this page no storage";
  return `This browser does not keep your verdicts: ${reason}. They are lost when the page is closed or reloaded: save them before.`;
}

function reviewerName() {
  if (kept.reviewer) return kept.reviewer;
  try {
    return localStorage.getItem(REVIEWER) ?? "";
  } catch {
    return "";
  }
}

function setReviewer(name) {
  kept.reviewer = name;
  try {
    localStorage.setItem(REVIEWER, name);
  } catch (error) {
    trouble = troubleText(error);
  }
}

// Give and take back

function give(bin, verdict, count = "") {
  // a count that is the record's says that the record is right
  const isRecord = verdict === "count" && count === classes[recorded[bin]];
  add({ bin, verdict: isRecord ? "right" : verdict, count: isRecord ? "" : count, shown: !isHidden(bin) });
}

function add(entry) {
  follow();
  const time = new Date().toISOString().replace(/\.\d+/, "");
  const whole = { ...entry, note: kept.notes.get(entry.bin) ?? "", reviewer: reviewerName(), time, saved: false };
  kept.log.push(whole);
  current.set(entry.bin, whole);
  keep();
}

function undo() {
  follow();
  const entry = kept.log.pop();
  if (!entry) return null;
  const before = kept.log.findLast(({ bin }) => bin === entry.bin);
  if (before) {
    current.set(entry.bin, before);
    kept.notes.set(entry.bin, before.note);
  } else current.delete(entry.bin);
  if (entry.saved) kept.withdrawn++;
  keep();
  return entry;
}

function setNote(bin, text) {
  follow();
  if (text === (kept.notes.get(bin) ?? "")) return;
  if (text) kept.notes.set(bin, text);
  else kept.notes.delete(bin);
  const verdict = current.get(bin);
  if (verdict) add({ bin, verdict: verdict.verdict, count: verdict.count, shown: verdict.shown });
  else keep();
}

function numUnsaved() {
  let number = kept.withdrawn;
  for (const { saved } of current.values()) number += !saved;
  return number;
}

// The file

// A spreadsheet would run text that begins so. bincount.data.review_files takes the apostrophe away again, once: text
// that had one of its own gets another here, so that every text is read as it was.
const FORMULA = /^'*[ \u00a0\u2009\u200b\u202f\u3000\ufeff]*[=+\-@\t\r\n＝＋－＠]/;

function csvCell(value) {
  const text = FORMULA.test(value) ? `'${value}` : String(value);
  return /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const rows = [...current.values()].sort((a, b) => (a.time < b.time ? -1 : a.time > b.time ? 1 : a.bin - b.bin));
  const lines = rows.map((entry) => {
    const { bin } = entry;
    const row = {
      ...entry, image_id: ids[bin], record: records[bin], source: "page", model: data.models[data.modelOf[bin]],
      random: data.random[bin] === "1", p_wrong: chance(bin),
    };
    return COLUMNS.map((name) => csvCell(row[name])).join(",");
  });
  return [COLUMNS.join(","), ...lines, ""].join("\r\n");
}

function save() {
  follow();
  const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  make("a", { href: address, download: "verdicts.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
  if (isFramed) return; // the frame may have blocked it without a word
  for (const entry of kept.log) entry.saved = true;
  kept.withdrawn = 0;
  keep();
}
