// Filters, sorts and enlarges the pairs, which are all on the page without this script. The form
// is the state; location.hash is the form (and the open pair) as text, so that a link shows a view.
const known = JSON.parse(document.getElementById("pair-data").textContent);
const form = document.getElementById("filters");
const list = document.getElementById("pairs");
const dialog = document.getElementById("pair");
const items = [...list.children];
const boxes = [...form.elements.attack.length ? form.elements.attack : [form.elements.attack]];
const sign = known.closerIsLarger ? -1 : 1;
const PREFIX = "#view:";
let shown = []; // places of the pairs on view, in their order
let open = null; // the place of the enlarged one

// For each order a key to sort by; equal keys keep the order of the page.
const ORDERS = {
  closest: (p) => [p.rank, sign * p.train_gamma], // one pair of each attack before any second
  training: (p) => [p.train_id, sign * p.train_gamma],
  attack: (p) => [p.attack, sign * p.train_gamma],
  unlike: (p) => [sign * (p.train_gamma - p.heldout_gamma)],
};

function compare(a, b) {
  const i = a.findIndex((value, k) => value !== b[k]);
  return i < 0 ? 0 : a[i] < b[i] ? -1 : 1;
}

function show() {
  const { hits, new: fresh, within, sort } = form.elements;
  const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
  const loosest = within.value === within.defaultValue;
  const key = ORDERS[sort.value];
  shown = known.pairs
    .map((pair, place) => ({ pair, place, key: key(pair) }))
    .filter(({ pair }) => wanted.has(known.attacks[pair.attack]))
    .filter(({ pair }) => (pair.hit || !hits.checked) && (pair.new || !fresh.checked))
    .filter(({ pair }) => loosest || sign * pair.train_gamma <= sign * within.value)
    .sort((a, b) => compare(a.key, b.key))
    .map(({ place }) => place);
  const visible = new Set(shown);
  items.forEach((item, place) => { item.hidden = !visible.has(place); });
  list.append(...shown.map((place) => items[place]));
  const images = new Set(shown.map((place) => known.pairs[place].train_id)).size;
  document.getElementById("within-value").textContent = Number(within.value).toFixed(3);
  document.getElementById("shown").textContent =
    `${shown.length} of ${items.length} pairs shown, of ${images} different training images.`;
}

// The view as text, without defaults.
function write() {
  const view = new URLSearchParams();
  const checked = boxes.filter((box) => box.checked);
  if (checked.length < boxes.length) {
    (checked.length ? checked : [{ value: "" }]).forEach((box) => view.append("attack", box.value));
  }
  for (const name of ["hits", "new"]) if (form.elements[name].checked) view.set(name, 1);
  const { within, sort } = form.elements;
  if (within.value !== within.defaultValue) view.set("within", within.value);
  if (sort.value !== "closest") view.set("sort", sort.value);
  if (open !== null) view.set("pair", open);
  history.replaceState(null, "", view.size ? PREFIX + view : "#gallery");
}

function read() {
  const linked = location.hash.match(/^#gallery-(\d+)$/);
  const view = new URLSearchParams(linked ? "" : location.hash.slice(PREFIX.length));
  if (linked) view.set("attack", known.attacks[linked[1] - 1]);
  if (!linked && !location.hash.startsWith(PREFIX)) return show();
  form.reset();
  if (view.has("attack")) {
    boxes.forEach((box) => { box.checked = view.getAll("attack").includes(box.value); });
  }
  for (const name of ["hits", "new"]) form.elements[name].checked = view.has(name);
  // A link may come from another report or be edited: invalid parts keep their defaults.
  const [within, place] = ["within", "pair"].map((name) => Number(view.get(name) ?? NaN));
  if (!Number.isNaN(within)) form.elements.within.value = within;
  if (Object.hasOwn(ORDERS, view.get("sort"))) form.elements.sort.value = view.get("sort");
  show();
  document.getElementById("gallery").scrollIntoView();
  if (place in known.pairs) enlarge(place);
}

function framed(picture, ...lines) {
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.append(...lines.flatMap((line, i) => (i ? [document.createElement("br"), line] : [line])));
  figure.append(picture, caption);
  return figure;
}

async function enlarge(place) {
  open = place;
  write();
  const pair = known.pairs[place];
  const state = pair.new ? "new hit" : pair.hit ? "hit" : "no hit";
  const at = shown.indexOf(place);
  document.getElementById("pair-title").textContent =
    `${known.attacks[pair.attack]}: generated image ${pair.index}`;
  document.getElementById("pair-said").textContent =
    `${state}${at < 0 ? "" : `, pair ${at + 1} of ${shown.length}`}`;
  document.getElementById("previous").disabled = at <= 0;
  document.getElementById("next").disabled = at < 0 || at === shown.length - 1;
  if (!dialog.open) dialog.showModal();
  const pictures = [...items[place].querySelectorAll("img")].map((image) => image.cloneNode());
  await Promise.all(pictures.map((picture) => picture.decode()));
  if (open !== place) return; // the reader has opened another pair in the meantime
  const [generated, training, heldout] = pictures;
  const { canvas, mean, largest } = difference(generated, training);
  const gamma = (value) => `${known.gamma} ${value.toFixed(3)}`;
  document.getElementById("pair-shots").replaceChildren(
    framed(generated, "generated"),
    framed(training, `training image ${pair.train_id}`, gamma(pair.train_gamma)),
    framed(canvas, "difference", `mean ${mean.toFixed(1)}, largest ${largest} of 255`),
    framed(heldout, `held-out image ${pair.heldout_id}`, gamma(pair.heldout_gamma)),
  );
}

// |one - other| of every pixel as a canvas, with its mean and largest value.
function difference(one, other) {
  const canvas = document.createElement("canvas");
  canvas.width = one.naturalWidth;
  canvas.height = one.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [a, b] = [one, other].map((image) => {
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  });
  let sum = 0;
  let largest = 0;
  a.data.forEach((value, i) => {
    if (i % 4 === 3) return; // opacity
    a.data[i] = Math.abs(value - b.data[i]);
    sum += a.data[i];
    largest = Math.max(largest, a.data[i]);
  });
  context.putImageData(a, 0, 0);
  const mean = sum / (3 * canvas.width * canvas.height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `difference, mean ${mean.toFixed(1)} of 255`);
  return { canvas, mean, largest };
}

function step(by) {
  const at = shown.indexOf(open);
  if (at >= 0 && at + by in shown) enlarge(shown[at + by]);
}

form.hidden = false;
items.forEach((item, place) => {
  const button = item.querySelector("button");
  button.disabled = false;
  button.addEventListener("click", () => enlarge(place));
});
const settle = () => { show(); write(); };
// A slider's every step is an input, and browsers allow only so many new addresses per second.
form.addEventListener("input", show);
form.addEventListener("change", settle);
form.addEventListener("submit", (event) => event.preventDefault());
// The form resets itself after its listeners have run.
form.addEventListener("reset", () => setTimeout(settle));
document.getElementById("previous").addEventListener("click", () => step(-1));
document.getElementById("next").addEventListener("click", () => step(1));
document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
});
dialog.addEventListener("close", () => {
  items[open].querySelector("button").focus();
  open = null;
  write();
});
addEventListener("hashchange", read);
read();
