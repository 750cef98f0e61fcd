"use strict";
// What the pages of images share. It comes before a page's own script. All text is set as text, never as HTML.

const byId = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const count = (number) => number.toLocaleString("en");
const signed = (number) => (number > 0 ? `+${number}` : `${number}`.replace("-", "\u2212"));
const collator = new Intl.Collator("en", { numeric: true });

function make(tag, properties = {}, ...children) {
  const { dataset = {}, attributes = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function option(select, value, text) {
  select.append(make("option", { value }, text));
}

function width(element, share) {
  element.style.width = `${100 * share}%`;
  return element;
}

function moveFocus(event, tiles) {
  const here = tiles.indexOf(document.activeElement);
  if (here < 0) return;
  const first = tiles[0].offsetTop;
  const columns = Math.max(1, tiles.filter(({ offsetTop }) => offsetTop === first).length);
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -here, End: tiles.length - 1 - here };
  if (!(event.key in steps)) return;
  event.preventDefault();
  const next = tiles[Math.min(tiles.length - 1, Math.max(0, here + steps[event.key]))];
  tiles[here].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}
