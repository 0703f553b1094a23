// The viewer: a canvas over the pyramid of tiles. Positions are pixels of the wall at full resolution; `scale` is
// screen pixels (CSS) per wall pixel. What is asked for is decided anew for each frame, so nothing is ever cancelled.
'use strict';

const POLL_MS = 5000;
const IN_FLIGHT_MAX = 8;
const TILES_KEPT = 320;
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 15000];
const LISTED_MAX = 100;

const $ = (id) => document.getElementById(id);
const canvas = $('wall');
const pen = canvas.getContext('2d', { alpha: false });
const calm = matchMedia('(prefers-reduced-motion: reduce)');
const state = {
  wall: null,       // what /wall.json says
  before: null,     // the wall before it, drawn below until the new one is there
  x: 0, y: 0,       // the wall's point in the middle of the screen
  scale: 0,
  flight: null,     // an animation {from, to, start, ms}
  chosen: -1,       // index of the highlighted cover
  isUnknown: false, // the wall was told to be held no more
};
const tiles = new Map();   // key -> {image, state, tries, at}; in order of use
const names = new Map();   // `${wall}/${block}` -> covers, or a promise of them
const counters = { loaded: 0, failed: 0 };
let inFlight = 0, isDirty = false, settling = 0;

// ---- geometry
const ratio = () => Math.min(devicePixelRatio || 1, 2);
const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
const homeScale = (wall) => Math.min(canvas.clientWidth / wall.width, canvas.clientHeight / wall.height);
const zoomNow = () => state.wall.zoom_max + Math.log2(state.scale);

function keepInside() {
  const { wall } = state;
  state.scale = clamp(state.scale, Math.min(homeScale(wall), 1) * 0.9, 2);
  const halfX = canvas.clientWidth / 2 / state.scale, halfY = canvas.clientHeight / 2 / state.scale;
  state.x = halfX * 2 >= wall.width ? wall.width / 2 : clamp(state.x, halfX, wall.width - halfX);
  state.y = halfY * 2 >= wall.height ? wall.height / 2 : clamp(state.y, halfY, wall.height - halfY);
}

function toWall(screenX, screenY) {
  const { x, y, scale } = state;
  return [x + (screenX - canvas.clientWidth / 2) / scale, y + (screenY - canvas.clientHeight / 2) / scale];
}

function coverAt(wall, x, y) {
  const column = Math.floor(x / wall.cell[0]), index = Math.floor(y / wall.cell[1]) * wall.columns + column;
  return column >= 0 && column < wall.columns && index >= 0 && index < wall.covers ? index : -1;
}

function centreOf(index) {
  const { wall } = state;
  return [(index % wall.columns + 0.5) * wall.cell[0], (Math.floor(index / wall.columns) + 0.5) * wall.cell[1]];
}

// ---- tiles
function tileSpan(wall, zoom) { return wall.tile * 2 ** (wall.zoom_max - zoom); }

function visible(wall, zoom) {
  const span = tileSpan(wall, zoom);
  const [left, top] = toWall(0, 0), [right, bottom] = toWall(canvas.clientWidth, canvas.clientHeight);
  const range = (low, high, size) => [low, high].map((edge) => clamp(Math.floor(edge / span), 0, Math.ceil(size / span) - 1));
  const [x0, x1] = range(left, right, wall.width), [y0, y1] = range(top, bottom, wall.height);
  const found = [];
  for (let y = y0; y <= y1; y++) for (let x = x0; x <= x1; x++) found.push({ wall, zoom, x, y });
  // From the middle outwards: what one looks at comes first.
  const far = (tile) => Math.hypot((tile.x + 0.5) * span - state.x, (tile.y + 0.5) * span - state.y);
  return found.sort((one, other) => far(one) - far(other));
}

const pathOf = ({ wall, zoom, x, y }) => `/tiles/${wall.wall}/${zoom}/${x}/${y}.jpg`;

function find(tile) {
  const path = pathOf(tile), found = tiles.get(path);
  if (found) { tiles.delete(path); tiles.set(path, found); }
  return found;
}

async function load(tile) {
  const path = pathOf(tile), held = tiles.get(path) || { tries: 0 };
  tiles.set(path, Object.assign(held, { state: 'loading' }));
  inFlight++;
  try {
    const answer = await fetch(path);
    if (!answer.ok) {
      if (answer.headers.get('Boxlink-Wall') === 'unknown') { state.isUnknown = true; poll(); }
      throw new Error(`${answer.status}`);
    }
    held.image = await createImageBitmap(await answer.blob());
    held.state = 'here';
    counters.loaded++;
    trouble('');
  } catch {
    held.state = 'failed';
    held.at = performance.now() + RETRY_MS[Math.min(held.tries++, RETRY_MS.length - 1)] * (0.75 + Math.random() / 2);
    counters.failed++;
    if (held.tries > 2) trouble('Some tiles do not come; still trying.');
    setTimeout(redraw, held.at - performance.now() + 10);
  } finally {
    inFlight--;
    redraw();
  }
}

