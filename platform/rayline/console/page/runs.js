// The list of runs.

import { get } from "/page/api.js";
import { h, lines, number, problem, replace, state, table, when } from "/page/dom.js";

export const title = "Runs";
const LOOK_MS = 4000;

export async function show(holder) {
  let told = "";
  const draw = async () => {
    const found = await get("/api/runs");
    const now = JSON.stringify(found);
    if (now === told) return;
    told = now;
    replace(holder, problem(found.problem), h("div", { class: "card" }, list(found.rows)), lines(found.lines));
  };
  await draw();
  const timer = setInterval(() => draw().catch(() => {}), LOOK_MS);
  return () => clearInterval(timer);
}

function list(rows) {
  return table("Runs, newest first", [
    { name: "Run", cell: ({ summary, children }) => [
      h("a", {
        href: `#/runs/${summary.run_id}`,
        class: summary.parent_run_id ? "below" : null,
        "data-keep": summary.run_id,
      }, summary.name || summary.run_id.slice(0, 8)),
      children ? h("a", { class: "badge plain", href: `#/searches/${summary.run_id}` }, `${children} trials`) : null,
    ] },
    { name: "State", cell: ({ summary }) => state(summary.status) },
    { name: "Step", number: true, cell: ({ summary }) => summary.step ?? "–" },
    { name: "Loss", number: true, cell: ({ summary }) => number(summary.loss, 5) },
    { name: "Plan", cell: ({ summary }) => summary.plan || "–" },
    { name: "Started", cell: ({ summary }) => when(summary.started_at) },
    { name: "Id", cell: ({ summary }) => h("code", {}, summary.run_id.slice(0, 8)) },
  ], rows, { empty: "No run is recorded here yet. rayline train jobs/specs/quickstart.yaml makes one." });
}
