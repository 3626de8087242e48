"use strict";
(() => {
  const table = document.getElementById("measures");
  const theme = document.getElementById("theme");
  const modes = ["auto", "light", "dark"];
  let mode = 0;
  theme.addEventListener("click", () => {
    mode = (mode + 1) % modes.length;
    if (mode) document.documentElement.dataset.theme = modes[mode];
    else delete document.documentElement.dataset.theme;
    const name = modes[mode][0].toUpperCase() + modes[mode].slice(1);
    theme.textContent = name;
    theme.setAttribute("aria-label", mode ? `${name}: colours on ${modes[mode]}` : "Auto: colours as the system");
  });
  const ready = () => { document.documentElement.dataset.ready = ""; };
  if (!table) return ready();

  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const search = document.getElementById("search"), only = document.getElementById("only");
  const shown = document.getElementById("shown");
  const heads = Array.from(table.tHead.rows[0].cells);

  function filter() {
    const wanted = search.value.trim().toLocaleLowerCase();
    let count = 0;
    for (const row of rows) {
      const text = `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLocaleLowerCase();
      row.hidden = !text.includes(wanted) || (only.checked && !row.classList.contains("drifted"));
      count += !row.hidden;
    }
    shown.textContent = `${count.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
  }
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

  function sort(column) {
    const head = heads[column], numeric = head.classList.contains("number");
    const first = numeric ? "descending" : "ascending", second = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    for (const each of heads) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    rows.sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (Number(x) - Number(y));
    });
    body.append(...rows);
  }
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(column)));
  search.addEventListener("input", filter);
  only.addEventListener("change", filter);
  filter();
  ready();
})();
