// Sort a table by a column: the first time with the largest numbers first, or from A to Z; then in reverse.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, isNumber = head.classList.contains("number");
    const before = head.getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending") : isNumber ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const key = ({ cells }) => (isNumber ? Number(cells[column].dataset.value ?? -Infinity) : cells[column].textContent);
    const compare = isNumber ? (a, b) => (a === b ? 0 : a - b) : (a, b) => a.localeCompare(b);
    const sign = order === "ascending" ? 1 : -1;
    body.append(...[...body.rows].sort((a, b) => sign * compare(key(a), key(b))));
  });
}
// Hide the rows that do not contain the text, in any case.
for (const input of document.querySelectorAll("[data-filter]")) {
  const table = document.getElementById(input.dataset.filter);
  const status = document.getElementById(input.dataset.filter.replace("table-", "status-"));
  input.addEventListener("input", () => {
    const text = input.value.toLowerCase();
    let numShown = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(text);
      numShown += row.hidden ? 0 : 1;
    }
    status.textContent = text ? `${numShown} of ${table.tBodies[0].rows.length} rows` : "";
  });
}
