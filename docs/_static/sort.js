// Tables of class "sortable": a click or Enter on a heading sorts by that column, and again the other way round.
document.addEventListener("DOMContentLoaded", () => {
  const value = (row, column) => row.cells[column].textContent.trim();
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th").forEach((heading, column) => {
      heading.tabIndex = 0;
      heading.setAttribute("role", "button");
      const sort = () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows].sort((a, b) =>
          value(a, column).localeCompare(value(b, column), "en", { numeric: true }));
        table.tBodies[0].append(...(down ? rows.reverse() : rows));
      };
      heading.addEventListener("click", sort);
      heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
    });
  }
});
