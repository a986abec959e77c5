"use strict";
(() => {
  const all = (what, where) => [...(where || document).querySelectorAll(what)];
  const number = v => v !== "" && isFinite(v) ? Number(v) : null;
  const compare = (a, b) => {
    const [x, y] = [number(a), number(b)];
    if (x !== null && y !== null) return x - y;
    return x !== null ? -1 : y !== null ? 1 : a.localeCompare(b);
  };
  const said = cell => {
    const key = cell.dataset.v ?? cell.firstChild.textContent;
    return key === "-" ? "" : key;
  };
  const sort = (heading, up) => {
    const table = heading.closest("table"), place = heading.cellIndex;
    const rows = [...table.tBodies[0].rows], key = row => said(row.cells[place]);
    const filled = rows.filter(row => key(row) !== ""), empty = rows.filter(row => key(row) === "");
    filled.sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b)));
    table.tBodies[0].append(...filled, ...empty);
    all("th[aria-sort]", table).forEach(other => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  all("table thead th").forEach(heading => {
    if (heading.closest("table").tBodies[0].rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    const words = heading.classList.contains("w") || heading.textContent.trim() === "#";
    button.addEventListener("click", () => {
      const now = heading.getAttribute("aria-sort");
      sort(heading, now ? now === "descending" : words);
    });
  });
  const form = document.getElementById("filters");
  if (form) {
    form.hidden = false;
    const apply = () => {
      const wanted = Object.fromEntries(new FormData(form));
      const id = wanted.threat;
      all("[data-threat]").forEach(part => { part.hidden = part.dataset.threat !== id; });
      const body = document.querySelector(`div[data-threat="${CSS.escape(id)}"] tbody`);
      let shown = 0;
      all("tr", body).forEach(row => {
        row.hidden = ["family", "kind", "mark"].some(k => wanted[k] && row.dataset[k] !== wanted[k])
          || !words(row).includes(wanted.words.trim().toLowerCase());
        shown += !row.hidden;
      });
      form.querySelector("output").value = `${shown} of ${body.rows.length} models`;
      all("div[data-threat] tr[id]").forEach(row => { row.dataset.anchor = row.id; row.removeAttribute("id"); });
      all("tr", body).forEach(row => { row.id = anchors[words(row)]; });
    };
    const words = row => `${said(row.querySelector("th"))} ${row.dataset.family}`.toLowerCase();
    const anchors = {};
    all("div[data-threat] tr[id]").forEach(row => { anchors[words(row)] = row.id; });
    form.addEventListener("input", apply);
    form.addEventListener("submit", event => event.preventDefault());
    apply();
  }
  all(".legend").forEach(list => {
    const most = 5, boxes = [];
    const hues = new Map();
    const draw = () => {
      const left = most - boxes.filter(box => box.checked).length;
      boxes.filter(box => !box.checked).forEach(box => hues.delete(box));
      boxes.forEach(box => {
        box.disabled = !box.checked && left <= 0;
        box.closest("li").classList.toggle("off", !box.checked);
        const taken = [...hues.values()];
        if (box.checked && !hues.has(box)) hues.set(box, [0, 1, 2, 3, 4].find(h => !taken.includes(h)));
        const hue = box.checked ? `s${hues.get(box)}` : "s6";
        box.nextElementSibling.firstElementChild.setAttribute("class", `${hue} thick`);
        all(`[data-model="${box.value}"]`, list.closest("figure")).forEach(lines => {
          lines.setAttribute("class", hue);
          lines.setAttribute("display", box.checked ? "inline" : "none");
        });
      });
    };
    all("li", list).forEach(item => {
      const label = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.value = item.dataset.line;
      box.checked = !item.hidden;
      item.hidden = false;
      label.append(box, ...item.childNodes);
      item.append(label);
      box.addEventListener("change", draw);
      boxes.push(box);
    });
    if (boxes.length > most) list.insertAdjacentHTML("beforeend", `<li class="most">at most ${most} at a time</li>`);
    draw();
  });
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
})();
