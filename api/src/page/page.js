// The page of a node: what its agent says on /v1/live, shown. Everything that comes from elsewhere becomes text, never markup.

import { Chart } from "/chart.js";
import { BlockMap } from "/map.js";
import { Refusal, ask, follow } from "/stream.js";

const PAGE = 50; // devices shown at once
const EVENTS = 200; // events kept
const $ = (id) => document.getElementById(id);

const state = {
  devices: new Map(), chosen: null, filter: "", sort: ["id", 1], page: 0,
  token: null, last: null, since: 0, pulse: null,
};
const charts = { hits: new Chart($("c-hits"), "%", 100), rate: new Chart($("c-rate"), "MB/s"), wait: new Chart($("c-wait"), "ms"), read: new Chart($("c-read"), "ms") };
const map = new BlockMap($("map"), $("map-legend"));
const headers = () => (state.token ? { Authorization: `Bearer ${state.token}` } : {});

// --- words --------------------------------------------------------------------------------------------------------------------

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? count : count.toFixed(1)} ${units[unit]}`;
}
const percent = (part, whole) => (whole ? `${Math.floor((100 * part) / whole)} %` : "–");
const number = (count) => count.toLocaleString("en");

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function list(room, pairs) {
  room.replaceChildren(...pairs.map(([term, text, kind]) => {
    const pair = element("div");
    pair.append(element("dt", term), element("dd", text, kind));
    return pair;
  }));
}

// --- the node -----------------------------------------------------------------------------------------------------------------

function pulse(now) {
  const before = state.last;
  state.pulse = now;
  state.last = now;
  const { devices, reads, cache } = now;
  const seconds = before ? (Date.parse(now.time) - Date.parse(before.time)) / 1000 : 0;
  const since = (name) => Math.max(0, reads[name] - (before?.reads[name] ?? reads[name]));
  const [hits, misses] = [since("hits"), since("misses")];
  list($("tiles"), [
    ["Agent", now.not_ready ?? (now.degraded ? `degraded: ${now.degraded}` : "ready"), now.not_ready || now.degraded ? "warning" : "good"],
    ["Devices", [[devices.attached, "attached"], [devices.attaching, "coming"], [devices.detaching, "going"], [devices.failed, "failed"]]
      .filter(([count, word]) => count || word === "attached").map(([count, word]) => `${number(count)} ${word}`).join(", "), devices.failed ? "warning" : ""],
    ["Reads answered from this node", percent(reads.hits, reads.hits + reads.misses)],
    ["Served", bytes(reads.bytes_served)],
    ["Fetched", bytes(reads.bytes_fetched)],
    ["Reads that wait now", number(reads.in_flight)],
    ["Read errors", number(reads.errors), reads.errors ? "warning" : ""],
    ["Cache", `${bytes(cache.used_bytes)} of ${bytes(cache.limit_bytes)}`],
    ["Evicted, not stored", `${number(cache.evicted)} chunks, ${number(cache.bypasses)} fills`],
  ]);
  if (seconds > 0) {
    charts.hits.add(now.time, new Map([["hits", hits + misses ? (100 * hits) / (hits + misses) : null]]));
    const [rate, wait] = tiers(before, now, seconds);
    charts.rate.add(now.time, rate);
    charts.wait.add(now.time, wait);
    charts.read.add(now.time, reading(before, now));
  }
  waits();
}

// Bytes a second, and milliseconds to an answer, of mirrors and of registries themselves.
function tiers(before, now, seconds) {
  const old = new Map((before?.registries ?? []).flatMap((registry) => registry.endpoints.map((endpoint) => [`${registry.registry} ${endpoint.url}`, endpoint])));
  const names = { mirror: "mirrors", server: "registries" };
  const [rate, wait] = [new Map([["registries", 0]]), new Map([["registries", null]])];
  for (const registry of now.registries) {
    for (const endpoint of registry.endpoints) {
      const name = names[endpoint.role];
      const came = endpoint.received_bytes - (old.get(`${registry.registry} ${endpoint.url}`)?.received_bytes ?? endpoint.received_bytes);
      rate.set(name, (rate.get(name) ?? 0) + Math.max(0, came) / seconds / 1e6);
      if (endpoint.latency_seconds !== null) wait.set(name, Math.max(wait.get(name) ?? 0, endpoint.latency_seconds * 1000));
    }
  }
  return [rate, wait];
}

// Milliseconds that a read took since the last look, by tier; of one without reads since then nothing.
function reading(before, now) {
  const old = new Map(before.latency.map((tier) => [tier.tier, tier]));
  return new Map(now.latency.map((tier) => {
    const reads = tier.reads - (old.get(tier.tier)?.reads ?? 0);
    const took = tier.took_us - (old.get(tier.tier)?.took_us ?? 0);
    return [tier.tier, reads > 0 && took >= 0 ? took / reads / 1000 : null];
  }));
}

// --- devices ------------------------------------------------------------------------------------------------------------------

const COLUMNS = [
  ["id", "Device", (row) => row.id],
  ["reference", "Image", (row) => row.reference],
  ["state", "State", (row) => row.state],
  ["size", "Size", (row) => row.size_bytes, bytes],
  ["present", "Here", (row) => row.present_bytes / (row.blob_bytes || 1), (share) => `${Math.floor(share * 100)} %`],
  ["hits", "Hits", (row) => row.stats.hits / (row.stats.hits + row.stats.misses || 1), (share) => `${Math.floor(share * 100)} %`],
  ["fetched", "Fetched", (row) => row.stats.bytes_fetched, bytes],
  ["waiting", "Waiting", (row) => row.stats.in_flight, number],
  ["waited", "Waited", (row) => row.stats.waited_ms, (ms) => `${(ms / 1000).toFixed(1)} s`],
  ["errors", "Errors", (row) => row.stats.errors, number],
  ["mount", "Mounted on", (row) => row.mount_point ?? ""],
];

function columns() {
  $("columns").replaceChildren(...COLUMNS.map(([name, title, , form]) => {
    const head = element("th", undefined, form ? "n" : "");
    head.scope = "col";
    const button = element("button", title);
    button.type = "button";
    button.addEventListener("click", () => {
      state.sort = [name, state.sort[0] === name ? -state.sort[1] : 1];
      state.page = 0;
      devices();
    });
    head.append(button);
    head.dataset.name = name;
    return head;
  }));
}

function devices() {
  const [name, way] = state.sort;
  const of = COLUMNS.find(([column]) => column === name)[2];
  const wanted = state.filter.toLowerCase();
  const match = (row) => [row.id, row.reference, row.state, row.mount_point ?? "", row.owner, row.transport].some((text) => text.toLowerCase().includes(wanted));
  const all = [...state.devices.values()].filter(match);
  const order = (a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  all.sort((a, b) => way * order(of(a), of(b)) || a.id.localeCompare(b.id));
  const pages = Math.max(1, Math.ceil(all.length / PAGE));
  state.page = Math.min(state.page, pages - 1);
  const first = state.page * PAGE;
  const shown = all.slice(first, first + PAGE);
  for (const head of $("columns").children) {
    head.setAttribute("aria-sort", head.dataset.name !== name ? "none" : way > 0 ? "ascending" : "descending");
  }
  const focused = document.activeElement?.dataset?.device;
  $("devices").replaceChildren(...shown.map(line));
  if (focused) $("devices").querySelector(`[data-device="${CSS.escape(focused)}"]`)?.focus();
  const text = all.length ? `${first + 1} to ${first + shown.length} of ${number(all.length)}` : "none";
  if ($("shown").textContent !== text) $("shown").textContent = text;
  $("before").disabled = state.page === 0;
  $("after").disabled = state.page >= pages - 1;
  facts();
}

function line(row) {
  const tr = element("tr", undefined, row.id === state.chosen ? "chosen" : "");
  for (const [name, , of, form] of COLUMNS) {
    const value = of(row);
    const cell = element("td", undefined, form ? "n" : "");
    if (name === "id") {
      const button = element("button", value);
      button.type = "button";
      button.dataset.device = value;
      button.setAttribute("aria-pressed", String(row.id === state.chosen));
      button.addEventListener("click", () => choose(row.id));
      cell.append(button);
    } else {
      cell.textContent = form ? form(value) : value;
      if (name === "state" && value === "failed") cell.className = "failed";
    }
    tr.append(cell);
  }
  return tr;
}

function choose(id) {
  state.chosen = state.chosen === id ? null : id;
  map.clear();
  history.replaceState(null, "", state.chosen ? `#${encodeURIComponent(state.chosen)}` : "#");
  devices();
  connect();
}

