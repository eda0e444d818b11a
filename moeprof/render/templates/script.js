"use strict";
// Everything here is comfort: charts, tables and definitions stand without it. Text goes in by textContent only.
const root = document.documentElement;
addEventListener("error", e => { root.dataset.errors = (root.dataset.errors || "") + e.message + "\n"; });
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const make = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const shown = value => (+value.toPrecision(3)).toLocaleString("en", {maximumSignificantDigits: 3});

// Light and dark
try { const kept = localStorage.getItem("moeprof-theme"); if (kept) root.dataset.theme = kept; } catch { /* no storage for this file */ }
document.querySelector(".theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme:dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("moeprof-theme", root.dataset.theme); } catch { /* no storage for this file */ }
});

// One tooltip for everything
const tip = make("div", "tip");
tip.hidden = true;
document.body.append(tip);
const showTip = (x, y, lines) => {
  tip.replaceChildren(...lines.map(([text, colour]) => {
    const line = make("div", colour);
    if (colour) line.append(make("i"));
    line.append(text);
    return line;
  }));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
  tip.style.transform = `translate(${Math.max(8, left)}px,${Math.max(8, top)}px)`;
};
const hideTip = () => { tip.hidden = true; };
for (const node of all("[title]")) { node.dataset.tip = node.title; node.removeAttribute("title"); if (node.matches(".na,.doubtful")) node.tabIndex = 0; }
for (const node of all("svg title")) { node.parentNode.dataset.tip = node.textContent; node.remove(); }
for (const node of all("[data-tip]")) {
  node.addEventListener("pointermove", e => showTip(e.clientX, e.clientY, [[node.dataset.tip]]));
  node.addEventListener("focus", () => { const b = node.getBoundingClientRect(); showTip(b.left, b.bottom, [[node.dataset.tip]]); });
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("blur", hideTip);
}
addEventListener("keydown", e => { if (e.key === "Escape") hideTip(); });

// Charts: positions are read back from the paths
const svgNode = (name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
const pairs = path => {
  const numbers = path.getAttribute("d").match(/[\d.]+(?=[ MhL]|$)/g).map(Number);
  const points = [];
  const stride = path.classList.contains("points") ? 3 : 2;
  for (let i = 0; i + 1 < numbers.length; i += stride) points.push([numbers[i], numbers[i + 1]]);
  return points;
};
const valueAt = ([start, end, low, high, log], at) => {
  const share = (at - start) / (end - start);
  return log ? low * (high / low) ** share : low + share * (high - low);
};
const text = (axis, at) => `${shown(valueAt(axis, at))}${axis[5] ? " " + axis[5] : ""}`;
const heightAt = (points, x) => {
  if (x < points[0][0] || x > points[points.length - 1][0]) return null;
  let i = points.findIndex(p => p[0] > x);
  if (i < 0) i = points.length - 1;
  const [a, b] = [points[Math.max(0, i - 1)], points[i]];
  return b[0] === a[0] ? b[1] : a[1] + (b[1] - a[1]) * (x - a[0]) / (b[0] - a[0]);
};
for (const chart of all("svg[data-axes]")) {
  const [xAxis, yAxis] = JSON.parse(chart.dataset.axes);
  let series = null;
  let cursor = null;
  let at = (xAxis[0] + xAxis[1]) / 2;
  const clear = () => { if (cursor) cursor.remove(); cursor = null; hideTip(); };
  const point = (x, y) => {
    series = series || all(".s", chart).map(path => ({path, name: path.dataset.n, colour: path.classList[2], cloud: path.classList.contains("points"), points: pairs(path)}));
    clear();
    at = Math.min(xAxis[1], Math.max(xAxis[0], x));
    cursor = svgNode("g", {class: "cursor"});
    const lines = [];
    for (const s of series) {
      let spot = null;
      if (s.cloud) {
        let best = y === null ? 400 : 200;
        for (const p of s.points) {
          const far = (p[0] - at) ** 2 + (y === null ? 0 : (p[1] - y) ** 2);
          if (far < best) { best = far; spot = p; }
        }
      } else {
        const height = heightAt(s.points, at);
        if (height !== null) spot = [at, height];
      }
      if (!spot) continue;
      cursor.append(svgNode("circle", {cx: spot[0], cy: spot[1], r: 4, class: s.colour}));
      lines.push([`${s.name}: ${text(yAxis, spot[1])}${s.cloud ? ` at ${text(xAxis, spot[0])}` : ""}`, s.colour]);
    }
    cursor.prepend(svgNode("line", {x1: at, x2: at, y1: yAxis[0], y2: yAxis[1]}));
    chart.append(cursor);
    const box = chart.getBoundingClientRect();
    const scale = box.width / chart.viewBox.baseVal.width;
    showTip(box.left + at * scale, box.top + (y === null ? yAxis[1] : y) * scale, [[`${chart.dataset.x} ${text(xAxis, at)}`], ...lines]);
  };
  chart.addEventListener("pointermove", e => {
    const box = chart.getBoundingClientRect();
    const scale = chart.viewBox.baseVal.width / box.width;
    point((e.clientX - box.left) * scale, (e.clientY - box.top) * scale);
  });
  chart.addEventListener("pointerleave", clear);
  chart.addEventListener("blur", clear);
  chart.addEventListener("keydown", e => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (step) { e.preventDefault(); point(at + step * (xAxis[1] - xAxis[0]) / 50, null); }
  });
}

