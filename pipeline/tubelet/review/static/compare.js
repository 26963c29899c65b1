// A second run on the same videos: its answer beside the first one's, and what it gained and lost.

const rightIn = (row, answer) => Boolean(row.truth) && Boolean(answer) && answer.label === row.truth;
const changes = {
  changed: row => Boolean(row.other) && row.other.label !== row.label,
  gained: row => rightIn(row, row.other) && !rightIn(row, row),
  lost: row => rightIn(row, row) && Boolean(row.other) && !rightIn(row, row.other),
};

function otherRun(row) {
  if (!data.compare) return null;
  const text = row.other ? `${row.other.label} ${percent(row.other.score)}` : "no answer";
  const right = row.truth && row.other ? (rightIn(row, row.other) ? "✓ " : "✗ ") : "";
  return make("p", {class: "other" + (changes.changed(row) ? " changed" : "")}, "Second run: " + right + text);
}

const chance = p => p < 0.001 ? "p < 0.001" : "p = " + p.toFixed(3);
const share = (part, all) => all ? (100 * part / all).toFixed(1) + " %" : "";

function fillCompare() {
  const found = data.compare;
  if (!found) return;
  const {known} = found;
  const lines = [`Two runs: ${found.changed} of ${found.rows} rows changed their label.`];
  if (known.rows) {
    lines.push(`Right: ${share(known.first, known.rows)}, then ${share(known.second, known.rows)} of ${known.rows}; `
      + `${known.gained} gained, ${known.lost} lost (McNemar, ${chance(known.p)}).`);
  }
  if (found.only_first || found.only_second) lines.push(`Only in the first run: ${found.only_first}; only in the second: ${found.only_second}.`);
  const rows = Object.entries(found.classes).map(([name, one]) => make("tr", {},
    make("th", {scope: "row"}, make("button", {type: "button", click: () => filter({truth: state.truth === name ? "" : name})}, name)),
    [one.rows, share(one.first, one.rows), share(one.second, one.rows), one.gained, one.lost, chance(one.p)].map(cell => make("td", {}, String(cell)))));
  const heads = ["Class", "Rows", "First", "Second", "Gained", "Lost", "McNemar"];
  $("compare").hidden = false;
  $("compare").replaceChildren(make("p", {class: "note"}, lines.join(" ")), rows.length ? make("details", {},
    make("summary", {}, "By class"),
    make("div", {class: "classes-table"}, make("table", {}, make("thead", {}, make("tr", {}, heads.map(name => make("th", {scope: "col"}, name)))), make("tbody", {}, rows)))) : null);
}