function facts() {
  const row = state.devices.get(state.chosen);
  $("device").hidden = !row;
  if (!row) return;
  $("h-device").textContent = `Device ${row.id}`;
  list($("facts"), [
    ["Image", row.reference],
    ["State", row.state_reason ? `${row.state}: ${row.state_reason}` : row.state, row.state === "failed" ? "failed" : ""],
    ["Asked for by", row.owner],
    ["Through", row.transport],
    ["Mounted on", row.mount_point ?? "nothing"],
    ["On this node", `${bytes(row.present_bytes)} of ${bytes(row.blob_bytes)}`],
    ["Reads", `${number(row.stats.hits)} hits, ${number(row.stats.misses)} misses, ${number(row.stats.errors)} errors`],
    ["Served, fetched", `${bytes(row.stats.bytes_served)}, ${bytes(row.stats.bytes_fetched)}`],
    ["Waited for registries", `${(row.stats.waited_ms / 1000).toFixed(1)} s`],
  ]);
  waits();
}

// What the chosen image waits on now.
function waits() {
  const row = state.devices.get(state.chosen);
  let text = "";
  if (row && row.stats.in_flight) {
    // The registry of a reference as the agent names it: before the first slash, which a reference that it shows always has.
    const name = row.reference.split("/")[0];
    const registry = state.pulse?.registries.find((one) => one.registry === name);
    const asked = (registry?.endpoints ?? []).map((endpoint) => {
      const trouble = [endpoint.breaker !== "closed" ? `breaker ${endpoint.breaker}` : "", endpoint.stalling ? "stalling" : "", endpoint.quiet_seconds ? `asks for ${Math.ceil(endpoint.quiet_seconds)} s of quiet` : "", endpoint.breaker !== "closed" && endpoint.last_failure ? endpoint.last_failure : ""].filter(Boolean).join(", ");
      return `${endpoint.url} (${endpoint.in_flight} requests in flight${trouble ? `; ${trouble}` : ""})`;
    });
    text = `${number(row.stats.in_flight)} reads wait, for ${asked.join(", ") || name}`;
  }
  if ($("waits").textContent !== text) $("waits").textContent = text;
}

