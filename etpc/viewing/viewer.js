// Shows a record `etpc-view/1`. Texts of the record become text nodes and attributes alone, never HTML.
"use strict";

const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en-US");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const SIGNS = { exact: "=", approximate: "≈", "current step": "≈", unused: "·" };
const SHOWN = 200; // lines or rows that are shown before one asks for more
const INTROS = {
  weights: "What is a weight, which states it has a lasting influence on, and what is carried of that. " +
    "A click on a weight follows it through all panels.",
  model: "The step as JAX traced it, and the lines that each equation comes from. " +
    "A click on a line shows its equations, and the other way round." +
    (D.rewritten ? " The pass `commute` has rewritten this step: weights and outputs are the same." : ""),
  patterns: "What can be non-zero, for any weights and data. D says which old states a new state depends on, along what is not cut; " +
    "F says which new states the outputs of an operation enter in the same step. Wheel or pinch zooms, dragging moves.",
  graph: "Weights in the operations that use them (boxes), hidden states (round), inputs and outputs. " +
    "The trace of a weight holds, for each output of its operation, a block of the states that it has a lasting influence on: " +
    "of the followed weight these have a thick border, and the paths along which its influence escapes are drawn.",
  passes: "The trace program says what is carried and what each gradient is the sum of. Each pass rewrites it, " +
    "and changes no gradient but for rounding. Passes in grey found nothing to change. ↑ ↓ go through them.",
  emitted: "The trace program becomes functions of a window of steps, which XLA compiles. " +
    "Where an instruction comes from is read from the metadata of the optimised HLO: `grad w` and `trace w` are terms of the trace program, " +
    "`forward` and `backward` the model, backward for Jacobians and credit.",
};

function el(tag, attributes, ...children) {
  const made = document.createElement(tag);
  fill(made, attributes, children);
  return made;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  fill(made, attributes, children);
  return made;
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
}

// Words with code between backticks, as docstrings have it.
const prose = (text) => text.split("`").map((part, n) => (n % 2 ? code(part) : part));
const button = (text, press, attributes) => el("button", { type: "button", onclick: press, ...attributes }, text);
const code = (text) => el("code", {}, text);
const span = (kind, ...children) => el("span", { class: kind }, ...children);
const muted = (...children) => el("p", { class: "small muted" }, ...children);
const intro = (name) => el("p", { class: "intro" }, prose(INTROS[name]));
const box = (title, ...children) => el("div", { class: "box" }, el("h3", {}, title), ...children);
const claimClass = (claim) => (claim === "exact" ? "exact" : claim === "unused" ? "none" : "approximate");

// --- the weight that is followed, and the panels ---------------------------------------------------

const state = { panel: "weights", weight: null, pass: 0, without: false, line: null, escape: null };
const tagged = {}; // by panel and weight: the elements that are about it
const drawn = new Set();
const later = {}; // what a panel does when the weight changes

function about(panel, weights, element) {
  for (const w of weights || []) ((tagged[panel] ||= new Map()).get(w) || tagged[panel].set(w, []).get(w)).push(element);
  return element;
}

function mark(panel) {
  for (const element of document.querySelectorAll(`#view-${panel} .on`)) element.classList.remove("on");
  for (const element of tagged[panel]?.get(state.weight) || []) element.classList.add("on");
  later[panel]?.();
}

function follow(weight, inView = true) {
  state.weight = weight === state.weight ? null : weight;
  state.escape = null;
  for (const item of $("list").children) item.setAttribute("aria-pressed", String(+item.dataset.weight === state.weight));
  const chosen = $("list").querySelector('[aria-pressed="true"]');
  if (chosen && inView) chosen.scrollIntoView({ block: "nearest" });
  describe();
  for (const panel of drawn) mark(panel);
  if (inView) reveal();
  remember();
}

function reveal() {
  const first = document.querySelector(`#view-${state.panel} .on`);
  if (first && state.weight !== null && first.scrollIntoView) first.scrollIntoView({ block: "nearest" });
}

const PANELS = [
  ["weights", "Weights", drawWeights, (w) => D.weights[w].ops.length],
  ["model", "Model", drawModel, (w) => D.step.equations.filter((e) => e.weights.includes(w)).length],
  ["patterns", "Jacobians", drawPatterns, (w) => D.patterns.immediate.filter((f) => D.ops[f.op].weights.includes(w)).length],
  ["graph", "Graph", drawGraph, (w) => D.graph.nodes.filter((n) => n.weights.includes(w)).length],
  ["passes", "Passes", drawPasses, (w) => D.passes.filter((p) => touches(p, w)).length],
  ["emitted", "Emitted", drawEmitted, (w) => instructions().filter((i) => i.weights.includes(w)).length],
];

function show(panel, focus = false) {
  state.panel = panel;
  for (const [name, , draw] of PANELS) {
    const tab = $(`tab-${name}`), section = $(`view-${name}`), here = name === panel;
    tab.setAttribute("aria-selected", String(here));
    tab.tabIndex = here ? 0 : -1;
    section.hidden = !here;
    if (here && !drawn.has(name)) {
      drawn.add(name);
      draw(section);
      mark(name);
    } else if (here) {
      later[name]?.();
    }
    if (here && focus) tab.focus({ preventScroll: true });
  }
  reveal();
  remember();
}

function remember() {
  const pass = state.panel === "passes" ? `/${D.passes[state.pass].name}` : "";
  const weight = state.weight === null ? "" : `?${encodeURIComponent(D.weights[state.weight].path)}`;
  try {
    history.replaceState(null, "", `#${state.panel}${pass}${weight}`);
  } catch { /* a page within a page may have no address */ }
}

function recall() {
  const [place, weight] = location.hash.slice(1).split("?");
  const [panel, pass] = place.split("/");
  const found = D.passes.findIndex((p) => p.name === pass);
  if (found >= 0) state.pass = found;
  if (PANELS.some(([name]) => name === panel)) state.panel = panel;
  let path = "";
  try {
    path = decodeURIComponent(weight || "");
  } catch { /* no address of ours */ }
  const known = D.weights.findIndex((w) => w.path === path);
  return known >= 0 ? known : null;
}

