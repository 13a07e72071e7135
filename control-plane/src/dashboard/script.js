// Shows /api/status and keeps it fresh. Every text goes in as text, never as markup.
"use strict";

const PERIOD = 2000;
// Every sidecar is asked for these, so not as often.
const CACHE_PERIOD = 10000;
let status = null;
let caches = new Map();
let shown = "";
const opened = new Set();

const byId = (id) => document.getElementById(id);
const words = (n, one, many) => `${n} ${n === 1 ? one : many}`;

// make("td.name", "text", child...) builds an element out of a tag, classes and children.
function make(what, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  if (s < 730 * 86400) return `${Math.floor(s / 86400)} d`;
  return `${(s / 31556952).toFixed(1)} years`;
}

const matches = (...texts) => {
  const wanted = byId("filter").value.trim().toLowerCase();
  return !wanted || texts.some((text) => text.toLowerCase().includes(wanted));
};

const more = (key, label, children) => {
  const details = make("details", make("summary", label), children);
  details.open = opened.has(key);
  details.addEventListener("toggle", () => (details.open ? opened.add(key) : opened.delete(key)));
  return details;
};

function fill(table, rows, empty) {
  const body = byId(table).tBodies[0];
  if (!rows.length) {
    const cell = make("td.empty", empty);
    cell.colSpan = byId(table).tHead.rows[0].cells.length;
    rows = [make("tr", cell)];
  }
  body.replaceChildren(...rows);
}

function tiles() {
  const tile = (label, value, note, tone) =>
    make("div.tile", make("span", label), make("b", String(value)), make(tone ? `em.${tone}` : "em", note));
  const endpoints = status.services.reduce((sum, service) => sum + service.endpoints.length, 0);
  const bare = status.services.filter((service) => !service.endpoints.length).length;
  const ready = status.sidecars.filter((sidecar) => sidecar.ready).length;
  const behind = status.sidecars.filter((sidecar) => sidecar.behind).length;
  const rejected = status.documents.filter((document) => document.state === "rejected").length;
  const pending = status.documents.filter((document) => document.state === "pending").length;
  const life = status.controlPlane.authorityExpires - status.controlPlane.now;
  byId("summary").replaceChildren(
    tile("Services", status.services.length, bare ? `${bare} without endpoints` : "all have endpoints", bare ? "warn" : "good"),
    tile("Endpoints", endpoints, `on ${words(new Set(status.services.flatMap((s) => s.endpoints.map((e) => e.workload))).size, "workload", "workloads")}`),
    tile("Sidecars", status.sidecars.length, behind ? `${behind} not up to date yet` : `${ready} ready, all up to date`, behind ? "warn" : "good"),
    tile("Documents", status.documents.length, rejected ? `${rejected} rejected` : pending ? `${pending} not enforced yet` : "all in force", rejected ? "bad" : pending ? "warn" : "good"),
    tile("Mesh CA", span(life), `left · ${words(status.controlPlane.trustedRoots, "trusted root", "trusted roots")}`, life < 30 * 86400 ? "bad" : ""),
  );
}

function attention() {
  const found = [];
  const finding = (tone, where, what, cure) => {
    const box = make(tone === "warn" ? "div.finding.warn" : "div.finding", make("p.where", where), make("p.what", what));
    if (cure) box.append(make("p.cure", cure));
    found.push(box);
  };
  for (const document of status.documents) {
    for (const d of document.diagnostics.filter((d) => d.error || document.state === "rejected")) {
      const name = document.name ? `${document.kind} ${document.namespace}/${document.name}` : document.kind || "document";
      const force = document.lastGoodInForce ? "last good version stays in force" : "not in force";
      const place = d.line ? `${d.file}:${d.line}:${d.column}` : d.file;
      finding("bad", [make("span.name", name), make("span.mono.faint", place), make("span.pill.bad", `rejected · ${force}`)],
        [d.field ? make("span.mono", `${d.field}: `) : null, d.message], d.cure);
    }
  }
  for (const problem of status.problems) finding("bad", [make("span.name.mono", problem.path)], problem.message);
  for (const sidecar of status.sidecars) {
    for (const r of sidecar.rejections) {
      finding("bad", [make("span.name", `sidecar ${sidecar.namespace}/${sidecar.workload}`), make("span.mono.faint", r.name), make("span.pill.bad", "did not take it")], r.reason);
    }
  }
  for (const document of status.documents) {
    for (const d of document.diagnostics.filter((d) => !d.error && document.state === "accepted")) {
      finding("warn", [make("span.name", `${document.kind} ${document.namespace}/${document.name}`), make("span.mono.faint", d.line ? `${d.file}:${d.line}` : d.file), make("span.pill.warn", "warning")], d.message, d.cure);
    }
  }
  byId("attention").hidden = !found.length;
  const limit = 20;
  byId("attention-list").replaceChildren(...found.slice(0, limit), ...(found.length > limit ? [make("p.sub", `and ${found.length - limit} more; see weft status`)] : []));
}

