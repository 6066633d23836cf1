// The theme adds a bar with a button to every block of code after the page is built, puts tables into boxes, and takes
// both out of the order of the tab key. Here each bar gets a name of its own, and what is wider than the page can be
// scrolled by the keyboard.
function mend() {
  document.querySelectorAll("nav.md-code__nav").forEach((bar, number) => {
    const name = `Block of code ${number + 1}`;
    if (bar.getAttribute("aria-label") !== name) bar.setAttribute("aria-label", name);
  });
  const wide = "pre > code:not([tabindex]), .md-typeset__scrollwrap:not([tabindex])";
  document.querySelectorAll(wide).forEach((element) => element.setAttribute("tabindex", "0"));
}
new MutationObserver(mend).observe(document.documentElement, {
  attributeFilter: ["tabindex"],
  childList: true,
  subtree: true,
});
mend();
