// The frame: which view is shown, the theme, who is signed in.

import { get, post, remember } from "/page/api.js";
import { h, say } from "/page/dom.js";
import * as access from "/page/access.js";
import * as chat from "/page/chat.js";
import * as deployments from "/page/deployments.js";
import * as jobs from "/page/jobs.js";
import * as models from "/page/models.js";
import * as run from "/page/run.js";
import * as runs from "/page/runs.js";
import * as search from "/page/search.js";
import * as searches from "/page/searches.js";

const VIEWS = { runs, searches, models, deployments, access, chat, jobs };
const BELOW = { runs: run, searches: search };
const [main, title, view] = ["main", "title", "view"].map((id) => document.getElementById(id));

let leave = () => {};
let shown = 0;
let me = null;

function route() {
  const [name, id] = location.hash.replace(/^#\/?/, "").split("/");
  const known = VIEWS[name] ? name : "runs";
  return { name: known, id, module: id && BELOW[known] ? BELOW[known] : VIEWS[known] };
}

async function show(moved) {
  const { name, id, module } = route();
  leave();
  leave = () => {};
  const turn = ++shown;
  for (const link of document.querySelectorAll("nav.rail a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  title.textContent = module.title;
  document.title = `${module.title}: rayline console`;
  view.replaceChildren(h("p", { class: "empty" }, "Loading…"));
  main.setAttribute("aria-busy", "true");
  if (moved) main.focus({ preventScroll: true });
  const holder = h("div");
  try {
    const left = await module.show(holder, { id, me, retitle: (text) => retitle(turn, text) });
    if (turn !== shown) {
      left?.();
      return;
    }
    leave = left ?? leave;
  } catch (wrong) {
    if (turn !== shown) return;
    holder.replaceChildren(h("p", { class: "notice bad", role: "alert" }, wrong.message));
  }
  view.replaceChildren(holder);
  main.setAttribute("aria-busy", "false");
}

function retitle(turn, text) {
  if (turn !== shown) return;
  title.textContent = text;
  document.title = `${text}: rayline console`;
}

function toggleTheme() {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("rayline-theme", next); } catch { /* storage may be off */ }
  tellTheme();
}

function tellTheme() {
  const button = document.getElementById("theme");
  button.setAttribute("aria-pressed", String(document.documentElement.dataset.theme === "dark"));
}

async function begin() {
  tellTheme();
  document.getElementById("theme").addEventListener("click", toggleTheme);
  me = await get("/api/me");
  remember(me);
  document.getElementById("where").textContent = `${me.tracking}, experiment ${me.experiment}`;
  const rights = document.getElementById("rights");
  rights.textContent = me.may_change ? "may change things" : "read-only";
  rights.classList.add(me.may_change ? "warning" : "plain");
  rights.hidden = false;
  document.getElementById("sign-out").addEventListener("click", async () => {
    await post("/api/sign-out");
    location.assign("/sign-in");
  });
  // A hash that is no view's is a place within the page.
  addEventListener("hashchange", () => { if (/^(#\/|#?$)/.test(location.hash)) show(true); });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault();
    main.focus();
  });
  await show(false);
}

begin().catch((wrong) => say(wrong.message));
