
// The interactive parts of the comparison page. Files are identified by number; text is inserted as text, never as HTML.
"use strict";
(() => {
  const one = (query, within = document) => within.querySelector(query);
  const all = (query, within = document) => [...within.querySelectorAll(query)];
  const hidden = new Set();
  let pinned = null;
  const show = (element) => { if (element) element.hidden = false; };

  // ---- light and dark: not stored
  const theme = one("#theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  const paint = () => {
    const isDark = chosen ?? dark.matches;
    if (chosen !== null) document.documentElement.dataset.theme = isDark ? "dark" : "light";
    theme.setAttribute("aria-pressed", String(isDark));
  };
  theme.addEventListener("click", () => { chosen = !(chosen ?? dark.matches); paint(); });
  dark.addEventListener("change", paint);
  show(theme);
  paint();

  // ---- sorting: numbers by value, text by letter, dashes always last
  const key = (row, column) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
  };
  const sort = (table, header, column) => {
    const up = header.getAttribute("aria-sort") !== "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = all("tbody tr[data-file]", table);
    rows.sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return up ? compare(x, y) : compare(y, x);
    });
    one("tbody", table).prepend(...rows);
  };
  for (const table of all("table.sortable")) {
    all(".columns th", table).forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, header, column));
      header.append(button);
    });
  }

  // ---- filtering the tasks
  const filters = one("#filters");
  const tasks = filters ? all("#tasks-table tbody tr") : [];
  const [byFile, byVerdict, byText] = ["#by-file", "#by-verdict", "#by-text"].map((id) => one(id));
  const matches = (row) => !hidden.has(row.dataset.file)
    && (!byFile.value || row.dataset.file === byFile.value)
    && (!byVerdict.value || row.dataset.verdict === byVerdict.value)
    && row.textContent.toLowerCase().includes(byText.value.trim().toLowerCase());
  const filter = () => {
    if (!filters) return;
    for (const row of tasks) row.hidden = !matches(row);
    const n = tasks.filter((row) => !row.hidden).length;
    one("#count").textContent = n ? `${n} of ${tasks.length} rows` : `None of ${tasks.length} rows matches.`;
  };
  if (filters) {
    for (const control of [byFile, byVerdict, byText])
      for (const event of ["input", "change"]) control.addEventListener(event, filter);
    one("#clear").addEventListener("click", () => {
      for (const control of [byFile, byVerdict, byText]) control.value = "";
      filter();
      byText.focus();
    });
    show(filters);
  }

  // ---- shown files, and the highlighted one
  const costs = ({ dataset: { x, y, speed } }) => [Number(x), Number(y), -speed];
  const beats = (one, other) => one.every((cost, i) => cost <= other[i]) && one.some((cost, i) => cost < other[i]);
  const front = (svg) => {
    const line = one(".front", svg);
    if (!line) return;
    const points = all(".point", svg).filter((point) => !hidden.has(point.dataset.file));
    points.sort((a, b) => a.dataset.x - b.dataset.x || a.dataset.y - b.dataset.y);
    const kept = points.filter((point) => {
      const beaten = points.some((other) => beats(costs(other), costs(point)));
      point.classList.toggle("beaten", beaten);
      return !beaten;
    });
    const drawn = kept.length < 3 ? [] : kept;  // a line through two points is no trend
    line.setAttribute("points", drawn.map((point) => point.dataset.at).join(" "));
  };
  const chips = all(".chip");
  const refresh = () => {
    for (const chip of chips) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.file)));
    for (const element of all("main [data-file]")) {
      const off = hidden.has(element.dataset.file);
      if (element.tagName === "TR" || element.tagName === "DIV") element.hidden = off;
      else element.classList.toggle("off", off);
    }
    for (const svg of all("svg.plot")) { front(svg); rove(svg); }
    filter();
  };
  const pick = (file) => {
    document.body.classList.toggle("picking", file !== null);
    for (const element of all("[data-file]")) element.classList.toggle("picked", element.dataset.file === file);
  };
  for (const chip of chips) {
    const { file } = chip.dataset;
    chip.addEventListener("click", () => {
      if (!hidden.delete(file)) hidden.add(file);
      if (pinned === file) pinned = null;
      pick(hidden.has(file) ? pinned : file);
      refresh();
    });
    for (const event of ["pointerenter", "focus"]) chip.addEventListener(event, () => hidden.has(file) || pick(file));
    for (const event of ["pointerleave", "blur"]) chip.addEventListener(event, () => pick(pinned));
  }
  one("#all-files")?.addEventListener("click", () => { hidden.clear(); pinned = null; pick(null); refresh(); });
  show(one("#legend"));

  // ---- points: hover and focus show their values; one tab stop per plot, arrow keys move between points
  const tip = one("#tip");
  const tell = (spot) => {
    tip.textContent = spot.dataset.said;
    show(tip);
    const at = (one("circle, .shape, .bar", spot) ?? spot).getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left + at.width / 2 - width / 2, document.documentElement.clientWidth - width - 8));
    const above = at.top - height - 10;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${(above > 8 ? above : at.bottom + 10) + scrollY}px`;
  };
  const hush = () => { tip.hidden = true; };
  const spotsOf = (svg) => all(".spot", svg).filter((spot) => !spot.classList.contains("off"));
  const rove = (svg, to = null) => {
    const spots = spotsOf(svg);
    const stop = to ?? spots.find((spot) => spot.getAttribute("tabindex") === "0") ?? spots[0];
    for (const spot of all(".spot", svg)) spot.setAttribute("tabindex", spot === stop ? "0" : "-1");
  };
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const press = (event, svg, spot) => {
    if (event.key === "Enter" || event.key === " ") spot.dispatchEvent(new Event("click"));
    else if (event.key in steps) {
      const spots = spotsOf(svg);
      const next = spots[Math.max(0, Math.min(spots.length - 1, spots.indexOf(spot) + steps[event.key]))];
      rove(svg, next);
      next.focus();
    } else return;
    event.preventDefault();
  };
  for (const svg of all("svg.plot")) {
    // role=img has no focusable parts, so the plot becomes a group with the same name.
    const [title, desc] = [one("title", svg), one("desc", svg)];
    svg.setAttribute("role", "group");
    svg.setAttribute("aria-label", title.textContent);
    svg.setAttribute("aria-describedby", desc.id);
    svg.removeAttribute("aria-labelledby");
    for (const native of all("title", svg)) native.remove();  // else the browser's tooltip covers ours
    for (const spot of all(".spot", svg)) {
      spot.setAttribute("role", "img");
      spot.setAttribute("aria-label", spot.dataset.said.replaceAll("\n", "; "));
      spot.addEventListener("pointerenter", () => tell(spot));
      spot.addEventListener("pointerleave", hush);
      spot.addEventListener("focus", () => tell(spot));
      spot.addEventListener("blur", hush);
      spot.addEventListener("keydown", (event) => press(event, svg, spot));
      spot.addEventListener("click", () => {
        pinned = pinned === spot.dataset.file ? null : spot.dataset.file;
        pick(pinned);
      });
    }
    rove(svg);
  }
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    hush();
    pinned = null;
    pick(null);
  });

  // ---- the metric of the plot of size against quality
  const choice = one("#quality");
  const choose = (wanted) => {
    for (const button of all("button", choice)) button.setAttribute("aria-pressed", String(button.dataset.key === wanted));
    for (const figure of all(".tradeoff")) figure.hidden = figure.dataset.key !== wanted;
  };
  if (choice && all("button", choice).length > 1) {
    for (const button of all("button", choice)) button.addEventListener("click", () => choose(button.dataset.key));
    show(choice);
    choose(one("button", choice).dataset.key);
  }
  filter();
})();