function describe() {
  const bar = $("followed"), w = D.weights[state.weight];
  bar.hidden = !w;
  bar.replaceChildren();
  for (const [name, , , occurs] of PANELS) {
    const badge = $(`tab-${name}`).querySelector(".count"), n = w ? occurs(state.weight) : 0;
    badge.hidden = !n;
    badge.textContent = count(n);
    badge.title = n ? `${n} here are about ${w.path}` : "";
  }
  if (!w) return;
  const ops = w.ops.map((n) => D.ops[n]);
  const facts = ops.flatMap((op) => [
    op.trace
      ? `${op.kind} at ${op.source}: reaches ${op.states.join(", ")} in blocks of ${op.block}; its trace is ${op.trace}, ${op.shape}` +
        (op.shared ? ", in the trace of another weight." : `, ${plural(op.bytes, "byte")} for one example.`)
      : `${op.kind} at ${op.source}: no trace, as ${op.no_trace}.`,
    op.choice ? `Chosen so: ${op.choice}.` : null,
    op.no_smaller && op.trace ? `No smaller trace holds all of it: ${op.no_smaller}.` : null,
  ]);
  const escapes = new Set(ops.flatMap((op) => op.escapes));
  if (escapes.size) facts.push(`Left out along ${plural(escapes.size, "path")}, such as ${D.escapes[[...escapes][0]].text}.`);
  bar.append(
    el("div", { class: "head" },
      code(w.path), el("span", { class: "muted" }, w.type),
      el("b", { class: `is-${claimClass(w.claim)}` }, `${SIGNS[w.claim]} ${w.claim}`),
      button("×", () => follow(state.weight), { title: "Follow no weight (Esc)", "aria-label": "Follow no weight" })),
    el("details", { open: innerWidth > 640 }, el("summary", {}, "what is carried, and why"),
      el("ul", {}, [...w.reasons, ...facts].filter(Boolean).slice(0, 8).map((text) => el("li", {}, text)))));
}

// --- weights ---------------------------------------------------------------------------------------

function drawList() {
  $("list").append(...D.weights.map((w, n) =>
    button([el("span", { class: `sign ${claimClass(w.claim)}`, title: w.claim }, SIGNS[w.claim]),
      el("span", { class: "mono", title: w.path }, el("bdi", {}, w.path)),
      el("span", { class: "muted small" }, bytesOf(w) ? count(bytesOf(w)) : "–")],
    () => follow(n), { "data-weight": n, "aria-pressed": "false" })));
  $("find").addEventListener("input", () => {
    const text = $("find").value.toLowerCase();
    for (const item of $("list").children) item.hidden = !D.weights[+item.dataset.weight].path.toLowerCase().includes(text);
  });
}

const bytesOf = (w) => w.ops.reduce((sum, n) => sum + D.ops[n].bytes, 0);

