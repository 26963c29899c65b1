// What people say of the rows: kept in the browser (or by the server that shows the page), undone, downloaded.

const corrections = {
  name: "tubelet-review:" + data.id,
  said: new Map(),
  steps: [],
  // Called with the rows that changed.
  changed: () => {},
  full: false,

  of(row) { return this.said.get(row.id); },

  // `change` is made to what was said of each row; undo takes back the whole of it.
  apply(rows, change) {
    this.steps.push(rows.map(row => [row, this.of(row)]));
    const at = new Date().toISOString();
    for (const row of rows) this.put(row, {...this.of(row), ...change(row), by: $("by").value.trim(), at});
    this.keep(rows);
  },

  put(row, entry) {
    if (entry && (entry.action || entry.note)) this.said.set(row.id, entry);
    else this.said.delete(row.id);
  },

  undo() {
    const step = this.steps.pop();
    if (!step) return [];
    step.forEach(([row, before]) => this.put(row, before));
    this.keep(step.map(([row]) => row));
    return step.map(([row]) => row);
  },

  keep(rows) {
    this.full = memory.works && !memory.set(this.name, JSON.stringify([...this.said]));
    this.changed(rows);
  },

  load() {
    for (const [id, entry] of JSON.parse(memory.get(this.name) || "[]")) {
      if (byId.has(id)) this.said.set(id, entry);
    }
  },

  accept: row => ({action: "accept", labels: Object.fromEntries(answersOf(row).map(([head, answer]) => [head, answer.label]))}),
  relabel: labels => () => ({action: "relabel", labels}),
  reject: () => ({action: "reject", labels: {}}),
  note: text => () => ({note: text}),

  counts() {
    const entries = [...this.said.values()];
    return {decided: entries.filter(entry => entry.action).length, waiting: entries.filter(entry => !entry.action).length};
  },
};

// Head and answer, the main one first.
const answersOf = row => [["label", row], ...Object.entries(row.heads)];
const HEADS = ["label", ...new Set(data.videos.flatMap(row => Object.keys(row.heads)))];

// A row as the corrections file has it; no label at all means: leave this clip out of training.
function record(row, entry) {
  const labels = HEADS.map(head => entry.labels[head] ?? "");
  const was = row.truth ?? row.label;
  return [row.key, row.window, row.uri, ...labels, row.start ?? "", row.end ?? "", was, entry.by, entry.at, entry.note || ""];
}

// By the order of keys: the same corrections are the same file.
function correctionsFile() {
  const header = ["key", "window", "uri", ...HEADS, "clip_start_s", "clip_end_s", "previous", "by", "at", "note"];
  const rows = [...corrections.said].filter(([, entry]) => entry.action).map(([id, entry]) => record(byId.get(id), entry));
  rows.sort((a, b) => a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : a[1] - b[1]);
  return [header, ...rows].map(cells => cells.map(quoted).join(",")).join("\n") + "\n";
}

function quoted(cell) {
  const text = String(cell);
  return /[",\r\n]|^\s|\s$/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function download() {
  const link = make("a", {
    href: URL.createObjectURL(new Blob([correctionsFile()], {type: "text/csv"})),
    download: "corrections.csv",
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// With `tubelet review --serve` the server keeps what is said, and knows what was said before.
const server = {
  pending: new Map(),
  // Rows of which something was said here: newer than any answer that is still on its way.
  touched: new Set(),
  busy: false,
  trouble: "",

  send(rows) {
    if (!data.served) return;
    for (const row of rows) {
      this.pending.set(row.id, row);
      this.touched.add(row.id);
    }
    this.flush();
  },

  async flush() {
    if (this.busy || !this.pending.size) return;
    const rows = [...this.pending.values()];
    this.pending.clear();
    this.busy = true;
    const changes = rows.map(row => ({key: row.key, window: row.window, said: corrections.of(row) ?? null}));
    try {
      const answer = await fetch("corrections", {
        method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(changes),
      });
      if (!answer.ok) throw new Error((await answer.text()).slice(0, 200) || answer.statusText);
      this.trouble = "";
    } catch (error) {
      this.trouble = "Not saved: " + error.message;
      rows.forEach(row => { if (!this.pending.has(row.id)) this.pending.set(row.id, row); });
    }
    this.busy = false;
    showProgress();
    if (this.pending.size) setTimeout(() => this.flush(), this.trouble ? 3000 : 0);
  },

  async load() {
    const answer = await fetch("corrections");
    if (!answer.ok) throw new Error(answer.statusText);
    for (const {key, window, said} of await answer.json()) {
      const id = key + ":" + window;
      if (byId.has(id) && !this.touched.has(id)) corrections.said.set(id, said);
    }
  },
};
