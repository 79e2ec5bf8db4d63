// Charts as SVG. Each is also a sentence for who does not see it, a table behind a fold, and can be
// read point by point with the arrow keys.

import { h, number, s, table } from "/page/dom.js";

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 220, 58, 12, 12, 30];
const TABLE_ROWS = 12;

export function lineChart(first) {
  let curve = first;
  let place = null;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "chart" });
  const readout = h("output", { class: "readout", "aria-live": "polite" });
  const values = h("div");
  const { label } = curve.measure;
  const box = h("div", {
    class: "chart-box",
    tabindex: "0",
    role: "group",
    "aria-label": `${label}: left and right arrows read its points`,
    onkeydown: (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      point((place ?? (step > 0 ? -1 : curve.steps.length)) + step);
    },
    onpointermove: (event) => {
      const bounds = svg.getBoundingClientRect();
      const x = ((event.clientX - bounds.left) / bounds.width) * WIDTH;
      point(nearest(curve, x));
    },
    onpointerleave: () => { place = null; draw(); },
  }, svg);
  const element = h("figure", { class: "figure", "data-curve": curve.measure.key },
    h("figcaption", {}, h("strong", {}, label), readout), box,
    h("details", {}, h("summary", {}, "As a table"), values));

  function point(wanted) {
    place = Math.max(0, Math.min(curve.steps.length - 1, wanted));
    draw();
  }

  function draw() {
    const at = place === null ? curve.steps.length - 1 : Math.min(place, curve.steps.length - 1);
    readout.textContent = `step ${curve.steps[at]}: ${number(curve.values[at], curve.measure.digits)}`;
    svg.replaceChildren(...drawing(curve, place === null ? null : at));
    svg.setAttribute("aria-label", sentence(curve));
    element.dataset.points = String(curve.recorded);
  }

  function update(fresh) {
    curve = fresh;
    draw();
    values.replaceChildren(asTable(curve));
  }
  update(first);
  return { element, update };
}

function scales(curve) {
  const { steps, values } = curve;
  const [x0, x1] = [steps[0], steps.at(-1)];
  let [y0, y1] = [Math.min(...values), Math.max(...values)];
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
  const pad = (y1 - y0) * 0.06;
  [y0, y1] = [y0 - pad, y1 + pad];
  return {
    x: (step) => LEFT + (x1 === x0 ? 0.5 : (step - x0) / (x1 - x0)) * (WIDTH - LEFT - RIGHT),
    y: (value) => TOP + (1 - (value - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM),
    ticks: [y0 + pad, (y0 + y1) / 2, y1 - pad],
    ends: [x0, x1],
  };
}

function drawing(curve, marked) {
  const { steps, values } = curve;
  const scale = scales(curve);
  const points = steps.map((step, place) => `${scale.x(step).toFixed(1)},${scale.y(values[place]).toFixed(1)}`);
  const floor = HEIGHT - BOTTOM;
  const parts = scale.ticks.flatMap((value) => [
    s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: scale.y(value), y2: scale.y(value) }),
    s("text", { class: "tick", x: LEFT - 8, y: scale.y(value) + 4, "text-anchor": "end" }, number(value, 3)),
  ]);
  parts.push(
    s("text", { class: "tick", x: LEFT, y: HEIGHT - 8 }, `step ${scale.ends[0]}`),
    s("text", { class: "tick", x: WIDTH - RIGHT, y: HEIGHT - 8, "text-anchor": "end" }, String(scale.ends[1])));
  if (steps.length > 1) {
    parts.push(s("polygon", { class: "area", points: `${scale.x(steps[0])},${floor} ${points.join(" ")} ${scale.x(steps.at(-1))},${floor}` }));
    parts.push(s("polyline", { class: "curve", points: points.join(" ") }));
  }
  const at = marked ?? steps.length - 1;
  if (marked !== null) parts.push(s("line", { class: "cursor", x1: scale.x(steps[at]), x2: scale.x(steps[at]), y1: TOP, y2: floor }));
  parts.push(s("circle", { class: "dot", cx: scale.x(steps[at]), cy: scale.y(values[at]), r: 4 }));
  return parts;
}