function cards(entries) {
  return el("dl", { class: "cards" }, entries.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function drawWeights(section) {
  const exact = D.weights.filter((w) => w.claim === "exact" || w.claim === "unused").length;
  const size = D.states.reduce((sum, s) => sum + s.size, 0);
  const columns = ["weight", "type", "meets data in", "reaches", "block", "trace", "bytes", "gradient"];
  const right = new Set(["block", "bytes"]);
  const rows = D.weights.flatMap((w, n) => (w.ops.length ? w.ops : [null]).map((number, use) => {
    const op = number === null ? null : D.ops[number];
    const traced = op && op.trace;
    const cells = [
      code(w.path + (use ? ` (use ${use + 1})` : "")), code(w.type), op ? code(op.kind) : "",
      op ? op.states.join(", ") || (op.role === "output" ? "the output" : "nothing") : "nothing",
      traced ? count(op.block) : "", traced ? op.shape : "none", traced ? (op.shared ? "shared" : count(op.bytes)) : "",
      el("span", { class: `is-${claimClass(w.claim)}` }, traced ? op.verdict : w.claim),
    ];
    const made = el("tr", { "data-pick": n, onclick: () => follow(n, false) },
      cells.map((cell, i) => el("td", { "data-name": columns[i], class: right.has(columns[i]) ? "number" : null }, cell)));
    return about("weights", [n], made);
  }));
  section.append(
    intro("weights"),
    cards([["gradients that are exact", `${count(exact)} of ${count(D.weights.length)}`], ["hidden states", count(size)],
      ["bytes of traces", count(D.emitted.trace_bytes)], ["bytes of the carry", count(D.emitted.carry_bytes)],
      ["steps of a window", count(D.window)], ["equations at each step", count(D.emitted.each_step)]]),
    el("table", { class: "wide" },
      el("thead", {}, el("tr", {}, columns.map((c) => el("th", { scope: "col", class: right.has(c) ? "number" : null }, c)))),
      el("tbody", {}, rows)));
}

// --- the model: lines and equations ----------------------------------------------------------------

function drawModel(section) {
  const { equations, variables } = D.step, { functions, lines } = D.sources;
  const rowOf = new Map(), ofLine = new Map(), definedBy = new Map();
  equations.forEach((e) => e.outputs.forEach((v) => definedBy.set(v, e)));
  const value = (n, e) => {
    const v = variables[n], of = v.kind !== "value" ? v.kind : v.weights.length ? "parameter" : e.data.includes(n) ? "data" : "value";
    return el("span", { class: `v-${of}`, "data-value": n, title: `${v.kind === "value" ? "value" : v.kind} ${v.type}` }, v.name);
  };
  const made = equations.map((e) => {
    const where = e.line ?? e.inner;
    const names = [e.line, e.inner].filter((n, i, all) => n !== null && all.indexOf(n) === i).map((n) => `${lines[n].file}:${lines[n].line}`);
    const title = [...names, e.detail].filter(Boolean).join("\n");
    const row = el("div", { class: `equation${e.ops.length ? " meets" : ""}`, title },
      el("span", {}, e.parts.map((part) => (typeof part === "number" ? value(part, e) : part))),
      el("span", { class: "where" }, where === null ? "" : `${lines[where].file.split("/").pop()}:${lines[where].line}`));
    for (const n of new Set([e.line, e.inner])) if (n !== null) (ofLine.get(n) || ofLine.set(n, []).get(n)).push(row);
    row.addEventListener("click", () => choose([e.line, e.inner], [row]));
    return about("model", e.weights, row);
  });
  const used = new Map(lines.map((line, n) => [`${line.function}:${line.line}`, n]));
  const blocks = functions.map((f, k) => el("div", { class: "box source" }, el("h3", {}, `${f.file}${f.name ? ` · ${f.name}` : ""}`),
    f.code.map(({ line, text }) => {
      const n = used.get(`${k}:${line}`);
      const row = el("div", { class: `row${n === undefined ? "" : " used"}` }, el("i", {}, String(line)), el("span", {}, text || " "));
      if (n === undefined) return row;
      rowOf.set(n, row);
      row.addEventListener("click", () => choose([n], ofLine.get(n) || []));
      const weights = new Set(equations.filter((e) => e.line === n || e.inner === n).flatMap((e) => e.weights));
      return about("model", weights, row);
    })));
  const choose = (places, rows) => {
    section.querySelectorAll(".chosen").forEach((row) => row.classList.remove("chosen"));
    const found = [...places.filter((n) => n !== null).map((n) => rowOf.get(n)), ...rows].filter(Boolean);
    found.forEach((row) => { row.classList.add("chosen"); row.scrollIntoView({ block: "nearest" }); });
  };
  section.chooseLine = (n) => choose([n], ofLine.get(n) || []);
  section.addEventListener("mouseover", (event) => {
    const n = event.target.dataset?.value;
    section.querySelectorAll(".same").forEach((span) => span.classList.remove("same"));
    if (n !== undefined) section.querySelectorAll(`[data-value="${n}"]`).forEach((span) => span.classList.add("same"));
  });
  const part = (title, once) => {
    const rows = made.filter((_, i) => equations[i].once === once);
    return rows.length ? box([`${title} `, span("muted small", plural(rows.length, "equation"))], rows) : "";
  };
  const results = D.step.results.filter((r) => r.names[0] !== variables[r.value].name || r.names.length > 1)
    .map((r) => el("div", { class: "equation" }, span(null, r.names.join(" = "), " = ", value(r.value, { data: [] }))));
  const legend = [["v-parameter", "weight"], ["v-data", "data that a weight meets, input"],
    ["v-state", "hidden state (′ the new one)"], ["v-constant", "constant"]];
  section.append(
    intro("model"),
    el("div", { class: "legend" }, legend.map(([c, text]) => el("b", { class: c }, text)), el("span", {}, "▏here a weight meets data")),
    el("div", { class: "two scrolling" },
      el("div", {}, blocks.length ? blocks : el("p", { class: "box muted" }, "No line of the model is known: its text is not kept.")),
      el("div", {}, part("Once for a call, of weights alone", true), part("At each step", false),
        results.length ? box("Results", results) : "")));
}

// --- patterns of D and F ---------------------------------------------------------------------------

function drawPatterns(section) {
  const names = D.states.map((s) => ({ name: s.path, first: s.first, size: s.size }));
  const left = picture("new states", names, "old states", names);
  const select = el("select", { "aria-label": "Operation", style: "max-width: 100%" }, D.patterns.immediate.map((f, n) => {
    const op = D.ops[f.op];
    return el("option", { value: n }, `${op.path}, ${op.kind}`);
  }));
  const right = picture("new states", names, "outputs of the operation", []);
  const title = muted(), sized = (p) => `${count(p.rows)} × ${count(p.columns)}, ${count(p.entries)} non-zero at most`;
  const change = () => {
    const f = D.patterns.immediate[+select.value];
    if (!f) return;
    right.set(f, [{ name: "output ", first: 0, size: f.columns }]);
    const op = D.ops[f.op];
    title.textContent = `${sized(f)}; block of ${op.block}: the trace of each output holds so many states`;
  };
  select.addEventListener("change", change);
  const d = D.patterns.transition;
  section.append(
    intro("patterns"),
    el("div", { class: "legend" }, span("", el("b", { class: "v-state" }, "■"), " may be non-zero"),
      span("", "shaded: the states that the followed weight reaches")),
    el("div", { class: "two" },
      box("D, transition Jacobian", muted(`${sized(d)}; ${D.emitted.jacobians} for D and F`), left.element),
      box(["F, immediate Jacobian of ", D.patterns.immediate.length ? select : "no operation"], title, right.element)));
  left.set(d, names);
  change();
  later.patterns = () => {
    const n = D.patterns.immediate.findIndex((f) => D.ops[f.op].weights.includes(state.weight));
    if (n >= 0) { select.value = n; change(); }
    const reached = new Set(state.weight === null ? [] : D.weights[state.weight].ops.flatMap((k) => D.ops[k].states));
    left.shade(reached);
    right.shade(reached);
    section.querySelectorAll("h3")[1].classList.toggle("on", n >= 0);
  };
}

function picture(rowsAre, rowNames, columnsAre) {
  const canvas = el("canvas", { tabindex: 0, role: "img" }), read = el("p", { class: "read", "aria-live": "polite" });
  let pattern = null, columnNames = [], shaded = new Set();
  const zoom = zoomable(canvas, () => paint());
  const named = (names, n) => {
    const of = names.find((s) => n >= s.first && n < s.first + s.size);
    return of ? (of.size > 1 ? `${of.name}[${n - of.first}]` : of.name) : String(n);
  };
  const unit = () => Math.min(canvas.clientWidth / (pattern.columns || 1), canvas.clientHeight / (pattern.rows || 1));
  function paint() {
    const width = canvas.clientWidth, height = canvas.clientHeight, ratio = window.devicePixelRatio || 1;
    if (!pattern || !width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const style = getComputedStyle(document.documentElement), pen = canvas.getContext("2d");
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.scale(ratio, ratio);
    const cell = unit() * zoom.k, x0 = zoom.x, y0 = zoom.y;
    pen.fillStyle = colour("--soft");
    pen.fillRect(x0, y0, pattern.columns * cell, pattern.rows * cell);
    pen.fillStyle = colour("--on");
    for (const s of rowNames) if (shaded.has(s.name)) pen.fillRect(x0, y0 + s.first * cell, pattern.columns * cell, s.size * cell);
    pen.fillStyle = colour("--state");
    const c = cell * pattern.scale, gap = c > 6 ? 1 : 0, least = Math.max(c - gap, 0.8);
    for (const [r, column, w, h, shift] of pattern.strips) {
      if (!shift) {
        const cell = (n) => pen.fillRect(x0 + (column + (n % w)) * c, y0 + (r + Math.floor(n / w)) * c, least, least);
        if (gap && w * h < 4000) for (let n = 0; n < w * h; n++) cell(n);
        else pen.fillRect(x0 + column * c, y0 + r * c, Math.max(w * c, least), Math.max(h * c, least));
        continue;
      }
      const first = Math.max(0, Math.floor((-y0 / c) - r)), last = Math.min(h, Math.ceil((height - y0) / c - r));
      const step = Math.max(1, Math.floor(0.5 / c));
      for (let i = first; i < last; i += step) pen.fillRect(x0 + (column + i * shift) * c, y0 + (r + i) * c, Math.max(w * c - gap, least), least);
    }
    pen.strokeStyle = colour("--muted");
    pen.lineWidth = 1;
    pen.beginPath();
    const right = x0 + pattern.columns * cell, bottom = y0 + pattern.rows * cell, large = (s) => s.size * cell > 3;
    for (const y of rowNames.filter(large).map((s) => y0 + s.first * cell)) { pen.moveTo(x0, y); pen.lineTo(right, y); }
    for (const x of columnNames.filter(large).map((s) => x0 + s.first * cell)) { pen.moveTo(x, y0); pen.lineTo(x, bottom); }
    pen.rect(x0, y0, pattern.columns * cell, pattern.rows * cell);
    pen.stroke();
    pen.font = `12px ${colour("--mono")}`;
    for (const s of rowNames) {
      if (s.size * cell <= 18) continue;
      const x = Math.max(x0, 0) + 3, y = Math.max(y0 + s.first * cell, 0) + 2;
      pen.fillStyle = colour("--card");
      pen.fillRect(x, y, pen.measureText(s.name).width + 6, 16);
      pen.fillStyle = colour("--text");
      pen.fillText(s.name, x + 3, y + 12);
    }
  }
  canvas.addEventListener("pointermove", (event) => {
    if (!pattern) return;
    const box = canvas.getBoundingClientRect(), cell = unit() * zoom.k;
    const r = Math.floor((event.clientY - box.top - zoom.y) / cell), c = Math.floor((event.clientX - box.left - zoom.x) / cell);
    const inside = r >= 0 && c >= 0 && r < pattern.rows && c < pattern.columns;
    const s = pattern.scale, R = Math.floor(r / s), C = Math.floor(c / s);
    const covers = ([a, b, w, h, shift]) => R >= a && R < a + h && C >= b + (R - a) * shift && C < b + (R - a) * shift + w;
    const does = pattern.strips.some(covers) ? "may depend" : "does not depend", old = columnsAre === "old states" ? "old " : "";
    const coarse = s > 1 ? ` (in cells of ${s} × ${s})` : "";
    read.textContent = inside ? `new ${named(rowNames, r)} ${does} on ${old}${named(columnNames, c)}${coarse}` : "";
  });
  new ResizeObserver(paint).observe(canvas);
  addEventListener("etpc-theme", paint);
  return {
    element: el("div", {}, el("div", { class: "canvas" }, canvas, zoom.buttons), read),
    set(to, columns) {
      pattern = to;
      columnNames = columns;
      canvas.setAttribute("aria-label", `${count(to.entries)} entries; rows are ${rowsAre}, columns ${columnsAre}`);
      zoom.reset();
    },
    shade(names) { shaded = names; paint(); },
  };
}

function zoomable(target, paint, fit = () => ({ k: 1, x: 0, y: 0 })) {
  const z = { k: 1, x: 0, y: 0 }, pointers = new Map();
  const at = (x, y, factor) => {
    const k = Math.min(Math.max(z.k * factor, 0.02), 4000), f = k / z.k;
    Object.assign(z, { k, x: x - (x - z.x) * f, y: y - (y - z.y) * f });
    paint();
  };
  const middle = (factor) => at(target.clientWidth / 2, target.clientHeight / 2, factor);
  const place = (event) => { const box = target.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  z.reset = () => { Object.assign(z, fit()); paint(); };
  z.buttons = el("div", { class: "zoom" },
    button("+", () => middle(1.5), { title: "Zoom in (+)", "data-zoom": "in" }),
    button("−", () => middle(1 / 1.5), { title: "Zoom out (−)", "data-zoom": "out" }),
    button("⤢", () => z.reset(), { title: "All of it (0)", "data-zoom": "all" }));
  target.addEventListener("wheel", (event) => { event.preventDefault(); at(...place(event), Math.exp(-event.deltaY * 0.0015)); }, { passive: false });
  target.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, place(event)); z.moved = false; });
  addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId), now = before && place(event);
    if (!before) return;
    if (Math.abs(now[0] - before[0]) + Math.abs(now[1] - before[1]) > 3) z.moved = true;
    if (!z.moved && pointers.size === 1) return;
    const others = [...pointers.entries()].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
    pointers.set(event.pointerId, now);
    if (others.length) {
      const [o] = others, far = (p) => Math.hypot(p[0] - o[0], p[1] - o[1]) || 1;
      at((now[0] + o[0]) / 2, (now[1] + o[1]) / 2, far(now) / far(before));
    } else { z.x += now[0] - before[0]; z.y += now[1] - before[1]; paint(); }
  });
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, (event) => pointers.delete(event.pointerId));
  return z;
}

