"use strict";
// Values of charts under the pointer and by the arrow keys. The page is whole without: the tables have every value.
for (const chart of document.querySelectorAll(".chart")) {
  const stops = JSON.parse(chart.dataset.stops);
  const plot = chart.querySelector(".plot"), svg = plot.querySelector("svg");
  const tip = plot.querySelector(".tip"), cursor = plot.querySelector(".cursor");
  let shown = -1;

  const hide = () => {
    tip.hidden = true;
    cursor.setAttribute("hidden", "");
  };
  const show = (number) => {
    if (!stops.length) return;
    shown = Math.max(0, Math.min(stops.length - 1, number));
    const [x, y, text] = stops[shown];
    cursor.setAttribute("cx", `${100 * x}%`);
    cursor.setAttribute("cy", `${100 * y}%`);
    cursor.removeAttribute("hidden");
    tip.textContent = text;
    tip.hidden = false;
    const width = plot.clientWidth, height = svg.clientHeight;
    const left = Math.max(0, Math.min(width - tip.offsetWidth, x * width - tip.offsetWidth / 2));
    const above = y * height - tip.offsetHeight - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > -60 ? above : y * height + 14}px`;
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    let best = 0, least = Infinity;
    stops.forEach(([x, y], number) => {
      // along the time first: the pointer need not be on the point itself
      const distance = Math.hypot(x * box.width - (event.clientX - box.left), 0.3 * (y * box.height - (event.clientY - box.top)));
      if (distance < least) [best, least] = [number, distance];
    });
    show(best);
  };
  plot.addEventListener("pointermove", nearest);
  plot.addEventListener("pointerdown", nearest);
  plot.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide(); // a finger leaves when it is lifted: what it has shown stays
  });
  document.addEventListener("pointerdown", (event) => {
    if (!plot.contains(event.target)) hide();
  });
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", (event) => {
    const last = stops.length - 1;
    const goal = {
      ArrowLeft: shown < 0 ? last : shown - 1, ArrowRight: shown < 0 ? 0 : shown + 1, Home: 0, End: last,
      PageUp: shown - 10, PageDown: shown + 10,
    }[event.key];
    if (event.key === "Escape") hide();
    if (goal === undefined) return;
    event.preventDefault();
    show(goal);
  });
}

// A page that lies around says so.
const days = Math.floor((Date.now() - new Date(document.getElementById("made").dateTime)) / 86400000);
if (days >= 2) {
  const age = document.getElementById("age");
  age.textContent = ` - ${days} days old; bincount report writes a new one`;
  age.className = "old";
}

// On paper there is nothing to click: tables of one page are opened.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) {
    if (details.querySelectorAll("tr").length <= 40) details.open = true;
  }
});
