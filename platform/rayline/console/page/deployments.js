// Served models: who gets what, what clients feel, why so many replicas; and what can be done.

import { get, listen, post } from "/page/api.js";
import { card, clock, h, line, lines, milliseconds, number, problem, replace, say, state, table } from "/page/dom.js";

export const title = "Deployments";

export async function show(holder, { me }) {
  const held = new Set();
  const draw = (found) => {
    // A slider that somebody holds is not taken out of their hand.
    if (held.size) return;
    replace(holder, problem(found.problem), found.rows.map((row) => deployment(row, found.lines[row.name], me, held)),
      found.rows.length || found.problem ? null : h("p", { class: "empty card" }, "Nothing is served. rayline deploy serve/chat.yaml serves a model."));
  };
  draw(await get("/api/deployments"));
  return me.address === null ? undefined : listen("/api/deployments-live", { deployments: draw });
}

function deployment(row, lineOf, me, held) {
  return card(row.name,
    h("p", { class: "sub" }, `${row.up} replicas answer. `, row.held ? `${row.held} requests wait for one. ` : "", row.gates ? `Gates: ${row.gates}.` : ""),
    split(row),
    table(`Versions of ${row.name}`, [
      { name: "Version", cell: (one) => [`${one.number} `, one.role ? h("span", { class: "badge plain" }, one.role) : null] },
      { name: "State", cell: (one) => [state(one.state), one.reason ? h("span", { class: "sub" }, ` ${one.reason}`) : null] },
      { name: "Model", cell: (one) => (one.run_id && /^[0-9a-f]{32}$/.test(one.run_id) ? h("a", { href: `#/runs/${one.run_id}` }, one.model) : one.model) },
      { name: "Share", number: true, cell: (one) => `${number(one.percent, 3)} %` },
      { name: "Replicas", number: true, cell: (one) => (one.up === one.wanted ? one.up : `${one.up} of ${one.wanted}`) },
      { name: "Requests", number: true, cell: (one) => one.requests ?? "–" },
      { name: "Errors", number: true, cell: (one) => one.errors ?? "–" },
      { name: "TTFT p50/p95", number: true, cell: (one) => `${milliseconds(one.ttft_p50_ms)} / ${milliseconds(one.ttft_p95_ms)}` },
      { name: "TPOT", number: true, cell: (one) => milliseconds(one.tpot_p50_ms) },
    ], row.versions),
    scaling(row),
    row.versions.flatMap((one) => one.adapters).map((told) => h("p", { class: "sub" }, `Adapter ${told}`)),
    actions(row, lineOf, me, held),
    h("details", {}, h("summary", {}, "What happened"), h("ol", { class: "said" }, row.events.map((event) =>
      h("li", {}, h("span", { class: "sub" }, clock(event.at)), ` ${event.text}`)))),
    lines({ show: lineOf.show }));
}

function split(row) {
  const live = row.versions.filter((one) => one.percent > 0);
  if (!live.length) return null;
  const told = live.map((one) => `version ${one.number} gets ${number(one.percent, 3)} %`).join(", ");
  const bar = h("div", { class: "split", role: "img", "aria-label": `Traffic: ${told}` }, live.map((one) => {
    const part = h("span", { class: `part ${one.role}` }, `v${one.number} ${number(one.percent, 3)} %`);
    part.style.flexGrow = String(one.percent);
    return part;
  }));
  return bar;
}

function scaling(row) {
  const told = row.versions.filter((one) => one.scaling);
  if (!told.length) return null;
  return h("div", { class: "why" }, h("h3", {}, "Why so many replicas"), h("div", { class: "whys" }, told.map((one) => h("div", {},
    h("p", {}, h("strong", {}, `Version ${one.number}: `), one.scaling),
    one.signals.length ? table(`Signals of version ${one.number}`, [
      { name: "Signal", cell: (signal) => signal.signal },
      { name: "Now", number: true, cell: (signal) => number(signal.value, 3) },
      { name: "Threshold", number: true, cell: (signal) => number(signal.threshold, 3) },
      { name: "Asks for", number: true, cell: (signal) => signal.wants },
    ], one.signals) : null))));
}

function actions(row, lineOf, me, held) {
  const off = !me.may_change;
  const told = h("p", { class: "sub", id: `rights-${row.name}` }, off ? "This key only looks. rayline console --allow-changes, or an admin's API key, may change things." : "");
  const act = (path, body) => async (event) => {
    event.target.disabled = true;
    try {
      const done = await post(`/api/deployments/${encodeURIComponent(row.name)}/${path}`, body());
      say(`Done: ${done.line}`);
    } catch (wrong) {
      say(wrong.message);
    }
    event.target.disabled = off;
  };
  return h("div", { class: "actions", role: "group", "aria-label": `Change ${row.name}` },
    row.canary === null ? null : slider(row, lineOf, off, held, act),
    row.canary === null ? null : h("div", { class: "act" },
      h("button", { type: "button", disabled: off, "aria-describedby": `rights-${row.name}`, "data-keep": `promote-${row.name}`, onclick: act("promote", () => ({})) }, `Promote version ${row.canary}`),
      line(lineOf.promote, "Promote")),
    h("div", { class: "act" },
      h("button", { type: "button", class: "danger", disabled: off, "aria-describedby": `rights-${row.name}`, "data-keep": `rollback-${row.name}`, onclick: act("rollback", () => ({ to: null })) }, "Roll back"),
      line(lineOf.rollback, "Roll back")),
    told);
}

function slider(row, lineOf, off, held, act) {
  const id = `share-${row.name}`;
  const shown = h("output", { for: id }, `${number(row.goal ?? row.percent, 3)} %`);
  const command = line(lineOf.canary, "Move the share");
  const input = h("input", {
    id, type: "range", min: 0, max: 100, step: 1, value: row.goal ?? row.percent, disabled: off,
    "aria-describedby": `rights-${row.name}`, "data-keep": id,
    oninput: (event) => {
      held.add(id);
      shown.textContent = `${event.target.value} %`;
      const told = lineOf.canary.replace(/ [\d.]+%/, ` ${event.target.value}%`);
      replace(command, line(told, "Move the share").childNodes);
    },
    onchange: async (event) => {
      const percent = Number(event.target.value);
      await act("canary", () => ({ percent }))(event);
      held.delete(id);
    },
  });
  return h("div", { class: "act" }, h("label", { for: id }, `Share of version ${row.canary} (canary)`), input, shown, command);
}
