// One card a row: its picture or player, what the model and the truth say, and what can be done with it.

const SEPARATOR = "|";
const selected = new Set();

function picture(row) {
  if (row.strip) {
    // With its size known, a picture that loads late moves nothing.
    return make("div", {class: "picture"}, make("img", {
      class: "strip", src: row.strip, width: row.size[0], height: row.size[1],
      style: shape(row.size), alt: "Frames of " + row.path, loading: "lazy", decoding: "async",
    }));
  }
  if (!row.sheet) return make("div", {class: "none"}, row.missing || "No frames");
  const {name, at, of, width, height} = row.sheet;
  const where = [
    `background-image: url("${encodeURIComponent(data.folder)}/${name}")`,
    `background-size: ${100 * width / row.size[0]}% ${100 * of * height / row.size[1]}%`,
    `background-position: 0 ${of < 2 ? 0 : 100 * at / (of - 1)}%`,
  ];
  return make("div", {class: "picture"}, make("div", {
    class: "strip", role: "img", "aria-label": "Frames of " + row.path, style: shape(row.size) + ";" + where.join(";"),
  }));
}

// As wide as there is room, and never higher than 150 pixels; on a narrow page cut off at the right.
const shape = ([w, h]) => `aspect-ratio: ${w} / ${h}; width: max(${72 * w / h}px, min(100%, ${150 * w / h}px)); height: auto; max-width: none`;

function truthOf(answer) {
  if (!answer.truth) return null;
  const right = answer.truth.split(SEPARATOR).map(text => text.trim()).includes(answer.label);
  return make("span", {class: "truth " + (right ? "right" : "wrong")}, (right ? "✓ truth: " : "✗ truth: ") + answer.truth);
}

function saidOf(row) {
  const said = corrections.of(row);
  if (!said) return null;
  const what = {
    accept: "Accepted",
    relabel: "Relabelled: " + Object.values(said.labels || {}).join(", "),
    reject: "Rejected: stays out of training",
  }[said.action];
  return make("p", {class: "said"}, [what, said.note && "Note: " + said.note].filter(Boolean).join(" · "));
}

function button(text, key, act) {
  return make("button", {type: "button", click: act, title: "Key " + key, "aria-keyshortcuts": key}, text);
}

function card(row) {
  const others = Object.entries(row.heads).map(([head, answer]) => make("p", {class: "meta"},
    `${head.replace("label_", "")}: ${answer.label} ${percent(answer.score)} `, truthOf(answer)));
  const facts = [
    row.start === null ? null : clock(row.start) + " to " + clock(row.end),
    row.partial && "breaks off: " + row.partial,
    row.why,
  ].filter(Boolean);
  const top = make("ol", {class: "top", "aria-label": "Top labels"}, row.top.map(([name, score]) => make("li", {title: name + ": " + percent(score)},
    make("i", {style: `width: ${Math.max(0, Math.min(100, 100 * score))}%`}), make("span", {}, name), make("span", {}, percent(score)))));
  const said = corrections.of(row);
  return make("article", {
    class: "video", tabindex: "0", "data-id": row.id, "data-key": row.key, "aria-label": row.path,
    "data-done": said?.action, "data-selected": selected.has(row.id),
  },
    picture(row),
    make("div", {class: "text"},
      make("div", {},
        make("div", {class: "what"}, make("b", {}, row.label), make("span", {class: "score"}, percent(row.score)), truthOf(row)),
        otherRun(row),
        make("p", {class: "path", title: row.uri}, row.path),
        others,
        facts.length ? make("p", {class: "meta"}, facts.join(" · ")) : null,
        saidOf(row),
        make("div", {class: "actions"},
          make("input", {type: "checkbox", "aria-label": "Select " + row.path, title: "Key v", change: () => select([row])}),
          button("Play", "p", () => play(row)),
          button("Accept", "a", () => act("accept", row)),
          button("Relabel", "r", () => edit(row, "relabel")),
          button("Reject", "x", () => act("reject", row)),
          button("Note", "n", () => edit(row, "note")),
          hasAlike(row) ? button("More like this", "m", () => moreLike(row)) : null)),
      top));
}

async function moreLike(row) {
  if (data.served && state.like !== row.id) await findAlike(row);
  filter({like: state.like === row.id ? "" : row.id});
  focusCard(cardOf(row));
}

function failure(row) {
  return make("article", {class: "video error", tabindex: "0", "data-key": row.key, "aria-label": row.path},
    make("div", {class: "what"}, make("span", {class: "code"}, row.code), make("span", {class: "path", title: row.uri}, row.path)),
    make("p", {class: "meta"}, row.reason));
}

// What is in the list, by the row's id.
const shownCards = new Map();
const cardOf = row => shownCards.get(row.id);