// --- the graph -------------------------------------------------------------------------------------

function drawGraph(section) {
  const { nodes, edges, width, height } = D.graph, inner = svg("g", {});
  const board = svg("svg", { role: "img", "aria-label": "The dependency graph", tabindex: 0 }, inner);
  const zoom = zoomable(board, () => inner.setAttribute("transform", `translate(${zoom.x} ${zoom.y}) scale(${zoom.k})`), () => {
    const k = Math.min(board.clientWidth / (width + 40), board.clientHeight / (height + 40), 1.4) || 1;
    return { k, x: (board.clientWidth - width * k) / 2, y: Math.max(20 * k, (board.clientHeight - height * k) / 2) };
  });
  const lines = edges.map((e) => {
    const [x, y, dx, dy] = e.tip;
    const head = [[x, y], [x - 8 * dx + 4 * dy, y - 8 * dy + 4 * dx], [x - 8 * dx - 4 * dy, y - 8 * dy - 4 * dx]];
    return svg("g", { class: `edge ${e.kind}` }, svg("path", { d: e.line }), svg("polygon", { points: head.map((p) => p.join()).join(" ") }),
      svg("title", {}, `${nodes[e.from].path} → ${nodes[e.to].path}: ${KINDS[e.kind]}`));
  });
  const boxes = nodes.map((n) => {
    const [x, y, w, h] = n.box, shift = n.kind === "op" ? 24 : 0;
    const shape = svg("rect", { class: "shape", x, y, width: w, height: h, rx: n.kind === "state" ? h / 2 : n.kind === "op" ? 7 : 2 });
    const made = svg("g", { class: `node ${n.kind}${n.traced ? "" : " untraced"}`, tabindex: -1 }, shape,
      n.claim ? svg("text", { class: `sign ${n.claim}`, x: x + 16, y: y + h / 2 + 5 }, SIGNS[n.claim]) : "",
      n.loop ? svg("text", { class: `detail ${n.loop}`, x: x + w - 24, y: y + h / 2 + 4 }, "↻") : "",
      svg("text", { class: "label", x: x + 10 + shift + (n.kind === "state" ? 10 : 0), y: y + 19 }, n.label),
      svg("text", { class: "detail", x: x + 10 + shift + (n.kind === "state" ? 10 : 0), y: y + 35 }, n.detail),
      svg("title", {}, n.about.join("\n")));
    if (n.weights.length) made.addEventListener("click", () => { if (!zoom.moved) follow(n.weights[0], false); });
    return about("graph", n.weights, made);
  });
  inner.append(...lines, ...boxes);
  const paths = el("div", {});
  const line = (kind) => svg("svg", { width: 30, height: 10 }, svg("g", { class: `edge ${kind}` }, svg("path", { d: "M0 5H28" })));
  const samples = Object.entries(KINDS).map(([kind, text]) => span("", line(kind), ` ${text}`));
  section.append(
    intro("graph"),
    el("div", { class: "legend" }, samples, el("span", {}, "= exact, ≈ approximate, ↻ depends on itself")),
    el("div", { class: "canvas" }, board, zoom.buttons), paths);
  zoom.reset();
  new ResizeObserver(() => zoom.k === 1 && zoom.reset()).observe(board);
  later.graph = () => {
    const w = state.weight, ops = w === null ? [] : D.weights[w].ops.map((n) => D.ops[n]);
    const reached = new Set(ops.flatMap((op) => op.states));
    const all = w === null ? D.escapes.map((_, n) => n) : [...new Set(ops.flatMap((op) => op.escapes))];
    const shown = state.escape === null ? (w === null ? [] : all) : [state.escape];
    const on = new Set(shown.flatMap((n) => D.escapes[n].edges));
    board.classList.toggle("following", w !== null || state.escape !== null);
    const own = (e) => w !== null && nodes[e.from].weights.includes(w) && reached.has(nodes[e.to].path);
    lines.forEach((line, n) => { line.classList.toggle("path", on.has(n)); line.classList.toggle("own", own(edges[n])); });
    const ends = new Set(shown.flatMap((n) => D.escapes[n].nodes));
    boxes.forEach((box, n) => {
      box.classList.toggle("reached", nodes[n].kind === "state" && reached.has(nodes[n].path));
      box.classList.toggle("end", ends.has(n));
    });
    const lost = ops.flatMap((op) => op.lost), whose = w === null ? "all weights" : D.weights[w].path;
    paths.replaceChildren(
      el("h3", { class: "more" }, all.length ? `What escapes, of ${whose}: ${plural(all.length, "path")}` : `Nothing escapes, of ${whose}`),
      ...lost.map((text) => el("p", {}, text)),
      ...all.slice(0, SHOWN).map((n) => el("p", {}, button(D.escapes[n].text, () => { state.escape = state.escape === n ? null : n; later.graph(); },
        { class: "link mono escape-path", "aria-pressed": String(state.escape === n) }))),
      all.length > SHOWN ? el("p", { class: "muted" }, `and ${count(all.length - SHOWN)} more`) : "");
    centre();
  };
  function centre() { // on what is followed, where all of it is too small to read
    const first = nodes.findIndex((n) => state.weight !== null && n.weights.includes(state.weight));
    if (first < 0 || !board.clientWidth || zoom.k > 0.45) return;
    const [x, y, w, h] = nodes[first].box;
    Object.assign(zoom, { k: 0.8, x: board.clientWidth / 2 - (x + w / 2) * 0.8, y: board.clientHeight / 2 - (y + h / 2) * 0.8 });
    inner.setAttribute("transform", `translate(${zoom.x} ${zoom.y}) scale(${zoom.k})`);
  }
}

