const form = document.getElementById("sign-in");
const problem = document.getElementById("problem");

async function signIn(key) {
  problem.textContent = "";
  const response = await fetch("/api/sign-in", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ key }),
  });
  if (response.ok) {
    location.replace("/");
    return;
  }
  const told = await response.json().catch(() => ({}));
  problem.textContent = typeof told.detail === "string" ? told.detail : "This key is not taken.";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(form.elements.key.value);
});

const given = new URLSearchParams(location.hash.slice(1)).get("key");
if (given) {
  // Out of the address, so that nobody reads it there or finds it among what was visited.
  history.replaceState(null, "", "/sign-in");
  signIn(given);
} else if (location.pathname === "/") {
  // A link from elsewhere brings no cookie along (SameSite=Strict); this page's own request does.
  fetch("/api/me").then((response) => { if (response.ok) location.replace("/"); });
}
