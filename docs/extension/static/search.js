// Sphinx searches for no word that is a number; five digits are an SQLSTATE, which is what a log leaves its reader with.
// This is loaded before Search is; Search asks for the page's query when the page is there, after this.
document.addEventListener("DOMContentLoaded", () => {
  const parse = Search._parseQuery;
  Search._parseQuery = (query) => {
    const parsed = parse(query);
    for (const state of query.match(/\b\d{5}\b/g) ?? []) {
      parsed[1].add(state);  // words that a page must have
      parsed[3].add(state);  // words that are highlighted
    }
    return parsed;
  };
});
