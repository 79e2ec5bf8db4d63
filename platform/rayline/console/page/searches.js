// The searches among the newest runs.

import { get } from "/page/api.js";
import { h, lines, number, problem, state, table, when } from "/page/dom.js";

export const title = "Searches";

export async function show(holder) {
  const found = await get("/api/searches");
  holder.append(...[problem(found.problem), h("div", { class: "card" }, table("Searches, newest first", [
    { name: "Search", cell: ({ summary }) => h("a", { href: `#/searches/${summary.run_id}` }, summary.name) },
    { name: "State", cell: ({ summary }) => state(summary.status) },
    { name: "Trials", number: true, cell: (row) => row.trials },
    { name: "Lowest loss", number: true, cell: (row) => number(row.best_loss, 5) },
    { name: "Started", cell: ({ summary }) => when(summary.started_at) },
  ], found.rows, { empty: "No search is recorded here yet. rayline tune tune/quickstart.yaml makes one." })),
  lines(found.lines)].filter(Boolean));
}
