"use strict";
// What the page shows follows from `data` (tokenskip_lib/analyses/page.py) and `state`. A change of the state draws
// everything again. Texts of models and problems only ever become text nodes.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const methods = new Map(data.methods.map((method) => [method.name, method]));
const scorers = new Map(data.scorers.map((scorer) => [scorer.name, scorer]));
const original = data.points.findIndex((point) => point.method === "original");
const hidden = new Set(); // methods that are not in the figure

// A choice is what a card shows: "scorer:NAME", "method:NAME" (which is asked at a ratio), or "point:NUMBER".
const choiceOf = (number) => {
  const { method } = data.points[number];
  return methods.get(method).takes === "ratio" ? `method:${method}` : `point:${number}`;
};
const choices = [...scorers.keys()].map((name) => `scorer:${name}`);
const writers = [...new Set(data.points.map((_, number) => choiceOf(number)))];
const followers = writers.filter((choice) => choice.startsWith("method:"));
const first = followers.includes("method:tokenskip") ? "method:tokenskip" : followers[0] ?? writers[0];
const middle = data.ratios.includes(0.7) ? 0.7 : data.ratios[0];
const state = { problem: 0, ratio: middle, writer: first, left: choices[0], right: first, pointed: null };

// Small parts.

function make(name, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS(at("chart").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}%`;
const signed = (points) => `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(1)}`;
const count = (number, what) => `${number} ${what}${number === 1 ? "" : "s"}`;
const brief = (text, length = 80) => (text.length > length ? `${text.slice(0, length).trimEnd()}…` : text);
const ratioText = (ratio) => (Number.isInteger(ratio) ? ratio.toFixed(1) : String(ratio));

function pointName(number) {
  const { method, level } = data.points[number];
  return level ? `${method} at ${level}` : method;
}

function difference(point) {
  const interval = `${signed(100 * point.difference_low)} to ${signed(100 * point.difference_high)}`;
  return `${signed(100 * point.difference)} points against the original (95% interval ${interval})`;
}

/** The number of the point that a choice means at the chosen ratio; -1 if it was not asked at this ratio. */
function pointOf(choice) {
  const [kind, name] = [choice.slice(0, choice.indexOf(":")), choice.slice(choice.indexOf(":") + 1)];
  if (kind === "point") return Number(name);
  return data.points.findIndex((point) => point.method === name && point.ratio === state.ratio);
}

function notAsked(choice) {
  const name = choice.slice(choice.indexOf(":") + 1);
  const asked = data.points.filter((point) => point.method === name).map((point) => ratioText(point.ratio));
  return `${name} was not asked at ratio ${ratioText(state.ratio)}, only at ${asked.reverse().join(", ")}.`;
}

function verdict(answer, gold) {
  const stated = answer.stated ?? (answer.cut_off ? "cut off before an answer" : "no answer");
  return answer.right
    ? make("span", { class: "right", text: `✓ right: ${stated}` })
    : make("span", { class: "wrong", text: `✗ wrong: ${stated}, not ${gold}` });
}

// Cards.

function writtenCard(number, problem) {
  const answer = problem.answers[number];
  return [
    make("p", { class: "chain", text: data.texts[answer.text] || "(no chain)" }),
    make(
      "p",
      { class: "facts" },
      verdict(answer, problem.answer),
      make("span", { text: count(answer.tokens, "token") }),
      make("span", { text: `${answer.seconds.toFixed(2)} s` }),
    ),
    make("p", { class: "note", text: methods.get(data.points[number].method).says }),
  ];
}

/** The original's chain with the skipped words struck through. */
function struckChain(problem, kept) {
  const letters = Array.from(data.texts[problem.chain]); // spans count code points
  const slice = (start, stop) => letters.slice(start, stop).join("");
  const runs = []; // neighbouring spans that are all kept, or all skipped
  problem.spans.forEach(([start, stop], index) => {
    if (runs.length && runs.at(-1).kept === kept[index]) runs.at(-1).stop = stop;
    else runs.push({ kept: kept[index], start, stop });
  });
  const chain = make("p", { class: "chain" });
  let end = 0;
  for (const run of runs) {
    const text = slice(run.start, run.stop);
    chain.append(slice(end, run.start), run.kept === "1" ? text : make("s", { text }));
    end = run.stop;
  }
  chain.append(slice(end));
  return chain;
}

function prunedCard(name, problem) {
  const pruned = problem.pruned[name]?.[data.ratios.indexOf(state.ratio)];
  if (!pruned) return [make("p", { text: "The original wrote no chain here." })];
  const tokens = `${pruned.tokens} of ${count(problem.answers[original].tokens, "token")}`;
  return [
    struckChain(problem, pruned.kept),
    make("p", { class: "note", text: "What is left:" }),
    make("p", { class: "left-over", text: data.texts[pruned.text] }),
    make("p", { class: "facts" }, make("span", { text: tokens })),
    make("p", { class: "note", text: `A word is important if ${scorers.get(name).says}.` }),
  ];
}

function showCard(side) {
  const problem = data.problems[state.problem];
  const choice = state[side];
  at(side).value = choice;
  if (choice.startsWith("scorer:")) {
    at(`${side}-card`).replaceChildren(...prunedCard(choice.slice("scorer:".length), problem));
  } else {
    const number = pointOf(choice);
    const parts = number < 0 ? [make("p", { text: notAsked(choice) })] : writtenCard(number, problem);
    at(`${side}-card`).replaceChildren(...parts);
  }
}

// The bar, the problem, and what is lost and gained.

function showBar() {
  const number = pointOf(state.writer);
  at("ratio").value = data.ratios.indexOf(state.ratio);
  at("ratio").setAttribute("aria-valuetext", ratioText(state.ratio));
  at("ratio-value").textContent = ratioText(state.ratio);
  if (number < 0) {
    at("now").textContent = notAsked(state.writer);
    return;
  }
  const point = data.points[number];
  const parts = [`${pointName(number)}: ${percent(point.accuracy)} right`, `${point.chain_tokens.toFixed(1)} tokens`];
  if (number !== original) parts.push(`${signed(100 * point.difference)} points against the original`);
  at("now").textContent = parts.join(" · ");
}

function showProblem() {
  const problem = data.problems[state.problem];
  const whole = problem.answers[original];
  at("problems").value = state.problem;
  at("before").disabled = state.problem === 0;
  at("after").disabled = state.problem === data.problems.length - 1;
  at("question").textContent = problem.question;
  at("gold").replaceChildren(
    make("strong", { text: `Answer: ${problem.answer}. ` }),
    "The original: ",
    verdict(whole, problem.answer),
    `, ${count(whole.tokens, "token")}`,
  );
  showCard("left");
  showCard("right");
}

function showChanges() {
  const number = pointOf(state.writer);
  const changed = (isRight) =>
    data.problems
      .map((problem, index) => ({ problem, index }))
      .filter(({ problem }) => {
        const own = problem.answers[number]?.right;
        return own === isRight && problem.answers[original].right === !isRight;
      });
  const lists = { lost: changed(false), gained: changed(true) };
  const point = data.points[number];
  if (number < 0) at("changes-note").textContent = notAsked(state.writer);
  else if (number === original) at("changes-note").textContent = "All other methods are compared with the original.";
  else {
    const all = data.problems.length === data.n ? "" : ` The first ${data.problems.length} are on this page.`;
    const sums = `loses ${point.lost} and gains ${point.gained} of ${count(data.n, "problem")}`;
    at("changes-note").textContent = `${pointName(number)} ${sums}, compared with the original.${all}`;
  }
  for (const [name, says] of [["lost", "original right, now wrong"], ["gained", "original wrong, now right"]]) {
    at(`${name}-title`).textContent = `${name === "lost" ? "Lost" : "Gained"}: ${lists[name].length} (${says})`;
    at(name).replaceChildren(
      ...lists[name].map(({ problem, index }) => {
        const button = make("button", { type: "button", text: `${index + 1}. ${brief(problem.question)}` });
        button.setAttribute("aria-current", String(index === state.problem));
        button.addEventListener("click", () => {
          update({ problem: index });
          at("problem-title").focus({ preventScroll: true });
          at("problem").scrollIntoView({ block: "start" });
        });
        return make("li", {}, button);
      }),
    );
  }
}

// The figure.

const SHAPES = {
  "*": "M0-10 2.6-3.4 9.5-3.1 4.2 1.3 5.9 8.1 0 4.3-5.9 8.1-4.2 1.3-9.5-3.1-2.6-3.4Z",
  s: "M-6-6H6V6H-6Z",
  D: "M0-8 8 0 0 8-8 0Z",
  "^": "M0-8 7.5 6H-7.5Z",
  P: "M-2.6-7.5H2.6V-2.6H7.5V2.6H2.6V7.5H-2.6V2.6H-7.5V-2.6H-2.6Z",
  X: "M-7-4-4-7 0-3 4-7 7-4 3 0 7 4 4 7 0 3-4 7-7 4-3 0Z",
};
const DISC = "M-6.5 0A6.5 6.5 0 1 0 6.5 0A6.5 6.5 0 1 0-6.5 0Z";

function inMethod(name, ...children) {
  const group = draw("g", { class: "method" }, ...children);
  const { colour } = methods.get(name);
  group.style.setProperty("--own", colour === "black" ? "var(--ink)" : colour);
  return group;
}

const shape = (name) => draw("path", { class: "shape", d: SHAPES[methods.get(name).marker] ?? DISC });

/** The numbers of the points in the figure, those that follow a ratio first; and the range of the accuracy axis. */
function inView() {
  const across = document.querySelector("[name=across]:checked").value;
  const visible = data.points
    .map((_, number) => number)
    .filter((number) => !hidden.has(data.points[number].method))
    .filter((number) => across === "tokens" || methods.get(data.points[number].method).takes !== "strength");
  const best = Math.max(...visible.map((number) => data.points[number].accuracy));
  const near = visible.filter((number) => data.points[number].accuracy >= best - 0.35);
  const zoomed = at("zoom").checked && near.length;
  const numbers = zoomed ? near : visible;
  const step = 0.05;
  const low = zoomed ? Math.floor(Math.min(...near.map((n) => data.points[n].accuracy_low)) / step) * step : 0;
  const high = zoomed ? Math.ceil(Math.max(...near.map((n) => data.points[n].accuracy_high)) / step) * step : 1;
  return { across, numbers, low, high };
}

function showChart() {
  const svg = at("chart");
  const focused = svg.contains(document.activeElement);
  const { across, numbers, low, high } = inView();
  const width = Math.max(svg.parentElement.clientWidth, 280);
  const height = Math.round(Math.min(Math.max(width * 0.42, 300), 460));
  const step = width < 700 ? 11 : 16; // between points that are drawn side by side
  const [left, bottom, top] = [54, height - 52, 36];
  const acrossOf = (point) => (across === "tokens" ? point.chain_tokens : point.ratio);
  const most = Math.max(...numbers.map((number) => acrossOf(data.points[number])), Number.MIN_VALUE);
  const right = width - 12 - 7 * step;
  const x = (value) => left + ((right - left) * value) / most;
  const y = (share) => bottom - ((bottom - top) * (share - low)) / (high - low || 1);

  // What is as long as the original would hide it, and is drawn beside it. All else stays in place.
  const places = new Map(
    numbers.map((number) => {
      const point = data.points[number];
      return [number, { x: x(acrossOf(point)), y: y(point.accuracy), low: y(point.accuracy_low), high: y(point.accuracy_high) }];
    }),
  );
  const start = x(acrossOf(data.points[original]));
  const same = numbers.filter((number) => Math.abs(places.get(number).x - start) < step - 1);
  const stays = (number) => data.points[number].method === first.slice("method:".length);
  same
    .filter((number) => !stays(number))
    .forEach((number, index) => {
      places.get(number).x = start + step * (index + Number(same.some(stays)));
    });

  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("height", height);
  const axes = draw("g", { "aria-hidden": "true" });
  const gap = [0.05, 0.1, 0.25].find((size) => (high - low) / size <= 6);
  for (let share = Math.ceil(low / gap - 1e-9) * gap; share <= high + 1e-9; share += gap) {
    axes.append(draw("line", { class: "grid", x1: left, x2: width - 8, y1: y(share), y2: y(share) }));
    const label = draw("text", { x: left - 8, y: y(share) + 5, "text-anchor": "end" });
    label.textContent = percent(share, 0);
    axes.append(label);
  }
  const ticks = across === "ratio" ? [0, 0.25, 0.5, 0.75, 1] : tokenTicks(most);
  for (const tick of ticks) {
    const label = draw("text", { x: x(tick), y: bottom + 20, "text-anchor": "middle" });
    label.textContent = String(tick);
    axes.append(label);
  }
  const title = draw("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" });
  title.textContent = across === "tokens" ? "tokens of the chain (mean)" : "ratio asked for (1: no ratio)";
  const name = draw("text", { x: 0, y: 14 });
  name.textContent = "problems solved";
  axes.append(title, name);

  const selected = pointOf(state.writer);
  const entry = numbers.includes(selected) ? selected : numbers[0];
  const curves = [...methods.keys()].map((method) => {
    const own = numbers.filter((number) => data.points[number].method === method);
    const path = own.map((number, index) => `${index ? "L" : "M"}${places.get(number).x} ${places.get(number).y}`);
    return inMethod(method, draw("path", { class: "curve", d: path.join("") || "M0 0" }));
  });
  const marks = numbers.map((number) => {
    const point = data.points[number];
    const place = places.get(number);
    const mark = draw("g", {
      role: "radio",
      "aria-checked": String(number === selected),
      "aria-label": `${pointName(number)}: ${percent(point.accuracy)} right, ${point.chain_tokens.toFixed(1)} tokens`,
      "data-number": number,
      tabindex: number === entry ? "0" : "-1",
      transform: `translate(${place.x} ${place.y})`,
    });
    const ends = [place.low - place.y, place.high - place.y];
    const bar = draw("path", { class: "bar", d: `M0 ${ends[0]}V${ends[1]}M-4 ${ends[0]}H4M-4 ${ends[1]}H4` });
    mark.append(inMethod(point.method, bar, shape(point.method)), draw("circle", { class: "hit", r: 12 }));
    return mark;
  });
  svg.replaceChildren(axes, ...curves, ...marks);
  if (places.has(selected)) {
    const place = places.get(selected);
    const above = place.high - 10 > 30;
    const end = place.x > width / 2;
    const label = draw("text", {
      class: "strong",
      "aria-hidden": "true",
      x: place.x + (end ? 14 : -14),
      y: above ? place.high - 10 : place.low + 22,
      "text-anchor": end ? "end" : "start",
    });
    label.textContent = pointName(selected);
    svg.append(label);
  }
  if (focused) svg.querySelector('[tabindex="0"]')?.focus();
  showNote(numbers);
}

function tokenTicks(most) {
  const size = 10 ** Math.floor(Math.log10(most / 2));
  const gap = [1, 2, 5, 10].map((times) => times * size).find((step) => most / step <= 6);
  return Array.from({ length: Math.floor(most / gap) + 1 }, (_, index) => index * gap);
}

function showNote(numbers) {
  const out = data.points.map((_, n) => n).filter((n) => !numbers.includes(n) && !hidden.has(data.points[n].method));
  const named = out.map((n) => `${pointName(n)} (${percent(data.points[n].accuracy)})`).join(", ");
  const notes = ["Lines up and down: 95% intervals. Methods as long as the original are drawn beside it."];
  if (out.length) notes.push(`Not in this view: ${named}.`);
  at("chart-note").textContent = notes.join(" ");
}

/** The card below the figure: what a point stands for, and the chosen problem's chain at it. */
function showPoint(number) {
  state.pointed = number;
  if (number < 0) {
    at("point").replaceChildren(make("p", { text: notAsked(state.writer) }));
    return;
  }
  const point = data.points[number];
  const problem = data.problems[state.problem];
  const interval = `${percent(point.accuracy_low)} to ${percent(point.accuracy_high)}`;
  at("point").replaceChildren(
    make("h3", { text: pointName(number) }),
    make(
      "p",
      { class: "facts" },
      make("span", { text: `${percent(point.accuracy)} right (${interval})` }),
      make("span", { text: `${point.chain_tokens.toFixed(1)} tokens, ${percent(point.actual_ratio, 0)} of the original's` }),
      make("span", { text: `${point.seconds_per_problem.toFixed(2)} s a problem` }),
    ),
    ...(number === original ? [] : [make("p", { text: difference(point) })]),
    make("p", { class: "note", text: `Problem ${state.problem + 1}: ${brief(problem.question, 160)}` }),
    ...writtenCard(number, problem),
  );
}

