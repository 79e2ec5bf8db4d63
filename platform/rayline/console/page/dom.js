// Small building blocks: elements, tables that become cards on a phone, lines for a shell.

const SVG = "http://www.w3.org/2000/svg";

export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

// `columns`: [{name, cell(row), number?}]. Roles stand there because the phone's layout takes the
// table's own display away, and its meaning with it.
export function table(caption, columns, rows, { empty = "Nothing yet." } = {}) {
  if (!rows.length) return h("p", { class: "empty" }, empty);
  return h("table", { role: "table", class: "cards" },
    h("caption", { class: "unseen" }, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, columns.map((column) =>
      h("th", { role: "columnheader", scope: "col", class: column.number ? "number" : null }, column.name)))),
    h("tbody", { role: "rowgroup" }, rows.map((row) => h("tr", { role: "row" }, columns.map((column, place) =>
      h(place ? "td" : "th", {
        role: place ? "cell" : "rowheader",
        scope: place ? null : "row",
        class: column.number ? "number" : null,
        "data-label": column.name,
      }, h("div", { class: "cell" }, column.cell(row))))))));
}

// The line of the command line that does the same, to be copied.
export function line(text, what = "On the command line") {
  return h("div", { class: "line" },
    h("span", { class: "line-what" }, what),
    h("code", {}, words(text)),
    h("button", {
      type: "button",
      class: "quiet",
      "aria-label": `Copy: ${what}`,
      onclick: async (event) => {
        await navigator.clipboard?.writeText(text).catch(() => {});
        event.target.textContent = "Copied";
        setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
      },
    }, "Copy"));
}

// A line's words, each whole on its row of the screen where it fits: none breaks at its hyphens.
export function words(text) {
  return text.split(" ").flatMap((word, place) => [place ? " " : "", h("span", { class: "word" }, word)]);
}

export function lines(lineOf) {
  return h("div", { class: "lines" }, Object.entries(lineOf).map(([what, text]) => line(text, LINE_NAMES[what] ?? what)));
}

const LINE_NAMES = {
  list: "The same list", show: "The same on the command line", follow: "Follow it", "go on": "Go on with it",
  log: "Read its log", stop: "Stop it", keys: "The same list", usage: "The same sums",
};

export function card(title, ...content) {
  const id = `h-${title.toLowerCase().replace(/\W+/g, "-")}`;
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), ...content);
}

// What is read only once somebody opens it; tried again where that failed.
export function folded(what, inside, open) {
  let asked = false;
  return h("details", {
    ontoggle: (event) => {
      if (event.target.open && !asked) {
        asked = true;
        open().catch((wrong) => { asked = false; say(wrong.message); });
      }
    },
  }, h("summary", {}, what), inside);
}

export function state(text) {
  const tone = { running: "live", finished: "good", serving: "good", succeeded: "good", ready: "good", "in use": "good",
    failed: "bad", lost: "bad", revoked: "bad", interrupted: "warning", stopped: "plain", stopped_early: "plain",
    starting: "live", pending: "live", draining: "warning", expired: "warning", infeasible: "warning",
    "not heard of": "bad" }[text] ?? "plain";
  return h("span", { class: `badge ${tone}` }, text.replace("_", " "));
}

export function problem(text) {
  return text ? h("p", { class: "notice", role: "note" }, text) : null;
}

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e5 || (size < 1e-3 && size > 0)) return value.toExponential(2);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return `${value >= 10 ? value.toFixed(0) : value.toFixed(1)} ms`;
}

export function when(seconds) {
  return new Date(seconds * 1000).toLocaleString("sv", { dateStyle: "short", timeStyle: "medium" });
}

export function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString("sv");
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${rest} s` : `${rest} s`;
}

export function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  said.classList.add("shown");
  clearTimeout(say.timer);
  say.timer = setTimeout(() => said.classList.remove("shown"), 5000);
}

// Puts new content in the place of old without losing the focus within it.
export function replace(holder, ...content) {
  const focused = holder.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  holder.replaceChildren(...content.flat(Infinity).flatMap((one) => (one instanceof NodeList ? [...one] : one)).filter(Boolean));
  if (focused) holder.querySelector(`[data-keep="${CSS.escape(focused)}"]`)?.focus();
}
