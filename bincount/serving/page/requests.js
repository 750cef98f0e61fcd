"use strict";
// What is asked of the service, and its refusals in words. A Problem says what happened and what to do.

const TOKEN = "bincount.token";
const FORM = 2000; // bytes around the picture, at most
const HEIC = /\.(heic|heif|hif)$/i;

class Problem extends Error {
  constructor(title, text, { detail = "", again = true, after = 0, status = 0 } = {}) {
    super(title);
    Object.assign(this, { title, text, detail, again, after, status });
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)}\u00a0MB`;

function kept() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return kept.here ?? ""; // a browser that keeps nothing still sends it until the page is left
  }
}

function keep(token) {
  kept.here = token;
  try {
    sessionStorage.setItem(TOKEN, token);
  } catch {
    // it is kept above
  }
}

/** Ask the service; return the response of a 2xx. Asks for the token, once, where one is needed. Throws a Problem. */
async function ask(path, { name = "", ...options } = {}) {
  for (;;) {
    const token = kept();
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    const response = await send(path, { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401 && (await haveToken(token))) continue;
    throw explain(response, await detailOf(response), name);
  }
}

async function send(path, options) {
  try {
    return await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw new Problem("Stopped", "Nothing was counted.");
    if (!navigator.onLine) throw new Problem("You are offline", "Connect to the network of the service, and try again.");
    throw new Problem("The service does not answer", "It may be starting anew, or the connection broke. Try again; if it goes on, ask whoever runs it.");
  }
}

/** Return what the service wrote of a refusal, as text. */
async function detailOf(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error, detail } = JSON.parse(text);
    const found = error ?? detail;
    return typeof found === "string" ? found : found?.[0]?.msg ?? "";
  } catch {
    return text.startsWith("<") ? "" : text.slice(0, 300);
  }
}

function explain({ status, headers }, detail, name) {
  const after = Math.min(Math.max(Number.parseInt(headers.get("Retry-After") ?? "", 10) || 0, 0), 600);
  if (status === 401) return new Problem("A token is needed", "Try again, and give the token of this service.", { status });
  if (status === 409) return new Problem("The service cannot answer this question", "What it needs is not there; whoever runs the service can add it.", { detail, status });
  if (status === 422 && /^no (other )?bin /.test(detail)) return new Problem("No photo shows this item", "Check its identifier, or add photos that show it.", { detail, status });
  if (status === 413) return new Problem("The picture is too large", "Make it smaller, or take it at a lower resolution.", { detail, again: false, status });
  if (status === 415 || status === 422) return unreadable(detail, name, status);
  if (status === 408) return new Problem("The picture came too slowly", "Try again where the network is better, or make the picture smaller.", { detail, status });
  if (status === 429) return new Problem("The service is busy", "More pictures came than it has room for. Nothing is lost: try again.", { detail, after: after || 1, status });
  if (status === 503 || status === 504) return new Problem("The service could not answer in time", "It is starting, stopping or has too much to do. Try again.", { detail, after, status });
  if (status >= 500) return new Problem("The service failed", "Try again; if it goes on, its log says why.", { detail, status });
  return new Problem("The service refused the picture", "Check what is said below.", { detail, status });
}

/** Explain why a picture could not be read. */
function unreadable(detail, name, status = 422) {
  const problem = (title, text) => new Problem(title, text, { detail, again: false, status });
  if (/HEIC/i.test(detail) || (HEIC.test(name) && /unsupported|not an image/i.test(detail))) {
    return problem(
      "The service cannot read this HEIC file",
      "Send the picture as JPEG. An iPhone takes such pictures by Settings, Camera, Formats, Most Compatible.",
    );
  }
  if (/^too many/i.test(detail)) return problem("The picture is too large", "Make it smaller, or take it at a lower resolution.");
  if (/^damaged/i.test(detail)) return problem("The picture is damaged", "Take or copy it anew: a part of the file is missing or wrong.");
  if (/^empty/i.test(detail)) return problem("The file is empty", "Copy it anew.");
  return problem("That is no picture that the service reads", "Send a photo as JPEG, PNG or WebP.");
}

/** Check a file before it is sent. Throws a Problem. */
async function check(file, maxBytes) {
  if (file.size + FORM > maxBytes) {
    throw new Problem("The picture is too large", `It has ${megabytes(file.size)}, and the service takes ${megabytes(maxBytes)}. Make it smaller, or take it at a lower resolution.`, { again: false });
  }
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem("The file cannot be read", "It was moved or changed, or it is a folder. Choose its pictures anew.", { again: false });
  }
}

/** Check the files of one request before they are sent. Throws a Problem. */
async function checkAll(files, maxBytes) {
  for (const file of files) await check(file, maxBytes);
  const size = files.reduce((bytes, file) => bytes + file.size + FORM, 0);
  if (size > maxBytes) {
    throw new Problem("The pictures are too large together", `They have ${megabytes(size)}, and the service takes ${megabytes(maxBytes)}. Make them smaller, or leave some out.`, { again: false });
  }
}

/** Return the first picture of an animated file as a PNG file; null where nothing moves. */
async function firstPicture(file) {
  const bytes = new Uint8Array(await file.slice(0, 65536).arrayBuffer());
  const head = String.fromCharCode(...bytes.subarray(0, 64)) + new TextDecoder("latin1").decode(bytes);
  const moves = head.startsWith("GIF8") || (/^RIFF.{4}WEBP/s.test(head) && head.includes("ANIM")) || (head.startsWith("\x89PNG") && head.includes("acTL"));
  if (!moves) return null;
  const bitmap = await createImageBitmap(file); // of an animated file its first picture
  const canvas = make("canvas", { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

async function predict(file, signal, recorded = "") {
  const body = new FormData();
  body.append("image", file, file.name || "picture");
  if (recorded) body.append("recorded", recorded);
  const answered = await (await ask("predict", { method: "POST", body, signal, name: file.name })).json();
  const [answer] = answered.answers;
  if (answer.error) throw unreadable(answer.error, file.name);
  return answer;
}

/** Ask how likely a record is wrong, of a picture that was answered. What is final is kept, where pictures are. */
async function judgeRecord(id, recorded, isFinal, signal) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify({ id, recorded, is_final: isFinal });
  return (await ask("record", { method: "POST", body, headers, signal })).json();
}

/** Ask a question about a picture; fields are pairs of a name and a file or text. */
async function verify(file, fields) {
  const body = new FormData();
  body.append("image", file, file.name || "picture");
  for (const [name, value] of fields) {
    if (value instanceof File) body.append(name, value, value.name || "picture");
    else body.append(name, value);
  }
  return (await ask("verify", { method: "POST", body, name: file.name })).json();
}

async function overlay(file, className, signal) {
  const path = `overlay?class_name=${encodeURIComponent(className)}`;
  const headers = { "Content-Type": file.type || "application/octet-stream" };
  return (await ask(path, { method: "POST", body: file, headers, signal, name: file.name })).blob();
}

// The token

let asking = null;

/** Ask for the token in a dialog that all requests wait for; return whether there is another one than was refused. */
async function haveToken(refused) {
  if (kept() && kept() !== refused) return true; // given meanwhile, for another request
  asking ??= askForToken(refused).finally(() => (asking = null));
  return asking;
}

function askForToken(refused) {
  const dialog = byId("token");
  byId("token-title").textContent = refused ? "That token was refused" : "This service asks for a token";
  byId("token-value").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        const token = byId("token-value").value.trim();
        byId("token-value").value = "";
        if (dialog.returnValue === "use" && token) keep(token);
        resolve(dialog.returnValue === "use" && token !== "");
      },
      { once: true },
    );
  });
}

byId("token-cancel").addEventListener("click", () => byId("token").close("cancel"));