function place(endpoint) {
  const labels = endpoint.labels.map(([key, value]) => make("span.chip", `${key}=${value}`));
  if (endpoint.zone) labels.push(make("span.chip", `zone ${endpoint.zone}`));
  if (endpoint.weight !== 1) labels.push(make("span.chip", `weight ${endpoint.weight}`));
  const secure = endpoint.identity ? make("span.pill.good", "mTLS") : make("span.pill.warn", "plain text");
  secure.title = endpoint.identity || "no sidecar there: reached in plain text";
  return make("div.place", make("span.nowrap", endpoint.workload || "–"), make("span.mono.faint", `${endpoint.port} → ${endpoint.address}`), secure, make("span", labels));
}

// How many of a service's requests that were looked up, at callers and where it is served, it had nothing to do with.
function fromCaches(service) {
  const told = caches.get(`${service.namespace}/${service.name}`);
  if (!told) return make("span.faint", "–");
  const share = make("span.pill.good", `${Math.floor((100 * told.spared) / told.asked)} %`);
  share.title = `${told.spared} of ${told.asked} requests since the sidecars started`;
  return share;
}

function services() {
  const list = status.services.filter((s) => matches(s.name, s.namespace, ...s.documents, ...s.endpoints.map((e) => e.workload)));
  fill("services-table", list.map((service) => {
    const places = make("div.places", service.endpoints.map(place));
    const where = !service.endpoints.length ? make("span.pill.warn", "none: calls get 503")
      : service.endpoints.length <= 6 ? places
      : more(`s/${service.namespace}/${service.name}`, words(service.endpoints.length, "endpoint", "endpoints"), places);
    return make("tr",
      make("td.nowrap", make("div.name", service.name), make("div.sub", service.namespace)),
      make("td", where),
      make("td", service.documents.length ? service.documents.map((d) => make("span.chip", d)) : make("span.faint", "–")),
      make("td.end", fromCaches(service)),
      make("td.end.mono.faint", service.version.slice(0, 8)));
  }), status.services.length ? "No service matches the filter." : "No services yet: add a Workload or Service document.");
  byId("services-count").textContent = status.services.length || "";
}

function sidecars() {
  const now = status.controlPlane.now;
  const list = status.sidecars.filter((s) => matches(s.workload, s.namespace, s.identity, s.inboundAddress));
  fill("sidecars-table", list.map((sidecar) => {
    const state = sidecar.rejections.length ? make("span.pill.bad", "rejects policy")
      : sidecar.behind ? make("span.pill.warn", "catching up")
      : sidecar.ready ? make("span.pill.good", "ready") : make("span.pill", "not ready");
    const left = sidecar.certificateExpires - now;
    const certificate = !sidecar.certificateExpires ? make("span.faint", "from before")
      : make("span.nowrap", left > 0 ? `${span(left)} left` : "expired");
    const key = `c/${sidecar.namespace}/${sidecar.workload}/${sidecar.instance}`;
    const held = sidecar.resources.map((r) => make("div.mono.faint", `${r.name} @ ${r.version.slice(0, 8)}`));
    const row = make("tr",
      make("td.nowrap", make("div.name", sidecar.workload), make("div.sub", sidecar.namespace)),
      make("td", state),
      make("td.mono", sidecar.identity.replace(/^spiffe:\/\/[^/]*/, "")),
      make("td.mono.nowrap", sidecar.inboundAddress || "–"),
      make("td", certificate),
      make("td", held.length ? more(key, words(held.length, "resource", "resources"), make("div", held)) : make("span.faint", "nothing")),
      make("td.end.nowrap", span(now - sidecar.connectedSince)));
    row.cells[2].title = sidecar.identity;
    return row;
  }), status.sidecars.length ? "No sidecar matches the filter." : "No sidecar is connected.");
  byId("sidecars-count").textContent = status.sidecars.length || "";
}

