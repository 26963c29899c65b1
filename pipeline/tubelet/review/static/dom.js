// Small helpers. Text reaches the page as text nodes only: a path or a label is never read as markup.

const $ = id => document.getElementById(id);

function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(child => child !== null && child !== undefined));
  return element;
}

function percent(value) {
  if (value === null || value === undefined) return "no score";
  return (100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 0 : 1) + " %";
}

const clock = s => s === null ? "" : Math.floor(s / 60) + ":" + (s % 60).toFixed(1).padStart(4, "0");

// Where the page is shown inside another one, as MLflow does, all of these may be forbidden.
const memory = {
  works: false,
  get(name) { try { return localStorage.getItem(name); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, value); return true; } catch { return false; } },
};
memory.works = memory.set("tubelet-review", "1");

async function copy(text, button) {
  const was = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copying is blocked here";
  }
  setTimeout(() => { button.textContent = was; }, 1500);
}