function ask(wanted) {
  const now = performance.now();
  for (const tile of wanted) {
    if (inFlight >= IN_FLIGHT_MAX) return;
    const held = find(tile);
    if (!held || (held.state === 'failed' && held.at <= now)) load(tile);
  }
}

function forget() {
  for (const [path, held] of tiles) {
    if (tiles.size <= TILES_KEPT) return;
    if (held.state !== 'loading') { held.image?.close(); tiles.delete(path); }
  }
}

// ---- drawing
function redraw() {
  if (!isDirty) { isDirty = true; requestAnimationFrame(frame); }
}

function frame(now) {
  isDirty = false;
  if (!state.wall) return;
  step(now);
  keepInside();
  const dots = ratio(), width = Math.round(canvas.clientWidth * dots), height = Math.round(canvas.clientHeight * dots);
  if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
  pen.fillStyle = '#1b140f';
  pen.fillRect(0, 0, width, height);
  const zoom = clamp(Math.round(state.wall.zoom_max + Math.log2(state.scale * dots) + 0.2), 0, state.wall.zoom_max);
  if (state.before) drawWall(state.before, zoom);
  const missing = drawWall(state.wall, zoom), isWhole = missing.length === 0;
  ask(missing);
  if (isWhole) state.before = null;
  drawChosen(dots);
  forget();
  const { wall, seq, covers } = state.wall, settled = isWhole && !state.flight;
  Object.assign(document.body.dataset, { wall, seq, covers, settled, zoom: zoomNow().toFixed(3) });
  Object.assign(document.body.dataset, { tilesLoaded: counters.loaded, tilesFailed: counters.failed });
  clearTimeout(settling);
  if (state.flight) redraw(); else settling = setTimeout(redrawNames, 150);
}

// Draws what is here, ancestors below the tiles that are missing; returns those.
function drawWall(wall, zoom) {
  const wanted = visible(wall, zoom), missing = wanted.filter((tile) => find(tile)?.state !== 'here');
  const under = new Map();
  for (const tile of missing) {
    for (let up = 1; up <= tile.zoom; up++) {
      const above = { wall, zoom: tile.zoom - up, x: tile.x >> up, y: tile.y >> up };
      if (find(above)?.state === 'here') { under.set(pathOf(above), above); break; }
    }
  }
  for (const tile of [...under.values()].sort((one, other) => one.zoom - other.zoom)) paint(tile);
  for (const tile of wanted) paint(tile);
  return missing;
}

function paint(tile) {
  const held = tiles.get(pathOf(tile));
  if (held?.state !== 'here') return;
  const span = tileSpan(tile.wall, tile.zoom), dots = ratio();
  const edge = (value, middle, size) => Math.round(((value - middle) * state.scale + size / 2) * dots);
  const [left, right] = [tile.x, tile.x + 1].map((at) => edge(at * span, state.x, canvas.clientWidth));
  const [top, bottom] = [tile.y, tile.y + 1].map((at) => edge(at * span, state.y, canvas.clientHeight));
  pen.imageSmoothingQuality = 'high';
  pen.drawImage(held.image, left, top, right - left, bottom - top);
}

function drawChosen(dots) {
  if (state.chosen < 0 || state.chosen >= state.wall.covers) return;
  const [x, y] = centreOf(state.chosen), [width, height] = state.wall.cell;
  pen.strokeStyle = '#e2ca92';
  pen.lineWidth = 3 * dots;
  pen.strokeRect(((x - width / 2 - state.x) * state.scale + canvas.clientWidth / 2) * dots,
    ((y - height / 2 - state.y) * state.scale + canvas.clientHeight / 2) * dots,
    width * state.scale * dots, height * state.scale * dots);
}

// ---- moving
function step(now) {
  if (!state.flight) return;
  const { from, to, start, ms } = state.flight, part = clamp((now - start) / ms, 0, 1), eased = 1 - (1 - part) ** 3;
  state.scale = from.scale * (to.scale / from.scale) ** eased;
  // While the scale changes, the middle moves so that the point that is zoomed at stands still.
  const share = Math.abs(to.scale - from.scale) < 1e-9 * to.scale ? eased
    : (1 / from.scale - 1 / state.scale) / (1 / from.scale - 1 / to.scale);
  state.x = from.x + (to.x - from.x) * share;
  state.y = from.y + (to.y - from.y) * share;
  if (part === 1) state.flight = null;
}

