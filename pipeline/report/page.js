"use strict";
// Draws the charts of the page from the JSON beside it, and again when their width changes.
// Texts are set as text nodes and attributes, never as HTML.

const facts = JSON.parse(document.getElementById("facts").textContent);
const NS = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");

function element(kind, options = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(kind, options = {}, ...children) {
  const made = document.createElementNS(NS, kind);
  for (const [name, value] of Object.entries(options)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function canvasOf(width, height) {
  return svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
}

function label(x, y, text, options = {}) {
  return svg("text", { x, y, ...options }, text);
}

function tell(target, text) {
  target.addEventListener("pointermove", (event) => showTip(event, text));
  target.addEventListener("pointerleave", () => { tip.hidden = true; });
  return target;
}

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const right = event.clientX + 14 + tip.offsetWidth > window.innerWidth;
  tip.style.left = `${Math.max(4, right ? event.clientX - tip.offsetWidth - 10 : event.clientX + 14)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 4)}px`;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function short(value) {
  const size = Math.abs(value);
  for (const [limit, sign] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return `${Number((value / (sign === "k" ? 1e3 : limit)).toPrecision(3))}${sign}`;
  }
  return size !== 0 && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

function fitted(text, width, size = 7) {
  const room = Math.max(3, Math.floor(width / size));
  return text.length <= room ? text : `${text.slice(0, room - 1)}…`;
}

// ---------------------------------------------------------------- the recipe

const ENDINGS = { finished: "--good", running: "--accent", failed: "--bad", killed: "--bad", stopped: "--warn" };

function direct(stage) { // what it needs by no way through another
  const needs = new Map(facts.stages.map((one) => [one.name, one.needs]));
  const reaches = (from, to) => needs.get(from).some((one) => one === to || reaches(one, to));
  return stage.needs.filter((one) => !stage.needs.some((other) => other !== one && reaches(other, one)));
}

function drawRecipe(place, width) {
  const layers = [];
  for (const stage of facts.stages) (layers[stage.depth] ??= []).push(stage);
  const upright = width < layers.length * 118; // too narrow: from top to bottom
  const gap = upright ? 10 : 20, high = 66, rowGap = upright ? 28 : 14, at = new Map();
  let used = width, height = 0, box = Math.min(190, (width - (layers.length - 1) * gap - 2) / layers.length);
  if (upright) {
    const side = Math.max(1, Math.floor((width + gap) / (130 + gap))); // boxes that stand beside each other
    for (const layer of layers) for (let start = 0; start < layer.length; start += side) {
      const row = layer.slice(start, start + side), wide = Math.min(190, (width - 2 - (side - 1) * gap) / side);
      const left = (width - row.length * wide - (row.length - 1) * gap) / 2;
      row.forEach((stage, index) => at.set(stage.name, { x: left + index * (wide + gap), y: 1 + height }));
      box = wide;
      height += high + (start + side < layer.length ? 10 : rowGap);
    }
    height += 2 - rowGap;
  } else {
    height = Math.max(...layers.map((layer) => layer.length)) * (high + rowGap) - rowGap + 2;
    used = layers.length * (box + gap) - gap + 2;
    layers.forEach((layer, depth) => layer.forEach((stage, index) => {
      at.set(stage.name, { x: 1 + depth * (box + gap), y: height / 2 + (index - (layer.length - 1) / 2) * (high + rowGap) - high / 2 });
    }));
  }
  const picture = canvasOf(used, height);
  for (const stage of facts.stages) for (const needed of direct(stage)) {
    const from = at.get(needed), to = at.get(stage.name);
    const [x, y, u, v] = upright
      ? [from.x + box / 2, from.y + high, to.x + box / 2, to.y]
      : [from.x + box, from.y + high / 2, to.x, to.y + high / 2];
    const bend = upright ? `C${x},${(y + v) / 2} ${u},${(y + v) / 2}` : `C${(x + u) / 2},${y} ${(x + u) / 2},${v}`;
    picture.append(svg("path", { d: `M${x},${y}${bend} ${u},${v}`, fill: "none", stroke: "var(--dim)", "stroke-width": 1.3, opacity: 0.55 }));
  }
  for (const stage of facts.stages) {
    const { x, y } = at.get(stage.name), colour = `var(${ENDINGS[stage.ending] ?? "--line"})`;
    const told = [stage.name, `${stage.ending}${stage.time && `, ${stage.time}`}`, stage.money, stage.error].filter(Boolean);
    const [group, member] = stage.name.split("@"), ended = stage.ending === "finished" ? stage.time : stage.ending;
    const lines = member ? [group, ended] : [ended, stage.money];
    const drawn = svg("g", {},
      svg("rect", { x, y, width: box, height: high, rx: 10, fill: "var(--card)", stroke: "var(--line)" }),
      svg("rect", { x, y: y + 10, width: 4, height: high - 20, rx: 2, fill: colour }),
      label(x + 12, y + 21, fitted(member ?? group, box - 14, 7.2), { "font-weight": 600 }));
    lines.forEach((line, index) => drawn.append(label(x + 12, y + 39 + 17 * index, fitted(line, box - 14, 6.5), { class: "faint" })));
    picture.append(tell(drawn, told.join("\n")));
  }
  place.append(picture);
}

// ---------------------------------------------------------------- models

function inOrder() { // of the recipe, not of the table
  const place = new Map(facts.stages.map((stage, index) => [stage.name.replace("@", "/"), index]));
  return [...facts.models].sort((one, other) => (place.get(one.name) ?? 99) - (place.get(other.name) ?? 99));
}

const brief = (model) => model.name.split("/").at(-1); // a student by its own name

function drawPasses(place, width) {
  const models = place.dataset.study ? facts.studies[place.dataset.study] : inOrder(), row = 30, left = Math.min(190, width * 0.36), right = 62, top = 4;
  const height = top + models.length * row + 24, picture = canvasOf(width, height);
  const x = (share) => left + share * (width - left - right);
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    picture.append(svg("line", { x1: x(share), x2: x(share), y1: top, y2: height - 20, class: "axis" }));
    picture.append(label(x(share), height - 5, `${100 * share} %`, { class: "faint", "text-anchor": "middle" }));
  }
  models.forEach((model, index) => {
    const y = top + index * row + row / 2, final = model.name === facts.final;
    const colour = final ? "var(--accent)" : "var(--c7)";
    const told = model.low === null ? "" : `\n95 %: ${percent(model.low)} to ${percent(model.high)}`;
    const drawn = svg("g", {}, svg("rect", { x: left, y: y - 8, width: Math.max(1, x(model.pass_at_1) - left), height: 16, rx: 4, fill: colour, opacity: final ? 0.9 : 0.55 }));
    if (model.low !== null) {
      drawn.append(svg("path", { d: `M${x(model.low)},${y}H${x(model.high)}M${x(model.low)},${y - 5}v10M${x(model.high)},${y - 5}v10`, stroke: "var(--ink)", "stroke-width": 1.5, fill: "none" }));
    }
    drawn.append(label(left - 10, y + 4, fitted(brief(model), left - 10), { "text-anchor": "end", "font-weight": final ? 700 : 400 }));
    drawn.append(label(x(model.high ?? model.pass_at_1) + 8, y + 4, percent(model.pass_at_1), { "font-weight": 600 }));
    picture.append(tell(drawn, `${model.name}\npass@1 ${percent(model.pass_at_1)}${told}`));
  });
  place.append(picture);
}

function* places(long) { // of a name beside its point: close by, then ever farther up and down
  for (let away = 0; away < 150; away += 15) for (const below of away ? [4 + away, 4 - away] : [4]) yield* [[10, below], [-10 - long, below]];
}

function drawPareto(place, width) {
  const key = place.dataset.x, models = facts[place.dataset.of ?? "models"].filter((model) => model[key] > 0);
  if (!models.length) { place.append(element("p", { class: "dim" }, "Not known of any model yet.")); return; }
  const height = 300, left = 46, right = 16, top = 14, bottom = 42, picture = canvasOf(width, height);
  const logs = models.map((model) => Math.log10(model[key])), most = Math.max(...logs), least = Math.min(...logs);
  const spread = Math.max(most - least, 0.3), from = least - 0.18 * spread, to = most + 0.3 * spread;
  const roof = Math.min(1, Math.max(...models.map((model) => model.high ?? model.pass_at_1)) + 0.06);
  const x = (value) => left + (Math.log10(value) - from) / (to - from) * (width - left - right);
  const floor = Math.max(0, Math.min(...models.map((model) => model.low ?? model.pass_at_1)) - 0.06);
  const y = (share) => height - bottom - (share - floor) / (roof - floor) * (height - top - bottom);
  for (const share of ticks(floor, roof, 5)) {
    picture.append(svg("line", { x1: left, x2: width - right, y1: y(share), y2: y(share), class: "axis" }));
    picture.append(label(left - 8, y(share) + 4, `${Math.round(100 * share)} %`, { class: "faint", "text-anchor": "end" }));
  }
  let marks = [];
  for (let power = Math.floor(from); power <= to; power++) for (let digit = 1; digit < 10; digit++) marks.push(digit * 10 ** power);
  marks = marks.filter((value) => Math.log10(value) > from && Math.log10(value) < to);
  if (marks.length > 5) marks = marks.filter((value) => /^[125]/.test(value.toExponential()));
  for (const value of marks) picture.append(label(x(value), height - 22, short(value), { class: "faint", "text-anchor": "middle" }));
  const unit = { activated: "activated parameters", memory: "MiB", cost: `${facts.currency} per million tokens` }[key] ?? facts.currency;
  picture.append(label(width - right, height - 3, `${unit}, logarithmic`, { class: "faint", "text-anchor": "end" }));
  const front = models.filter((model) => !models.some((other) => other !== model && other[key] <= model[key] && other.pass_at_1 >= model.pass_at_1 && (other[key] < model[key] || other.pass_at_1 > model.pass_at_1)));
  front.sort((one, other) => one[key] - other[key]);
  if (front.length > 1) picture.append(svg("path", { d: front.map((model, index) => `${index ? "L" : "M"}${x(model[key])},${y(model.pass_at_1)}`).join(""), fill: "none", stroke: "var(--accent)", "stroke-width": 1.5, "stroke-dasharray": "5 4" }));
  const points = models.map((model) => [x(model[key]), y(model.pass_at_1)]);
  const taken = points.map(([across, down]) => [across - 8, down - 8, across + 8, down + 8]);
  models.forEach((model, index) => {
    const [across, down] = points[index], best = front.includes(model), drawn = svg("g", {});
    if (model.low !== null) drawn.append(svg("line", { x1: across, x2: across, y1: y(model.low), y2: y(model.high), stroke: "var(--dim)", "stroke-width": 1.2 }));
    drawn.append(svg("circle", { cx: across, cy: down, r: 6, fill: best ? "var(--accent)" : "var(--card)", stroke: "var(--accent)", "stroke-width": 2 }));
    const name = brief(model), long = name.length * 6.9 + 6;
    for (const [right, below] of places(long)) {
      const room = [across + right, down + below - 11, across + right + long, down + below + 3];
      const free = room[0] >= left && room[2] <= width && room[1] >= 0 && room[3] <= height - bottom && !taken.some((other) => room[0] < other[2] && other[0] < room[2] && room[1] < other[3] && other[1] < room[3]);
      if (!free) continue; // where no place is free, the name shows at a touch
      taken.push(room);
      if (Math.abs(below - 4) > 15) drawn.prepend(svg("line", { x1: across, y1: down, x2: right > 0 ? room[0] : room[2], y2: down + below - 4, stroke: "var(--dim)", "stroke-width": 0.8 }));
      drawn.append(label(room[0], down + below, name));
      break;
    }
    picture.append(tell(drawn, `${model.name}\npass@1 ${percent(model.pass_at_1)}\n${short(model[key])} ${unit}`));
  });
  place.append(picture);
}

// ---------------------------------------------------------------- training

function drawCurves(place) {
  const curves = facts.curves[place.dataset.stage], rest = Boolean(place.dataset.rest);
  const names = Object.keys(curves).filter((name) => facts.first.includes(name) !== rest);
  for (const name of names) {
    const points = curves[name], frame = element("div", { class: "chart" });
    place.append(element("figure", {}, element("figcaption", {}, name.replaceAll("_", " "), element("span", {}, short(points.at(-1)[1]))), frame));
    drawCurve(frame, frame.clientWidth || 270, points, name);
  }
  if (!names.length) place.append(element("p", { class: "dim" }, "none"));
}

function drawCurve(place, width, points, name) {
  const height = 130, left = 44, right = 8, top = 8, bottom = 22, picture = canvasOf(width, height);
  const values = points.map((point) => point[1]), steps = points.map((point) => point[0]);
  let low = Math.min(...values), high = Math.max(...values);
  if (low === 0 && high === 0) high = 1;
  if (high - low < 1e-9 * Math.max(1, Math.abs(high))) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  const x = (step) => left + (step - steps[0]) / (steps.at(-1) - steps[0] || 1) * (width - left - right);
  const y = (value) => height - bottom - (value - low) / (high - low) * (height - top - bottom);
  for (const value of ticks(low, high, 4)) {
    picture.append(svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "axis" }));
    picture.append(label(left - 6, y(value) + 4, short(value), { class: "faint", "text-anchor": "end" }));
  }
  picture.append(label(left, height - 5, short(steps[0]), { class: "faint" }));
  picture.append(label(width - right, height - 5, `step ${short(steps.at(-1))}`, { class: "faint", "text-anchor": "end" }));
  picture.append(svg("path", { d: points.map(([step, value], index) => `${index ? "L" : "M"}${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(""), fill: "none", stroke: "var(--accent)", "stroke-width": 1.8, "stroke-linejoin": "round" }));
  const dot = svg("circle", { r: 3.5, fill: "var(--accent)", visibility: "hidden" });
  picture.append(dot);
  picture.addEventListener("pointermove", (event) => {
    const step = steps[0] + (event.offsetX - left) / (width - left - right) * (steps.at(-1) - steps[0]);
    const near = points.reduce((best, point) => Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best);
    dot.setAttribute("cx", x(near[0])); dot.setAttribute("cy", y(near[1])); dot.setAttribute("visibility", "visible");
    showTip(event, `step ${short(near[0])}\n${name.replaceAll("_", " ")} ${short(near[1])}`);
  });
  picture.addEventListener("pointerleave", () => { tip.hidden = true; dot.setAttribute("visibility", "hidden"); });
  place.append(picture);
}

// ---------------------------------------------------------------- experts

function heat(load) { // load relative to an even share: 0 none, 1 even, 4 and more brightest
  const stops = [[247, 244, 236], [254, 217, 142], [236, 112, 63], [122, 1, 60]], dark = [[30, 35, 44], [60, 70, 130], [190, 80, 120], [255, 222, 130]];
  const shades = getComputedStyle(document.documentElement).colorScheme === "dark" ? dark : stops;
  const place = Math.min(0.9999, Math.log2(1 + load) / Math.log2(5)) * (shades.length - 1), index = Math.floor(place);
  return `rgb(${shades[index].map((from, part) => Math.round(from + (place - index) * (shades[index + 1][part] - from))).join(",")})`;
}

function drawExperts(place, width) {
  const { tasks } = facts.experts, names = Object.keys(tasks), layers = tasks[names[0]].length, experts = tasks[names[0]][0].length;
  const left = Math.min(140, Math.max(92, width * 0.12)), cell = (width - left) / experts, row = layers > 12 ? 7 : 20, gap = 12;
  const height = names.length * (layers * row + gap) - gap + 34, scale = window.devicePixelRatio || 1;
  const canvas = element("canvas", { width: width * scale, height: height * scale, style: `width:${width}px;height:${height}px` });
  const pen = canvas.getContext("2d"), style = getComputedStyle(document.body);
  pen.scale(scale, scale);
  pen.textBaseline = "middle";
  const faint = style.getPropertyValue("--dim");
  names.forEach((task, index) => {
    const top = index * (layers * row + gap);
    pen.font = `600 12px ${style.fontFamily}`; pen.fillStyle = style.color;
    pen.fillText(fitted(task, left - 20, 7.4), 0, top + layers * row / 2);
    tasks[task].forEach((shares, layer) => {
      pen.font = `10px ${style.fontFamily}`; pen.fillStyle = faint; pen.textAlign = "right";
      if (layers <= 12) pen.fillText(String(layer + 1), left - 6, top + layer * row + row / 2);
      pen.textAlign = "left";
      shares.forEach((share, expert) => {
        pen.fillStyle = heat(share * experts);
        pen.fillRect(left + expert * cell, top + layer * row, Math.max(cell - (cell > 5 ? 1 : 0), 0.5), row - 1);
      });
    });
  });
  const bottom = height - 14, bar = Math.min(220, width - left);
  for (let at = 0; at < bar; at++) { pen.fillStyle = heat(2 ** (at / bar * Math.log2(5)) - 1); pen.fillRect(left + at, bottom - 8, 1.5, 8); }
  pen.fillStyle = faint; pen.font = `11px ${style.fontFamily}`;
  pen.fillText("0", left, bottom + 7);
  pen.textAlign = "center"; pen.fillText("even", left + bar * Math.log2(2) / Math.log2(5), bottom + 7);
  pen.textAlign = "right"; pen.fillText("4 × even", left + bar, bottom + 7);
  canvas.addEventListener("pointermove", (event) => {
    const index = Math.floor(event.offsetY / (layers * row + gap)), layer = Math.floor((event.offsetY - index * (layers * row + gap)) / row);
    const expert = Math.floor((event.offsetX - left) / cell), share = tasks[names[index]]?.[layer]?.[expert];
    if (share === undefined) tip.hidden = true;
    else showTip(event, `${names[index]}, mixture layer ${layer + 1}, expert ${expert}\n${percent(share)} of the choices, ${short(share * experts)} × even`);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  place.append(canvas);
}

// ---------------------------------------------------------------- data

function drawFunnel(place, width) {
  const { read, quarantined, train, evaluation, problems, pairs } = facts.funnel, rows = [];
  const sum = (counts) => Object.values(counts).reduce((one, other) => one + other, 0), all = sum(read);
  for (const [name, count] of Object.entries(read)) rows.push([`read: ${name}`, count, "--c0"]);
  for (const [name, count] of Object.entries(quarantined)) if (count) rows.push([`put aside: ${name}`, count, "--bad"]);
  const clean = Object.entries(quarantined).filter(([, count]) => !count).map(([name]) => name);
  rows.push(["kept: problems", problems, "--good"], ["kept: preference pairs", pairs, "--good"]);
  for (const [split, counts] of [["train", train], ["evaluation", evaluation]]) {
    for (const [task, count] of Object.entries(counts)) rows.push([`${split}: ${task}`, count, split === "train" ? "--c2" : "--c4"]);
  }
  const row = 24, left = Math.min(210, width * 0.45), right = 66, picture = canvasOf(width, rows.length * row);
  rows.forEach(([name, count, colour], index) => {
    const y = index * row + row / 2, long = Math.max(count ? 1 : 0, count / all * (width - left - right));
    picture.append(tell(svg("g", {},
      label(left - 10, y + 4, fitted(name, left - 10, 6.6), { "text-anchor": "end" }),
      svg("rect", { x: left, y: y - 8, width: long, height: 16, rx: 3, fill: `var(${colour})`, opacity: 0.85 }),
      label(left + long + 8, y + 4, count.toLocaleString("en"), { class: "faint" }),
    ), `${name}\n${count.toLocaleString("en")}, ${percent(count / all)} of all rows`));
  });
  place.append(picture);
  if (clean.length) place.append(element("p", { class: "note" }, `Nothing was put aside as: ${clean.join(", ")}.`));
}

// ---------------------------------------------------------------- samples

const PAGE = 12;
const view = { model: "", other: "", task: "", verdict: "", text: "", page: 0 };

function chooser(name, caption, choices) {
  const select = element("select", { "aria-label": caption, onchange: () => { view[name] = select.value; view.page = 0; drawSamples(); } });
  for (const [value, text] of choices) select.append(element("option", { value }, text));
  return element("label", {}, caption, select);
}

function startSamples() {
  const { models, tasks, verdicts } = facts.samples, filters = document.getElementById("filters");
  view.model = models[0];
  const search = element("input", { type: "search", placeholder: "in prompts and answers", "aria-label": "text", oninput: () => { view.text = search.value; view.page = 0; drawSamples(); } });
  filters.append(
    chooser("model", "model", models.map((model) => [model, model])),
    chooser("other", "beside", [["", "no other"], ...models.map((model) => [model, model])]),
    chooser("task", "task", [["", "all"], ...tasks.map((task) => [task, task])]),
    chooser("verdict", "show", [["", "all"], ...verdicts.map((verdict) => [verdict, `${verdict}, any sample`]), ["changed", "changed between the two"], ["better", "better than beside"], ["worse", "worse than beside"]]),
    element("label", {}, "text", search),
  );
  drawSamples();
}

const THINKING = 0, ANSWER = 1, FORMED = 2, TOKENS = 3, FINISHED = 4, VERDICT = 5;
const rightShare = (answers) => answers.filter((answer) => answer[VERDICT] === "right").length / answers.length;

function isShown(problem) {
  const own = problem.answers[view.model] ?? [], beside = view.other ? problem.answers[view.other] ?? [] : [];
  if (view.task && problem.task !== view.task) return false;
  const change = own.length && beside.length ? rightShare(own) - rightShare(beside) : 0;
  if (view.verdict === "changed" && change === 0) return false;
  if (view.verdict === "better" && change <= 0) return false;
  if (view.verdict === "worse" && change >= 0) return false;
  if (facts.samples.verdicts.includes(view.verdict) && !own.some((answer) => answer[VERDICT] === view.verdict)) return false;
  const text = view.text.toLowerCase();
  return !text || problem.prompt.toLowerCase().includes(text) || [...own, ...beside].some((answer) => `${answer[THINKING]}\n${answer[ANSWER]}`.toLowerCase().includes(text));
}

function answerCard(model, answer) {
  const told = [model, answer[VERDICT], `${answer[TOKENS]} tokens`];
  if (!answer[FINISHED]) told.push("cut by the limit");
  if (!answer[FORMED]) told.push("not well formed");
  const kind = answer[VERDICT] === "right" ? " right" : answer[VERDICT] === "wrong" ? " wrong" : "";
  return element("div", { class: `answer${kind}` },
    element("div", { class: "verdict" }, told.join(" · ")),
    element("div", { class: "text thinking" }, answer[THINKING]),
    answer[FORMED] ? element("div", { class: "text final" }, answer[ANSWER]) : null);
}

function drawSamples() {
  const found = facts.samples.problems.filter(isShown), browser = document.getElementById("browser");
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  view.page = Math.min(view.page, pages - 1);
  const turn = (by) => () => { view.page += by; drawSamples(); };
  const back = element("button", { type: "button", onclick: turn(-1) }, "←"), on = element("button", { type: "button", onclick: turn(1) }, "→");
  back.disabled = view.page === 0; on.disabled = view.page === pages - 1;
  browser.replaceChildren(element("div", { class: "dim" }, `${found.length.toLocaleString("en")} problems`));
  for (const problem of found.slice(view.page * PAGE, (view.page + 1) * PAGE)) {
    const cards = [view.model, ...(view.other && view.other !== view.model ? [view.other] : [])].flatMap((model) => (problem.answers[model] ?? []).map((answer) => answerCard(model, answer)));
    const told = [problem.task, problem.difficulty === null ? null : `difficulty ${problem.difficulty}`, problem.gold && `right answer: ${problem.gold}`].filter(Boolean);
    browser.append(element("div", { class: "problem" }, element("div", { class: "ask" }, problem.prompt), element("div", { class: "dim" }, told.join(" · ")), element("div", { class: "answers" }, ...cards)));
  }
  browser.append(element("div", { class: "pages" }, back, `${view.page + 1} of ${pages}`, on));
}

// ---------------------------------------------------------------- start

const CHARTS = { dag: drawRecipe, passes: drawPasses, pareto: drawPareto, curves: drawCurves, experts: drawExperts, funnel: drawFunnel };
const widths = new WeakMap();

function draw(place) {
  const width = Math.floor(place.clientWidth);
  if (!width) return; // folded away
  widths.set(place, width);
  place.replaceChildren();
  CHARTS[place.dataset.chart](place, width);
}

const charts = [...document.querySelectorAll("[data-chart]")];
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) if (Math.floor(target.clientWidth) !== widths.get(target)) draw(target);
});
for (const place of charts) { draw(place); watcher.observe(place); }
if (facts.samples) startSamples();

document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
  charts.forEach(draw);
});
