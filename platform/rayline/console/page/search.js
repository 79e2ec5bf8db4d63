// One search: its trials ranked.

import { get } from "/page/api.js";
import { card, h, lines, number, state, table } from "/page/dom.js";
import { parallelCoordinates } from "/page/charts.js";

export const title = "Search";

export async function show(holder, { id, retitle }) {
  const { view, lines: lineOf } = await get(`/api/searches/${id}`);
  retitle(view.summary.name);
  const best = view.trials.find((trial) => trial.summary.run_id === view.best_run_id);
  holder.append(...[
    h("section", { class: "card head", "aria-label": "Where it stands" }, h("dl", { class: "figures" },
      figure("State", state(view.summary.status)),
      figure("Trials", view.trials.length),
      figure("Best", best ? h("a", { href: `#/runs/${best.summary.run_id}` }, best.summary.name) : "–"),
      figure("Its loss", number(best?.summary.loss, 5)))),
    view.trials.length > 1 ? card("Parallel coordinates", parallelCoordinates(view.fields, view.trials, view.best_run_id)) : null,
    card("Trials", table("Trials, best first", [
      { name: "Place", number: true, cell: (trial) => trial.place },
      { name: "Trial", cell: (trial) => [h("a", { href: `#/runs/${trial.summary.run_id}` }, trial.summary.name),
        trial.summary.run_id === view.best_run_id ? h("span", { class: "badge good" }, "best") : null] },
      { name: "State", cell: (trial) => state(trial.state) },
      { name: "Loss", number: true, cell: (trial) => number(trial.summary.loss, 5) },
      { name: "Steps", number: true, cell: (trial) => trial.summary.step ?? 0 },
      ...view.fields.map((name, place) => ({ name, cell: (trial) => trial.drawn[place] || "–" })),
      { name: "Problem", cell: (trial) => trial.problem || "–" },
    ], view.trials, { empty: "No trial has begun." })),
    view.report ? h("p", {}, h("a", { href: `/api/searches/${id}/report`, target: "_blank", rel: "noopener" }, "Open the search's own report")) : null,
    lines(lineOf)].filter(Boolean));
}

function figure(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}