// --- the cache ----------------------------------------------------------------------------------------------------------------

async function look() {
  $("looked").textContent = "looking";
  try {
    const [cache, all] = await Promise.all(["/v1/cache", "/v1/devices"].map(async (path) => (await ask(path, headers())).json()));
    kept(cache, all);
    $("looked").textContent = `as of ${new Date().toLocaleTimeString("en-GB")}; ${number(cache.blobs_total)} blobs`;
  } catch (error) {
    $("looked").textContent = error.message;
  }
}

function kept(cache, all) {
  const present = new Map(cache.blobs.map((blob) => [blob.digest, blob]));
  const images = new Map();
  const users = new Map();
  for (const device of all) {
    const image = images.get(device.digest) ?? { reference: device.reference, blobs: new Map() };
    images.set(device.digest, image);
    for (const blob of device.blobs) {
      image.blobs.set(blob.digest, blob.size_bytes);
      users.set(blob.digest, (users.get(blob.digest) ?? new Set()).add(device.digest));
    }
  }
  const here = (digest) => present.get(digest)?.present_bytes ?? 0;
  const rows = [];
  const sum = (blobs, of) => blobs.reduce((total, entry) => total + of(entry), 0);
  for (const image of images.values()) {
    const blobs = [...image.blobs];
    const alone = blobs.filter(([digest]) => users.get(digest).size === 1);
    rows.push(kind("image", image.reference, sum(blobs, ([digest]) => here(digest)), sum(blobs, ([, size]) => size), "", sum(alone, ([digest]) => here(digest))));
    for (const [digest, size] of blobs) {
      const only = users.get(digest).size === 1;
      rows.push(kind("layer", `${digest.slice(0, 19)}…`, here(digest), size, users.get(digest).size, only ? here(digest) : 0));
    }
  }
  const rest = cache.blobs.filter((blob) => !users.has(blob.digest));
  if (rest.length) {
    const used = sum(rest, (blob) => blob.present_bytes);
    rows.push(kind("image", `${number(rest.length)} blobs of no attached image`, used, sum(rest, (blob) => blob.size_bytes), 0, used));
  }
  $("images").replaceChildren(...rows);
  $("kept").hidden = false;
}

