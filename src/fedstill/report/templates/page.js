"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}) => Object.assign(document.createElement(tag), properties);
  const shown = (series) => !series || !document.querySelector(`.switch-${series}:not(:checked)`);

  // Legends: those that hold the same series agree, and one button switches all of a legend.
  for (const legend of all(".legend")) {
    const switches = all(".switch", legend);
    const button = make("button", { type: "button" });
    const name = () => { button.textContent = switches.some((one) => one.checked) ? "Show none" : "Show all"; };
    button.onclick = () => {
      const on = !switches.some((one) => one.checked);
      for (const one of switches) if (one.checked !== on) one.click();
    };
    legend.addEventListener("change", name);
    if (switches.length > 2) legend.append(button);
    name();
  }
  document.addEventListener("change", ({ target }) => {
    if (target.matches(".switch")) for (const twin of all(`.${target.classList[1]}`)) twin.checked = target.checked;
  });

  // Charts: the nearest point, by pointer or by arrow keys.
  const readable = (plot) => {
    const svg = plot.querySelector("svg");
    const data = JSON.parse(plot.querySelector("script").textContent);
    const box = svg.viewBox.baseVal;
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    const readout = make("output", { className: "readout" });
    let at = null; // [track, point] or [row, column]
    plot.append(readout);
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", `${plot.parentElement.firstElementChild.textContent}: arrow keys read its points`);
    ring.setAttribute("class", "ring");
    ring.setAttribute("r", 5);

    const cell = ([row, column]) => {
      const [left, top, right, bottom] = data.f;
      return {
        x: left + (right - left) * (column + .5) / data.columns.length,
        y: top + (bottom - top) * (row + .5) / data.rows.length,
        name: data.rows[row], text: `${data.column}${data.columns[column]}: ${data.texts[row][column]}`,
      };
    };
    const point = ([track, index]) => {
      const [, name, points] = data.t[track];
      const [x, y, where, value] = points[index];
      return { x, y, name, text: where && value ? `${where}: ${value}` : where || value };
    };
    const clear = () => { at = null; ring.remove(); readout.textContent = ""; };
    const show = (where) => {
      at = where;
      const { x, y, name, text } = data.f ? cell(where) : point(where);
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
      svg.append(ring);
      readout.replaceChildren(make("b", { textContent: name }), text);
      const scale = svg.clientWidth / box.width || svg.getBoundingClientRect().width / box.width;
      const left = x * scale + 12 + readout.offsetWidth > plot.scrollLeft + plot.clientWidth ? x * scale - 12 - readout.offsetWidth : x * scale + 12;
      readout.style.transform = `translate(${Math.max(plot.scrollLeft, left)}px, ${Math.max(0, y * scale - readout.offsetHeight - 8)}px)`;
    };
    const nearest = (x, y) => {
      if (data.f) {
        const [left, top, right, bottom] = data.f;
        const column = Math.floor((x - left) / (right - left) * data.columns.length);
        const row = Math.floor((y - top) / (bottom - top) * data.rows.length);
        return data.texts[row]?.[column] === undefined ? null : [row, column];
      }
      let best = null, least = 40 ** 2;
      data.t.forEach(([series, , points], track) => {
        if (shown(series)) points.forEach(([px, py, , , reach = 0], index) => {
          const away = Math.max(0, Math.abs(px - x) - reach) ** 2 + (py - y) ** 2;
          if (away < least) [best, least] = [[track, index], away];
        });
      });
      return best;
    };
    const point_at = (event) => {
      const rect = svg.getBoundingClientRect();
      const found = nearest((event.clientX - rect.left) * box.width / rect.width, (event.clientY - rect.top) * box.height / rect.height);
      if (found) show(found); else clear();
    };
    const step = (down, along) => {
      if (data.f) {
        if (!data.rows.length || !data.columns.length) return null;
        const [row, column] = at ?? [0, -along];
        return [(row + down + data.rows.length) % data.rows.length, (column + along + data.columns.length) % data.columns.length];
      }
      const open = data.t.map(([series], track) => track).filter((track) => shown(data.t[track][0]));
      if (!open.length) return null;
      if (!at || !open.includes(at[0])) return [open[0], 0];
      const track = open[(open.indexOf(at[0]) + down + open.length) % open.length];
      const count = data.t[track][2].length;
      return [track, (Math.min(at[1], count - 1) + along + count) % count];
    };
    const keys = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    svg.addEventListener("pointermove", point_at);
    svg.addEventListener("pointerdown", point_at);
    plot.addEventListener("pointerleave", clear);
    plot.addEventListener("blur", clear);
    document.addEventListener("change", clear); // what it showed may be hidden now
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") clear();
      const found = keys[event.key] && step(...keys[event.key]);
      if (found) { event.preventDefault(); show(found); }
    });
  };
  all(".plot").forEach(readable);

  // Albums: a slider instead of a pile of sheets.
  for (const album of all(".album")) {
    const sheets = all(":scope > .sheet", album);
    if (sheets.length < 2) continue;
    const label = make("label", { className: "slider" });
    const slider = make("input", { type: "range", min: 0, max: sheets.length - 1, step: 1, value: sheets.length - 1, autocomplete: "off" });
    const output = make("output");
    const turn = () => {
      sheets.forEach((sheet, index) => { sheet.hidden = index !== +slider.value; sheet.open = true; });
      output.textContent = sheets[slider.value].firstElementChild.textContent;
      slider.setAttribute("aria-valuetext", output.textContent);
    };
    const more = all(".more", album);
    for (const one of more) one.addEventListener("toggle", () => { for (const other of more) other.open = one.open; });
    label.append(make("span", { textContent: album.dataset.by[0].toUpperCase() + album.dataset.by.slice(1) }), slider, output);
    sheets[0].before(label);
    album.classList.add("turned");
    slider.addEventListener("input", turn);
    turn();
  }

  // A page of a run that goes on reads itself again, and stays where it was.
  const seconds = +document.body.dataset.live;
  if (seconds) {
    const kept = () => all(".switch, .slider input, .live-switch, details");
    const store = () => JSON.stringify([scrollY, ...kept().map((it) => it.open ?? (it.type === "range" ? it.max - it.value : it.checked))]);
    try {
      const [top, ...states] = JSON.parse(sessionStorage.getItem("page") ?? "[0]");
      const its = kept();
      if (states.length === its.length) its.forEach((it, index) => {
        if (it.tagName === "DETAILS") it.open = states[index];
        else if (it.type === "range") { it.value = it.max - states[index]; it.dispatchEvent(new Event("input")); }
        else if (it.checked !== states[index]) it.click();
      });
      scrollTo({ top, behavior: "instant" });
    } catch { /* a browser that stores nothing starts at the top */ }
    setInterval(() => {
      if (!document.querySelector(".live-switch").checked) return;
      try { sessionStorage.setItem("page", store()); } catch { /* as above */ }
      location.reload();
    }, 1000 * seconds);
  }
})();
