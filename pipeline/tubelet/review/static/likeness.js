// Clips that are alike: the map of embeddings, from which a lasso chooses, and the neighbours of one clip.

const lasso = {chosen: null, path: []};

const hueOf = name => [...String(name)].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 3600, 7) % 360;
const mapped = data.videos.filter(row => row.point);

// Even-odd rule: a point is inside where a ray from it crosses the line an odd number of times.
function inside([x, y], path) {
  let odd = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [[ax, ay], [bx, by_]] = [path[i], path[j]];
    if (ay > y !== by_ > y && x < (bx - ax) * (y - ay) / (by_ - ay) + ax) odd = !odd;
  }
  return odd;
}

function drawMap() {
  const canvas = $("map");
  const ratio = devicePixelRatio || 1;
  const size = canvas.clientWidth;
  if (!mapped.length || !size) return;
  canvas.width = canvas.height = size * ratio;
  const draw = canvas.getContext("2d");
  draw.scale(ratio, ratio);
  const matching = new Set(list.rows.map(row => row.id));
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  for (const pass of [false, true]) {
    for (const row of mapped) {
      if (matching.has(row.id) !== pass) continue;
      draw.globalAlpha = pass ? 0.9 : 0.15;
      draw.fillStyle = `hsl(${hueOf(row.label)} 60% ${dark ? 62 : 40}%)`;
      draw.beginPath();
      draw.arc(4 + row.point[0] * (size - 8), 4 + row.point[1] * (size - 8), mapped.length > 2000 ? 1.5 : 3, 0, 7);
      draw.fill();
    }
  }
  if (lasso.path.length < 2) return;
  draw.globalAlpha = 1;
  draw.strokeStyle = getComputedStyle(document.body).color;
  draw.beginPath();
  lasso.path.forEach(([x, y], at) => at ? draw.lineTo(4 + x * (size - 8), 4 + y * (size - 8)) : draw.moveTo(4 + x * (size - 8), 4 + y * (size - 8)));
  draw.closePath();
  draw.stroke();
}

function setUpMap() {
  $("map-box").hidden = !mapped.length;
  const canvas = $("map");
  const place = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left - 4) / (box.width - 8), (event.clientY - box.top - 4) / (box.height - 8)];
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    lasso.path = [place(event)];
  });
  canvas.addEventListener("pointermove", event => {
    if (!event.buttons) return;
    lasso.path.push(place(event));
    drawMap();
  });
  canvas.addEventListener("pointerup", () => {
    const found = mapped.filter(row => inside(row.point, lasso.path));
    lasso.chosen = lasso.path.length > 2 && found.length ? new Set(found.map(row => row.id)) : null;
    if (!lasso.chosen) lasso.path = [];
    filter({});
  });
  addEventListener("resize", drawMap);
}

// The clip and those most like it, the nearest first: of this page, or of all rows where the server was asked.
const alike = row => [row, ...(row.alike || (row.near || []).map(at => data.videos[at]))].filter(Boolean);
const hasAlike = row => row.near?.length || (data.served && mapped.length > 0);

// Rows that the page did not have come whole; they are known from then on, and listed only beside what they are like.
async function findAlike(row) {
  try {
    const answer = await fetch(`alike/${row.key}/${row.window}`);
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 200) || answer.statusText);
    const {places, more} = await answer.json();
    for (const other of more) byId.set(other.key + ":" + other.window, {...other, id: other.key + ":" + other.window, at: byId.size});
    row.alike = places.map(([key, window]) => byId.get(key + ":" + window));
    server.trouble = "";
  } catch (error) {
    server.trouble = "All rows could not be searched: " + error.message;
  }
  showProgress();
}
