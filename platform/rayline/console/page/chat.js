// The playground: one question to two models or versions, side by side.

import { events, post, postStream } from "/page/api.js";
import { h, line, milliseconds, number, problem, replace } from "/page/dom.js";

export const title = "Playground";

// For as long as the page is open, and nowhere else.
let key = "";

export async function show(holder, { me }) {
  const sides = [side("A"), side("B")];
  const told = h("div");
  const keyField = h("input", { id: "model-key", type: "password", autocomplete: "off", value: key, placeholder: "rl-…", spellcheck: "false" });
  const question = h("textarea", { id: "question", rows: 3, required: true, placeholder: "What is the capital of France?" });
  const most = h("input", { id: "max-tokens", type: "number", min: 1, max: 100000, value: 128, inputmode: "numeric" });
  const warm = h("input", { id: "temperature", type: "number", min: 0, max: 2, step: 0.1, value: 0 });
  const ask = h("button", { type: "submit", class: "primary" }, "Ask both");
  const stop = h("button", { type: "button", disabled: true, onclick: () => sides.forEach((one) => one.stop()) }, "Stop");
  const again = h("button", { type: "button", class: "quiet", onclick: () => sides.forEach((one) => one.clear()) }, "Begin anew");

  const targets = async () => {
    key = keyField.value.trim();
    const found = await post("/api/chat/targets", {}, key ? { "x-model-key": key } : {});
    replace(told, problem(found.problem));
    sides.forEach((one, place) => one.offer(found.targets, place));
  };
  keyField.addEventListener("change", () => targets().catch((wrong) => replace(told, problem(wrong.message))));

  const form = h("form", {
    class: "card ask",
    onsubmit: async (event) => {
      event.preventDefault();
      const text = question.value.trim();
      if (!text) return;
      ask.disabled = true;
      stop.disabled = false;
      const settings = { max_tokens: Number(most.value) || null, temperature: warm.value === "" ? null : Number(warm.value) };
      await Promise.all(sides.map((one) => one.ask(text, settings)));
      ask.disabled = false;
      stop.disabled = true;
      question.focus();
    },
  },
  h("div", { class: "fields" },
    field("API key of the gateway", keyField, `Asks ${me.url}. The key stays in this page.`),
    field("Most tokens", most), field("Temperature", warm)),
  field("Question", question),
  h("div", { class: "buttons" }, ask, stop, again));
  holder.append(told, form, h("div", { class: "sides" }, sides.map((one) => one.element)));
  await targets();
  return () => sides.forEach((one) => one.stop());
}

function field(label, input, hint = "") {
  const hintId = `${input.id}-hint`;
  if (hint) input.setAttribute("aria-describedby", hintId);
  return h("div", { class: "field" }, h("label", { for: input.id }, label), input, hint ? h("p", { class: "sub", id: hintId }, hint) : null);
}

function side(name) {
  let turns = [];
  let offered = [];
  let ending = null;
  const choice = h("select", { id: `target-${name}` });
  const log = h("div", { class: "log", role: "log", "aria-label": `Answers of ${name}`, tabindex: "0" });
  const figures = h("p", { class: "timing", role: "status", "aria-label": `Times of ${name}` });
  const command = h("div");
  const element = h("section", { class: "card side", "aria-label": `Side ${name}` },
    h("div", { class: "field" }, h("label", { for: choice.id }, `Model ${name}`), choice), log, figures, command);

  const target = () => offered[choice.selectedIndex];

  async function answer(text, settings) {
    turns.push({ role: "user", content: text });
    const said = h("p", { class: "turn assistant", "aria-busy": "true" });
    log.append(h("p", { class: "turn user" }, text), said);
    ending = new AbortController();
    const began = performance.now();
    let whole = "";
    figures.textContent = "Waiting for the first token…";
    try {
      const { model, session } = target();
      const body = { model, session, turns, ...settings };
      const response = await postStream("/api/chat/ask", body, key ? { "x-model-key": key } : {}, ending.signal);
      for await (const [kind, data] of events(response)) {
        if (kind === "piece") {
          if (!whole) figures.textContent = `First token after ${milliseconds(performance.now() - began)}`;
          whole += data;
          said.textContent = whole;
          log.scrollTop = log.scrollHeight;
        } else if (kind === "line") replace(command, line(data, "The same question"));
        else if (kind === "done") figures.textContent = timing(data);
        else if (kind === "wrong") throw new Error(data);
      }
    } catch (wrong) {
      const stopped = wrong.name === "AbortError";
      figures.textContent = stopped ? `Stopped after ${((performance.now() - began) / 1000).toFixed(1)} s.` : wrong.message;
      if (!stopped) said.classList.add("bad");
    }
    said.setAttribute("aria-busy", "false");
    if (whole) turns.push({ role: "assistant", content: whole });
    else turns.pop();
    ending = null;
  }

  return {
    element,
    offer(targets, place) {
      const before = target()?.label;
      offered = targets;
      replace(choice, targets.map((one) => h("option", {}, one.label)));
      const kept = targets.findIndex((one) => one.label === before);
      choice.selectedIndex = targets.length ? (kept >= 0 ? kept : Math.min(place, targets.length - 1)) : -1;
    },
    async ask(text, settings) {
      if (!target()) {
        figures.textContent = "No model to ask.";
        return;
      }
      await answer(text, settings);
    },
    stop() { ending?.abort(); },
    clear() {
      ending?.abort();
      turns = [];
      log.replaceChildren();
      figures.textContent = "";
      command.replaceChildren();
    },
  };
}

function timing(done) {
  const speed = done.tpot_ms ? `, ${number(1000 / done.tpot_ms, 3)} tokens/s` : "";
  return `TTFT ${milliseconds(done.ttft_ms)}, TPOT ${milliseconds(done.tpot_ms)}${speed}, ${done.tokens} tokens in ${done.seconds.toFixed(2)} s`;
}
