// The gallery of a report page. Rows lie beside the page in scripts that call `fluxKleinRows`, because browsers do not
// fetch JSON from disk. Everything that others wrote becomes text nodes and attributes, never markup.
"use strict";
(() => {
  const PAGE = 200;
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const find = (id) => document.getElementById(id);
  const items = find("items"), text = find("text"), status = find("status"), viewer = find("viewer");
  const pagers = [...document.querySelectorAll(".pager")];
  const rows = new Array(facts.count);
  const number = new Intl.NumberFormat("en-US");

  // --- elements

  const made = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  };
  const marked = (text) => text.split("`").map((part, number) => (number % 2 ? made("code", {}, part) : part));
  const drawn = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // --- words

  const seconds = (value) => `${value < 10 ? value.toFixed(2) : value.toFixed(1)} s`;
  const dollars = (value) => `$${value.toFixed(Math.abs(value * 100 - Math.round(value * 100)) < 1e-7 ? 2 : 4)}`;
  const bytes = (value) => {
    const units = ["bytes", "kB", "MB", "GB"];
    let unit = 0;
    for (; value >= 1000 && unit < 3; unit++) value /= 1000;
    return `${unit && value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
  };
  const pixels = (row, file) => {
    const size = (file && file.pixels) || row.size;
    return size ? `${size[0]} × ${size[1]}` : null;
  };
  const label = (row) => row.id || `#${row.index}`;
  const alternative = (row) => (row.prompt.length > 300 ? `${row.prompt.slice(0, 300)}…` : row.prompt) || label(row);
  const tone = (state) => `tone-${state.replaceAll(" ", "-")}`;
  const polls = (row) => (row.timings.polls === null ? null : `${row.timings.polls} poll${row.timings.polls === 1 ? "" : "s"}`);
  const phases = ["submit", "queued", "running", "fetch"];

  // --- the timeline of an item

  const timeline = (row) => {
    const known = phases.filter((phase) => row.timings[phase] !== null);
    const total = known.reduce((sum, phase) => sum + row.timings[phase], 0);
    const words = [...known.map((phase) => `${phase} ${seconds(row.timings[phase])}`), polls(row)].filter(Boolean).join(", ");
    const scale = 1000 / Math.max(facts.scale || 0, total, 1e-9);
    const line = drawn("svg", { class: "line", viewBox: "0 0 1000 10", preserveAspectRatio: "none", role: "img", "aria-label": words });
    line.append(drawn("title", {}, words), drawn("rect", { class: "track", x: 0, y: 3, width: 1000, height: 4 }));
    let at = 0;
    for (const phase of known) {
      const width = row.timings[phase] * scale;
      if (phase === "fetch" && row.timings.polls) {
        // The poll that saw the end, and the one before it: the times of the others are not recorded.
        const before = row.timings.polls > 1 && row.timings.lag_max !== null ? at - row.timings.lag_max * scale : null;
        for (const x of [before, at]) {
          if (x !== null && x >= 0) line.append(drawn("line", { class: "poll", x1: x, x2: x, y1: 0, y2: 10 }));
        }
      }
      line.insertBefore(drawn("rect", { class: phase, x: at, y: 3, width, height: 4 }), line.querySelector(".poll"));
      at += width;
    }
    return line;
  };

  // --- a card

  const remark = (row, note) =>
    made("div", { class: `tile remark ${row.error ? tone(row.state) : ""}` },
      made("span", { class: "state" }, row.error ? row.state : "no preview"),
      made("p", { class: "why", dir: "auto" }, row.error ? row.error.message : note),
      row.error ? made("p", { class: "todo" }, ...marked(row.error.todo)) : null);

  const tile = (row) => {
    const file = row.files.find((found) => found.href) || row.files[0];
    const more = row.files.length > 1 ? made("span", { class: "count" }, `${row.files.length} files`) : null;
    if (file && file.href && file.kind === "video")
      return made("div", { class: "tile" }, made("video", { src: file.href, controls: true, preload: "metadata", "aria-label": alternative(row) }), more);
    if (file && file.href && file.kind === "audio")
      return made("div", { class: "tile" }, made("p", { class: "wave", dir: "auto" }, file.name),
        made("audio", { src: file.href, controls: true, preload: "metadata", "aria-label": alternative(row) }), more);
    if (file && file.preview)
      return made("button", { class: "tile", type: "button", "aria-label": `Open ${label(row)}`, onclick: () => view(row) },
        made("img", { src: `${facts.previews}/${file.preview}`, alt: alternative(row), loading: "lazy", decoding: "async" }), more);
    return remark(row, file ? file.note : "No file was saved. flux-klein result downloads it within 7 days.");
  };

  const card = (row) => {
    const file = row.files.find((found) => found.href);
    const shown = [pixels(row, file), file && file.bytes !== null ? bytes(file.bytes) : null].filter(Boolean).join(" · ");
    const cost = row.cost === null ? "" : dollars(row.cost);
    return made("article", { class: "card", "aria-label": `${label(row)}, ${row.state}` },
      tile(row),
      made("div", { class: "words" },
        made("p", { class: "prompt", dir: "auto", title: row.prompt.length > 110 ? row.prompt : null }, row.prompt),
        made("div", { class: "facts" },
          row.timings && row.seconds !== null ? timeline(row) : null,
          row.timings && row.seconds !== null ? made("p", {}, made("span", {}, seconds(row.seconds)), made("span", {}, polls(row) || "")) : null,
          shown || cost ? made("p", {}, made("span", {}, shown), made("span", {}, cost)) : null,
          made("p", {}, made("span", { class: "id", title: row.request }, row.request || "no request"),
            made("button", { type: "button", class: "more", "aria-label": `Details of ${label(row)}`, onclick: () => view(row) }, label(row))))));
  };

  // --- the viewer

  let page = [];
  const view = (row) => {
    const place = page.indexOf(row);
    const move = (step) => made("button", { type: "button", disabled: !page[place + step], onclick: () => view(page[place + step]) },
      step < 0 ? "← Previous" : "Next →");
    const shown = row.files.filter((file) => file.href).map((file) =>
      file.kind === "picture"
        ? file.preview ? made("img", { src: file.href, alt: alternative(row) }) : made("p", {}, file.note)
        : made(file.kind, { src: file.href, controls: true, "aria-label": alternative(row) }));
    const notes = row.files.filter((file) => !file.href).map((file) => made("p", {}, `${file.name || "File"}: ${file.note}`));
    const list = made("dl", {});
    const add = (name, ...values) => {
      const there = values.filter(Boolean);
      if (there.length) list.append(made("dt", {}, name), made("dd", {}, ...there));
    };
    const [file] = row.files.filter((found) => found.href);
    add("Item", row.id ? `${row.id} (#${row.index})` : `#${row.index}`);
    add("State", made("span", { class: `state ${tone(row.state)}` }, row.state));
    add("Size", pixels(row, file));
    add("Cost", row.cost === null ? null : dollars(row.cost));
    add("Request", row.request ? made("code", {}, row.request) : null);
    add("Time", row.seconds === null ? null : seconds(row.seconds));
    if (row.timings) {
      for (const phase of phases) if (row.timings[phase] !== null) add(`– ${phase}`, seconds(row.timings[phase]));
      add("Polls", row.timings.polls === null ? null : String(row.timings.polls));
      add("Noticed", row.timings.lag_max === null ? null : `at most ${seconds(row.timings.lag_max)} late`);
    }
    for (const found of row.files)
      add("File", found.href ? made("a", { href: found.href, target: "_blank", rel: "noopener" }, found.name || "file") : found.name,
        found.bytes === null ? null : ` (${bytes(found.bytes)})`);
    const close = made("button", { type: "button", onclick: () => viewer.close() }, "Close");
    viewer.replaceChildren(
      made("div", { class: "stage" }, ...shown, ...notes, shown.length + notes.length ? null : made("p", {}, "No file")),
      made("div", { class: "side" },
        made("div", { class: "moves" }, move(-1), move(1), close),
        made("p", { class: "whole", dir: "auto" }, row.prompt),
        row.error ? made("p", { class: "whole", dir: "auto" }, `${row.error.type}: ${row.error.message}`) : null,
        row.error ? made("p", { class: "todo" }, ...marked(row.error.todo)) : null,
        row.timings && row.seconds !== null ? timeline(row) : null,
        list));
    viewer.setAttribute("aria-label", `${label(row)}, ${row.state}`);
    if (!viewer.open) viewer.showModal();
    close.focus();
    viewer.onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step && page[place + step] && !["VIDEO", "AUDIO"].includes(event.target.tagName)) view(page[place + step]);
    };
  };
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
  viewer.addEventListener("close", () => viewer.replaceChildren());

  // --- rows

  const loading = new Map();
  window.fluxKleinRows = (chunk, found) => {
    found.forEach((row, place) => (rows[chunk * facts.chunk + place] = row));
  };
  const load = (chunk) => {
    if (!loading.has(chunk)) {
      loading.set(chunk, new Promise((resolve, reject) => {
        const script = made("script", { src: `${facts.files}/${facts.chunks[chunk]}` });
        script.onload = resolve;
        script.onerror = () => reject(new Error("rows are missing"));
        document.head.append(script);
      }));
    }
    return loading.get(chunk);
  };
  const all = () => Promise.all(facts.chunks.map((_, chunk) => load(chunk)));
  const searched = (row) =>
    (row.search ??= [row.prompt, row.id, row.request, `#${row.index}`, row.state, row.error && row.error.type, row.error && row.error.message]
      .concat(row.files.map((file) => file.name)).filter(Boolean).join("\n").toLowerCase());

  // --- filter, page and address: the part behind # is the whole state of the page

  const wanted = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    return { state: given.get("state") || "", text: given.get("text") || "", page: Math.max(1, Number.parseInt(given.get("page"), 10) || 1) };
  };
  const go = (change, replace = false) => {
    const next = { ...wanted(), page: 1, ...change };
    const given = new URLSearchParams(Object.entries(next).filter(([name, value]) => value && !(name === "page" && value === 1)));
    if (replace) location.replace(`#${given}`);
    else location.hash = given.toString();
  };

  const pagerOf = (nav, current, pages) => {
    const move = (to, words) => made("button", { type: "button", disabled: to < 1 || to > pages, onclick: () => go({ page: to }) }, words);
    const field = made("input", { type: "number", min: 1, max: pages, value: current, "aria-label": "Page",
      onchange: (event) => go({ page: Math.min(pages, Math.max(1, event.target.valueAsNumber || 1)) }) });
    nav.replaceChildren(move(current - 1, "Previous"), field, made("span", {}, `of ${number.format(pages)}`), move(current + 1, "Next"));
    nav.hidden = pages < 2;
  };

  let turn = 0, last = null;
  const show = async () => {
    const mine = ++turn, filter = wanted();
    if (document.activeElement !== text) text.value = filter.text; // else someone is typing
    for (const radio of document.querySelectorAll("#states input")) radio.checked = radio.value === filter.state;
    const end = String(facts.states.indexOf(filter.state));
    let places = [];
    for (let place = 0; place < facts.count; place++) if (!filter.state || facts.ends[place] === end) places.push(place);
    const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
    try {
      if (words.length) {
        if (loading.size < facts.chunks.length) status.textContent = "Searching …";
        await all();
        places = places.filter((place) => words.every((word) => searched(rows[place]).includes(word)));
      }
      const pages = Math.max(1, Math.ceil(places.length / PAGE)), current = Math.min(filter.page, pages);
      const some = places.slice((current - 1) * PAGE, current * PAGE);
      await Promise.all([...new Set(some.map((place) => Math.floor(place / facts.chunk)))].map(load));
      if (mine !== turn) return;
      page = some.map((place) => rows[place]);
      items.replaceChildren(...page.map(card));
      if (!page.length) items.append(made("p", { class: "empty" }, facts.count ? "Nothing matches this filter." : "The manifest has no items yet."));
      const from = (current - 1) * PAGE + 1, to = from + page.length - 1;
      const total = number.format(places.length);
      status.textContent = pages > 1 ? `${number.format(from)}–${number.format(to)} of ${total}` : places.length === facts.count ? "" : `${total} found`;
      for (const nav of pagers) pagerOf(nav, current, pages);
      if (last !== null && last !== current) find("bar").scrollIntoView({ block: "start" });
      last = current;
      document.body.dataset.shown = String(mine);
    } catch {
      if (mine === turn) items.replaceChildren(made("p", { class: "empty" }, `The rows of this page are missing: keep ${facts.files} beside it, or make the report again.`));
    }
  };

  let pause = 0;
  text.addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => go({ text: text.value.trim() }, true), 120);
  });
  find("states").addEventListener("change", (event) => go({ state: event.target.value }));
  for (const button of document.querySelectorAll(".failures button")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      go({ state: button.dataset.state, text: button.dataset.text });
      items.focus();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && event.target.tagName !== "INPUT" && !viewer.open) {
      event.preventDefault();
      text.focus();
    }
  });
  window.addEventListener("hashchange", show);
  find("bar").hidden = false;
  show();
})();
