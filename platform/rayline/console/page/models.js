// Registered models: versions, how each was verified, where it came from.

import { get } from "/page/api.js";
import { card, folded, h, lines, problem, replace, when } from "/page/dom.js";

// The whole way, from data to usage, is read when somebody wants to see it.

export const title = "Models";
const KINDS = { run: "trained by", check: "verified", version: "registered", deployment: "served as" };

export async function show(holder) {
  const found = await get("/api/models");
  const byName = Map.groupBy ? Map.groupBy(found.rows, (row) => row.version.name) : grouped(found.rows);
  holder.append(...[problem(found.problem),
    ...[...byName].map(([name, rows]) => card(name, rows.map(version))),
    found.rows.length ? null : h("p", { class: "empty card" }, "No model is registered here yet: export.register_as in a job's spec does it."),
    lines(found.lines)].filter(Boolean));
}

function grouped(rows) {
  const found = new Map();
  for (const row of rows) found.set(row.version.name, [...(found.get(row.version.name) ?? []), row]);
  return found;
}

function version(row) {
  const one = row.version;
  return h("article", { class: "version", "aria-label": `${one.name} version ${one.version}` },
    h("h3", {}, `Version ${one.version} `, one.aliases.map((alias) => h("span", { class: "badge good" }, `@${alias}`))),
    h("p", { class: "sub" }, `${when(one.created_at)}, ${one.files} ${one.files === 1 ? "file" : "files"} hashed: ${row.verified}.`),
    h("ol", { class: "hops", "aria-label": "Where it came from" }, row.hops.map((hop) => h("li", { class: `hop ${hop.kind}` },
      h("span", { class: "hop-kind" }, KINDS[hop.kind] ?? hop.kind),
      hop.run_id ? h("a", { href: `#/runs/${hop.run_id}` }, hop.name) : h("strong", {}, hop.name),
      h("span", { class: "sub" }, hop.detail)))),
    lineage(one),
    h("details", {}, h("summary", {}, "Verification report"), h("dl", { class: "facts" },
      Object.entries(one.verification).map(([key, text]) => [h("dt", {}, key.replaceAll("_", " ")), h("dd", {}, text)]))));
}

function lineage(one) {
  const inside = h("div");
  return folded("Lineage, from data to usage", inside, async () => {
    const found = await get(`/api/models/${encodeURIComponent(one.name)}/${one.version}/lineage`);
    replace(inside, ...[problem(found.problem),
      found.svg ? h("figure", { class: "picture" }, h("img", {
        src: `data:image/svg+xml;charset=utf-8,${encodeURIComponent(found.svg)}`,
        alt: `Lineage of ${one.name} version ${one.version}: data, run, checkpoint, model, deployments, usage.`,
      })) : null,
      lines(found.lines)].filter(Boolean));
  });
}
