// Runs before anything is painted: the theme that was chosen here last, else the system's.
(() => {
  let kept = null;
  try { kept = localStorage.getItem("rayline-theme"); } catch { /* storage may be off */ }
  const dark = kept ? kept === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
