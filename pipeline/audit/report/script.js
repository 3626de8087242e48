"use strict";
(() => {
  const NOTHING = 65535, STEPS = 65534, SHOTS = 9, FINE = 6;
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);

  // Elements. Text is always set as text: names come from the data.

  function make(create, tag, attributes, children) {
    const element = create(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }
  const h = (tag, attributes, ...children) => make((name) => document.createElement(name), tag, attributes, children);
  const s = (tag, attributes, ...children) =>
    make((name) => document.createElementNS("http://www.w3.org/2000/svg", name), tag, attributes, children);
  const bdi = (text) => h("bdi", null, text);

  // Numbers.

  function bytes(text) {
    const raw = atob(text), found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }
  const words16 = (text) => new Uint16Array(bytes(text).buffer);
  const words32 = (text) => new Uint32Array(bytes(text).buffer);

  /** Column of quantised numbers: (row, measure) -> number or NaN. */
  function numbers(packed) {
    const width = packed.low.length, steps = words16(packed.steps);
    return (row, column) => {
      const step = steps[row * width + column];
      if (step === NOTHING || step === undefined) return NaN;
      return packed.low[column] + ((packed.high[column] - packed.low[column]) * step) / STEPS;
    };
  }
  function rows(packed) {
    return {
      n: words32(packed.n), right: words32(packed.right), wrong: words32(packed.wrong), flagged: words32(packed.flagged),
      mean: numbers(packed.mean), low: numbers(packed.low), high: numbers(packed.high),
      maps: packed.mean_map ? maps(packed.mean_map) : null,
      deviations: packed.deviation_map ? maps(packed.deviation_map) : null,
    };
  }
  const maps = (packed) => ({ scale: new Float32Array(bytes(packed.scale).buffer), cells: bytes(packed.cells) });

  const minus = (text) => text.replace("-", "−");
  const format = (value) => (Number.isFinite(value) ? minus(value.toLocaleString("en", { minimumSignificantDigits: 3, maximumSignificantDigits: 3 })) : "–");
  const signed = (value) => (value > 0 ? "+" : "") + format(value);
  const whole = (value) => value.toLocaleString("en");
  const percent = (value) => (Number.isFinite(value) ? `${(100 * value).toFixed(1)}%` : "–");
  const plural = (n, word, words) => `${whole(n)} ${n === 1 ? word : words || word + "s"}`;

  const measures = data.measures;
  const shown = measures.map((measure, index) => ({ ...measure, index })).filter((measure) => measure.shown);
  const indexOf = (name) => measures.findIndex((measure) => measure.name === name);
  const total = rows(data.total), classes = rows(data.classes), groups = rows(data.groups), cells = rows(data.cells);
  const ids = data.classes.ids, names = data.classes.names;
  const outcomes = numbers(data.classes.outcomes);
  const placeOfClass = new Map(ids.map((id, place) => [id, place]));
  const cellClass = words32(data.cells.class), cellGroup = words32(data.cells.group);
  const cellMap = new Map(Array.from(words32(data.cells.mapped), (cell, place) => [cell, place]));
  const cellMaps = maps(data.cells.mean_map);
  const cellsOf = new Map();
  cellClass.forEach((place, cell) => {
    if (!cellsOf.has(place)) cellsOf.set(place, []);
    cellsOf.get(place).push(cell);
  });
  const findingsOf = new Map();
  for (const finding of data.findings) {
    if (finding.class === null) continue;
    if (!findingsOf.has(finding.class)) findingsOf.set(finding.class, []);
    findingsOf.get(finding.class).push(finding);
  }

  // Maps.

  const colours = { sequential: bytes(data.colours.sequential), diverging: bytes(data.colours.diverging) };

  function paint(canvas, height, width, cells, start, factor, diverging, finely = FINE) {
    const context = canvas.getContext("2d"), table = diverging ? colours.diverging : colours.sequential;
    const last = table.length / 3 - 1, fine = height > 1 ? finely : 1;
    const values = smooth(height, width, fine, (i) => (diverging ? cells[start + i] - 1 : cells[start + i] * factor));
    canvas.height = height * fine;
    canvas.width = width * fine;
    const image = context.createImageData(canvas.width, canvas.height);
    for (let i = 0; i < values.length; i++) {
      const entry = 3 * Math.max(0, Math.min(last, Math.round(values[i])));
      for (let part = 0; part < 3; part++) image.data[4 * i + part] = table[entry + part];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }
  /** A grid drawn finely by cubic B-splines, which do not overshoot; edges are held. */
  function smooth(height, width, fine, value) {
    const weights = Array.from({ length: fine }, (_, i) => {
      const t = (((i + 0.5) / fine) + 0.5) % 1, u = 1 - t;
      return [u ** 3 / 6, (4 - 6 * t ** 2 + 3 * t ** 3) / 6, (4 - 6 * u ** 2 + 3 * u ** 3) / 6, t ** 3 / 6];
    });
    const along = (cells, each) => {
      const found = new Float32Array(cells * fine);
      for (let i = 0; i < found.length; i++) {
        const first = Math.floor((i + 0.5) / fine - 0.5) - 1, taps = weights[i % fine];
        for (let tap = 0; tap < 4; tap++) found[i] += taps[tap] * each(Math.max(0, Math.min(cells - 1, first + tap)));
      }
      return found;
    };
    if (fine === 1) return Float32Array.from({ length: height * width }, (_, i) => value(i));
    const lines = Array.from({ length: height }, (_, y) => along(width, (x) => value(y * width + x)));
    const found = new Float32Array(height * width * fine * fine);
    for (let x = 0; x < width * fine; x++) {
      along(height, (y) => lines[y][x]).forEach((each, y) => { found[y * width * fine + x] = each; });
    }
    return found;
  }
  /** A canvas of row `row` of packed maps; `most`: the density that has the last colour (default: its own largest). */
  function mapOf(packed, row, label, most) {
    const canvas = h("canvas", { class: "map", role: "img", "aria-label": label });
    const scale = packed.scale[row];
    if (scale > 0) paint(canvas, data.grid, data.grid, packed.cells, row * data.grid * data.grid, most ? scale / most : 1, false);
    return canvas;
  }
  function difference(first, a, second, b) {
    const size = data.grid * data.grid;
    return Float32Array.from({ length: size }, (_, i) => (first.cells[a * size + i] * first.scale[a] - second.cells[b * size + i] * second.scale[b]) / 255);
  }
  const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  function differenceMap(values, most, label) {
    const steps = Uint8Array.from(values, (value) => 128 + Math.round((127 * value) / (most || 1)));
    const canvas = h("canvas", { class: "map", role: "img", "aria-label": label });
    paint(canvas, data.grid, data.grid, steps, 0, 1, true);
    return canvas;
  }

  // Pictures.

  const what = { overlay: "Heatmap over image", heatmap: "Heatmap of image", picture: "Image", none: "Image" };

  function shot([place, note]) {
    const entry = data.pictures[place];
    const about = note || (entry.label && `label ${entry.label}`) || "";
    const alternative = `${what[entry.kind]} ${entry.id}${about ? `: ${about}` : ""}`;
    const image = (src, alt) => h("img", { src, alt, width: entry.width, height: entry.height, "data-picture": place, decoding: "async", loading: "lazy" });
    return h("button", { type: "button", class: "shot", title: entry.id, onclick: () => enlarge(entry, note) },
      h("span", { class: entry.plain ? "frame two" : "frame" },
        entry.plain ? image(entry.plain, `Image ${entry.id}`) : null,
        entry.overlay ? image(entry.overlay, alternative) : h("span", { class: "faint" }, "no picture")),
      h("span", { class: "caption" }, bdi(note || entry.id)));
  }
  /** The colours of the heatmaps among pictures. */
  function legend(pictures) {
    const entries = pictures.map(([place]) => data.pictures[place]);
    if (!entries.some((entry) => entry.kind === "overlay" || entry.kind === "heatmap")) return null;
    const pairs = entries.some((entry) => entry.plain);
    return h("p", { class: "key" }, pairs ? h("span", { class: "of" }, "Each picture, and beside it the heatmap over it:") : h("span", { class: "of" }, "Heatmap:"),
      data.signed ? h("span", { class: "ramp" }, "against ", bar("diverging", "Colours from evidence against the class, blue, to evidence for it, orange"), " for the class") : scale());
  }
  const scale = () => h("span", { class: "ramp" }, "little ", bar("sequential", "Colours from little evidence, dark, to much, light"), " much evidence");
  function bar(kind, label) {
    const canvas = h("canvas", { role: "img", "aria-label": label });
    paintBar(canvas, kind);
    return canvas;
  }
  function paintBar(canvas, kind) {
    const steps = colours[kind].length / 3;
    paint(canvas, 1, steps, Uint8Array.from({ length: steps }, (_, i) => i + (kind === "diverging")), 0, 1, kind === "diverging");
  }
  function montage(box, pictures, left) {
    const first = pictures.slice(0, SHOTS), rest = pictures.slice(SHOTS);
    box.replaceChildren(...[legend(pictures)].filter(Boolean), ...first.map(shot));
    if (rest.length) {
      box.append(h("button", { type: "button", class: "more", onclick: (event) => {
        const added = rest.map(shot);
        event.currentTarget.replaceWith(...added);
        added[0].focus();
      } }, `${whole(rest.length)} more`));
    }
    if (left > 0) box.append(h("p", { class: "faint" }, `${plural(left, "more image", "more images")}: see findings.parquet`));
    return box;
  }
  function enlarge(entry, note) {
    $("lightbox-title").textContent = entry.id;
    const side = (uri, caption) => h("figure", null, h("img", { src: uri, alt: `${caption}, image ${entry.id}` }), h("figcaption", null, caption));
    const facts = [["What", note], ["Label", entry.label], ["Predicted", entry.predicted && entry.predicted + (entry.probability === null || entry.probability === undefined ? "" : ` (${percent(entry.probability)})`)]];
    $("lightbox-body").replaceChildren(
      h("div", { class: "pair" },
        entry.overlay ? side(entry.overlay, what[entry.kind].replace(" image", " picture").replace("Image", "Picture")) : h("p", null, "There is no picture."),
        entry.plain ? side(entry.plain, "Picture") : null),
      h("dl", { class: "pairs" }, facts.filter(([, value]) => value).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, bdi(value))))));
    $("lightbox").showModal();
  }

  // Findings.

  const list = $("finding-list");
  const items = list ? Array.from(list.children) : [];
  const finding = (item) => data.findings[Number(item.firstElementChild.dataset.number) - 1];
  const textOf = new Map(items.map((item) => [item, item.textContent.toLowerCase()]));

  function showFindings() {
    const wanted = $("finding-search").value.trim().toLowerCase().split(/\s+/), kind = $("finding-kind").value;
    const order = {
      rank: (a, b) => a.number - b.number,
      n: (a, b) => b.n - a.n || a.number - b.number,
      q: (a, b) => (a.q ?? 2) - (b.q ?? 2) || a.number - b.number,
      class: (a, b) => (a.class ?? -1) - (b.class ?? -1) || a.number - b.number,
    }[$("finding-sort").value];
    let count = 0;
    for (const item of items) {
      const fits = (!kind || item.firstElementChild.dataset.kind === kind) && wanted.every((word) => textOf.get(item).includes(word));
      item.hidden = !fits;
      count += fits;
    }
    list.append(...[...items].sort((a, b) => order(finding(a), finding(b))));
    $("finding-count").textContent = count === items.length ? `${whole(count)} shown` : `${whole(count)} of ${whole(items.length)} shown`;
    $("finding-none").hidden = count > 0;
  }
  function fill(box) {
    const about = data.findings[Number(box.dataset.montage) - 1];
    montage(box, about.pictures, about.images - about.pictures.length);
  }
  function startFindings() {
    for (const canvas of document.querySelectorAll("canvas[data-finding-map]")) {
      const [number, place] = canvas.dataset.findingMap.split(",").map(Number);
      const map = data.findings[number - 1].maps[place];
      paint(canvas, map.rows, map.columns, bytes(map.cells), 0, 1, map.signed, map.zone ? 1 : FINE);
    }
    document.querySelectorAll("[data-montage]").forEach(fill);
    if (!list) return;
    for (const id of ["finding-search", "finding-kind", "finding-sort"]) $(id).addEventListener("input", showFindings);
  }
  let last = "";

  function step(by) {
    const visible = Array.from(list ? list.children : []).filter((item) => !item.hidden).map((item) => item.firstElementChild);
    if (!visible.length) return;
    const held = document.activeElement && document.activeElement.closest(".finding");
    // What has the focus can lose it while findings are drawn.
    const here = held ? visible.indexOf(held) : visible.findIndex((item) => item.id === last);
    const next = visible[here < 0 ? (by > 0 ? 0 : visible.length - 1) : Math.max(0, Math.min(visible.length - 1, here + by))];
    last = next.id;
    next.focus({ preventScroll: true });
    next.scrollIntoView({ block: "start" });
  }

  // Classes.

  const state = { key: "n", down: true, page: 0, view: "maps", scale: "own" };
  const border = indexOf("border_enrichment"), corner = indexOf("corner_enrichment");
  const rate = (place) => classes.right[place] / (classes.right[place] + classes.wrong[place]);
  const columns = [
    { key: "name", label: "Class", value: (place) => names[place], down: false },
    { key: "id", label: "Number", value: (place) => ids[place], text: (place) => String(ids[place]), down: false },
    { key: "n", label: "Maps", value: (place) => classes.n[place], text: (place) => whole(classes.n[place]), down: true },
    { key: "findings", label: "Findings", value: (place) => (findingsOf.get(ids[place]) || []).length, text: (place) => String((findingsOf.get(ids[place]) || []).length || "–"), down: true },
    { key: "right", label: "Right", value: rate, text: (place) => percent(rate(place)), down: false },
    ...shown.map((measure) => ({ key: measure.name, label: measure.label, doc: measure.doc, value: (place) => classes.mean(place, measure.index), text: (place) => format(classes.mean(place, measure.index)), down: true })),
  ];
  const column = (key) => columns.find((each) => each.key === key);
  const collator = new Intl.Collator("en", { numeric: true });
  let order = [];

  function arrange() {
    const wanted = $("class-search").value.trim().toLowerCase(), { value } = column(state.key), sign = state.down ? -1 : 1;
    order = ids.map((_, place) => place).filter((place) => !wanted || names[place].toLowerCase().includes(wanted) || String(ids[place]) === wanted);
    const keys = order.map(value), position = new Map(order.map((place, i) => [place, keys[i]]));
    order.sort((a, b) => {
      const x = position.get(a), y = position.get(b);
      if (typeof x === "string") return sign * collator.compare(x, y) || a - b;
      // What has no number comes last in either direction.
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
      return sign * (x - y) || a - b;
    });
  }
  const perPage = () => (state.view === "maps" ? 60 : 50);

  function showClasses() {
    arrange();
    const pages = Math.max(1, Math.ceil(order.length / perPage()));
    state.page = Math.max(0, Math.min(pages - 1, state.page));
    const part = order.slice(state.page * perPage(), (state.page + 1) * perPage());
    $("class-count").textContent = order.length === ids.length ? plural(ids.length, "class", "classes") : `${whole(order.length)} of ${plural(ids.length, "class", "classes")}`;
    $("class-maps").hidden = state.view !== "maps";
    $("class-table").hidden = state.view === "maps";
    $("class-sort").value = state.key;
    if (state.view === "maps") showTiles(part);
    else showRows(part);
    const go = (by) => () => { state.page += by; showClasses(); $("classes").scrollIntoView(); };
    $("class-pager").replaceChildren(...(pages < 2 ? [] : [
      h("button", { type: "button", disabled: state.page === 0, onclick: go(-1) }, "← Before"),
      h("span", { "aria-live": "polite" }, `page ${state.page + 1} of ${pages}`),
      h("button", { type: "button", disabled: state.page === pages - 1, onclick: go(1) }, "After →"),
    ]));
  }
  function showTiles(part) {
    let most = 0;
    for (const scale of classes.maps.scale) most = Math.max(most, scale);
    const by = column(["name", "id", "n"].includes(state.key) ? "border_enrichment" : state.key);
    $("class-maps").replaceChildren(...part.map((place) => {
      const peak = classes.maps.scale[place];
      return h("a", { class: "tile", href: `#class-${ids[place]}`, title: `${names[place]} (class ${ids[place]})` },
        peak > 0 ? mapOf(classes.maps, place, `Mean map of ${names[place]}`, state.scale === "shared" ? most : 0)
          : few(place),
        h("span", { class: "name" }, bdi(names[place])),
        h("span", { class: "what" }, h("span", { title: plural(classes.n[place], "map") }, `n ${whole(classes.n[place])}`), peak > 0 ? h("span", { title: by.label }, `${short[by.key] || by.label.toLowerCase()} ${by.text(place)}`)
          : h("span", { title: `Fewer than ${data.intervalFrom} maps give no estimate` }, "too few")));
    }));
  }
  /** What stands for the mean map of a class of few maps: its first picture. */
  function few(place) {
    const [first] = data.exemplars[String(ids[place])] || [], entry = first && data.pictures[first[0]];
    if (!entry || !entry.overlay) return h("span", { class: "few" }, "no picture");
    return h("span", { class: "few" }, h("img", { src: entry.overlay, alt: `${what[entry.kind]} ${entry.id}`, width: entry.width, height: entry.height, loading: "lazy", decoding: "async" }));
  }
  const short = { border_enrichment: "border", corner_enrichment: "corner", effective_area: "area", enrichment: "enrich.", centre_y: "from top", centre_x: "from left", energy: "energy", rank_accuracy: "rank", probability: "prob." };

  function showRows(part) {
    const box = $("class-table");
    if (!box.firstChild) {
      const head = columns.map((each) => h("th", { scope: "col", class: each.key === "name" ? null : "number", "data-key": each.key, title: each.doc },
        h("button", { type: "button", onclick: () => sortBy(each.key, state.key === each.key ? !state.down : each.down) }, each.label)));
      box.append(h("table", { class: "data-table" },
        h("caption", { class: "hidden" }, "Classes and the means of their maps' measures; the heads sort"),
        h("thead", null, h("tr", null, head)), h("tbody")));
    }
    for (const head of box.querySelectorAll("th[data-key]")) {
      head.setAttribute("aria-sort", head.dataset.key === state.key ? (state.down ? "descending" : "ascending") : "none");
    }
    box.querySelector("tbody").replaceChildren(...part.map((place) => h("tr", null,
      h("th", { scope: "row" }, h("a", { href: `#class-${ids[place]}` }, bdi(names[place]))),
      columns.slice(1).map((each) => h("td", { class: "number" }, each.text(place))))));
  }
  function sortBy(key, down) {
    Object.assign(state, { key, down, page: 0 });
    showClasses();
  }
  function startClasses() {
    $("class-sort").append(...columns.map((each) => h("option", { value: each.key }, each.label.toLowerCase() + (each.down ? ", most first" : ""))));
    $("class-sort").addEventListener("input", (event) => sortBy(event.target.value, column(event.target.value).down));
    $("class-search").addEventListener("input", () => { state.page = 0; showClasses(); });
    $("class-scale").addEventListener("input", (event) => { state.scale = event.target.value; showClasses(); });
    for (const view of ["maps", "table"]) {
      $(`view-${view}`).addEventListener("click", () => {
        Object.assign(state, { view, page: 0 });
        for (const each of ["maps", "table"]) $(`view-${each}`).setAttribute("aria-pressed", String(each === view));
        showClasses();
      });
    }
    const left = data.leftOut.classes;
    $("class-left-out").textContent = left ? `${plural(left, "smaller class is", "smaller classes are")} left out of this page, and ${left === 1 ? "stands" : "stand"} in groups.parquet.` : "";
    showClasses();
  }

  // Forests.

  const ends = (values) => {
    const finite = values.filter(Number.isFinite);
    if (!finite.length) return [0, 1];
    let low = Math.min(...finite), high = Math.max(...finite);
    if (high - low < 1e-9) { low -= 0.5; high += 0.5; }
    const pad = 0.06 * (high - low);
    return [low - pad, high + pad];
  };
  const vertical = (x, name) => s("line", { class: name, x1: x, x2: x, y1: 0, y2: 28 });

  /** A table of estimates with their intervals drawn; rows: {name, n, mean, low, high, all}. */
  function forest(caption, measure, rowsOf, reference) {
    const [low, high] = ends([reference, ...rowsOf.flatMap((row) => [row.mean, row.low, row.high])]);
    const x = (value) => (100 * (value - low)) / (high - low);
    const plot = (row) => s("svg", { viewBox: "0 0 100 28", preserveAspectRatio: "none", "aria-hidden": "true" },
      Number.isFinite(reference) ? vertical(x(reference), "reference") : null,
      Number.isFinite(row.low) && Number.isFinite(row.high) ? s("line", { class: "whisker", x1: x(row.low), x2: x(row.high), y1: 14, y2: 14 }) : null,
      Number.isFinite(row.mean) ? s("line", { class: row.all ? "mean all" : "mean", x1: x(row.mean), x2: x(row.mean) + 0.001, y1: 14, y2: 14 }) : null);
    return h("table", { class: "forest-table" },
      h("caption", null, bdi(caption)),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Value"), h("th", { scope: "col", class: "number" }, "Maps"), h("th", { scope: "col", class: "number" }, "Mean"), h("th", { scope: "col" }, `95% interval of ${measure.label.toLowerCase()}`))),
      h("tbody", null, rowsOf.map((row) => h("tr", null,
        h("th", { scope: "row", title: row.name }, bdi(row.name)),
        h("td", { class: "number" }, whole(row.n)),
        h("td", { class: "number" }, format(row.mean)),
        h("td", { class: "plot" }, h("span", { class: "hidden" }, Number.isFinite(row.low) ? `${format(row.low)} to ${format(row.high)}` : "too few maps"), plot(row))))),
      h("tfoot", null, h("tr", null, h("td", { colspan: 3 }), h("td", { class: "plot scale" }, h("div", { class: "ticks", "aria-hidden": "true" }, [low, (low + high) / 2, high].map((end) => h("span", null, format(end))))))));
  }
  const MOST_VALUES = 40;
  function groupForests(measure, place) {
    const reference = place === null ? total.mean(0, measure.index) : classes.mean(place, measure.index);
    const of = (found, row, name) => ({ name, n: found.n[row], mean: found.mean(row, measure.index), low: found.low(row, measure.index), high: found.high(row, measure.index) });
    return data.attributes.map((attribute, number) => {
      let found = place === null
        ? data.groups.value.map((value, row) => [row, of(groups, row, value)]).filter(([row]) => data.groups.attribute[row] === number)
        : (cellsOf.get(place) || []).filter((cell) => data.groups.attribute[cellGroup[cell]] === number).map((cell) => [cellGroup[cell], of(cells, cell, data.groups.value[cellGroup[cell]])]);
      found.sort((a, b) => collator.compare(a[1].name, b[1].name));
      const all = place === null ? of(total, 0, "all") : of(classes, place, "all");
      const left = found.length - MOST_VALUES;
      if (left > 0) found = found.sort((a, b) => b[1].n - a[1].n).slice(0, MOST_VALUES);
      return h("div", { class: "forest" }, forest(attribute, measure, [...found.map(([, row]) => row), { ...all, all: true }], reference),
        left > 0 ? h("p", { class: "faint" }, `${plural(left, "smaller value")} left out.`) : null);
    });
  }
  const measureSelect = (element, change) => {
    element.append(...shown.map((measure) => h("option", { value: measure.index }, measure.label)));
    element.value = String(shown.some((each) => each.name === "energy") ? indexOf("energy") : border);
    element.addEventListener("input", change);
  };
  function showGroups() {
    const measure = measures[Number($("group-measure").value)], chosen = $("group-class").value;
    const index = Number($("group-measure").value);
    $("group-plots").replaceChildren(...groupForests({ ...measure, index }, chosen === "" ? null : Number(chosen)));
    const gaps = [];
    for (let cell = 0; cell < cellClass.length; cell++) {
      const mean = cells.mean(cell, index), whole = classes.mean(cellClass[cell], index);
      if (cells.n[cell] >= data.flaggedFrom && Number.isFinite(mean) && Number.isFinite(whole)) gaps.push([Math.abs(mean - whole), cell, mean, whole]);
    }
    gaps.sort((a, b) => b[0] - a[0] || a[1] - b[1]);
    $("group-gaps").replaceChildren(gaps.length ? h("table", { class: "data-table" },
      h("caption", { class: "hidden" }, "Groups whose mean is farthest from that of their class"),
      h("thead", null, h("tr", null, ["Class", "Group", "Maps", "Group's mean", "95% interval", "Class's mean", "Gap"].map((name, i) => h("th", { scope: "col", class: i > 1 ? "number" : null }, h("span", { class: "head" }, name))))),
      h("tbody", null, gaps.slice(0, 12).map(([, cell, mean, of]) => h("tr", null,
        h("th", { scope: "row" }, h("a", { href: `#class-${ids[cellClass[cell]]}` }, bdi(names[cellClass[cell]]))),
        h("td", null, bdi(data.attributes[data.groups.attribute[cellGroup[cell]]]), " = ", bdi(data.groups.value[cellGroup[cell]])),
        h("td", { class: "number" }, whole(cells.n[cell])), h("td", { class: "number" }, format(mean)),
        h("td", { class: "number" }, `${format(cells.low(cell, index))} to ${format(cells.high(cell, index))}`),
        h("td", { class: "number" }, format(of)), h("td", { class: "number" }, signed(mean - of))))))
      : h("p", { class: "faint" }, `No group of a class has ${whole(data.flaggedFrom)} maps with this measure.`));
  }
  function startGroups() {
    if (!$("groups")) return;
    measureSelect($("group-measure"), showGroups);
    const largest = ids.map((_, place) => place).sort((a, b) => classes.n[b] - classes.n[a]).slice(0, 2000);
    $("group-class").append(...largest.sort((a, b) => collator.compare(names[a], names[b])).map((place) => h("option", { value: place }, names[place])));
    $("group-class").addEventListener("input", showGroups);
    showGroups();
  }

  // A class's page.

  const spreads = new Map();
  function spread(index) {
    if (!spreads.has(index)) {
      spreads.set(index, ids.map((_, place) => classes.mean(place, index)).filter(Number.isFinite).sort((a, b) => a - b));
    }
    return spreads.get(index);
  }
  function strip(place, index) {
    const all = spread(index), value = classes.mean(place, index);
    if (all.length < 3 || !Number.isFinite(value)) return h("span", { class: "faint" }, "–");
    const at = (share) => all[Math.round(share * (all.length - 1))], [low, high] = ends([all[0], all[all.length - 1]]);
    const x = (each) => (100 * (each - low)) / (high - low);
    const below = all.filter((each) => each < value).length / (all.length - 1);
    return s("svg", { viewBox: "0 0 100 28", preserveAspectRatio: "none", role: "img", "aria-label": `higher than ${Math.round(100 * Math.min(1, below))}% of the classes` },
      s("line", { class: "range", x1: x(all[0]), x2: x(all[all.length - 1]), y1: 14, y2: 14 }),
      s("line", { class: "middle", x1: x(at(0.25)), x2: x(at(0.75)), y1: 14, y2: 14 }),
      s("line", { class: "mean", x1: x(value), x2: x(value) + 0.001, y1: 14, y2: 14 }));
  }
  function measureTable(place) {
    const right = (index) => outcomes(place, index), wrong = (index) => outcomes(place, measures.length + index);
    const both = shown.some((measure) => Number.isFinite(right(measure.index)) || Number.isFinite(wrong(measure.index)));
    return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Measures of the class" }, h("table", null,
      h("caption", null, "Means over the class's maps; the strip shows all classes, their middle half darker, and this one as a dot"),
      h("thead", null, h("tr", null, h("th", { scope: "col" }, "Measure"), h("th", { scope: "col", class: "number" }, "Mean"), h("th", { scope: "col", class: "number" }, "95% interval"),
        both ? [h("th", { scope: "col", class: "number" }, "Right"), h("th", { scope: "col", class: "number" }, "Wrong")] : null, h("th", { scope: "col" }, "Among classes"))),
      h("tbody", null, shown.map((measure) => h("tr", null,
        h("th", { scope: "row", title: measure.doc }, measure.label),
        h("td", { class: "number" }, format(classes.mean(place, measure.index))),
        h("td", { class: "number" }, Number.isFinite(classes.low(place, measure.index)) ? `${format(classes.low(place, measure.index))} to ${format(classes.high(place, measure.index))}` : "–"),
        both ? [h("td", { class: "number" }, format(right(measure.index))), h("td", { class: "number" }, format(wrong(measure.index)))] : null,
        h("td", { class: "strip" }, strip(place, measure.index)))))));
  }
  const figure = (canvas, name, note) => h("figure", null, canvas, h("figcaption", null, h("b", null, bdi(name)), note || ""));

  function classParts(place) {
    const parts = data.parts;
    if (!parts) return null;
    const packed = maps(parts.maps), mine = numbers(parts.by_class);
    const found = parts.all.map((all, part) => ({ part, all, share: mine(place, part) })).filter((each) => Number.isFinite(each.share));
    if (!found.length) return null;
    found.sort((a, b) => b.share - a.share);
    return h("section", { "aria-labelledby": "class-parts" }, h("h2", { id: "class-parts" }, "Parts"),
      h("p", { class: "faint" }, "Of which the maps of all classes are made, and how much of this class's evidence each explains."),
      h("div", { class: "maps-row" }, found.slice(0, 6).map((each) =>
        figure(mapOf(packed, each.part, `Part ${each.part + 1}`), `Part ${each.part + 1}: ${percent(each.share)}`, `all classes ${percent(each.all)}`))));
  }
  function classGroups(place) {
    if (!data.attributes.length || !(cellsOf.get(place) || []).length) return null;
    const select = h("select", null), plots = h("div", { class: "forests" });
    const show = () => plots.replaceChildren(...groupForests({ ...measures[Number(select.value)], index: Number(select.value) }, place));
    measureSelect(select, show);
    show();
    const mapped = (cellsOf.get(place) || []).filter((cell) => cellMap.has(cell) && cellMaps.scale[cellMap.get(cell)] > 0).sort((a, b) => cells.n[b] - cells.n[a]).slice(0, 16);
    const differences = new Map(classes.maps.scale[place] > 0 ? mapped.map((cell) => [cell, difference(cellMaps, cellMap.get(cell), classes.maps, place)]) : []);
    // One scale for all, so that a difference by chance looks as small as it is.
    const most = Math.max(0, ...Array.from(differences.values(), largest));
    const byAttribute = data.attributes.map((attribute, number) => [attribute, mapped.filter((cell) => data.groups.attribute[cellGroup[cell]] === number)]).filter(([, found]) => found.length);
    return h("section", { "aria-labelledby": "class-groups" }, h("h2", { id: "class-groups" }, "Groups"),
      h("div", { class: "controls" }, h("label", null, "Measure ", select)), plots,
      byAttribute.map(([attribute, found]) => [
        h("h3", null, "Where the model looks, by ", bdi(attribute)),
        differences.size ? h("p", { class: "faint" }, "Differences are to the whole class, on one scale: orange more, blue less.") : null,
        h("div", { class: "maps-row" }, found.map((cell) => {
          const value = data.groups.value[cellGroup[cell]], row = cellMap.get(cell);
          return [figure(mapOf(cellMaps, row, `Mean map where ${attribute} is ${value}`), value, plural(cells.n[cell], "map")),
            differences.has(cell) ? figure(differenceMap(differences.get(cell), most, `Difference to the class where ${attribute} is ${value}`), "difference", `up to ${format(largest(differences.get(cell)))}`) : null];
        })),
      ]));
  }
  function showClass(id) {
    const place = placeOfClass.get(id);
    $("overview").hidden = true;
    $("class-view").hidden = false;
    if (place === undefined) {
      $("class-title").textContent = `Class ${id}`;
      $("class-body").replaceChildren(h("p", { class: "empty" }, "This page holds nothing about this class: it has no maps, or is among the small ones that were left out."));
    } else {
      const peak = classes.maps.scale[place], about = findingsOf.get(id) || [], pictures = data.exemplars[String(id)] || [];
      $("class-title").replaceChildren(bdi(names[place]));
      const facts = [["Class", String(id)], ["Maps", whole(classes.n[place])], ["Predicted right", percent(rate(place))], ["Degenerate maps", whole(classes.flagged[place])], ["Findings", whole(about.length)]];
      $("class-body").replaceChildren(...[
        h("dl", { class: "tiles" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, h("b", null, value))))),
        h("div", { class: "class-head" },
          peak > 0 ? h("div", { class: "class-maps" },
            figure(mapOf(classes.maps, place, `Mean map of ${names[place]}`), "Mean map", `peak ${format(peak)} times uniform`),
            figure(mapOf(classes.deviations, place, `Deviation of the maps of ${names[place]}`), "Deviation", `between maps, up to ${format(classes.deviations.scale[place])}`),
            h("p", { class: "key" }, scale()))
            : h("p", { class: "faint" }, `${plural(classes.n[place], "map")}: fewer than ${data.intervalFrom} give no estimate.`),
          measureTable(place)),
        about.length ? h("section", { "aria-labelledby": "class-findings" }, h("h2", { id: "class-findings" }, "Findings"),
          h("div", { class: "found" }, about.map((each) => h("a", { class: `band-${each.band}`, href: `#finding-${each.number}` }, h("b", null, bdi(each.title)), h("span", null, each.kind), h("span", null, each.effect))))) : null,
        pictures.length ? h("section", { "aria-labelledby": "class-pictures" }, h("h2", { id: "class-pictures" }, "Exemplars"), montage(h("div", { class: "montage" }), pictures, 0)) : null,
        classParts(place), classGroups(place),
      ].filter(Boolean));
    }
    const here = order.indexOf(place);
    for (const [link, by] of [["class-previous", -1], ["class-next", 1]]) {
      const next = here < 0 ? undefined : order[here + by];
      $(link).hidden = next === undefined;
      if (next !== undefined) $(link).href = `#class-${ids[next]}`;
    }
    current("classes");
    document.title = `${$("class-title").textContent} · ${title}`;
    scrollTo({ top: 0, behavior: "instant" });
    $("class-title").focus({ preventScroll: true });
  }

  // Where one is.

  const title = document.title;
  function route() {
    const [, id] = /^#class-(-?\d+)$/.exec(location.hash) || [];
    if (id !== undefined) { showClass(Number(id)); return; }
    const came = $("overview").hidden;
    $("overview").hidden = false;
    $("class-view").hidden = true;
    document.title = title;
    const target = location.hash.length > 1 ? $(location.hash.slice(1)) : null;
    if (!target) return;
    const item = target.closest(".findings > li");
    if (item && item.hidden) {
      $("finding-search").value = $("finding-kind").value = "";
      showFindings();
    }
    if (came || item) target.scrollIntoView({ block: "start", behavior: "instant" });
    if (target.hasAttribute("tabindex")) target.focus({ preventScroll: true });
  }
  const links = new Map(Array.from(document.querySelectorAll(".bar nav a"), (link) => [link.hash.slice(1), link]));
  function current(name) {
    links.forEach((link, id) => (id === name ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  }
  function startPlaces() {
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) if (entry.isIntersecting) current(entry.target.id);
    }, { rootMargin: "-20% 0px -75% 0px" });
    links.forEach((_, id) => seen.observe($(id)));
    addEventListener("hashchange", route);
    route();
  }

  // Going somewhere by name.

  function startJump() {
    const input = $("jump"), box = $("jump-list");
    let found = [], at = -1;
    const close = () => { box.hidden = true; at = -1; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); };
    const go = (entry) => { close(); input.value = ""; input.blur(); location.hash = entry.hash; };
    const mark = (next) => {
      at = (next + found.length) % found.length;
      Array.from(box.children).forEach((item, i) => item.setAttribute("aria-selected", String(i === at)));
      input.setAttribute("aria-activedescendant", `jump-${at}`);
      box.children[at].scrollIntoView({ block: "nearest" });
    };
    const look = () => {
      const wanted = input.value.trim().toLowerCase();
      if (!wanted) { close(); return; }
      const begins = [], holds = [];
      for (let place = 0; place < ids.length && begins.length < 8; place++) {
        const name = names[place].toLowerCase(), entry = { text: names[place], note: `class ${ids[place]}`, hash: `#class-${ids[place]}` };
        if (name.startsWith(wanted) || String(ids[place]) === wanted) begins.push(entry);
        else if (holds.length < 8 && name.includes(wanted)) holds.push(entry);
      }
      const about = data.findings.filter((each) => each.title.toLowerCase().includes(wanted)).slice(0, 4).map((each) => ({ text: each.title, note: `finding ${each.number}`, hash: `#finding-${each.number}` }));
      found = [...begins, ...holds].slice(0, 8).concat(about);
      box.replaceChildren(...(found.length ? found.map((entry, i) => h("li", { role: "option", id: `jump-${i}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); go(entry); } }, bdi(entry.text), h("span", null, entry.note)))
        : [h("li", { role: "option", "aria-disabled": "true" }, "nothing matches")]));
      box.hidden = false;
      input.setAttribute("aria-expanded", "true");
      if (found.length) mark(0);
    };
    input.addEventListener("input", look);
    input.addEventListener("blur", close);
    input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { close(); input.value = ""; input.blur(); event.stopPropagation(); return; }
      if (box.hidden || !found.length) return;
      if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); mark(at + (event.key === "ArrowDown" ? 1 : -1)); }
      if (event.key === "Enter") { event.preventDefault(); go(found[Math.max(0, at)]); }
    });
  }

  // Colours and keys.

  const themes = ["auto", "light", "dark"], themeWords = { auto: "as the system", light: "on light", dark: "on dark" };
  // Some browsers refuse storage to pages from disk; the choice then lasts as long as the page.
  const remembered = () => { try { return localStorage.getItem("camlake-theme"); } catch { return null; } };
  const remember = (name) => { try { localStorage.setItem("camlake-theme", name); } catch { /* nothing to do */ } };
  let theme = "auto";
  function setTheme(name) {
    theme = themes.includes(name) ? name : "auto";
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const word = theme[0].toUpperCase() + theme.slice(1);
    $("theme").textContent = word;
    $("theme").setAttribute("aria-label", `${word}: colours ${themeWords[theme]}`);
  }
  const nextTheme = () => { setTheme(themes[(themes.indexOf(theme) + 1) % themes.length]); remember(theme); };

  function startKeys() {
    setTheme(remembered());
    $("theme").addEventListener("click", nextTheme);
    $("help-open").addEventListener("click", () => $("help").showModal());
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.target.closest && event.target.closest("input, select, textarea")) return;
      const inClass = !$("class-view").hidden;
      const follow = (link) => { if (!$(link).hidden) location.hash = $(link).hash; };
      const action = {
        "/": () => $("jump").focus(),
        "?": () => $("help").showModal(),
        j: () => (inClass ? follow("class-next") : step(1)),
        k: () => (inClass ? follow("class-previous") : step(-1)),
        t: nextTheme,
        Escape: () => { if (inClass) location.hash = "#classes"; },
      }[event.key];
      if (action) { event.preventDefault(); action(); }
    });
  }

  if (total.n.length && total.maps.scale[0] > 0) {
    paint($("overall-map"), data.grid, data.grid, total.maps.cells, 0, 1, false);
    $("overall-peak").textContent = `The brightest place holds ${format(total.maps.scale[0])} times a uniform share.`;
  }
  document.querySelectorAll("canvas[data-bar]").forEach((canvas) => paintBar(canvas, canvas.dataset.bar));
  // What was not scrolled to yet is printed, too.
  addEventListener("beforeprint", () => document.querySelectorAll("img[loading]").forEach((image) => { image.loading = "eager"; }));
  startKeys();
  startFindings();
  startClasses();
  startGroups();
  startJump();
  startPlaces();
  document.documentElement.dataset.ready = "true";
})();
