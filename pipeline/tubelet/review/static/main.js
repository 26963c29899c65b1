// The list, the keys, and the beginning.

const PAGE = 40;
const list = {rows: [], shown: 0};

function filter(change) {
  Object.assign(state, change);
  writeHash();
  render();
}

function render() {
  list.rows = chosenRows();
  list.shown = 0;
  shownCards.clear();
  $("list").replaceChildren();
  more();
  const all = state.tab === "errors" ? data.errors : data.videos;
  $("shown").textContent = list.rows.length === all.length ? `${all.length} shown` : `${list.rows.length} of ${all.length}`;
  if (!list.rows.length) {
    const none = state.tab === "errors" ? "No errors." : "No labelled videos.";
    $("list").append(make("p", {class: "empty"}, all.length ? "Nothing matches." : none));
  }
  for (const name of ["videos", "errors"]) $("tab-" + name).setAttribute("aria-selected", String(state.tab === name));
  for (const name of ["sort", "done"]) $(name).hidden = state.tab === "errors";
  $("change").hidden = !data.compare || state.tab === "errors";
  $("change").value = state.change;
  $("search").value = state.q;
  $("label").value = state.label;
  $("done").value = state.done;
  $("sort").value = state.sort;
  markPressed();
  drawMap();
}

function more() {
  const next = list.rows.slice(list.shown, list.shown + PAGE);
  list.shown += next.length;
  $("list").append(...next.map(state.tab === "errors" ? failure : newCard));
  // Observed anew: if the end is still near, that is told again.
  near.unobserve($("end"));
  near.observe($("end"));
}
const near = new IntersectionObserver(entries => {
  if (entries.at(-1).isIntersecting && list.shown < list.rows.length) more();
}, {rootMargin: "1500px"});

function tab(name) {
  if (state.tab === name) return;
  Object.assign(state, {tab: name, label: ""});
  fillLabels();
  filter({});
}

function clear() {
  const former = [...selected].map(id => byId.get(id));
  selected.clear();
  refresh(former);
  const wasErrors = state.tab === "errors";
  lasso.chosen = null;
  lasso.path = [];
  filter({...CLEAR, tab: state.tab, sort: state.sort});
  if (wasErrors) fillLabels();
  showProgress();
  document.activeElement.blur();
}

function showProgress() {
  const {decided, waiting} = corrections.counts();
  const parts = [`${decided} of ${data.videos.length} reviewed`];
  if (waiting) parts.push(`${waiting} note${waiting > 1 ? "s" : ""} without a decision (not in the file)`);
  if (selected.size) parts.push(`${selected.size} selected`);
  if (data.served) parts.push(server.trouble || (server.busy || server.pending.size ? "saving" : "saved"));
  else if (corrections.full) parts.push("the browser keeps no more: download now");
  $("progress").textContent = parts.join(" · ");
  $("undo").disabled = !corrections.steps.length;
  if (!$("file-box").hidden) $("file").value = correctionsFile();
}

function showFile(open) {
  $("file-box").hidden = !open;
  $("show-file").setAttribute("aria-expanded", String(open));
  $("show-file").textContent = open ? "Hide corrections" : "Show corrections";
  showProgress();
}

const current = () => byId.get(document.activeElement?.closest?.(".video")?.dataset.id);

function move(step) {
  const cards = [...$("list").querySelectorAll(".video")];
  const at = cards.indexOf(document.activeElement.closest?.(".video"));
  if (at + step >= cards.length - 2 && list.shown < list.rows.length) more();
  focusCard(at < 0 ? cards[0] : cards[at + step]);
}

function focusCard(element) {
  if (!element) return;
  element.focus({preventScroll: true});
  element.scrollIntoView({block: "center", behavior: "instant"});
}

function setTheme(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").textContent = dark ? "Light" : "Dark";
  drawMap();
}

function otherTheme() {
  const theme = $("theme").textContent.toLowerCase();
  setTheme(theme);
  memory.set("tubelet-review-theme", theme);
}

const copyLink = () => copy(location.href.split("#")[0] + hashOf(current()?.id), $("copy-link"));

