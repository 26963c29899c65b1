// Labels, confidences and confusions of the rows on this page; a click filters by what it shows.

// Of a matrix with more classes than these, those that are confused most are shown.
const MOST_CLASSES = 24;

const counted = values => {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
};
const labelCounts = counted(data.videos.map(row => row.label));
const codeCounts = counted(data.errors.map(row => row.code));

function fillLabels() {
  const errors = state.tab === "errors";
  const counts = errors ? codeCounts : labelCounts;
  const most = Math.max(1, ...counts.map(pair => pair[1]));
  $("label").replaceChildren(make("option", {value: ""}, errors ? "All reasons" : "All labels"),
    ...counts.map(([name, count]) => make("option", {value: name}, `${name} (${count})`)));
  $("classes").replaceChildren(...counts.map(([name, count]) => make("button",
    {type: "button", "data-label": name, "aria-pressed": "false", click: () => filter({label: state.label === name ? "" : name})},
    make("i", {style: `width: ${100 * count / most}%`}), make("span", {}, name), make("span", {}, String(count)))));
}

function fillHistogram() {
  const counts = new Array(BINS).fill(0);
  for (const row of data.videos) if (bin(row) >= 0) counts[bin(row)] += 1;
  const highest = Math.max(1, ...counts);
  $("histogram").replaceChildren(...counts.map((count, at) => {
    const range = `${(at / BINS).toFixed(2)} to ${((at + 1) / BINS).toFixed(2)}`;
    const name = `Confidence ${range}: ${count}`;
    return make("button", {type: "button", title: name, "aria-label": name, "data-bin": at, "aria-pressed": "false",
      click: () => filter({score: state.score === String(at) ? "" : String(at)})},
      make("i", {style: `height: ${100 * count / highest}%`}));
  }));
}

function fillConfusion() {
  const known = data.videos.filter(row => row.truth);
  $("confusion-box").hidden = !known.length;
  if (!known.length) return;
  const pairs = new Map(counted(known.map(row => JSON.stringify([row.truth, row.label]))));
  const wrong = counted(known.filter(row => row.truth !== row.label).flatMap(row => [row.truth, row.label])).map(pair => pair[0]);
  const all = counted(known.flatMap(row => [row.truth, row.label])).map(pair => pair[0]);
  const names = [...new Set([...wrong, ...all])].slice(0, MOST_CLASSES).sort();
  const most = Math.max(...pairs.values());
  const cell = (truth, label) => {
    const count = pairs.get(JSON.stringify([truth, label])) || 0;
    if (!count) return make("td", {});
    const name = `truth ${truth}, predicted ${label}: ${count}`;
    const strength = Math.round(15 + 45 * count / most);
    const colour = truth === label ? "--good" : "--bad";
    return make("td", {"data-right": truth === label}, make("button", {type: "button", title: name, "aria-label": name,
      "data-truth": truth, "data-label": label, style: `background: color-mix(in srgb, var(${colour}) ${strength / 2}%, var(--card))`,
      click: () => filter(state.truth === truth && state.label === label ? {truth: "", label: ""} : {truth, label})}, String(count)));
  };
  $("confusion").replaceChildren(make("table", {},
    make("thead", {}, make("tr", {}, make("td", {}), names.map(name => make("th", {scope: "col", title: name}, name)))),
    make("tbody", {}, names.map(truth => make("tr", {}, make("th", {scope: "row", title: truth}, truth), names.map(label => cell(truth, label)))))));
}

function markPressed() {
  for (const one of $("classes").children) one.setAttribute("aria-pressed", String(state.label !== "" && one.dataset.label === state.label));
  for (const one of $("histogram").children) one.setAttribute("aria-pressed", String(one.dataset.bin === state.score));
  const chip = (name, text) => make("button", {type: "button", class: "chip", title: text, click: () => filter({[name]: ""})}, text + " ×");
  const at = Number(state.score) / BINS;
  $("chips").replaceChildren(
    ...(state.truth ? [chip("truth", "Truth: " + state.truth)] : []),
    ...(byId.has(state.like) ? [chip("like", "Like " + byId.get(state.like).path)] : []),
    ...(lasso.chosen ? [make("button", {type: "button", class: "chip", click: () => { lasso.chosen = null; lasso.path = []; filter({}); }}, "On the map ×")] : []),
    ...(state.score ? [chip("score", `Confidence ${at.toFixed(2)} to ${(at + 1 / BINS).toFixed(2)}`)] : []));
}

function fillNames() {
  for (const head of HEADS) {
    const answers = data.videos.map(row => head === "label" ? row : row.heads[head]).filter(Boolean);
    const names = new Set(answers.flatMap(answer => [answer.truth, ...answer.top.map(pair => pair[0])]).filter(Boolean));
    document.body.append(make("datalist", {id: "names-" + head}, [...names].sort().map(value => make("option", {value}))));
  }
}