const KINDS = { kept: "kept by the traces", cut: "cut, nothing is lost", escape: "influence is left out" };

// --- passes ----------------------------------------------------------------------------------------

function touches(pass, weight) {
  if (pass.before === pass.after) return false;
  const of = (n) => D.programs[n].lines.map((l) => D.lines[l]).filter((line) => line.weights.includes(weight));
  const [before, after] = [pass.before, pass.after].map((n) => new Set(of(n).map((line) => renumbered(line.text))));
  return before.size !== after.size || [...before].some((text) => !after.has(text));
}

const renumbered = (text) => text.replace(/\bt\d+\b/g, "t"); // a trace before it that is gone is no change

function drawPasses(section) {
  const stages = el("div", { id: "stages", role: "group", "aria-label": "Passes" }), body = el("div", {});
  D.passes.forEach((p, n) => {
    const saved = D.programs[p.before].bytes - D.programs[p.after].bytes, idle = p.before === p.after;
    const text = saved ? `${saved > 0 ? "−" : "+"}${count(Math.abs(saved))} B` : idle ? (p.ran ? "" : "left out") : "●";
    stages.append(button([el("span", {}, p.name), el("span", { title: "bytes of traces" }, text)], () => choosePass(n),
      { class: idle ? "idle" : null, title: idle ? `${p.does}\n(${p.ran ? "nothing to do here" : "left out of this compilation"})` : p.does }));
  });
  section.append(
    intro("passes"),
    el("div", { class: "passes" }, stages, body));
  later.passes = () => {
    [...stages.children].forEach((item, n) => {
      item.setAttribute("aria-current", String(n === state.pass));
      item.classList.toggle("touches", state.weight !== null && touches(D.passes[n], state.weight));
    });
    body.replaceChildren(...onePass(D.passes[state.pass]));
  };
}