const onRow = {
  a: row => act("accept", row),
  r: row => edit(row, "relabel"),
  x: row => act("reject", row),
  n: row => edit(row, "note"),
  p: row => play(row),
  m: row => { if (hasAlike(row)) moreLike(row); },
  v: row => select([row]),
};
const anywhere = {
  j: () => move(1),
  k: () => move(-1),
  "/": () => $("search").focus(),
  e: () => tab(state.tab === "errors" ? "videos" : "errors"),
  s: () => { const names = [...$("sort").options].map(option => option.value); filter({sort: names[(names.indexOf(state.sort) + 1) % names.length]}); },
  u: () => undo(),
  d: () => download(),
  l: () => copyLink(),
  t: () => otherTheme(),
  "?": () => $("help").showModal(),
  V: () => { if (state.tab === "videos") select(list.rows); },
};

function undo() {
  const rows = corrections.undo();
  refresh(rows);
  if (rows.length === 1) focusCard(cardOf(rows[0]));
}

addEventListener("keydown", event => {
  const focus = document.activeElement;
  if ($("help").open) return;
  if (event.key === "Escape") { clear(); return; }
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !/INPUT|TEXTAREA/.test(focus.tagName)) { event.preventDefault(); undo(); return; }
  const typing = /SELECT|TEXTAREA/.test(focus.tagName) || (focus.tagName === "INPUT" && focus.type !== "checkbox");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const row = state.tab === "videos" ? current() : undefined;
  const choice = row && /^[1-5]$/.test(event.key) ? row.top[event.key - 1] : undefined;
  if (choice) act(choice[0] === row.label ? "accept" : "relabel", row, {label: choice[0]});
  else if (row && onRow[event.key]) onRow[event.key](row);
  else if (anywhere[event.key]) anywhere[event.key]();
  else return;
  event.preventDefault();
});

let typed = 0;
$("search").addEventListener("input", event => {
  const q = event.target.value;
  clearTimeout(typed);
  // At once where the list is short; among thousands only when the typing rests.
  if (data.videos.length < 2000) filter({q});
  else typed = setTimeout(() => filter({q}), 120);
});
for (const name of ["label", "done", "change", "sort"]) $(name).addEventListener("change", event => filter({[name]: event.target.value}));
for (const name of ["videos", "errors"]) $("tab-" + name).addEventListener("click", () => tab(name));
$("tab-videos").textContent = `Labelled (${data.videos.length})`;
$("tab-errors").textContent = `Errors (${data.errors.length})`;
$("copy-link").addEventListener("click", copyLink);
$("theme").addEventListener("click", otherTheme);
$("help-open").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());
$("undo").addEventListener("click", undo);
$("download").addEventListener("click", download);
$("show-file").addEventListener("click", () => showFile($("file-box").hidden));
$("copy-file").addEventListener("click", () => copy($("file").value, $("copy-file")));
$("by").value = memory.get("tubelet-review-by") || data.by;
$("by").addEventListener("change", event => memory.set("tubelet-review-by", event.target.value));
addEventListener("hashchange", () => { readHash(); fillLabels(); render(); });

function begin() {
  if (data.queue) $("sort").prepend(make("option", {value: "queue"}, "What to look at first"));
  const wanted = readHash();
  corrections.changed = rows => { showProgress(); server.send(rows); };
  if (!data.served) corrections.load();
  fillLabels();
  render();
  requestAnimationFrame(() => performance.mark("first-rows"));
  fillHistogram();
  fillConfusion();
  fillNames();
  fillCompare();
  setUpMap();
  markPressed();
  setTheme(memory.get("tubelet-review-theme"));
  if (!memory.works && !data.served) {
    $("blocked").hidden = false;
    $("blocked").textContent = "This view blocks storage and downloads: corrections last as long as it is open. Copy them from the box below, or open the page as a file.";
    $("download").hidden = true;
    showFile(true);
  }
  showProgress();
  if (byId.has(wanted)) reveal(byId.get(wanted));
  if (data.served) server.load().then(() => refresh(data.videos), error => { server.trouble = "Corrections could not be read: " + error.message; }).then(showProgress);
}

// The row that a link names, wherever it is in the list.
function reveal(row) {
  while (!cardOf(row) && list.shown < list.rows.length) more();
  focusCard(cardOf(row));
}
begin();
