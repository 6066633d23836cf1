"use strict";
(function () {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const button = document.getElementById("theme");
  const preferred = window.matchMedia("(prefers-color-scheme: dark)");
  const views = {};
  let printing = false;

  function theme() {
    if (printing) return "light";
    return root.dataset.theme || (preferred.matches ? "dark" : "light");
  }
  function showTheme() {
    const dark = theme() === "dark";
    button.setAttribute("aria-pressed", String(dark));
    button.textContent = dark ? "Light" : "Dark";
    button.setAttribute("aria-label", dark ? "Light theme" : "Dark theme");
  }

  // A chart as wide as its place; small ones beside each other as many as fit.
  function fitted(entry, width) {
    const spec = structuredClone(entry.spec);
    const config = structuredClone(data.themes[theme()]);
    const narrow = width < 560;
    if (entry.each) spec.columns = Math.max(1, Math.floor((width + 20) / (entry.each + 50)));
    if (narrow) {
      config.axis.labelLimit = 104;
      config.axisX = Object.assign({}, config.axisX, { tickCount: 4, labelOverlap: true });
      config.legend.columns = Math.max(1, Math.floor(width / 170));
      config.legend.labelLimit = 150;
      config.legend.layout = { top: { direction: "vertical" } };
      config.axisX.titleAnchor = "end";
      config.axisX.titleAlign = "right";
      limit(spec, 110, config.legend.columns);
      if (entry.each && spec.spec && spec.spec.width > width - 120) spec.spec.width = Math.max(120, width - 130);
    } else {
      config.legend.columns = Math.max(1, Math.floor(width / 230));
    }
    return { spec: spec, config: config };
  }

  // Long names of layers leave a narrow chart no room.
  function limit(part, most, columns) {
    for (const key in part) {
      if (key === "legend" && part[key] && part[key].columns) part[key].columns = Math.min(part[key].columns, columns);
      if (key === "labelLimit") part[key] = Math.min(part[key], most);
      else if (key !== "data" && key !== "datasets" && part[key] && typeof part[key] === "object") limit(part[key], most, columns);
    }
  }

  async function draw(name) {
    const place = document.getElementById("chart-" + name);
    if (place.closest("details:not([open])")) return; // drawn when its section is opened
    const made = fitted(data.figures[name], place.clientWidth);
    if (views[name]) views[name].finalize();
    const found = await vegaEmbed(place, made.spec, {
      mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: made.config, tooltip: { theme: "custom" }
    });
    views[name] = found;
    // What is wider than its place scrolls sideways, by the keyboard too.
    if (place.scrollWidth > place.clientWidth) place.tabIndex = 0;
    else place.removeAttribute("tabindex");
  }
  let queue = Promise.resolve();
  function drawAll(names) {
    root.dataset.drawn = "no";
    const mine = queue = queue.then(async function () {
      for (const name of names || Object.keys(data.figures)) {
        await draw(name);
        await new Promise(function (next) { setTimeout(next, 0); });
      }
      if (mine === queue) root.dataset.drawn = "yes";
    });
    return queue;
  }

  button.addEventListener("click", function () {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    showTheme();
    drawAll();
  });
  preferred.addEventListener("change", function () { showTheme(); drawAll(); });
  let width = window.innerWidth, waiting = 0;
  window.addEventListener("resize", function () {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(function () { drawAll(); }, 200);
  });
  window.matchMedia("print").addEventListener("change", function (event) {
    printing = event.matches;
    drawAll();
  });

  function sort(header) {
    const table = header.closest("table"), body = table.tBodies[table.tBodies.length - 1];
    const index = Array.prototype.indexOf.call(header.parentNode.children, header);
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of header.parentNode.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    function key(row) {
      const cell = row.children[index];
      if (cell.dataset.value !== undefined) return parseFloat(cell.dataset.value);
      const text = cell.textContent.trim(), plain = parseFloat(text.replace(/[,%×\s]/g, ""));
      return /^[-+−]?[\d.,]+\s*[%×]?$/.test(text) && !isNaN(plain) ? plain : text;
    }
    const rows = Array.from(body.rows).map(function (row) { return [key(row), row]; });
    rows.sort(function (a, b) {
      const x = a[0], y = b[0];
      if (x === "" || y === "") return (x === "") - (y === "");
      if (x !== x || y !== y) return (x !== x) - (y !== y);
      const sign = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), undefined, { numeric: true });
      return up ? sign : -sign;
    });
    for (const pair of rows) body.appendChild(pair[1]);
  }
  document.addEventListener("click", function (event) {
    const header = event.target.closest("table.sortable thead button");
    if (header) sort(header.parentNode);
    const pin = event.target.closest("button.pin");
    if (pin) { pinRow(pin, pin.getAttribute("aria-pressed") !== "true"); pin.focus(); }
    const save = event.target.closest("button.save");
    if (save) saveFigure(save.dataset.figure, save.dataset.kind);
  });

  async function saveFigure(name, kind) {
    const link = document.createElement("a");
    link.download = name + "." + kind;
    if (views[name]) link.href = await views[name].view.toImageURL(kind, 2);
    else {
      const svg = document.querySelector("#figure-" + name + " svg").cloneNode(true);
      const style = getComputedStyle(root);
      const text = new XMLSerializer().serializeToString(svg).replace(/var\(--(\w+)[^)]*\)/g, function (_, key) {
        return style.getPropertyValue("--" + key).trim();
      });
      const source = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
      link.href = kind === "svg" ? source : await raster(source, svg);
    }
    link.click();
  }
  function raster(source, svg) {
    return new Promise(function (done, failed) {
      const image = new Image();
      image.onload = function () {
        const canvas = document.createElement("canvas");
        canvas.width = 2 * Number(svg.getAttribute("width"));
        canvas.height = 2 * Number(svg.getAttribute("height"));
        const pen = canvas.getContext("2d");
        pen.fillStyle = getComputedStyle(document.body).backgroundColor;
        pen.fillRect(0, 0, canvas.width, canvas.height);
        pen.drawImage(image, 0, 0, canvas.width, canvas.height);
        done(canvas.toDataURL("image/png"));
      };
      image.onerror = failed;
      image.src = source;
    });
  }

  // The trials: rows that hold every word and every choice are shown; pinned rows stay on top, and stay shown.
  const trials = document.getElementById("trials-table");
  function pinRow(pin, on) {
    const row = pin.closest("tr");
    pin.setAttribute("aria-pressed", String(on));
    row.hidden = false;
    if (on) trials.tBodies[0].appendChild(row);
    else { trials.tBodies[1].prepend(row); filter(); }
  }
  function filter() {
    const words = document.getElementById("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = Array.from(document.querySelectorAll(".filters select")).filter(function (one) { return one.value; });
    const rows = Array.from(trials.tBodies[1].rows);
    for (const row of rows) {
      const cells = Array.from(row.cells, function (cell) { return cell.textContent.trim(); });
      const text = cells.join(" ").toLowerCase();
      row.hidden = !words.every(function (word) { return text.includes(word); }) ||
        !chosen.every(function (one) { return cells[Number(one.dataset.column)] === one.value; });
    }
    const shown = rows.filter(function (row) { return !row.hidden; }).length, pinned = trials.tBodies[0].rows.length;
    document.getElementById("found").textContent = shown + " of " + rows.length + " rows" + (pinned ? ", " + pinned + " pinned" : "");
  }
  if (trials) {
    const dense = trials.tBodies[1].querySelector("tr[data-kind=dense] .pin");
    if (dense) pinRow(dense, true);
    document.querySelector(".filters").addEventListener("input", filter);
    filter();
  }

  // Sections are folded; a link to one opens it, and its charts are drawn when there is room for them.
  const folds = Array.from(document.querySelectorAll("details"));
  const everything = document.getElementById("all");
  function showAll() {
    const open = folds.every(function (one) { return one.open; });
    everything.setAttribute("aria-expanded", String(open));
    everything.textContent = open ? "Close all" : "Open all";
  }
  for (const fold of folds) fold.addEventListener("toggle", function () { showAll(); remember(); drawFresh(fold); });
  function drawFresh(fold) {
    if (!fold.open) return;
    const names = Object.keys(data.figures).filter(function (name) {
      return !views[name] && fold.contains(document.getElementById("chart-" + name));
    });
    if (names.length) drawAll(names);
  }
  everything.addEventListener("click", function () {
    const open = !folds.every(function (one) { return one.open; });
    for (const fold of folds) fold.open = open;
  });
  function openTarget() {
    const target = document.getElementById(location.hash.slice(1)), fold = target && target.querySelector("details.fold");
    if (fold) { fold.open = true; target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", openTarget);
  document.querySelector("nav").addEventListener("click", function (event) {
    if (event.target.closest("a")) setTimeout(openTarget, 0);
  });

  // A page that follows a run asks its server whether there is more, and comes back as it was: what is open, where it is.
  const following = document.getElementById("following");
  function remember() {
    if (following) sessionStorage.setItem("open", JSON.stringify(folds.map(function (one) { return one.open; })));
  }
  if (following) {
    const open = JSON.parse(sessionStorage.getItem("open") || "[]");
    folds.forEach(function (one, at) { if (at in open) one.open = open[at]; });
    let known = null;
    setInterval(async function () {
      try {
        const state = await (await fetch("state")).json();
        following.textContent = state.text;
        if (known === null) known = state.version;
        const busy = document.hidden || /^(INPUT|SELECT)$/.test(document.activeElement.tagName);
        const waited = performance.now() > 10000 || !state.running;
        if (known !== state.version && waited && !busy) location.reload();
      } catch (error) { following.textContent = "the server of this page has ended"; }
    }, 2000);
  }

  const links = {};
  for (const link of document.querySelectorAll("nav a")) links[link.hash.slice(1)] = link;
  const watcher = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      for (const id in links) links[id].removeAttribute("aria-current");
      if (links[entry.target.id]) links[entry.target.id].setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-10% 0px -80% 0px" });
  for (const section of document.querySelectorAll("main > section")) watcher.observe(section);

  showTheme();
  showAll();
  openTarget();
  drawAll();
})();