// Heat maps
for (const heat of all(".heat")) {
  const tabs = all(".tabs button", heat);
  const maps = all(".map", heat);
  tabs.forEach((tab, i) => tab.addEventListener("click", () => {
    tabs.forEach((t, j) => { t.setAttribute("aria-pressed", i === j); maps[j].hidden = i !== j; });
  }));
}
for (const map of all(".map")) {
  const cells = map.querySelector(".cells");
  const frame = make("u");
  let data = null;
  let spot = [0, 0];
  const read = packed => packed ? packed.split(";").map(row => row.split(",").map(n => n ? parseInt(n, 36) : 0)) : null;
  const clear = () => { frame.remove(); hideTip(); };
  const show = (layer, expert) => {
    if (!data) {
      data = JSON.parse(map.querySelector("script").textContent);
      data.counts = read(data.counts);
      data.loads = read(data.loads);
    }
    const row = (data.loads || data.counts)[layer];
    if (!row || !(expert in row)) return clear();
    spot = [layer, expert];
    const total = data.loads ? 0 : row.reduce((a, b) => a + b, 0);
    const load = data.loads ? row[expert] / 100 : total ? row[expert] * row.length / total : 0;
    const lines = [[`layer ${data.layers[layer]}, expert ${expert}`], [`${shown(load)}x the mean of its layer`]];
    if (data.counts && data.counts[layer] && expert in data.counts[layer]) lines.push([`${data.counts[layer][expert].toLocaleString("en")} tokens`]);
    if (data.nulls[layer]) lines.push([`by chance alone the busiest expert gets about ${shown(data.nulls[layer])}x`]);
    const box = cells.getBoundingClientRect();
    const width = box.width / getComputedStyle(cells).getPropertyValue("--e");
    const height = box.height / getComputedStyle(cells).getPropertyValue("--l");
    frame.style.left = `${expert * width}px`;
    frame.style.top = `${layer * height}px`;
    cells.append(frame);
    showTip(box.left + (expert + 1) * width, box.top + (layer + 1) * height, lines);
  };
  cells.addEventListener("pointermove", e => {
    const box = cells.getBoundingClientRect();
    const style = getComputedStyle(cells);
    show(Math.floor((e.clientY - box.top) / box.height * style.getPropertyValue("--l")), Math.floor((e.clientX - box.left) / box.width * style.getPropertyValue("--e")));
  });
  cells.addEventListener("pointerleave", clear);
  cells.addEventListener("blur", clear);
  cells.addEventListener("keydown", e => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[e.key];
    if (step) { e.preventDefault(); show(spot[0] + step[0], spot[1] + step[1]); }
  });
}

// A metric's name unfolds its definition and what stands behind each value
for (const link of all("table.metrics th a")) {
  link.setAttribute("aria-expanded", "false");
  link.addEventListener("click", e => {
    const row = link.closest("tr");
    const card = document.getElementById(decodeURIComponent(link.hash.slice(1)));
    if (!card) return;
    e.preventDefault();
    if (row.classList.toggle("open")) {
      const models = all("thead th", row.closest("table")).slice(1);
      const box = make("div");
      const copy = card.cloneNode(true);
      copy.removeAttribute("id");
      copy.append(make("code", "", [link.dataset.name || link.textContent, link.dataset.where].filter(Boolean).join(", ")));
      const list = make("ul");
      all("td", row).forEach((cell, i) => {
        if (!cell.firstChild) return;
        const item = make("li");
        const verdict = cell.querySelector("em");
        item.append(make("b", "", `${cell.dataset.of || models[i].textContent}: ${cell.firstChild.textContent}${verdict && verdict !== cell.firstChild ? ", " + verdict.textContent : ""}`));
        for (const small of all("small", cell)) item.append(make("p", "", `${small.className ? "" : "95 % interval "}${small.textContent}`));
        for (const line of (cell.dataset.tip || "").split("\n").filter(Boolean)) item.append(make("p", "", line));
        list.append(item);
      });
      box.append(copy, list);
      const more = make("tr", "more");
      const cell = make("td");
      cell.colSpan = row.cells.length;
      cell.append(box);
      more.append(cell);
      row.after(more);
    } else row.nextElementSibling.remove();
    link.setAttribute("aria-expanded", row.classList.contains("open"));
  });
}
for (const input of all(".filter")) {
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of all("tbody > tr:not(.more):not(.group)", input.parentNode)) {
      const heading = row.cells[0];
      const link = heading.querySelector("a");
      const name = `${heading.textContent} ${link.dataset.name || ""} ${link.dataset.where || ""}`.toLowerCase();
      row.hidden = !words.every(word => name.includes(word));
      if (row.classList.contains("open")) row.nextElementSibling.hidden = row.hidden;
    }
    for (const body of all("tbody", input.parentNode)) body.hidden = !all("tr:not(.group)", body).some(row => !row.hidden);
  });
}

// Where the reader is
const links = new Map(all("nav a[href^='#']").map(a => [decodeURIComponent(a.hash.slice(1)), a]));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    for (const a of links.values()) a.classList.remove("here");
    links.get(entry.target.id)?.classList.add("here");
  }
}, {rootMargin: "-15% 0px -75% 0px"});
for (const section of all("section[id]")) seen.observe(section);
root.dataset.ready = "yes";