/** What a pointer and keys do in the figure. Pointing shows a point in the card, choosing shows it everywhere. */
function listenToChart() {
  const chart = at("chart");
  const numberAt = ({ target }) => Number(target.closest("[data-number]")?.dataset.number ?? pointOf(state.writer));
  let last = "";
  chart.addEventListener("pointermove", (event) => {
    const place = `${event.clientX} ${event.clientY}`;
    if (place !== last && state.pointed !== numberAt(event)) showPoint(numberAt(event));
    last = place; // a figure that is drawn anew under a resting pointer is not pointed at
  });
  chart.addEventListener("pointerleave", () => showPoint(pointOf(state.writer)));
  chart.addEventListener("click", (event) => {
    if (event.target.closest("[data-number]")) choosePoint(numberAt(event));
  });
  chart.addEventListener("focusin", (event) => showPoint(numberAt(event)));
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Enter: 0, " ": 0 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const marks = [...chart.querySelectorAll("[data-number]")];
    const next = marks[(marks.indexOf(document.activeElement) + move + marks.length) % marks.length];
    choosePoint(Number(next.dataset.number));
  });
}

function showLegend() {
  at("legend").replaceChildren(
    ...[...methods.values()].map(({ name, says }) => {
      const button = make("button", { type: "button", title: says, "aria-pressed": String(!hidden.has(name)) });
      button.append(draw("svg", { viewBox: "-11 -11 22 22", "aria-hidden": "true" }, inMethod(name, shape(name))), name);
      button.addEventListener("click", () => {
        if (!hidden.delete(name)) hidden.add(name);
        button.setAttribute("aria-pressed", String(!hidden.has(name)));
        showChart();
      });
      return button;
    }),
  );
}

