// Requests to the console's own server. Whoever is not signed in any more goes to the form.

let csrf = "";

export class Refused extends Error {
  constructor(status, told) {
    super(told);
    this.status = status;
  }
}

export function remember(me) {
  csrf = me.csrf ?? "";
}

async function checked(response) {
  if (response.status === 401) {
    location.assign("/sign-in");
    throw new Refused(401, "Signed out.");
  }
  if (response.ok) return response;
  const tree = await response.json().catch(() => ({}));
  const told = tree.detail;
  const text = typeof told === "string" ? told
    : told?.problem ? [told.subject, told.problem, told.fix].filter(Boolean).join(": ")
      : `The console answered ${response.status}.`;
  throw new Refused(response.status, text);
}

export async function get(path, signal) {
  const response = await checked(await fetch(path, { signal, headers: { accept: "application/json" } }));
  return response.json();
}

export async function post(path, body = {}, headers = {}) {
  return (await postStream(path, body, headers)).json();
}

export async function postStream(path, body, headers = {}, signal = undefined) {
  return checked(await fetch(path, {
    method: "POST",
    signal,
    headers: { "content-type": "application/json", "x-console-csrf": csrf, ...headers },
    body: JSON.stringify(body),
  }));
}

// The events of a response, as they come: [name, data].
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    kept += value;
    const blocks = kept.split("\n\n");
    kept = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
      if (data.length) yield [name, JSON.parse(data.join("\n"))];
    }
  }
}

// What the server pushes; the browser reconnects by itself. Returns what ends it.
export function listen(path, listeners) {
  const source = new EventSource(path);
  for (const [name, heard] of Object.entries(listeners)) {
    if (name === "broken") source.onerror = heard;
    else source.addEventListener(name, (event) => heard(JSON.parse(event.data), source));
  }
  return () => source.close();
}
