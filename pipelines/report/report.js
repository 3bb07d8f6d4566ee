// Shows the values under the pointer. The page needs nothing of this; without it, it lacks only these values.
"use strict";

const numbers = (text) => text.split(" ").map(Number);

// the points of a chart's lines that are shown: place in the chart, and what to say there
function pointsOf(svg) {
  return [...svg.querySelectorAll("path[data-x]")]
    .filter((path) => path.getAttribute("d") && getComputedStyle(path.parentNode).display !== "none")
    .map((path) => {
      const places = path.getAttribute("d").match(/[\d.]+ [\d.]+/g).map(numbers);
      const [x, y] = [path.dataset.x.split(" "), path.dataset.y.split(" ")];
      return { of: path.parentNode.getAttribute("class"), places, x, y };
    });
}

function nearest(places, at) {
  let best = 0;
  places.forEach(([x], i) => { if (Math.abs(x - at) < Math.abs(places[best][0] - at)) best = i; });
  return best;
}

function draw(svg, name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  element.classList.add("pointed");
  svg.append(element);
}

function clear(chart) {
  chart.querySelectorAll(".pointed").forEach((element) => element.remove());
  const tip = chart.querySelector(".tip");
  if (tip) tip.hidden = true;
}

function point(event) {
  const svg = event.currentTarget, chart = svg.closest(".chart"), lines = pointsOf(svg);
  clear(chart);
  if (!lines.length) return;
  const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
  const at = (event.clientX - box.left) * scale;
  const found = lines.map((line) => ({ ...line, i: nearest(line.places, at) }));
  const close = found.reduce((a, b) => (Math.abs(b.places[b.i][0] - at) < Math.abs(a.places[a.i][0] - at) ? b : a));
  const x = close.places[close.i][0];
  draw(svg, "path", { class: "pointer", d: `M${x} 8V164` });

  const tip = chart.querySelector(".tip") || chart.appendChild(Object.assign(document.createElement("div"), { className: "tip" }));
  const place = Object.assign(document.createElement("div"), { textContent: `${svg.dataset.axis} ${close.x[close.i]}` });
  tip.replaceChildren(place);
  for (const line of found) {
    const [px, py] = line.places[line.i];
    if (Math.abs(px - x) > 12) continue; // this line has no point here
    draw(svg, "circle", { class: `dot ${line.of}`, cx: px, cy: py, r: 3.5 });
    const row = tip.appendChild(document.createElement("div")), chip = row.appendChild(document.createElement("i"));
    chip.className = `chip ${line.of}`;
    row.append(line.y[line.i] + (line.x[line.i] === close.x[close.i] ? "" : ` at ${line.x[line.i]}`));
  }
  tip.hidden = false;
  const frame = chart.getBoundingClientRect(), width = tip.offsetWidth;
  const left = x / scale + box.left - frame.left, beside = left + 12 + width > frame.width ? left - 12 - width : left + 12;
  tip.style.left = `${Math.max(4, beside)}px`;
  tip.style.top = `${box.top - frame.top + 8}px`;
}

for (const svg of document.querySelectorAll(".chart svg")) {
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => clear(svg.closest(".chart")));
}
