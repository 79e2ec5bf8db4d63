// The gang as a map, and what befell it on a line of time.

import { card, clock, duration, h, s, table } from "/page/dom.js";

const MARKS = { steps: "●", slow: "◐", lost: "✕", replaced: "↻" };
const WORDS = { steps: "steps", slow: "slow", lost: "lost", replaced: "replaced" };

export function gangCard(gang) {
  if (!gang) return card("Gang", h("p", { class: "empty" }, "Where its ranks stand was not recorded."));
  const byRank = new Map(gang.seats.map((seat) => [seat.rank, seat]));
  const counted = Object.keys(MARKS).map((name) => [name, gang.seats.filter((seat) => seat.state === name).length]).filter(([, count]) => count);
  return card("Gang",
    h("p", { class: "sub" }, `${gang.seats.length} ranks on ${gang.nodes.length} nodes, beginning ${gang.beginnings} of this run, since ${clock(gang.began_at)}. `,
      h("span", { class: "legend" }, counted.map(([name, count]) => h("span", { class: `key ${name}` }, `${MARKS[name]} ${count} ${WORDS[name]}`)))),
    h("ul", { class: "nodes", "aria-label": "Nodes" }, gang.nodes.map((node) =>
      h("li", { class: "node" },
        h("p", { class: "node-name" }, h("strong", {}, node.address), h("code", {}, node.node)),
        h("ul", { class: "seats", "aria-label": `Ranks on ${node.address}` }, node.ranks.map((rank) => seat(byRank.get(rank))))))),
    h("details", {}, h("summary", {}, "As a table"), table("Ranks", [
      { name: "Rank", number: true, cell: (one) => one.rank },
      { name: "Stage", number: true, cell: (one) => one.pipeline },
      { name: "Data", number: true, cell: (one) => one.data },
      { name: "Context", number: true, cell: (one) => one.context },
      { name: "Tensor", number: true, cell: (one) => one.tensor },
      { name: "Node", cell: (one) => `${one.address} ${one.node}` },
      { name: "Process", number: true, cell: (one) => one.pid },
      { name: "State", cell: (one) => WORDS[one.state] + (one.note ? `: ${one.note}` : "") },
    ], gang.seats)));
}

function seat(one) {
  const told = `rank ${one.rank}, stage ${one.pipeline}, data ${one.data}, context ${one.context}, tensor ${one.tensor}, process ${one.pid}: ` +
    WORDS[one.state] + (one.note ? `, ${one.note}` : "");
  return h("li", { class: `seat ${one.state}`, "data-rank": one.rank, title: told },
    h("span", { class: "unseen" }, told),
    h("span", { class: "seat-rank", "aria-hidden": "true" }, `${MARKS[one.state]} ${one.rank}`),
    h("span", { class: "seat-place", "aria-hidden": "true" }, `p${one.pipeline} d${one.data} t${one.tensor}`));
}

export function timelineCard(timeline) {
  const begin = timeline.began_at;
  const last = Math.max(timeline.ended_at ?? Date.now() / 1000, ...timeline.moments.map((moment) => moment.at), begin + 1);
  const [width, height, left] = [960, 74, 10];
  const x = (at) => left + ((at - begin) / (last - begin)) * (width - 2 * left);
  const shown = timeline.moments.filter((moment) => moment.kind !== "skipped");
  const bars = timeline.outages.map((outage) => s("rect", {
    class: "outage", x: x(outage.began_at), y: 22, height: 24, rx: 4,
    width: Math.max(4, x(outage.ended_at ?? last) - x(outage.began_at)),
  }, s("title", {}, outage.why)));
  const marks = shown.map((moment) => s("circle", { class: `moment ${moment.tone}`, cx: x(moment.at), cy: 34, r: 6 },
    s("title", {}, `${clock(moment.at)} ${moment.kind}: ${moment.text}`)));
  const lost = timeline.outages.length;
  return card("Recoveries",
    s("svg", {
      viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart timeline",
      "aria-label": `${lost ? `${lost} losses and recoveries` : "No loss"} in ${duration(last - begin)}; the list below tells each.`,
    },
    s("line", { class: "axis", x1: left, x2: width - left, y1: 34, y2: 34 }), bars, marks,
    s("text", { class: "tick", x: left, y: height - 6 }, clock(begin)),
    s("text", { class: "tick", x: width - left, y: height - 6, "text-anchor": "end" }, timeline.ended_at ? clock(timeline.ended_at) : "now")),
    lost ? h("ol", { class: "outages" }, timeline.outages.map(outageItem)) : h("p", { class: "empty" }, "Nothing was lost so far."));
}

function outageItem(outage) {
  const took = outage.ended_at === null ? "not recovered" : `recovered after ${(outage.ended_at - outage.began_at).toFixed(1)} s`;
  return h("li", { "data-rank": outage.rank },
    h("p", {}, h("span", { class: "badge bad" }, outage.rank === null ? "loss" : `rank ${outage.rank} lost`), " ",
      h("span", { class: `badge ${outage.ended_at === null ? "warning" : "good"}` }, took), ` at ${clock(outage.began_at)}`),
    h("p", { class: "sub" }, outage.why),
    outage.replaced.map((told) => h("p", { class: "sub" }, told)),
    outage.took ? h("p", { class: "sub" }, outage.took) : null);
}
