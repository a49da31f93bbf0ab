// Draws the page's drawings in the colours that it is read in, and again when those change.
(() => {
  const drawings = [...document.querySelectorAll("pre.mermaid")].map((node) => [node, node.textContent]);
  const dark = () => {
    const chosen = document.body.dataset.theme;
    return chosen === "dark" || (chosen !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  };
  const draw = async () => {
    mermaid.initialize({startOnLoad: false, theme: dark() ? "dark" : "neutral", maxEdges: 2000, maxTextSize: 200000,
      flowchart: {useMaxWidth: false}});  // as large as it can be read: it scrolls by itself
    for (const [node, text] of drawings) {
      node.removeAttribute("data-processed");
      node.textContent = text;
    }
    await mermaid.run({nodes: drawings.map(([node]) => node)});
  };
  let drawn = null;
  const follow = async () => {
    if (drawn === dark()) return;
    drawn = dark();
    await draw();
  };
  document.addEventListener("DOMContentLoaded", follow);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", follow);
  document.addEventListener("DOMContentLoaded", () =>
    new MutationObserver(follow).observe(document.body, {attributes: true, attributeFilter: ["data-theme"]}));
})();
