// Tables of class `board` can be sorted by their heads and filtered by a word and a verdict; without this they are whole.
document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.board")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const text = (row, k) => row.cells[k].textContent.trim();
    const number = (words) => parseFloat(words.replace(/[^-+\d.]/g, ""));

    heads.forEach((head, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const cells = rows.map((row) => text(row, k)).filter(Boolean);
        const numeric = cells.every((cell) => /^[-+]?\d/.test(cell));
        const order = (a, b) =>
          numeric ? (number(text(a, k).split("(")[0]) || 0) - (number(text(b, k).split("(")[0]) || 0)
                  : text(a, k).localeCompare(text(b, k), "en", { numeric: true });
        body.append(...[...rows].sort((a, b) => (down ? -1 : 1) * order(a, b)));
      });
    });

    const bar = document.createElement("p"), status = document.createElement("span");
    bar.className = "board-filter";
    status.setAttribute("role", "status");
    const field = (name, input) => {
      const label = document.createElement("label");
      label.append(`${name} `, input);
      bar.append(label);
      return input;
    };
    const word = field("Contains", Object.assign(document.createElement("input"), { type: "search" }));
    const judged = heads.findIndex((head) => head.textContent.trim() === "verdict");
    const choice = judged < 0 ? null : field("Verdict", document.createElement("select"));
    choice?.append(new Option("all", ""), ...[...new Set(rows.map((row) => text(row, judged)))].map((one) => new Option(one, one)));
    const filter = () => {
      for (const row of rows) {
        const has = row.textContent.toLowerCase().includes(word.value.toLowerCase());
        row.hidden = !has || Boolean(choice?.value && text(row, judged) !== choice.value);
      }
      status.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} lines`;
    };
    bar.append(status);
    bar.addEventListener("input", filter);
    filter();
    table.parentElement.before(bar);
  }
});
