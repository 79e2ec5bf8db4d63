// Jobs that were submitted to the cluster.

import { get } from "/page/api.js";
import { card, h, line, lines, problem, state, table, when } from "/page/dom.js";
import { stopButton } from "/page/run.js";

export const title = "Jobs";

export async function show(holder, { me }) {
  const found = await get("/api/jobs");
  const running = found.rows.filter((row) => row.state === "running" || row.state === "pending");
  holder.append(...[problem(found.problem),
    h("div", { class: "card" }, table("Jobs, newest first", [
      { name: "Job", cell: (row) => h("code", {}, row.id) },
      { name: "State", cell: (row) => state(row.state) },
      { name: "Started", cell: (row) => (row.started_at ? when(row.started_at) : "–") },
      { name: "Command", cell: (row) => h("code", {}, row.entrypoint) },
      { name: "Why", cell: (row) => row.reason || "–" },
    ], found.rows, { empty: "No job was submitted to this cluster." })),
    ...running.map((row) => card(row.id, line(row.line, "Read its log"), stopButton(row.id, me, row.stop))),
    lines(found.lines)].filter(Boolean));
}