function nearest(curve, x) {
  const scale = scales(curve);
  let best = 0;
  curve.steps.forEach((step, place) => {
    if (Math.abs(scale.x(step) - x) < Math.abs(scale.x(curve.steps[best]) - x)) best = place;
  });
  return best;
}

function sentence({ measure, steps, values, recorded }) {
  const digits = measure.digits;
  return `${measure.label} over ${recorded} recorded points: ${number(values[0], digits)} at step ${steps[0]}, ` +
    `${number(values.at(-1), digits)} at step ${steps.at(-1)}, lowest ${number(Math.min(...values), digits)}, ` +
    `highest ${number(Math.max(...values), digits)}.`;
}

function asTable(curve) {
  const count = curve.steps.length;
  const every = Math.max(1, Math.ceil(count / TABLE_ROWS));
  const places = curve.steps.map((_, place) => place).filter((place) => place % every === 0 || place === count - 1);
  return table(`${curve.measure.label} by step`, [
    { name: "Step", number: true, cell: (place) => curve.steps[place] },
    { name: curve.measure.label, number: true, cell: (place) => number(curve.values[place], curve.measure.digits) },
  ], places);
}

// Trials as lines over their values and their loss; the table beside it says the same.
export function parallelCoordinates(fields, trials, chosen) {
  const axes = [...fields.map((name, place) => ({ name, of: (trial) => trial.numbers[place], text: (trial) => trial.drawn[place] })),
    { name: "loss", of: (trial) => trial.summary.loss, text: (trial) => number(trial.summary.loss) }];
  const height = 260;
  const width = Math.max(900, axes.length * 150);
  const across = (place) => 60 + (axes.length === 1 ? 0.5 : place / (axes.length - 1)) * (width - 120);
  const spans = axes.map(({ of, text }) => {
    const numbers = trials.map(of).filter((value) => typeof value === "number");
    const words = [...new Set(trials.map(text))].sort();
    if (numbers.length < trials.filter((trial) => text(trial) !== "–").length || !numbers.length) {
      return { place: (trial) => (words.length < 2 ? 0.5 : words.indexOf(text(trial)) / (words.length - 1)), low: words[0], high: words.at(-1) };
    }
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    const log = low > 0 && high / low > 50;
    const scaled = log ? Math.log : (value) => value;
    return {
      place: (trial) => (of(trial) === null ? null : high === low ? 0.5 : (scaled(of(trial)) - scaled(low)) / (scaled(high) - scaled(low))),
      low: number(low, 3),
      high: number(high, 3),
    };
  });
  const down = (share) => 34 + (1 - share) * (height - 70);
  const best = chosen ?? trials[0]?.summary.run_id;
  const paths = [...trials].reverse().map((trial) => {
    const points = spans.map((span, place) => [place, span.place(trial)]).filter(([, share]) => share !== null)
      .map(([place, share]) => `${across(place).toFixed(1)},${down(share).toFixed(1)}`);
    return s("polyline", { class: trial.summary.run_id === best ? "trial best" : "trial", points: points.join(" ") },
      s("title", {}, `${trial.summary.name}: loss ${number(trial.summary.loss)}`));
  });
  return h("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Parallel coordinates" },
    s("svg", {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      class: "chart wide",
      "aria-label": `Each of ${trials.length} trials as a line over ${axes.map((axis) => axis.name).join(", ")}. The table below has the same numbers.`,
    }, axes.map((axis, place) => [
      s("line", { class: "axis", x1: across(place), x2: across(place), y1: down(0), y2: down(1) }),
      s("text", { class: "tick", x: across(place), y: 16, "text-anchor": "middle" }, axis.name),
      s("text", { class: "tick", x: across(place), y: 30, "text-anchor": "middle" }, String(spans[place].high ?? "")),
      s("text", { class: "tick", x: across(place), y: height - 14, "text-anchor": "middle" }, String(spans[place].low ?? "")),
    ]), paths));
}