function documents() {
  const list = status.documents.filter((d) => matches(d.kind, d.name, d.namespace, d.file, d.state));
  fill("documents-table", list.map((document) => {
    const state = {
      accepted: make("span.pill.good", "in force"),
      pending: make("span.pill.warn", "accepted, not yet enforced"),
      rejected: make("span.pill.bad", document.lastGoodInForce ? "rejected, last good in force" : "rejected"),
    }[document.state] || make("span.pill", document.state);
    if (document.notEnforced.length) state.title = `not acted on yet: ${document.notEnforced.join(", ")}`;
    return make("tr",
      make("td", make("span.name", document.name || "–"), make("span.sub", document.kind ? `  ${document.kind}` : ""), make("div.sub", document.namespace)),
      make("td", state),
      make("td.mono", document.line ? `${document.file}:${document.line}` : document.file));
  }), status.documents.length ? "No document matches the filter." : "No policy documents found.");
  byId("documents-count").textContent = status.documents.length || "";
}

function show() {
  const c = status.controlPlane;
  byId("subtitle").textContent = `${c.trustDomain} · policy ${c.policyVersion.slice(0, 8) || "–"}`;
  tiles();
  attention();
  services();
  sidecars();
  documents();
  const settling = c.settling ? " · settling after a start" : "";
  byId("footer").textContent = `weft-control-plane ${c.version} · up ${span(c.now - c.started)}${settling} · reads ${c.policySources.join(", ")}`;
}

function live(on, text) {
  byId("live").className = on ? "live on" : "live off";
  byId("live").lastElementChild.textContent = text;
}

async function refresh() {
  try {
    const answer = await fetch("/api/status", { cache: "no-store", signal: AbortSignal.timeout(5000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const text = await answer.text();
    status = JSON.parse(text);
    byId("notice").hidden = true;
    live(true, "live");
    if (text !== shown) {
      shown = text;
      show();
    }
  } catch (error) {
    live(false, "no connection");
    byId("notice").textContent = "The control plane does not answer. Sidecars keep serving with what they have; this page shows the last known state.";
    byId("notice").hidden = false;
  }
  setTimeout(refresh, document.hidden ? PERIOD * 5 : PERIOD);
}

async function refreshCaches() {
  try {
    if (status && !document.hidden && status.documents.some((d) => d.kind === "CachePolicy")) {
      const answer = await fetch("/api/cache/stats", { cache: "no-store", signal: AbortSignal.timeout(CACHE_PERIOD) });
      if (answer.ok) {
        const sums = new Map();
        for (const { service, direction, hits, stale, revalidated, misses } of (await answer.json()).services) {
          const sum = sums.get(service) || { spared: 0, outbound: 0, inbound: 0 };
          sum.spared += hits + stale;
          sum[direction] += hits + stale + revalidated + misses;
          // What callers do not have is asked for once more where it is served.
          sum.asked = Math.max(sum.outbound, sum.inbound);
          if (sum.asked) sums.set(service, sum);
        }
        caches = sums;
        services();
      }
    }
  } catch {
    // The page says already that nobody answers; what was known before is still shown.
  }
  setTimeout(refreshCaches, status ? CACHE_PERIOD : PERIOD);
}

byId("filter").addEventListener("input", () => status && show());
refresh();
refreshCaches();
