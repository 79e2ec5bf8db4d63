// One run: curves, gang and events as they come, plan and spec.

import { get, listen, post } from "/page/api.js";
import { card, clock, duration, folded, h, line, lines, number, problem, replace, say, state, table, when } from "/page/dom.js";
import { lineChart } from "/page/charts.js";
import { gangCard, timelineCard } from "/page/gang.js";

export const title = "Run";

export async function show(holder, { id, me, retitle }) {
  const parts = Object.fromEntries(["head", "lines", "curves", "gang", "time", "events"].map((name) => [name, h("div", { id: `part-${name}` })]));
  const live = h("p", { class: "live", role: "status" });
  const charts = new Map();
  const draw = (found) => {
    const { view } = found;
    retitle(view.summary.name || id.slice(0, 8));
    replace(parts.head, head(view, me, found.lines));
    replace(parts.lines, lines(found.lines));
    drawCurves(parts.curves, charts, view.curves);
    replace(parts.gang, gangCard(view.gang));
    replace(parts.time, timelineCard(view.timeline));
    replace(parts.events, eventsCard(view.timeline.moments));
  };
  const found = await get(`/api/runs/${id}`);
  draw(found);
  holder.append(live, parts.head, parts.curves, parts.gang, parts.time, parts.events,
    planCard(id), specCard(id), parts.lines);
  if (found.view.summary.status !== "running") {
    live.textContent = "This run has ended.";
    return undefined;
  }
  const silent = me.silent_after_s ?? 30;
  return listen(`/api/runs/${id}/live`, {
    run: (fresh) => { draw(fresh); live.textContent = `Live: step ${fresh.view.summary.step ?? 0}.`; },
    still: (seconds) => {
      if (seconds >= silent) live.textContent = `Its driver has recorded nothing for ${duration(seconds)}: it may be gone.`;
    },
    wrong: (told) => { live.textContent = told; },
    over: (status, source) => { source.close(); live.textContent = `This run is over: ${status}.`; },
    broken: () => { live.textContent = "The console does not answer; trying again."; },
  });
}

function head(view, me, lineOf) {
  const { summary } = view;
  const last = view.last_step;
  const share = last && summary.step ? Math.min(1, summary.step / last) : null;
  return h("section", { class: "card head", "aria-label": "Where it stands" },
    h("dl", { class: "figures" },
      figure("State", state(summary.status)),
      figure("Step", `${summary.step ?? 0}${last ? ` of ${last}` : ""}`),
      figure("Loss", number(summary.loss, 5)),
      figure("Started", when(summary.started_at)),
      figure(summary.ended_at ? "Took" : "For", duration((summary.ended_at ?? Date.now() / 1000) - summary.started_at))),
    share === null ? null : h("progress", { max: 1, value: share, "aria-label": "Steps done" }),
    h("dl", { class: "facts" }, view.facts.map((fact) => [h("dt", {}, fact.name), h("dd", {}, fact.text)])),
    view.job && summary.status === "running" ? stopButton(view.job, me, lineOf.stop) : null);
}

function figure(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

export function stopButton(job, me, told) {
  return h("div", { class: "act" },
    h("button", {
      type: "button",
      class: "danger",
      disabled: !me.may_change,
      "data-keep": `stop-${job}`,
      "aria-label": `Stop ${job}`,
      onclick: async (event) => {
        if (!confirm(`Stop ${job}? It saves a checkpoint first.`)) return;
        event.target.disabled = true;
        try {
          const done = await post(`/api/jobs/${encodeURIComponent(job)}/stop`);
          say(`${job}: ${done.state}`);
        } catch (wrong) {
          say(wrong.message);
          event.target.disabled = false;
        }
      },
    }, "Stop"),
    line(told, `Stop ${job}`));
}

function drawCurves(holder, charts, curves) {
  const known = curves.filter((curve) => curve.steps.length);
  if (!known.length) {
    if (!charts.size) replace(holder, card("Curves", h("p", { class: "empty" }, "No step is recorded yet.")));
    return;
  }
  for (const curve of known) {
    const chart = charts.get(curve.measure.key);
    if (chart) chart.update(curve);
    else charts.set(curve.measure.key, lineChart(curve));
  }
  const wanted = known.map((curve) => charts.get(curve.measure.key).element);
  const grid = holder.querySelector(".charts");
  if (grid && grid.children.length === wanted.length) return;
  replace(holder, card("Curves", h("div", { class: "charts" }, wanted)));
}

function eventsCard(moments) {
  return card("Events", table("Events, newest first", [
    { name: "At", cell: (moment) => clock(moment.at) },
    { name: "Kind", cell: (moment) => h("span", { class: `badge ${moment.tone}` }, moment.kind) },
    { name: "What", cell: (moment) => moment.text },
  ], [...moments].reverse(), { empty: "Nothing has happened." }));
}

function planCard(id) {
  const inside = h("div");
  return card("Plan", folded("Show the planner's picture", inside, async () => {
    const found = await get(`/api/runs/${id}/plan`);
    if (!found.svg) {
      replace(inside, problem(found.problem));
      return;
    }
    replace(inside, h("figure", { class: "picture" },
      h("img", {
        src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(found.svg)}`,
        alt: "The pipeline's timeline of one step, as predicted, and the memory of each worker by what holds it.",
      }),
      h("figcaption", {}, "Predicted by the planner: one step of the pipeline, and the memory of each worker.")));
  }));
}

function specCard(id) {
  const inside = h("div");
  return card("Spec", folded("Show the spec that it was started with", inside, async () => {
    const found = await get(`/api/runs/${id}/spec`);
    replace(inside, found.text ? h("pre", { tabindex: "0", role: "region", "aria-label": "Spec" }, found.text) : problem(found.problem));
  }));
}