function choosePass(n) {
  state.pass = Math.min(Math.max(n, 0), D.passes.length - 1);
  later.passes?.();
  remember();
}

function onePass(p) {
  const sized = (n) => (n === null ? null : D.programs[n].bytes);
  const alone = state.without && p.without !== null;
  const [left, right] = alone ? [p.without, D.last] : [p.before, p.after];
  const most = Math.max(...D.programs.map((program) => program.bytes), 1);
  const width = (bytes) => el("i", { style: `width: ${(100 * bytes) / most}%` });
  const bar = (name, bytes) => span("", span("muted small", `${name} ${count(bytes)} bytes`), span("bar", width(bytes)));
  const change = (event) => { state.without = event.target.checked; later.passes(); $("without").focus(); };
  const disabled = p.without === null || p.before === p.after;
  const input = el("input", { type: "checkbox", id: "without", checked: state.without, disabled, onchange: change });
  const changed = new Map();
  for (const c of p.changes) (changed.get(c.text) || changed.set(c.text, []).get(c.text)).push(c);
  const notes = [...changed].map(([text, of]) => {
    const bytes = of.reduce((sum, c) => sum + c.bytes, 0), paths = [...new Set(of.map((c) => c.path || "the program"))];
    const shown = paths.slice(0, 6).join(", ") + (paths.length > 6 ? ` and ${count(paths.length - 6)} more` : "");
    const fewer = bytes ? `, ${count(bytes)} bytes fewer for one example` : "", is = of.some((c) => c.weights.includes(state.weight));
    return el("li", { class: is ? "on" : null }, el("b", {}, "Here"), span("", code(shown), `: ${text}${fewer}`));
  });
  return [
    el("h2", {}, code(p.name)),
    ...p.words.map((text) => el("p", { class: "words" }, prose(text))),
    el("ul", { class: "proof" },
      p.points.map(({ label, text }) => el("li", {}, el("b", {}, label || "Measured"), span("", prose(text)))), notes),
    el("div", { class: "bytes" }, bar(alone ? "without it" : "before", sized(left)), bar(alone ? "with it" : "after", sized(right)),
      el("label", { class: "switch" }, input, "the final program without this pass")),
    p.why_not ? el("p", { class: "muted" }, `Without it there is no program: ${p.why_not}`) : "",
    p.before === p.after ? muted(p.ran ? "It found nothing to change in this program." : "It was left out of this compilation.") : "",
    diff(left, right, alone ? ["All passes but this one", "All passes"] : ["Before", "After"]),
  ];
}

function aligned(a, b) {
  const key = (l) => D.lines[l].key, inA = new Set(a.map(key)), inB = new Set(b.map(key)), pairs = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && key(a[i]) === key(b[j])) pairs.push([a[i++], b[j++]]);
    else if (i < a.length && !inB.has(key(a[i]))) pairs.push([a[i++], null]);
    else if (j < b.length && !inA.has(key(b[j]))) pairs.push([null, b[j++]]);
    else if (i < a.length) { inB.delete(key(a[i])); pairs.push([a[i++], null]); }
    else { pairs.push([null, b[j++]]); }
  }
  return pairs;
}

function diff(left, right, heads) {
  const pairs = aligned(D.programs[left].lines, D.programs[right].lines);
  const text = (l) => (l === null ? "" : D.lines[l].text), ofWeight = (l) => l !== null && D.lines[l].weights.includes(state.weight);
  const differ = ([a, b]) => a !== b && renumbered(text(a)) !== renumbered(text(b));
  const few = pairs.length <= 40, near = (n) => pairs.slice(Math.max(n - 1, 0), n + 2).some(differ);
  const kept = pairs.map((_, n) => few || near(n));
  const made = el("div", { class: "diff" }, el("div", { class: "heads" }, heads.map((h) => el("span", {}, h))));
  const one = ([a, b]) => {
    const is = differ([a, b]), row = el("div", { class: `pair${ofWeight(a) || ofWeight(b) ? " on" : ""}` });
    const [old, now] = is && a !== null && b !== null ? marked(text(a), text(b)) : [[text(a)], [text(b)]];
    const side = (l, kind) => (!is ? "alike" : l === null ? null : kind);
    row.append(span(side(a, "old"), old), span(side(b, "new"), now));
    return row;
  };
  let budget = SHOWN;
  for (let n = 0; n < pairs.length;) {
    const here = (k) => pairs[k].some(ofWeight) || (kept[k] && budget > 0);
    if (here(n)) { made.append(one(pairs[n])); n++; budget--; continue; }
    let end = n;
    while (end < pairs.length && !here(end)) end++;
    const hidden = pairs.slice(n, end), changes = hidden.filter(differ).length;
    const says = changes ? `⋯ ${plural(hidden.length, "more line")}, ${plural(changes, "change")}` : `⋯ ${plural(hidden.length, "line")} alike`;
    const fold = button(says, () => fold.replaceWith(...hidden.map(one)), { class: "fold" });
    made.append(fold);
    n = end;
  }
  return made;
}

