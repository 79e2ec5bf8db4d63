// API keys and what they used.

import { get } from "/page/api.js";
import { card, h, line, problem, replace, state, table } from "/page/dom.js";

export const title = "Keys and usage";
const BY = ["key", "team", "model", "variant", "day"];

export async function show(holder) {
  const [keys, sums] = [h("div"), h("div")];
  const choice = h("select", { id: "usage-by" }, BY.map((one) => h("option", { value: one }, one)));
  const draw = async () => {
    const found = await get(`/api/access?by=${choice.value}`);
    replace(keys, problem(found.problem), table("API keys", [
      { name: "Key", cell: (row) => row.name },
      { name: "State", cell: (row) => state(row.state) },
      { name: "Team", cell: (row) => row.team || "–" },
      { name: "May", cell: (row) => row.scopes.join(", ") },
      { name: "Models", cell: (row) => row.models },
      { name: "Limits", cell: (row) => row.limits },
      { name: "Priority", cell: (row) => row.priority },
      { name: "Id", cell: (row) => h("code", {}, row.id) },
    ], found.keys, { empty: "No key was made: rayline keys create NAME makes one." }), line(found.lines.keys, "The same list"));
    replace(sums, table(`Usage by ${found.by}`, [
      { name: found.by, cell: (row) => row.name },
      ...["requests", "cut", "failed", "refused"].map(count),
      ...["prompt_tokens", "cached_tokens", "completion_tokens", "tokens"].map(count),
    ], found.usage, { empty: "Nothing was asked yet." }), line(found.lines.usage, "The same sums"));
  };
  choice.addEventListener("change", () => draw());
  await draw();
  holder.append(card("API keys", keys), card("Usage", h("p", { class: "field" }, h("label", { for: "usage-by" }, "A line for each"), choice), sums));
}

function count(name) {
  return { name: name.replace("_", " "), number: true, cell: (row) => row[name].toLocaleString("en") };
}
