// What the page shows: the data, the filters (kept in the URL's hash), and the rows that match.

const data = JSON.parse($("data").textContent);
data.videos.forEach((row, at) => { row.at = at; row.id = row.key + ":" + row.window; });
const byId = new Map(data.videos.map(row => [row.id, row]));
const BINS = 20;

const CLEAR = {tab: "videos", q: "", label: "", truth: "", score: "", done: "", change: "", like: "", sort: data.queue ? "queue" : "low"};
const state = {...CLEAR};

function readHash() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(CLEAR)) state[name] = given.get(name) ?? CLEAR[name];
  if (!orders[state.sort]) state.sort = CLEAR.sort;
  return given.get("row");
}

function hashOf(row) {
  const kept = Object.entries(state).filter(([name, value]) => value !== CLEAR[name]);
  if (row) kept.push(["row", row]);
  return kept.length ? "#" + new URLSearchParams(kept) : "";
}

function writeHash() {
  // Where the page has no address of its own, as inside MLflow, the browser refuses.
  try { history.replaceState(null, "", hashOf() || location.pathname + location.search); } catch { /* no matter */ }
}

const margin = row => row.top.length < 2 ? 1 : row.top[0][1] - row.top[1][1];
// A score may be missing; such rows come last.
const by = (value, sign = 1) => (a, b) => {
  const [x, y] = [value(a), value(b)];
  if (x === null || y === null) return (x === null) - (y === null) || a.at - b.at;
  return sign * (x - y) || a.at - b.at;
};
const orders = {
  queue: by(row => row.at),
  low: by(row => row.score),
  high: by(row => row.score, -1),
  margin: by(margin),
  path: (a, b) => a.path < b.path ? -1 : a.path > b.path ? 1 : a.window - b.window,
};

const bin = row => row.score === null ? -1 : Math.min(BINS - 1, Math.floor(row.score * BINS));

function textOf(row) {
  const answers = [row, ...Object.values(row.heads)].flatMap(answer => [answer.label, answer.truth]);
  const said = corrections.of(row);
  return [row.path, ...answers, ...Object.values(said?.labels || {}), said?.note].filter(Boolean).join("\n").toLowerCase();
}

function matches(row, words) {
  if (state.label && row.label !== state.label) return false;
  if (state.truth && (row.truth || "") !== state.truth) return false;
  if (state.score && String(bin(row)) !== state.score) return false;
  if (lasso.chosen && !lasso.chosen.has(row.id)) return false;
  if (state.change && !changes[state.change](row)) return false;
  const said = corrections.of(row);
  if (state.done === "todo" && said?.action) return false;
  if (state.done === "note" && !said?.note) return false;
  if (["accept", "relabel", "reject"].includes(state.done) && said?.action !== state.done) return false;
  if (!words.length) return true;
  const text = textOf(row);
  return words.every(word => text.includes(word));
}

function matchesError(row, words) {
  if (state.label && row.code !== state.label) return false;
  const text = (row.path + "\n" + row.code + "\n" + row.reason).toLowerCase();
  return words.every(word => text.includes(word));
}

function chosenRows() {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  if (state.tab === "errors") return data.errors.filter(row => matchesError(row, words)).sort(orders.path);
  const like = byId.get(state.like);
  if (like) return alike(like).filter(row => matches(row, words));
  return data.videos.filter(row => matches(row, words)).sort(orders[state.sort]);
}