function showTable() {
  const head = ["method", "right", "95% interval", "points", "tokens", "of the original's", "s a problem", "lost", "gained"];
  const rows = data.points.map((point, number) => [
    pointName(number),
    percent(point.accuracy),
    `${percent(point.accuracy_low)} to ${percent(point.accuracy_high)}`,
    number === original ? "" : signed(100 * point.difference),
    point.chain_tokens.toFixed(1),
    percent(point.actual_ratio, 0),
    point.seconds_per_problem.toFixed(2),
    point.lost,
    point.gained,
  ]);
  at("table").replaceChildren(
    make("thead", {}, make("tr", {}, ...head.map((text) => make("th", { scope: "col", text })))),
    make("tbody", {}, ...rows.map((cells) => make("tr", {}, ...cells.map((text) => make("td", { text }))))),
  );
}

// What changes the state.

function update(changes) {
  Object.assign(state, changes);
  showBar();
  showChart();
  showPoint(pointOf(state.writer));
  showProblem();
  showChanges();
  const { ratio, left, right } = state;
  const link = new URLSearchParams({ problem: data.problems[state.problem].id, ratio, left, right });
  history.replaceState(null, "", `#${link}`);
}

function choosePoint(number) {
  const writer = choiceOf(number);
  update({ writer, right: writer, ...(writer.startsWith("method:") && { ratio: data.points[number].ratio }) });
}