function newCard(row) {
  const made = card(row);
  made.querySelector("input[type=checkbox]").checked = selected.has(row.id);
  shownCards.set(row.id, made);
  return made;
}

function refresh(rows) {
  for (const row of rows) {
    const old = cardOf(row);
    if (!old) continue;
    const focused = old.contains(document.activeElement);
    const fresh = newCard(row);
    const player = old.querySelector(".player");
    if (player) fresh.querySelector(".picture, .none").replaceWith(player);
    old.replaceWith(fresh);
    if (focused) fresh.focus({preventScroll: true});
  }
}

function select(rows) {
  const add = rows.some(row => !selected.has(row.id));
  for (const row of rows) if (add) selected.add(row.id); else selected.delete(row.id);
  refresh(rows);
  showProgress();
}

// All that are selected where this row is one of them, else this row.
const concerned = row => selected.has(row.id) ? [...selected].map(id => byId.get(id)) : [row];

function act(action, row, labels) {
  const rows = concerned(row);
  corrections.apply(rows, action === "relabel" ? corrections.relabel(labels) : corrections[action]);
  if (rows.length > 1) selected.clear();
  refresh(rows);
  if (rows.length === 1 && document.activeElement === cardOf(row)) move(1);
}

function edit(row, what) {
  const place = cardOf(row);
  place.querySelector(".edit")?.remove();
  const said = corrections.of(row);
  const close = () => { form.remove(); place.focus({preventScroll: true}); };
  const field = (name, value, list) => make("label", {}, name, make("input", {name, value, list, autocomplete: "off"}));
  const fields = what === "note" ? [field("note", said?.note || "")]
    : answersOf(row).map(([head, answer]) => field(head, said?.labels?.[head] ?? answer.label ?? "", "names-" + head));
  // Not a form: where the page is shown inside another one, forms may be forbidden.
  const form = make("div", {class: "edit", role: "group", "aria-label": what + " " + row.path}, fields,
    make("button", {type: "button", click: () => save()}, "Save"), make("button", {type: "button", click: close}, "Cancel"));
  const save = () => {
    const values = Object.fromEntries([...form.querySelectorAll("input")].map(input => [input.name, input.value.trim()]));
    close();
    if (what === "note") {
      const rows = concerned(row);
      corrections.apply(rows, corrections.note(values.note));
      refresh(rows);
    } else {
      const labels = Object.fromEntries(Object.entries(values).filter(([, value]) => value));
      if (Object.keys(labels).length) act("relabel", row, labels);
    }
  };
  form.addEventListener("keydown", event => {
    event.stopPropagation();
    if (event.key === "Enter" && event.target.tagName === "INPUT") { event.preventDefault(); save(); }
    if (event.key === "Escape") close();
  });
  place.querySelector(".actions").after(form);
  const first = form.querySelector("input");
  first.focus();
  first.select();
}

// The video instead of its strip, at the seconds that the model saw. Only now is anything asked for.
function play(row) {
  const place = cardOf(row);
  const open = place.querySelector(".player");
  if (open) { open.replaceWith(picture(row)); return; }
  const box = make("div", {class: "player"});
  const local = row.link?.startsWith("file:");
  if (!row.link || (local && location.protocol !== "file:")) {
    const way = row.uri.includes("://") ? "`tubelet review … --serve`, or signed links by `--presign 24h`, play it." : "`tubelet review … --serve` plays it.";
    box.append(make("span", {}, `This page has no link to the video ${row.uri}. ` + way));
  } else {
    const [from, to] = row.seen ?? [row.start ?? 0, row.end ?? Infinity];
    const video = make("video", {controls: true, autoplay: true, playsinline: true, "aria-label": row.path});
    video.muted = true;
    video.addEventListener("loadedmetadata", () => { video.currentTime = from; });
    // The last frame seen is shown, too.
    const stop = to + Math.max(0.1, (to - from) / 16);
    let bounded = true;
    video.addEventListener("timeupdate", () => { if (bounded && !video.seeking && video.currentTime > stop) video.currentTime = from; });
    video.addEventListener("error", () => {
      video.replaceWith(make("span", {}, "This browser cannot play this file; what the model saw of it is in the strip of frames. "));
    });
    const whole = make("button", {type: "button", click: () => { bounded = !bounded; whole.textContent = bounded ? "Play the whole" : "Play what the model saw"; }}, "Play the whole");
    video.src = row.link;
    box.append(video, make("span", {}, `The model saw ${clock(from)} to ${Number.isFinite(to) ? clock(to) : "the end"}. `, whole, " ",
      make("a", {href: row.link, target: "_blank", rel: "noopener noreferrer"}, "Open the file")));
  }
  place.querySelector(".picture, .none").replaceWith(box);
}
