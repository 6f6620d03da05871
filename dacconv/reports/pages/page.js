"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(table, heads, column));
  });
}
function sort(table, heads, column) {
  const head = heads[column];
  const number = head.classList.contains("number");
  const now = head.getAttribute("aria-sort");
  const up = now ? now === "descending" : !number;
  for (const other of heads) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.sort;
  const order = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");  // unknown last, either way
    const plain = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return up ? plain : -plain;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
}
for (const details of document.querySelectorAll("details.code")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const text = details.querySelector("code");
    try {
      await navigator.clipboard.writeText(text.textContent);
    } catch {  // a file:// page may not be let: select it instead
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  details.append(button);
}