function kind(name, title, used, size, users, freed) {
  const tr = element("tr", undefined, name);
  tr.append(element("td", title), element("td", bytes(used), "n"), element("td", bytes(size), "n"), element("td", String(users), "n"), element("td", bytes(freed), "n"));
  return tr;
}

// --- events -------------------------------------------------------------------------------------------------------------------

function happened(event) {
  state.since = event.sequence;
  const tr = element("tr", undefined, event.severity === "warning" ? "warning" : "");
  const when = element("td", new Date(event.time).toLocaleTimeString("en-GB"));
  when.title = event.time;
  tr.append(when, element("td", event.kind), element("td", event.text, "text"));
  $("events").prepend(tr);
  while ($("events").children.length > EVENTS) $("events").lastChild.remove();
}

// --- the stream ---------------------------------------------------------------------------------------------------------------

let current = null;
let pause = 1000;
let soon = null;
let isFresh = true;

function redraw() {
  soon ??= requestAnimationFrame(() => {
    soon = null;
    devices();
  });
}

function told(name, data) {
  if (name === "message") happened(data);
  else if (name === "pulse") {
    $("trouble").textContent = "";
    pulse(data);
    // Devices that went while nobody looked are in no message.
    if (isFresh) redraw();
    isFresh = false;
  } else if (name === "devices") {
    data.rows.forEach((row) => state.devices.set(row.id, row));
    data.gone.forEach((id) => state.devices.delete(id));
    redraw();
  } else if (name === "map") {
    if (data.id === state.chosen) map.show(data, bytes);
  } else if (name === "trouble") $("trouble").textContent = data.detail;
}

function say(text, kind) {
  $("link").textContent = text;
  $("link").className = kind ?? "";
}

// Begins anew: with another device, after a pause, or when the page is seen again. Nothing is asked while nobody looks.
async function connect() {
  current?.abort();
  const mine = new AbortController();
  current = mine;
  if (document.hidden) return say("paused");
  try {
    const version = await (await ask("/v1/version", headers(), mine.signal)).json();
    if (state.life !== version.started_at) {
      state.life = version.started_at;
      state.since = 0;
      state.last = null;
      $("events").replaceChildren();
    }
    state.devices.clear();
    isFresh = true;
    $("who").textContent = `${location.hostname} · ${version.version} · ${version.kernel} · up since ${new Date(version.started_at).toLocaleString("en-GB")}`;
    $("door").hidden = true;
    say("live", "good");
    pause = 1000;
    const device = state.chosen ? `&device=${encodeURIComponent(state.chosen)}` : "";
    await follow(`/v1/live?since=${state.since}${device}`, headers(), mine.signal, (name, data) => {
      if (current === mine) told(name, data);
    });
    if (current === mine) again("the agent stopped");
  } catch (error) {
    if (current !== mine) return;
    if (error instanceof Refusal && error.status === 401) {
      state.token = null;
      $("door").hidden = false;
      $("token").focus();
      say("a token is needed");
    } else again(error instanceof Refusal ? error.message : "no agent answers");
  }
}

function again(why) {
  say(`${why}; asking again in ${Math.round(pause / 1000)} s`, "warning");
  const mine = current;
  setTimeout(() => {
    if (current === mine) connect();
  }, pause);
  pause = Math.min(pause * 2, 15_000);
}

columns();
$("filter").addEventListener("input", (event) => {
  state.filter = event.target.value;
  state.page = 0;
  devices();
});
$("before").addEventListener("click", () => {
  state.page -= 1;
  devices();
});
$("after").addEventListener("click", () => {
  state.page += 1;
  devices();
});
$("look").addEventListener("click", look);
$("door").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = $("token").value;
  $("token").value = "";
  connect();
});
document.addEventListener("visibilitychange", connect);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Object.values(charts).forEach((chart) => chart.draw()));
if (location.hash.length > 1) state.chosen = decodeURIComponent(location.hash.slice(1));
connect();