function fly(to, ms = 260) {
  if (!state.wall) return;
  const aim = state.flight ? state.flight.to : state;
  const goal = { x: to.x ?? aim.x, y: to.y ?? aim.y, scale: clamp(to.scale ?? aim.scale, homeScale(state.wall) * 0.9, 2) };
  const { x, y, scale } = state;
  state.flight = { from: { x, y, scale }, to: goal, start: performance.now(), ms: calm.matches ? 1 : ms };
  redraw();
}

function zoomAt(screenX, screenY, factor) {
  const aim = state.flight ? state.flight.to.scale : state.scale, [x, y] = toWall(screenX, screenY);
  const scale = clamp(aim * factor, homeScale(state.wall) * 0.9, 2), held = state.scale / scale;
  fly({ x: x + (state.x - x) * held, y: y + (state.y - y) * held, scale }, 180);
}

const home = () => fly({ x: state.wall.width / 2, y: state.wall.height / 2, scale: homeScale(state.wall) }, 500);

function choose(index) {
  state.chosen = index;
  const [x, y] = centreOf(index);
  const fits = Math.min(1.2, canvas.clientHeight / state.wall.cell[1] * 0.9);
  fly({ x, y, scale: clamp(state.scale, fits / 2, fits) }, 450);
}

const ACTS = {
  in: () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 2),
  out: () => zoomAt(canvas.clientWidth / 2, canvas.clientHeight / 2, 0.5),
  home,
  list: (button) => button.setAttribute('aria-expanded', document.body.classList.toggle('listing')),
};

for (const button of document.querySelectorAll('[data-act]')) {
  button.addEventListener('click', () => { if (state.wall) ACTS[button.dataset.act](button); });
}

canvas.addEventListener('keydown', (event) => {
  if (!state.wall || event.ctrlKey || event.metaKey || event.altKey) return;
  const aim = state.flight ? state.flight.to : state, far = canvas.clientWidth / 3 / state.scale;
  const page = canvas.clientHeight / state.scale, moves = {
    ArrowLeft: { x: aim.x - far }, ArrowRight: { x: aim.x + far }, PageUp: { y: aim.y - page },
    ArrowUp: { y: aim.y - far }, ArrowDown: { y: aim.y + far }, PageDown: { y: aim.y + page },
  };
  if (moves[event.key]) fly(moves[event.key]);
  else if (event.key === '+' || event.key === '=') ACTS.in();
  else if (event.key === '-') ACTS.out();
  else if (event.key === 'Home') home();
  else return;
  event.preventDefault();
});

canvas.addEventListener('wheel', (event) => {
  event.preventDefault();
  if (!state.wall) return;
  const unit = [1, 16, canvas.clientHeight][event.deltaMode];
  zoomAt(event.offsetX, event.offsetY, 2 ** clamp(-event.deltaY * unit / 220, -1, 1));
}, { passive: false });

const fingers = new Map();
let tap = null;

canvas.addEventListener('pointerdown', (event) => {
  if (!state.wall || event.button > 0) return;
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  tap = fingers.size === 1 ? { x: event.offsetX, y: event.offsetY, at: event.timeStamp } : null;
  state.flight = null;
  canvas.classList.add('dragging');
});

canvas.addEventListener('pointermove', (event) => {
  const finger = fingers.get(event.pointerId);
  if (!finger) return;
  const before = [...fingers.values()].map((one) => ({ ...one }));
  Object.assign(finger, { x: event.offsetX, y: event.offsetY });
  const after = [...fingers.values()], middle = (points, axis) => points.reduce((sum, one) => sum + one[axis], 0) / points.length;
  const spread = (points) => Math.hypot(points[0].x - points[1].x, points[0].y - points[1].y);
  const [x, y] = toWall(middle(before, 'x'), middle(before, 'y'));
  if (after.length === 2) state.scale *= clamp(spread(after) / Math.max(1, spread(before)), 0.5, 2);
  keepInside();
  // The wall's point that was between the fingers stays between them.
  state.x = x - (middle(after, 'x') - canvas.clientWidth / 2) / state.scale;
  state.y = y - (middle(after, 'y') - canvas.clientHeight / 2) / state.scale;
  if (tap && Math.hypot(event.offsetX - tap.x, event.offsetY - tap.y) > 6) tap = null;
  redraw();
});

function lift(event) {
  if (!fingers.delete(event.pointerId)) return;
  if (!fingers.size) canvas.classList.remove('dragging');
  if (tap && event.type === 'pointerup' && event.timeStamp - tap.at < 500) {
    const index = coverAt(state.wall, ...toWall(event.offsetX, event.offsetY));
    if (index >= 0) choose(index);
  }
  tap = null;
  redraw();
}
canvas.addEventListener('pointerup', lift);
canvas.addEventListener('pointercancel', lift);

