// On a phone, a table that is wider than the page is read line by line, each cell with the name of its column before it;
// a plot scrolls, by the keyboard too.
document.addEventListener("DOMContentLoaded", () => {
  const narrow = window.matchMedia("(max-width: 600px)");
  const tables = [...document.querySelectorAll(".bd-content table")].filter((table) => table.tHead?.rows.length === 1);

  for (const table of tables) {
    const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.replace("\u2195", "").trim());
    for (const row of table.tBodies[0].rows)
      [...row.cells].forEach((cell, k) => {
        if (names[k]) cell.dataset.label = names[k];
        cell.classList.toggle("blank", !cell.textContent.trim());
      });
  }

  const stack = () => {
    for (const table of tables) {
      table.classList.remove("stacked");
      const stacked = narrow.matches && table.scrollWidth > table.parentElement.clientWidth + 1;
      table.classList.toggle("stacked", stacked);
      // A table whose display is a block is none to a screen reader, unless it says so.
      const roles = [[table, "table"], ...[...table.rows].map((row) => [row, "row"])];
      for (const cell of table.querySelectorAll("th, td")) roles.push([cell, cell.closest("thead") ? "columnheader" : "cell"]);
      for (const [part, role] of roles) stacked ? part.setAttribute("role", role) : part.removeAttribute("role");
    }
    for (const plot of document.querySelectorAll(".plot")) plot.tabIndex = plot.scrollWidth > plot.clientWidth ? 0 : -1;
  };
  stack();
  narrow.addEventListener("change", stack);
});

// Paper is white, whatever the theme.
{
  const page = document.documentElement;
  let theme;
  window.addEventListener("beforeprint", () => {
    theme = page.dataset.theme;
    page.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => (page.dataset.theme = theme));
}