/** The state that a link names; what the page does not have is left as it is. */
function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  const problem = data.problems.findIndex(({ id }) => id === link.get("problem"));
  if (problem >= 0) state.problem = problem;
  if (data.ratios.includes(Number(link.get("ratio")))) state.ratio = Number(link.get("ratio"));
  for (const side of ["left", "right"]) {
    if ([...choices, ...writers].includes(link.get(side))) state[side] = link.get(side);
  }
  if (writers.includes(state.right)) state.writer = state.right;
}

function fillChoices(side) {
  const option = (choice, text) => make("option", { value: choice, text });
  at(side).append(
    make("optgroup", { label: "Original, pruned by" }, ...choices.map((choice) => option(choice, `pruned by ${choice.slice(7)}`))),
    make(
      "optgroup",
      { label: "Written by the model" },
      ...writers.map((choice) => {
        const name = choice.startsWith("point:") ? pointName(Number(choice.slice(6))) : choice.slice(7);
        return option(choice, `written by ${name}`);
      }),
    ),
  );
  at(side).addEventListener("change", () => {
    const choice = at(side).value;
    update({ [side]: choice, ...(choice.startsWith("scorer:") ? {} : { writer: choice }) });
  });
}

function showTheme() {
  const root = document.documentElement;
  const dark = root.style.colorScheme
    ? root.style.colorScheme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  at("theme").textContent = dark ? "☀ light" : "☾ dark";
  return dark;
}

