// Light or dark: what the system asks for, until somebody chooses.
const asked = matchMedia("(prefers-color-scheme: dark)");

function kept() {
  try {
    return localStorage.getItem("unspool-theme");
  } catch {
    return null;
  }
}

class Theme {
  chosen = $state(kept());
  system = $state(asked.matches);
  dark = $derived(this.chosen ? this.chosen === "dark" : this.system);

  constructor() {
    asked.addEventListener("change", (event) => (this.system = event.matches));
  }

  turn() {
    this.chosen = this.dark ? "light" : "dark";
    try {
      localStorage.setItem("unspool-theme", this.chosen);
    } catch {
      // a browser that keeps nothing: chosen for this page only
    }
  }
}

export const theme = new Theme();
