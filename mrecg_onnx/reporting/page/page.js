"use strict";
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => { try { return localStorage.getItem("mrecg-onnx-theme"); } catch { return null; } };
  const show = (theme) => { root.dataset.theme = theme; };
  show(stored() ?? (dark.matches ? "dark" : "light"));
  dark.addEventListener("change", () => { if (!stored()) show(dark.matches ? "dark" : "light"); });
  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    show(theme);
    try { localStorage.setItem("mrecg-onnx-theme", theme); } catch { /* a page from a file may have no storage */ }
  });

  const value = (row, index) => {
    const cell = row.cells[index];
    return cell.dataset.order === undefined ? cell.textContent : Number(cell.dataset.order === "inf" ? Infinity : cell.dataset.order === "-inf" ? -Infinity : cell.dataset.order);
  };
  for (const edge of document.querySelectorAll(".edge")) {
    const box = edge.firstElementChild;
    const mark = () => {
      edge.classList.toggle("left", box.scrollLeft > 1);
      edge.classList.toggle("right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
      edge.classList.toggle("below", box.scrollTop + box.clientHeight < box.scrollHeight - 1);
    };
    box.addEventListener("scroll", mark, { passive: true });
    new ResizeObserver(mark).observe(box);
    new ResizeObserver(mark).observe(box.firstElementChild);
    mark();
  }
  for (const block of document.querySelectorAll(".tabular")) {
    const body = block.querySelector("tbody"), rows = [...body.rows], heads = [...block.querySelectorAll("th")];
    heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"), next = now === "ascending" ? "descending" : now === "descending" ? null : "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const order = next === null ? rows : [...rows].sort((one, two) => {
        const a = value(one, index), b = value(two, index);
        if (typeof a === "number" && typeof b === "number") return a === b ? 0 : sign * (a < b ? -1 : 1);
        return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
      });
      body.append(...order);
    }));
    const field = block.querySelector(".filter input"), count = block.querySelector(".count");
    field?.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of rows) {
        const text = [...row.cells].map((cell) => `${cell.title} ${cell.textContent}`).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      count.textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
    });
  }
})();