function start() {
  const model = data.model.split("/").at(-1);
  const about = `${model} solves ${count(data.n, "problem")} step by step. The ratio is the share of tokens to keep.`;
  at("about").textContent = about;
  at("ratio").max = data.ratios.length - 1;
  at("pruning-note").textContent = data.rule;
  const digest = data.source_sha256.slice(0, 12);
  at("origin").textContent =
    `Made by tokenskip page --profile ${data.profile} from ${data.source} (sha256 ${digest}), commit ` +
    `${data.commit ?? "unknown"}. Seconds are wall time a problem, in batches of ${data.batch_size}.`;
  data.problems.forEach((problem, index) => {
    at("problems").append(make("option", { value: index, text: `${index + 1}. ${brief(problem.question, 100)}` }));
  });
  fillChoices("left");
  fillChoices("right");
  showLegend();
  showTable();
  showTheme();
  at("ratio").addEventListener("input", () => {
    const writer = state.writer.startsWith("point:") ? first : state.writer;
    update({ ratio: data.ratios[Number(at("ratio").value)], writer });
  });
  at("problems").addEventListener("change", () => update({ problem: Number(at("problems").value) }));
  at("before").addEventListener("click", () => update({ problem: state.problem - 1 }));
  at("after").addEventListener("click", () => update({ problem: state.problem + 1 }));
  at("view").addEventListener("change", showChart);
  at("theme").addEventListener("click", () => {
    document.documentElement.style.colorScheme = showTheme() ? "light" : "dark";
    showTheme();
  });
  listenToChart();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  let width = 0;
  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width === width) return; // a card that grows must not take the figure from under a pointer
    width = contentRect.width;
    showChart();
  }).observe(at("chart").parentElement);
  readLink();
  update({});
}

start();