// ---- names, place, address
function inView() {
  const { wall } = state, [left, top] = toWall(0, 0), [right, bottom] = toWall(canvas.clientWidth, canvas.clientHeight);
  // A cell counts when three quarters of it, or more, are in view.
  const range = (low, high, size, count) => [low / size + 0.25, high / size - 0.25].map((edge) => clamp(Math.floor(edge), 0, count - 1));
  const columns = range(left, right, wall.cell[0], wall.columns), rows = range(top, bottom, wall.cell[1], wall.rows), indexes = [];
  for (let row = rows[0]; row <= rows[1] && indexes.length <= LISTED_MAX; row++) {
    for (let column = columns[0]; column <= columns[1]; column++) indexes.push(row * wall.columns + column);
  }
  return { rows, indexes: indexes.filter((index) => index < wall.covers) };
}

async function nameOf(wall, index) {
  const block = Math.floor(index / wall.names_block), path = `/tiles/${wall.wall}/names/${block}.json`;
  if (!names.has(path)) {
    if (names.size > 200) names.delete(names.keys().next().value);
    names.set(path, fetch(path).then((answer) => (answer.ok ? answer.json() : Promise.reject(new Error(answer.status)))));
    names.get(path).catch(() => setTimeout(() => names.delete(path), 2000));
  }
  return (await names.get(path)).covers[index - block * wall.names_block];
}

async function redrawNames() {
  const { wall } = state, { rows, indexes } = inView(), number = (value) => value.toLocaleString();
  const isClose = indexes.length <= LISTED_MAX;
  const shelves = rows[0] === rows[1] ? `Shelf ${number(rows[0] + 1)}` : `Shelves ${number(rows[0] + 1)} to ${number(rows[1] + 1)}`;
  history.replaceState(null, '', `#${zoomNow().toFixed(3)}/${state.x.toFixed(1)}/${state.y.toFixed(1)}`);
  say($('place'), `${shelves} of ${number(wall.rows)} · ${number(wall.covers)} covers`);
  $('hint').hidden = isClose;
  const known = isClose ? await Promise.all(indexes.map((index) => nameOf(wall, index))).catch(() => null) : [];
  if (!known || wall !== state.wall) return;
  const key = `${wall.wall} ${indexes[0]} ${indexes.at(-1)} ${known.length}`;
  if ($('names').dataset.key === key) return;
  $('names').replaceChildren(...known.map((cover, at) => entry(cover, indexes[at])));
  $('names').dataset.key = key;
}

function entry(cover, index) {
  const [item, button, author] = ['li', 'button', 'small'].map((tag) => document.createElement(tag));
  button.type = 'button';
  button.textContent = cover.title;
  author.textContent = cover.author || cover.file;
  button.append(author);
  button.addEventListener('click', () => choose(index));
  item.append(button);
  return item;
}

function say(element, text) { if (element.textContent !== text) element.textContent = text; }
function trouble(text) { $('trouble').hidden = !text; say($('trouble'), text); }

function fromHash() {
  const [zoom, x, y] = location.hash.slice(1).split('/').map(Number);
  if (![zoom, x, y].every(Number.isFinite)) return false;
  Object.assign(state, { x, y, scale: 2 ** (zoom - state.wall.zoom_max), flight: null });
  return true;
}

// ---- walls
let isPolling = false;
async function poll() {
  if (isPolling) return;
  isPolling = true;
  try {
    const answer = await fetch('/wall.json', { cache: 'no-cache' });
    if (!answer.ok) throw new Error(`${answer.status}`);
    show(await answer.json());
    if (!counters.failed) trouble('');
  } catch {
    if (!state.wall) trouble('The wall is not here yet; still trying.');
  } finally {
    isPolling = false;
  }
}

// Servers are some seconds apart, so an older wall may be told of after a newer one: that is no way back.
function show(wall) {
  const old = state.wall;
  if (old && (wall.wall === old.wall || (wall.seq <= old.seq && !state.isUnknown))) return;
  state.isUnknown = false;
  state.wall = wall;
  document.title = wall.dataset;
  say($('title'), wall.dataset);
  if (!old) {
    if (!fromHash()) Object.assign(state, { x: wall.width / 2, y: wall.height / 2, scale: homeScale(wall) });
  } else if (old.columns === wall.columns && old.zoom_max === wall.zoom_max) {
    state.before = old;
  } else {
    // Another grid: stay at the same place in the order of the covers.
    [state.x, state.y] = centreOf(clamp(coverAt(old, state.x, state.y), 0, wall.covers - 1));
    state.flight = null;
  }
  state.chosen = -1;
  redraw();
}

addEventListener('hashchange', () => { if (state.wall && fromHash()) redraw(); });
new ResizeObserver(redraw).observe(canvas);
addEventListener('visibilitychange', () => { if (!document.hidden) poll(); });
setInterval(() => { if (!document.hidden) poll(); }, POLL_MS);
poll();