function marked(a, b) {
  const cut = (text) => text.match(/[\w.\[\]'"]+|\s+|./gu) || [], x = cut(a), y = cut(b);
  const long = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
  for (let i = x.length - 1; i >= 0; i--) { // the longest sequence of tokens that both have, from each place on
    for (let j = y.length - 1; j >= 0; j--) {
      long[i][j] = x[i] === y[j] ? long[i + 1][j + 1] + 1 : Math.max(long[i + 1][j], long[i][j + 1]);
    }
  }
  const old = [], now = [];
  for (let i = 0, j = 0; i < x.length || j < y.length;) {
    if (i < x.length && j < y.length && x[i] === y[j]) { old.push(x[i++]); now.push(y[j++]); }
    else if (j >= y.length || (i < x.length && long[i + 1][j] >= long[i][j + 1])) old.push(el("mark", {}, x[i++]));
    else now.push(el("mark", {}, y[j++]));
  }
  return [old, now];
}

// --- what is emitted -------------------------------------------------------------------------------

const unit = () => D.emitted.hlo.unit;
const instructions = () => (D.emitted.hlo ? D.emitted.hlo.computations.flatMap((c) => c.instructions) : []);

function drawEmitted(section) {
  const e = D.emitted, hlo = e.hlo;
  section.append(intro("emitted"));
  const text = box("The window, as emitted", el("pre", { class: "text" }, e.text.join("\n")));
  if (!hlo) {
    section.append(text, muted("The window was not compiled for this view. With ", code("hlo=True"), " it is, and its instructions are shown."));
    return;
  }
  const all = instructions(), loops = hlo.computations.filter((c) => c.role === "loop");
  const batch = hlo.batch_size === null ? "one example" : plural(hlo.batch_size, "example");
  section.append(
    cards([...(unit() ? [[`${unit()} of a window`, count(all.reduce((sum, i) => sum + i[unit()], 0))]] : []),
      ["instructions that do work", count(all.length)], ["loops", count(loops.length)], ["products of matrices", count(hlo.products.length)],
      ["bytes of temporaries", count(hlo.bytes.temp)], ["bytes of arguments", count(hlo.bytes.argument)],
      ["bytes of results", count(hlo.bytes.output)]]),
    muted(`${plural(hlo.steps, "step")}, ${batch}, a sum of squares as the loss; compiled by XLA for ${hlo.device}. ` +
      "Instructions are counted outside of fusions, without those that only name or reshape." +
      (unit() ? ` An estimate of its compiler: ${unit()} are those of all trips of a loop, and nothing was run.` : "")),
    el("div", { class: "two" }, text, byOrigin(all)),
    hlo.products.length ? el("details", { class: "box", open: hlo.products.length <= 30 },
      el("summary", {}, "Products ", span("", "where a weight meets data, credit or a trace")), table(hlo.products, true)) : "",
    ...hlo.computations.map(computation));
  later.emitted = () => section.querySelectorAll("details.box").forEach((d) => { if (d.holds?.(state.weight)) d.open = true; });
}

function byOrigin(all) {
  const rows = new Map();
  for (const i of all) for (const term of i.terms.length ? i.terms : ["other"]) {
    const row = rows.get(term) || rows.set(term, { term, n: 0, bytes: 0, cost: 0 }).get(term);
    row.n++; row.bytes += i.bytes; row.cost += i[unit()] || 0;
  }
  const ofTerm = new Map(D.ops.flatMap((op) => [[`grad ${op.path}`, op.weights], [`trace ${op.path}`, op.weights]]));
  const sorted = [...rows.values()].sort((a, b) => b.cost - a.cost || b.n - a.n);
  const heads = ["term", "instructions", "bytes written", ...(unit() ? [unit()] : [])];
  return el("div", { class: "box" }, el("h3", {}, "Instructions by origin"), el("table", {},
    el("thead", {}, el("tr", {}, heads.map((t, n) => el("th", { class: n ? "number" : null }, t)))),
    el("tbody", {}, sorted.slice(0, SHOWN).map((r) => {
      const of = ofTerm.get(r.term) || [], pick = of.length ? { "data-pick": of[0], onclick: () => follow(of[0], false) } : {};
      const cells = [code(r.term), count(r.n), count(r.bytes), count(r.cost)].slice(0, heads.length);
      return about("emitted", of, el("tr", pick, cells.map((cell, n) => el("td", { class: n ? "number" : null }, cell))));
    }))), sorted.length > SHOWN ? el("p", { class: "muted" }, `and ${count(sorted.length - SHOWN)} more`) : "");
}

function computation(c) {
  const times = c.trips === null ? "" : `, ${plural(c.trips, "time")}`;
  const role = { entry: "the window", loop: `body of a loop${times}`, call: "called", branch: "a branch" }[c.role];
  const terms = [...new Set(c.instructions.flatMap((i) => i.terms))].filter((t) => t.includes(" "));
  const of = c.role !== "entry" && terms.length ? `: ${terms.slice(0, 3).join(", ")}${terms.length > 3 ? " …" : ""}` : "";
  const says = ` ${role}, ${plural(c.instructions.length, "instruction")}${of}`;
  const made = el("details", { class: "box" }, el("summary", {}, code(c.name), span("", says)));
  const fillIn = () => { if (made.open && made.children.length === 1) { made.append(table(c.instructions)); mark("emitted"); } };
  made.holds = (weight) => c.instructions.some((i) => i.weights.includes(weight));
  made.addEventListener("toggle", fillIn);
  if (c.role === "entry" && c.instructions.length <= SHOWN) { made.open = true; fillIn(); }
  return made;
}

function table(rows, products = false) {
  const costed = !products && unit(), cells = (...all) => all.filter((cell) => cell !== null);
  const columns = cells(products ? "product" : "instruction", "result", "bytes", costed ? unit() : null, "comes from");
  const made = el("div", { class: costed ? "costed" : null }, el("div", { class: "instruction head" }, columns.map((name) => span("", name))));
  const one = (i) => {
    const from = el("span", {}, i.terms.map((t) => el("span", { class: "term" }, t)), i.lines.map((n) => {
      const line = D.sources.lines[n];
      const go = () => { show("model"); $("view-model").chooseLine(n); };
      return button(`${line.file.split("/").pop()}:${line.line} `, go, { class: "link mono term" });
    }), i.terms.length || i.lines.length ? "" : el("span", { class: "inside" }, (i.op_name || "").replace(/^jit\(run\)\//, "")));
    const inside = products ? i.of.join(" · ") : i.inside.join(", ");
    const what = span("", i.name, inside ? span("inside", ` ${inside}`) : "");
    const row = el("div", { class: "instruction", title: i.op_name || null },
      ...cells(what, span("", i.type), span("", count(i.bytes)), costed ? span("", count(i[unit()])) : null, from));
    return about("emitted", i.weights, row);
  };
  made.append(...rows.slice(0, SHOWN).map(one));
  if (rows.length > SHOWN) {
    const add = () => { more.replaceWith(...rows.slice(SHOWN).map(one)); mark("emitted"); };
    const more = button(`${count(rows.length - SHOWN)} more`, add, { class: "more" });
    made.append(more);
  }
  return made;
}

// --- keys, theme, start ----------------------------------------------------------------------------

const KEYS = [["1 … 6", "a panel"], ["← →", "the panel before or after"], ["↑ ↓", "the pass before or after, in Passes"],
  ["w", "the program without the pass, in Passes"], ["[ ]", "the weight before or after"], ["/", "search a weight"],
  ["Esc", "follow no weight, close this"], ["+ − 0", "zoom, all of it"], ["d", "light or dark"], ["?", "these keys"]];

function help() {
  const dialog = $("help");
  if (dialog.open) return dialog.close();
  const keys = (k) => el("dt", {}, k.split(" ").flatMap((one) => [el("kbd", {}, one), " "]));
  const list = el("dl", {}, KEYS.flatMap(([k, text]) => [keys(k), el("dd", {}, text)]));
  dialog.replaceChildren(el("h2", {}, "Keys"), list, button("Close", () => dialog.close()));
  dialog.showModal();
}

function theme(to) {
  document.documentElement.dataset.theme = to;
  $("theme").textContent = to === "dark" ? "Light" : "Dark";
  dispatchEvent(new Event("etpc-theme"));
}

function toggleTheme() {
  const to = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  theme(to);
  try { localStorage.setItem("etpc-theme", to); } catch { /* a page without storage */ }
}

function pressed(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "checkbox";
  if (event.key === "Escape" && !$("help").open) {
    if (typing) return event.target.blur();
    if (state.weight !== null) follow(state.weight);
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || ($("help").open && event.key !== "?")) return;
  const place = PANELS.findIndex(([name]) => name === state.panel), zoom = { "+": "in", "=": "in", "-": "out", "−": "out", 0: "all" }[event.key];
  const turn = (by) => show(PANELS[(place + by + PANELS.length) % PANELS.length][0], true);
  const weight = (by) => {
    const n = D.weights.length, next = ((state.weight ?? (by > 0 ? -1 : 0)) + by + n) % n;
    if (n && next !== state.weight) follow(next);
  };
  const inPasses = {
    ArrowUp: () => choosePass(state.pass - 1), ArrowDown: () => choosePass(state.pass + 1),
    w: () => { state.without = !state.without; later.passes(); },
  };
  const act = {
    ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), "[": () => weight(-1), "]": () => weight(1), "?": help, d: toggleTheme,
    "/": () => $("find").focus(),
    ...(state.panel === "passes" ? inPasses : {}),
  }[event.key];
  if (act) act();
  else if (zoom) document.querySelectorAll(`#view-${state.panel} [data-zoom="${zoom}"]`).forEach((b) => b.click());
  else if (/^[1-6]$/.test(event.key)) show(PANELS[+event.key - 1][0], true);
  else return;
  event.preventDefault();
}

function start() {
  document.querySelector("h1").textContent = D.title;
  $("lead").textContent = `${D.rule}, for ${D.target}`;
  const tabs = document.querySelector("nav");
  for (const [name, title] of PANELS) {
    const attributes = { id: `tab-${name}`, role: "tab", "aria-controls": `view-${name}`, "aria-selected": "false" };
    tabs.append(button([title, el("span", { class: "count", hidden: true })], () => show(name), attributes));
    $("panels").append(el("section", { id: `view-${name}`, role: "tabpanel", "aria-labelledby": `tab-${name}`, hidden: true }));
  }
  drawList();
  const first = D.passes.findIndex((p) => p.before !== p.after);
  state.pass = Math.max(first, 0);
  const weight = recall();
  let kept = null;
  try { kept = localStorage.getItem("etpc-theme"); } catch { /* a page without storage */ }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  theme(kept || (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", (event) => theme(event.matches ? "dark" : "light"));
  $("theme").addEventListener("click", toggleTheme);
  $("keys").addEventListener("click", help);
  addEventListener("keydown", pressed);
  show(state.panel);
  if (weight !== null) follow(weight);
}

start();
