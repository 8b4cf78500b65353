"use strict";
// Search, the list of entries and the proof of one. Nothing is loaded; text is only ever set with textContent.
(() => {
  const ROW = 30; // pixels, as in the style
  const PRINTED = 200; // rows that go on paper
  const $ = (id) => document.getElementById(id);
  const proofs = JSON.parse($("proofs").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const base64 = (data) => btoa(String.fromCharCode(...data));
  const leaves = bytes(proofs.leaves), tiles = bytes(proofs.tiles);
  let tables, lower, columns, shown = [], chosen = -1;

  function make(tag, text, css) {
    const node = document.createElement(tag);
    if (text !== undefined) node.textContent = text;
    if (css) node.className = css;
    return node;
  }

  const when = (time) => new Date(time * 1000).toISOString().slice(0, 19).replace("T", " ");
  const value = (name, at) => tables[name][columns[name][at]];

  // -- search

  function matcher(query) {
    const tests = query.toLowerCase().split(/\s+/).filter(Boolean).map(word);
    const kind = $("kind").value, site = $("site").value;
    if (kind) tests.push(equals("kind", kind));
    if (site) tests.push(mentions(site));
    return (at) => tests.every((test) => test(at));
  }

  function word(text) {
    const [, name, rest] = /^(kind|site|round|study|segment):(.*)$/.exec(text) || [];
    if (name === "round") return (at) => columns.round[at] === Number(rest);
    if (name === "site") return mentions(rest);
    if (name) return contains(name, rest);
    if (/^#?\d+$/.test(text)) return (at) => at + proofs.start === Number(text.replace("#", ""));
    const anywhere = ["kind", "site", "study", "text"].map((table) => contains(table, text));
    if (/^[\d:-]+$/.test(text)) anywhere.push((at) => when(columns.time[at]).includes(text)); // a date or a time
    return (at) => anywhere.some((test) => test(at));
  }

  // Each different text is looked at once, however many rows have it.
  function contains(name, text) {
    const hits = lower[name].map((one) => one.includes(text));
    return (at) => hits[columns[name][at]];
  }
  function equals(name, text) {
    const wanted = tables[name].indexOf(text);
    return (at) => columns[name][at] === wanted;
  }
  function mentions(site) {
    const own = contains("site", site);
    const listed = lower.text.map((text) => /^(cohort|survivors|witnesses): /m.test(text) &&
      text.split(/[\s,]+/).some((part) => part.includes(site)));
    return (at) => own(at) || listed[columns.text[at]];
  }

  function search() {
    const fits = matcher($("q").value);
    shown = [];
    for (let at = 0; at < columns.time.length; at++) if (fits(at)) shown.push(at);
    $("count").textContent = `${shown.length.toLocaleString("en")} of ${columns.time.length.toLocaleString("en")} entries`;
    $("list").scrollTop = 0;
    draw();
  }

  function find(query) {
    $("kind").value = $("site").value = "";
    $("q").value = query;
    search();
    if (shown.length) open(shown[0]);
    $("entries").scrollIntoView();
  }

  // -- the list: only the rows in view exist

  const space = make("div");
  function draw() {
    const list = $("list"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
    const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 10);
    space.style.height = `${shown.length * ROW}px`;
    space.replaceChildren(...shown.slice(first, last).map((at, n) => line(at, first + n)));
  }

  function line(at, place) {
    const row = make("div", undefined, "row");
    row.style.top = `${place * ROW}px`;
    row.id = `row-${at}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", String(at === chosen));
    row.setAttribute("aria-posinset", String(place + 1));
    row.setAttribute("aria-setsize", String(shown.length));
    const text = value("text", at).split("\n")[0], bad = columns.signature[at] === 2 || text.startsWith("problem:");
    row.append(make("span", at + proofs.start, "i num"), make("span", when(columns.time[at]), "num soft"), make("span", value("kind", at), bad ? "bad" : ""),
      make("span", columns.round[at] || "", "num"), make("span", value("site", at)), make("span", text, "soft"));
    row.addEventListener("click", () => open(at));
    return row;
  }

  function move(event) {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 }[event.key];
    if (!step || !shown.length) return;
    event.preventDefault();
    const place = Math.min(shown.length - 1, Math.max(0, shown.indexOf(chosen) + step));
    const list = $("list"), top = place * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    open(shown[place]);
  }

  // -- one entry

  function open(at) {
    chosen = at;
    draw();
    $("list").setAttribute("aria-activedescendant", `row-${at}`);
    const pane = $("detail"), index = at + proofs.start, facts = make("dl");
    const add = (name, text) => text && facts.append(make("dt", name), make("dd", text));
    add("hospital", value("site", at));
    add("round", columns.round[at] && String(columns.round[at]));
    add("study", value("study", at));
    for (const one of value("text", at).split("\n")) {
      const cut = one.indexOf(": ");
      if (cut > 0) add(one.slice(0, cut), one.slice(cut + 2));
    }
    add("signature", ["", "valid, checked when this page was made", "INVALID"][columns.signature[at]]);
    add("segment", value("segment", at));
    const proof = make("div", "Working out the proof …", "proof");
    pane.replaceChildren(make("h3", `Entry ${index}: ${value("kind", at)}`), make("p", `${when(columns.time[at])} UTC, the server's claim`, "soft"),
      make("h4", "Proof"), proof, make("h4", "What it says"), facts);
    pane.scrollTop = 0;
    prove(index).then((nodes) => { if (chosen === at) proof.replaceChildren(...nodes); });
  }

  // -- proofs (RFC 6962; the checkpoint's signatures where the browser knows Ed25519)

  const sha256 = async (...parts) => {
    const data = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (data.set(part, at), at + part.length), 0);
    return new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  };
  const split = (count) => 2 ** Math.floor(Math.log2(count - 1));
  const memory = new Map();

  async function range(low, high) {
    if (high - low === 1) return leaves.slice(32 * low, 32 * high);
    if (high - low === 256 && low % 256 === 0) return tiles.slice(low / 8, low / 8 + 32);
    const key = `${low}-${high}`;
    if (!memory.has(key)) {
      const middle = low + split(high - low);
      memory.set(key, await sha256([1], await range(low, middle), await range(middle, high)));
    }
    return memory.get(key);
  }

  async function path(index, size) {
    const found = [];
    for (let low = 0, high = size; high - low > 1;) {
      const middle = low + split(high - low);
      if (index < middle) { found.unshift([await range(middle, high), false]); high = middle; }
      else { found.unshift([await range(low, middle), true]); low = middle; }
    }
    return found;
  }

  async function prove(index) {
    if (!globalThis.crypto?.subtle) return [make("p", `This browser cannot compute hashes for a local file. Use: wardround audit receipt DIR ${index}`)];
    const head = proofs.heads.find((one) => index < one.size), steps = await path(index, head.size);
    let hash = leaves.slice(32 * index, 32 * index + 32);
    for (const [sibling, left] of steps) hash = await sha256([1], ...(left ? [sibling, hash] : [hash, sibling]));
    const fits = base64(hash) === head.root, list = make("ul", undefined, "checks");
    const say = (state, text) => list.append(make("li", text, state));
    say(fits ? "" : "no", fits ? `In the tree of ${head.size.toLocaleString("en")} entries: the path leads to the checkpoint's root` : "The path does NOT lead to the checkpoint's root");
    for (const [state, text] of await signatures(head)) say(state, text);
    const save = make("button", "Save .tlog-proof", "act");
    save.addEventListener("click", () => download(`entry-${index}.tlog-proof`, `c2sp.org/tlog-proof@v1\nindex ${index}\n${steps.map(([one]) => base64(one) + "\n").join("")}\n${head.note}`));
    const more = make("details"), ol = make("ol", undefined, "path");
    for (const [one, left] of steps) ol.append(make("li", `${left ? "left " : "right"} ${base64(one)}`));
    const values = make("dl");
    values.append(make("dt", "leaf hash"), make("dd", base64(leaves.slice(32 * index, 32 * index + 32))), make("dt", "root"), make("dd", head.root), make("dt", "tree size"), make("dd", String(head.size)));
    const note = make("pre", head.note);
    more.append(make("summary", "Path and checkpoint"), values, ol, note);
    return [list, save, more];
  }

  async function signatures(head) {
    const [body, lines] = head.note.split("\n\n");
    if (!lines || !proofs.keys.log) return [["unknown", "Its signatures were taken out of this copy"]];
    const parsed = lines.trim().split("\n").map((one) => one.split(" ")), found = [];
    try {
      const name = proofs.keys.log.split("+")[0], key = bytes(proofs.keys.log.split("+").slice(2).join("+")).slice(1);
      const own = parsed.find((one) => one[1] === name && bytes(one[2]).length === 68);
      const good = own && await verify(key, bytes(own[2]).slice(4), `${body}\n`);
      found.push([good ? "" : "no", good ? `Signed by the log ${name}` : "NOT signed by the log's key"]);
      const cosigned = [];
      for (const [site, text] of Object.entries(proofs.keys.members)) {
        const line = parsed.find((one) => one[1] === `${site}.wardround` && bytes(one[2]).length === 76);
        if (!line) continue;
        const raw = bytes(line[2]), time = new DataView(raw.buffer).getBigUint64(4);
        if (await verify(bytes(text.slice(8)), raw.slice(12), `cosignature/v1\ntime ${time}\n${body}\n`)) cosigned.push(site);
      }
      const enough = cosigned.length >= proofs.quorum;
      found.push([enough ? "" : "no", `Cosigned by ${cosigned.length} hospitals (${proofs.quorum} needed)${cosigned.length ? ": " + few(cosigned) : ""}`]);
    } catch {
      return [["unknown", "This browser cannot check Ed25519; the signatures were checked when this page was made"]];
    }
    return found;
  }

  const few = (names) => names.slice(0, 6).join(", ") + (names.length > 6 ? ` and ${names.length - 6} more` : "");

  async function verify(key, signature, text) {
    const imported = await crypto.subtle.importKey("raw", key, { name: "Ed25519" }, false, ["verify"]);
    return crypto.subtle.verify({ name: "Ed25519" }, imported, signature, new TextEncoder().encode(text));
  }

  function download(name, text) {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // -- paper

  function fillPaper() {
    if (!columns) return;
    const table = make("table"), head = make("tr"), body = make("tbody");
    head.append(...["Entry", "Time (claimed, UTC)", "Kind", "Round", "Hospital", "Says"].map((text) => make("th", text)));
    for (const at of shown.slice(0, PRINTED)) {
      const row = make("tr");
      row.append(...[at + proofs.start, when(columns.time[at]), value("kind", at), columns.round[at] || "", value("site", at), value("text", at).split("\n")[0].slice(0, 70)].map((text) => make("td", text)));
      body.append(row);
    }
    const thead = make("thead");
    thead.append(head);
    table.append(thead, body);
    const said = `${Math.min(PRINTED, shown.length)} of ${shown.length.toLocaleString("en")} entries that the search “${$("q").value}” shows; the file holds all of them with their proofs.`;
    $("print-rows").replaceChildren(make("p", said, "small"), table);
  }

  // -- start

  async function start() {
    const stream = new Blob([bytes($("data").textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
    ({ tables, columns } = JSON.parse(await new Response(stream).text()));
    lower = Object.fromEntries(Object.entries(tables).map(([name, texts]) => [name, texts.map((text) => text.toLowerCase())]));
    for (const name of ["kind", "site"]) {
      const names = tables[name].filter(Boolean).sort();
      $(name).append(...names.map((text) => make("option", text)));
    }
    $("list").append(space);
    let timer;
    $("q").addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(search, 60); });
    $("kind").addEventListener("change", search);
    $("site").addEventListener("change", search);
    $("list").addEventListener("scroll", () => requestAnimationFrame(draw));
    $("list").addEventListener("keydown", move);
    document.addEventListener("click", (event) => {
      const target = event.target.closest("[data-q]");
      if (target) { event.preventDefault(); find(target.dataset.q); }
    });
    addEventListener("beforeprint", fillPaper);
    addEventListener("resize", draw);
    search();
    document.documentElement.dataset.ready = "yes";
  }

  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  });
  start().catch((error) => { $("count").textContent = `This browser cannot read the entries: ${error.message}`; });
})();
